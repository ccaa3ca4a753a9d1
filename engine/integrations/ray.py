"""Ray Data: vectors and answers in `Dataset.map_batches`, a model for each actor.

    from padless.engine.integrations.ray import EmbedBatches
    dataset.map_batches(
        EmbedBatches,
        fn_constructor_kwargs={"model": "path/to/model"},
        batch_format="pyarrow", batch_size=4096, compute=ray.data.ActorPoolStrategy(size=2), num_gpus=1,
    )

Nothing here imports ray: the callables take a table and return one, and Ray tells them by environment variables what
they may use. `CUDA_VISIBLE_DEVICES` has the GPUs of the actor, so that device "auto" is the one it was given, or the
CPU; `OMP_NUM_THREADS` is its `num_cpus`. See docs/ray.md.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..encoder import Encoder
from ..errors import InputError, OptionError
from ..jobs.inputs.rows import Row
from ..jobs.shapes import shape_of
from ..loading import load
from ..tasks.task import Task
from .tables import appended, rows_of

__all__ = ["ERROR_COLUMN", "AnswerBatches", "EmbedBatches"]

ERROR_COLUMN = "padless_error"

Results = tuple[list[pa.Array], dict[int, str]]
"""A column for each field, a value for each row; and why there is none, by index into the rows."""


class _Batches(ABC):
    """Adds columns to a table: a null in them, and the reason in the column of errors, where a row has no result.

    Pickled it is its arguments: the copy loads the model again.
    """

    fields: tuple[pa.Field, ...]

    def __init__(self, text_column: str, pair_column: str | None, error_column: str, arguments: dict[str, Any]) -> None:
        self._text_column, self._pair_column, self._error_column = text_column, pair_column, error_column
        self._arguments = arguments
        names = [text_column, *([] if pair_column is None else [pair_column]), error_column]
        names += [field.name for field in self.fields]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise OptionError(
                f"columns: expected different names, got {repeated[0]!r} twice among {', '.join(map(repr, names))}"
            )

    @abstractmethod
    def results(self, rows: Sequence[Row]) -> Results:
        """The results of rows that have a text."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(type(self), **self._arguments), ()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The table with the columns of the results and that of the errors; rows and other columns as they were.

        Raises:
            InputError: it has no such text column, or already a column of the name of a result.
        """
        rows = rows_of(batch, self._text_column, self._pair_column)
        good = [row for row in rows if row.text is not None]
        columns, bad = self.results(good)
        errors = [row.reason or None for row in rows]
        places: list[int | None] = [None] * len(rows)
        for place, row in enumerate(good):
            if place in bad:
                errors[row.number] = bad[place]
            else:
                places[row.number] = place
        taken = pa.array(places, pa.int64())
        found = {field.name: column.take(taken) for field, column in zip(self.fields, columns, strict=True)}
        return appended(batch, {**found, self._error_column: pa.array(errors, pa.string())})


class EmbedBatches(_Batches):
    """Adds a vector to every row of a table: column `embedding`, fixed_size_list<float32>[dimension].

    A row without one (its text is null, no string or not UTF-8, or the model's vector is not finite) has null there and
    the reason in the column `padless_error`, which is null in all other rows. Rows and their other columns stay as
    they are, in their order. Safe to call from several threads.

    Args:
        model: a folder that every host sees, or `org/name` under `$PADLESS_MODELS` of every host.
        text_column: the column to embed.
        embedding_column: name of the column of vectors.
        error_column: name of the column of reasons.
        prompt_name, normalize_embeddings, truncate_dim, overlap: as of `Encoder.encode`.
        long_texts: "truncate" or "chunk", as of `Encoder.encode`.
        aggregate: "mean" or "max", as of `Encoder.encode`.
        token_budget: most tokens in a batch on the device; None is what fits the type of device.
        num_threads: threads on a CPU; None is what `OMP_NUM_THREADS` says, which Ray sets to the actor's `num_cpus`,
            and else torch's own number.
        load_options: of `padless.load`: `device`, `dtype`, `backend`, `deterministic`, `cuda_graphs`.

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
        token_budget: int | None = None,
        num_threads: int | None = None,
        **load_options: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        arguments |= arguments.pop("load_options")
        _check(load_options, token_budget)
        # What would be no vector, or an end of the whole batch.
        if long_texts not in ("truncate", "chunk"):
            raise OptionError(f"long_texts: expected 'truncate' or 'chunk', got {long_texts!r}")
        if aggregate not in ("mean", "max"):
            raise OptionError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
        _use_threads(num_threads)
        self.encoder: Encoder = load(model, task="embedding", **load_options)
        self.encoder.token_budget = token_budget or self.encoder.token_budget
        self._options: dict[str, Any] = {
            "prompt_name": prompt_name,
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": truncate_dim,
            "long_texts": long_texts,
            "overlap": overlap,
            "aggregate": aggregate,
        }
        # Without texts, but every option is checked: a wrong one ends the actor, not its first batch.
        width = self.encoder.encode([], **self._options).shape[1]
        self.fields = (pa.field(embedding_column, pa.list_(pa.field("element", pa.float32(), nullable=False), width)),)
        super().__init__(text_column, None, error_column, arguments)

    def results(self, rows: Sequence[Row]) -> Results:
        texts = [row.text for row in rows if row.text is not None]
        vectors = self.encoder.encode(texts, check_finite=False, **self._options)
        unusable = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=self.fields[0].type)
        return [column], dict.fromkeys(unusable, "the model's vector is not finite")


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
        found = load(model, task=task, **load_options)
        if not isinstance(found, Task):
            raise OptionError(f"task: {task!r} is embeddings for {model}, expected another task; see EmbedBatches")
        self.task: Task[Any, Any] = found
        self.task.loaded.token_budget = token_budget or self.task.loaded.token_budget
        self._options = self.task.options(options or {})
        self._shape = shape_of(self.task.name, self._options)
        if self._shape.paired is True and pair_column is None:
            raise OptionError(f"pair_column: {self.task.name} needs one, got None")
        if self._shape.paired is False and pair_column is not None:
            raise OptionError(f"pair_column: {self.task.name} has no use for one, got {pair_column!r}")
        self.fields = tuple(field.with_name(prefix + field.name) for field in self._shape.fields)
        super().__init__(text_column, pair_column, error_column, arguments)

    def results(self, rows: Sequence[Row]) -> Results:
        items, bad = [], {}
        for place, row in enumerate(rows):
            try:
                items.append((place, self.task.read([self._shape.item(row)], {})[0][0]))
            except InputError as error:
                bad[place] = str(error).removeprefix("row 0: ")
        values: list[tuple[Any, ...] | None] = [None] * len(rows)
        answers = self.task.answers((item for _, item in items), self._options)
        for (place, _), answer in zip(items, answers, strict=True):
            if isinstance(answer, InputError):
                bad[place] = str(answer)
            else:
                values[place] = self._shape.values(answer)
        columns = [
            pa.array([None if found is None else found[number] for found in values], field.type)
            for number, field in enumerate(self.fields)
        ]
        return columns, bad


def _check(load_options: Mapping[str, Any], token_budget: int | None) -> None:
    """Raise OptionError for what `padless.load` would not refuse in one line."""
    known = ("device", "dtype", "backend", "deterministic", "cuda_graphs")
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
