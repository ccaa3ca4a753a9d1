"""What the process of a job and its workers tell each other; all of it can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.ipc

from .inputs.input_file import InputColumns
from .inputs.sources import Source
from .stages import Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..streaming.stream import EncodeStats
    from .inputs.rows import Row
    from .task import Answers, JobTask

__all__ = [
    "Ask",
    "CommittedUpTo",
    "Ended",
    "Failed",
    "FindBudget",
    "LockFollows",
    "NoRows",
    "Plan",
    "Progressed",
    "Shard",
    "TaskFacts",
    "packed",
]


def packed(schema: pa.Schema) -> bytes:
    """A schema as Arrow writes it: pickled, a list of fixed size loses its field's name and that none is null."""
    return schema.serialize().to_pybytes()


def _unpacked(content: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(content))


@dataclass
class TaskFacts:
    """A `JobTask` that another process holds: all of it but the computing."""

    name: str
    paired: bool | None
    several: bool
    description: dict[str, object]
    packed_fields: bytes
    folder: Path
    dtype: str
    device: str
    token_budget: int
    explanation: str

    @classmethod
    def of(cls, task: JobTask) -> TaskFacts:
        """The facts of a task that is loaded here."""
        return cls(
            task.name, task.paired, task.several, task.description, packed(pa.schema(task.fields)), task.folder,
            task.dtype, task.device, task.token_budget, task.explain(),
        )  # fmt: skip

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """Columns of the results."""
        return tuple(_unpacked(self.packed_fields))

    @property
    def is_enough(self) -> None:
        """Nobody reads rows for a task that is elsewhere."""
        return None

    def explain(self) -> str:
        """The implementations that serve, for people."""
        return self.explanation

    def failed_kernels(self) -> list[str]:
        """None in this process; the others tell theirs with each shard."""
        return []

    def run(self, rows: Sequence[Row], stats: EncodeStats, on_batch: Callable[[int, int], None]) -> Answers:
        raise NotImplementedError("the model is in another process")


@dataclass(frozen=True)
class Plan:
    """To a worker: what it reads and writes.

    Attributes:
        folder: the output folder.
        sources: the input files.
        columns: what is read of each row.
        packed_schema: of a shard, from `packed`.
        has_id: whether it has an id column.
        carried: how many carried columns it has.
        rows_per_shard: input rows a shard covers.
        fixed: token_budget, threads and window of the job's manifest.
    """

    folder: Path
    sources: tuple[Source, ...]
    columns: InputColumns
    packed_schema: bytes
    has_id: bool
    carried: int
    rows_per_shard: int
    fixed: dict[str, Any]

    @property
    def schema(self) -> pa.Schema:
        """Of a shard."""
        return _unpacked(self.packed_schema)


@dataclass(frozen=True)
class FindBudget:
    """To a worker: find the token budget, for so many workers beside each other; it answers with an int."""

    workers: int


@dataclass(frozen=True)
class LockFollows:
    """To a worker: the next thing sent is a handle of the folder's lock, to be held until the process ends."""


@dataclass(frozen=True)
class Shard:
    """To a worker: compute this shard next; None: there are no more.

    Attributes:
        index: number of the shard.
    """

    index: int | None


@dataclass(frozen=True)
class CommittedUpTo:
    """To a worker: all shards below this number are committed; as many more as there are workers may be begun."""

    index: int
    workers: int


@dataclass(frozen=True)
class Ask:
    """From a worker: which shard is next?"""


@dataclass(frozen=True)
class NoRows:
    """From a worker: the inputs end before this shard."""

    index: int


@dataclass(frozen=True)
class Progressed:
    """From a worker: what its listener was told since the last time.

    Attributes:
        texts, tokens: computed in batches.
        skipped: rows that were not computed.
        expected: estimate of all rows of the job, if there is a new one.
        window: tokens, padded tokens and the limiting stage of a window that is done.
    """

    texts: int = 0
    tokens: int = 0
    skipped: int = 0
    expected: int | None = None
    window: tuple[int, int, str] | None = None


@dataclass(frozen=True)
class Ended:
    """From a worker: it has no more to do.

    Attributes:
        stages: where its time went.
    """

    stages: Stages


@dataclass(frozen=True)
class Failed:
    """From a worker: an exception ended it."""

    error: BaseException
