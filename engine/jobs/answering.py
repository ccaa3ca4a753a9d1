"""Jobs of any task of engine/tasks: its answers as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import InputError, NotFiniteError
from ..failures import is_out_of_memory
from ..loading import load
from ..streaming.stream import EncodeStats
from ..tasks.task import Task
from ..tasks.text_classification import ClassificationOptions
from .inputs.long_texts import IsEnough
from .inputs.rows import Row
from .shapes import draws_unseeded, shape_of
from .task import Answers

__all__ = ["AnsweringTask"]


class AnsweringTask:
    """An answer for every row, in columns as shapes.py has them.

    A row whose scores are not finite is asked again, by itself, in float32 by the eager implementation. Where tokens
    are drawn and no seed is given it is 0: a job that goes on must write what an unbroken one would.

    Args:
        task: from `padless.load(path, task=…)`.
        options: of its calls.

    Raises:
        OptionError: an option is unknown or out of range, or the model does not fit the task.
    """

    def __init__(self, task: Task[Any, Any], options: Mapping[str, Any] | None = None) -> None:
        self._task = task
        self._given = {**task.defaults, **(options or {})}
        self._options = task.options(self._given)
        if draws_unseeded(task, self._options):
            self._given["seed"] = 0
            self._options = task.options(self._given)
        self._shape = shape_of(task, self._options)
        self._check()

    @property
    def name(self) -> str:
        return self._task.name

    @property
    def paired(self) -> bool | None:
        """Whether rows need a pair column, have no use for one, or may have one (None)."""
        return self._shape.paired

    @property
    def several(self) -> bool:
        """Whether a pair is a list of strings."""
        return self._shape.several

    @property
    def description(self) -> dict[str, object]:
        fixed = {"deterministic": True} if self._task.loaded.model.deterministic else {}
        return {**self._given, "max_seq_length": self._task.loaded.max_length, **fixed}

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        return self._shape.fields

    @property
    def folder(self) -> Path:
        return self._task.loaded.folder

    @property
    def dtype(self) -> str:
        return str(self._task.loaded.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self._task.loaded.device)

    @property
    def token_budget(self) -> int:
        return self._task.loaded.token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        self._task.loaded.token_budget = value

    @property
    def is_enough(self) -> IsEnough | None:
        options = self._options
        if not isinstance(options, ClassificationOptions) or options.long_texts == "chunk":
            return None
        return self._task.loaded.limited(options.max_length).tokenizer.is_enough

    def explain(self) -> str:
        return self._task.explain()

    def failed_kernels(self) -> list[str]:
        return self._task.failed_kernels()

    def run(self, rows: Sequence[Row], stats: EncodeStats, on_batch: Callable[[int, int], None]) -> Answers:
        items: list[tuple[int, Any]] = []
        bad: dict[int, InputError] = {}
        for place, row in enumerate(rows):
            try:
                items.append((place, self._task.read([self._shape.item(row)], {})[0][0]))
            except InputError as error:
                bad[place] = type(error)(str(error).removeprefix("row 0: "))
        found: list[Any] = [None] * len(rows)
        truncated: set[int] = set()
        answers = self._task.answers(
            (item for _, item in items),
            self._options,
            stats=stats,
            on_batch=lambda _, tokens: on_batch(0, tokens),
            on_truncated=lambda number: truncated.add(items[number][0]),
        )
        for (place, item), answer in zip(items, answers, strict=True):
            if isinstance(answer, NotFiniteError):
                stats.fallbacks += 1
                (answer,) = self._exact.answers([item], self._options)
            if isinstance(answer, InputError):
                bad[place] = answer
            else:
                found[place] = self._shape.values(answer)
            on_batch(1, 0)
        on_batch(len(rows) - len(items), 0)
        columns = [
            pa.array([None if values is None else values[place] for values in found], field.type)
            for place, field in enumerate(self.fields)
        ]
        return Answers(columns, bad, truncated)

    def _check(self) -> None:
        """Ask for the pieces of a row: what is wrong with options and model is known before a folder is made."""
        for pair in (None, "a", ["a"]):
            row = Row(0, "", 0, None, "a", pair=pair)
            with suppress(InputError):
                items, _ = self._task.read([self._shape.item(row)], {})
                self._task.tokenise(items, self._options)

    @cached_property
    def _exact(self) -> Task[Any, Any]:
        """The same task in float32 on the eager implementations; on the CPU where the GPU has no room for it."""
        ours = self._task.loaded

        def loaded(device: Any) -> Any:
            fixed = ours.model.deterministic  # which eager does not promise
            rows = "auto" if fixed else "eager"
            return load(ours.folder, task=self.name, device=device, dtype="float32", backend=rows, deterministic=fixed)

        try:
            task = loaded(ours.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            task = loaded("cpu")
        # As the caller may have set them.
        task.loaded.tokenizer, task.loaded.spelling = ours.tokenizer, ours.spelling
        return task
