"""What a job computes, as the runner of jobs sees it: rows in, columns of results out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from ..errors import InputError
from .inputs.long_texts import IsEnough
from .inputs.rows import Row

if TYPE_CHECKING:
    from ..streaming.stream import EncodeStats

__all__ = ["Answers", "JobTask"]


@dataclass(slots=True)
class Answers:
    """The results of a window of rows.

    Attributes:
        columns: an array for each field of the task, a value for each row; any value where the row is bad.
        bad: index into the rows -> why there is no result for it.
        truncated: indices of the rows whose text the model did not see whole.
    """

    columns: list[pa.Array]
    bad: dict[int, InputError] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)


class JobTask(Protocol):
    """A loaded model and what is done with it. The same rows must give the same bits, whatever came before them.

    Attributes:
        name: "embedding", "text-classification", ...
        description: the options that determine the results, as JSON knows them; a job with others is another job.
        fields: columns of the results.
        folder: where the model was loaded from; its files are part of what the job is.
        dtype: what the model computes in, such as "float32".
        device: where it computes, such as "cpu" or "cuda:0".
        token_budget: most tokens in a batch; the job sets it.
        paired: whether rows need a pair column (True), have no use for one (False), or may have one (None).
        several: whether a pair is a list of strings, such as choices, and not one string.
        is_enough: whether the task sees the same of every text, without a pair, that begins with a given one; None
            where it sees texts whole.
    """

    @property
    def token_budget(self) -> int: ...

    @token_budget.setter
    def token_budget(self, value: int) -> None: ...

    @property
    def name(self) -> str: ...

    @property
    def paired(self) -> bool | None: ...

    @property
    def several(self) -> bool: ...

    @property
    def description(self) -> dict[str, object]: ...

    @property
    def fields(self) -> tuple[pa.Field, ...]: ...

    @property
    def folder(self) -> Path: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def is_enough(self) -> IsEnough | None: ...

    def explain(self) -> str:
        """The implementations that serve, for people."""
        ...

    def failed_kernels(self) -> list[str]:
        """Kernels that could not be compiled or started so far, and how; others served in their place."""
        ...

    def run(self, rows: Sequence[Row], stats: EncodeStats, on_batch: Callable[[int, int], None]) -> Answers:
        """Compute the results of rows that have a text.

        Args:
            rows: of one window, at least one.
            stats: counters to add to.
            on_batch: to be called with (texts, tokens) after each batch, in the caller's thread.

        Raises:
            PadlessError: nothing in the row's text explains it; the job stops. A row that cannot be computed belongs
                into `Answers.bad` instead.
        """
        ...
