"""errors.jsonl: one record for every row that has no vector, or whose text was changed before it got one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError
from .durable import append_durably
from .inputs.rows import Row

__all__ = ["RowRecord", "append_records", "record_of"]


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One line of errors.jsonl.

    Attributes:
        file: the input file, as the caller named it.
        row: position among all rows of the job, from 0; the column `row` of the output.
        file_row: position among the rows of that file, from 0.
        id: value of the id column, or None.
        kind: "error" where the row has no vector; "repaired" where it has the vector of the repaired text.
        error: of kind "error" the name of the exception: "InputError", or one of its kinds, "NotFiniteError" and
            "MemoryLimitError".
        reason: what was found and what was expected.
    """

    file: str
    row: int
    file_row: int
    id: int | str | None
    kind: Literal["error", "repaired"]
    error: str | None
    reason: str


def record_of(row: Row, error: InputError | None = None) -> RowRecord:
    """The record of a bad or repaired row; with `error`, of a row that turned out to be bad later."""
    kind = "repaired" if row.kind == "repaired" and error is None else "error"
    found = InputError(row.reason) if error is None else error
    name = type(found).__name__ if kind == "error" else None
    return RowRecord(row.file, row.number, row.file_row, row.id, kind, name, str(found))


def append_records(path: Path, records: Sequence[RowRecord]) -> int:
    """Append the records of one shard, lastingly, and return the file's new length in bytes.

    Raises:
        JobError: if the disk refuses.
    """
    # ASCII: a line of this file can be read whatever the row held.
    return append_durably(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))
