"""Ray Data: vectors and answers in `Dataset.map_batches`, a model for each actor.

    from padless.engine.integrations.ray import EmbedBatches
    dataset.map_batches(
        EmbedBatches,
        fn_constructor_kwargs={"model": "path/to/model"},
        batch_format="pyarrow", batch_size=4096, compute=ray.data.ActorPoolStrategy(size=2), num_gpus=1,
    )

Nothing here imports ray: the callables take a table and return one, and Ray tells them by environment variables what
they may use. With `num_gpus` an actor's `CUDA_VISIBLE_DEVICES` has its own GPUs, of which device "auto" is the first;
without, Ray 2.60 hides none: name "cpu". `OMP_NUM_THREADS` is its `num_cpus`. See docs/ray.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from ..embedding.encoder import Encoder, EncodeStats
from ..errors import NotFiniteError, OptionError
from ..jobs.answering import AnsweringTask
from ..jobs.embedding import EmbeddingOptions, EmbeddingTask
from ..jobs.finite import not_finite
from ..jobs.task import Answers
from ..loading import load
from ..tasks.task import Task
from .tables import appended, rows_of

__all__ = ["ERROR_COLUMN", "AnswerBatches", "EmbedBatches"]

ERROR_COLUMN = "padless_error"

NOT_FINITE = "the model's results are not finite"


class _Batches:
    """Adds the results of a job's task to a table: null in them, and the reason in the column of errors, where a row
    has none. Pickled it is its arguments: the copy loads the model again.
    """

    def __init__(
        self,
        task: EmbeddingTask | AnsweringTask,
        names: Mapping[str, str],
        columns: tuple[str, str | None, str],
        token_budget: int | None,
        arguments: dict[str, Any],
    ) -> None:
        """Take the task, the columns of its results by its own names, those of texts, pairs and errors."""
        self.task = task
        self.fields = tuple(field.with_name(names[field.name]).with_nullable(True) for field in task.fields)
        self._text_column, self._pair_column, self._error_column = columns
        self._arguments = arguments
        task.token_budget = token_budget or task.token_budget
        all_names = [name for name in (*columns, *(field.name for field in self.fields)) if name is not None]
        if repeated := sorted({name for name in all_names if all_names.count(name) > 1}):
            listed = ", ".join(map(repr, all_names))
            raise OptionError(f"columns: expected different names, got {repeated[0]!r} twice among {listed}")

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(type(self), **self._arguments), ()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The table with the columns of the results and that of the errors; rows and other columns as they were.

        Raises:
            InputError: it has no such text column, or already a column of the name of a result.
        """
        rows = rows_of(batch, self._text_column, self._pair_column)
        good = [row for row in rows if row.text is not None]
        if good:
            answers = self.task.run(good, EncodeStats(), lambda texts, tokens: None)
        else:
            answers = Answers([pa.nulls(0, field.type) for field in self.fields])
        bad = {**dict.fromkeys(not_finite(answers.columns).tolist(), NotFiniteError(NOT_FINITE)), **answers.bad}
        errors = [row.reason or None for row in rows]
        places: list[int | None] = [None] * len(rows)
        for place, row in enumerate(good):
            if place in bad:
                errors[row.number] = str(bad[place])
            else:
                places[row.number] = place
        taken = pa.array(places, pa.int64())
        found = {field.name: column.take(taken) for field, column in zip(self.fields, answers.columns, strict=True)}
        return appended(batch, {**found, self._error_column: pa.array(errors, pa.string())})


class EmbedBatches(_Batches):
    """Adds a vector to every row of a table: column `embedding`, fixed_size_list<float32>[dimension].

    A row without one has null there and the reason in the column `padless_error`, which is null in all other rows: its
    text is null, no string, not UTF-8 or too large for the memory, or the model's vector is not finite, not even in
    float32. Rows and their other columns stay as
    they are, in their order. Safe to call from several threads.

    Args:
        model: a folder that every host sees, or `org/name` under `$PADLESS_MODELS` of every host.
        text_column: the column to embed.
        embedding_column: name of the column of vectors.
        error_column: name of the column of reasons.
        prompt_name, normalize_embeddings, truncate_dim, long_texts, overlap: as of `Encoder.encode`.
        aggregate: "mean" or "max", as of `Encoder.encode`.
        precision: "float32", "float16", "binary" or "ubinary", as of `Encoder.encode`.
        token_budget: most tokens in a batch on the device; None is what fits the type of device.
        num_threads: threads on a CPU; None is what `OMP_NUM_THREADS` says, which Ray sets to the actor's `num_cpus`,
            and else torch's own number.
        load_options: of `padless.load`: `device`, `dtype`, `backend`, `deterministic`, `require_kernels`,
            `cuda_graphs`.

    Raises:
        ModelNotFoundError, ConfigError, WeightsError, TokenizerError, BackendError: as `padless.load`.
        OptionError: an argument is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        text_column: str = "text",
        *,
        embedding_column: str = "embedding",
        error_column: str = ERROR_COLUMN,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        long_texts: str = "truncate",
        overlap: int = 0,
        aggregate: str = "mean",
        precision: str = "float32",
        token_budget: int | None = None,
        num_threads: int | None = None,
        **load_options: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        arguments |= arguments.pop("load_options")
        _check(load_options, token_budget)
        options = EmbeddingOptions(
            prompt_name=prompt_name,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            precision=precision,
            long_texts=long_texts,
            overlap=overlap,
            aggregate=aggregate,
        )
        _use_threads(num_threads)
        encoder: Encoder = load(model, task="embedding", **load_options)
        # Without texts, but every option is checked: a wrong one ends the actor, not its first batch.
        encoder.encode([], **asdict(options))
        columns = text_column, None, error_column
        names = {"embedding": embedding_column}
        super().__init__(EmbeddingTask(encoder, options), names, columns, token_budget, arguments)


class AnswerBatches(_Batches):
    """Adds a task's answer to every row of a table, in the columns that engine/jobs/shapes.py lists.

    A row without one has null there and the reason in the column `padless_error`, as with `EmbedBatches`.

    Args:
        model: a folder that every host sees, or `org/name` under `$PADLESS_MODELS` of every host.
        task: as of `padless.load`; None is what the folder is made for.
        text_column: the column of the texts, or of what the task has in its place, such as the question.
        pair_column: the column of second texts (string) or of choices (list<string>), for the tasks that have them.
        prefix: put before the names of the columns of the answer, for several tasks one after the other.
        error_column: name of the column of reasons.
        options: of the task's calls, such as `{"top_k": 3}`.
        token_budget, num_threads, load_options: as of `EmbedBatches`.

    Raises:
        ModelNotFoundError, ConfigError, WeightsError, TokenizerError, BackendError: as `padless.load`.
        OptionError: an argument is out of range, or the task has no use for a pair column or lacks one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: str | None = None,
        text_column: str = "text",
        pair_column: str | None = None,
        *,
        prefix: str = "",
        error_column: str = ERROR_COLUMN,
        options: Mapping[str, Any] | None = None,
        token_budget: int | None = None,
        num_threads: int | None = None,
        **load_options: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        arguments |= arguments.pop("load_options")
        _check(load_options, token_budget)
        _use_threads(num_threads)
        found: Any = load(model, task=task, **load_options)
        if not isinstance(found, Task):
            raise OptionError(f"task: {task!r} is embeddings for {model}, expected another task; see EmbedBatches")
        answering = AnsweringTask(found, options)
        if answering.paired is True and pair_column is None:
            raise OptionError(f"pair_column: {found.name} needs one, got None")
        if answering.paired is False and pair_column is not None:
            raise OptionError(f"pair_column: {found.name} has no use for one, got {pair_column!r}")
        names = {field.name: prefix + field.name for field in answering.fields}
        super().__init__(answering, names, (text_column, pair_column, error_column), token_budget, arguments)


def _check(load_options: Mapping[str, Any], token_budget: int | None) -> None:
    """Raise OptionError for what `padless.load` would not refuse in one line."""
    known = ("device", "dtype", "backend", "deterministic", "require_kernels", "cuda_graphs")
    if unknown := [name for name in load_options if name not in known]:
        raise OptionError(f"{unknown[0]}: no such option; of padless.load there are {', '.join(known)}")
    if token_budget is not None and token_budget < 1:
        raise OptionError(f"token_budget: expected at least 1, got {token_budget}")


def _use_threads(count: int | None) -> None:
    """Have torch use so many threads; None takes them from `OMP_NUM_THREADS`, where that is a number.

    torch reads the variable when it is imported, which can be before Ray sets it for the actor.

    Raises:
        OptionError: not even one.
    """
    if count is None:
        named = os.environ.get("OMP_NUM_THREADS", "")
        count = int(named) if named.isdecimal() and int(named) else torch.get_num_threads()
    if count < 1:
        raise OptionError(f"num_threads: expected at least 1, got {count}")
    torch.set_num_threads(count)
