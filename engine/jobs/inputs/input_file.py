"""What every input of a job can do, whatever its format, and which of its columns the job uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from ...errors import InputError, OptionError
from .long_texts import IsEnough
from .rows import Row
from .sources import Source

__all__ = ["TEXTS", "InputColumns", "InputFile"]


@dataclass(frozen=True)
class InputColumns:
    """The columns (or fields) that a job reads; all others are left alone.

    Attributes:
        text: what is computed on; of no meaning for plain text, whose lines are the texts.
        pair: the second text, or a list of choices; None for a job on single texts.
        id: integers or strings to carry into the output and the errors file; they need not be unique.
        kept: columns of any type to carry into the output.
    """

    text: str = "text"
    pair: str | None = None
    id: str | None = None
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for column in self.kept:
            if self.kept.count(column) > 1:
                raise OptionError(f"kept columns: {column!r} is named twice, expected once")

    @property
    def names(self) -> list[str]:
        """Every column that is read, each once."""
        found = [self.text, self.pair, self.id, *self.kept]
        return list(dict.fromkeys(column for column in found if column is not None))


TEXTS = InputColumns()
"""A column named "text", and nothing else."""


class InputFile(ABC):
    """One input. Building it checks that it can be read and has the columns; `rows` streams it.

    Attributes:
        path: the file; `Path("-")` for standard input, which must not be opened by this path.
        name: the path as the caller gave it, for messages and records; "-" for standard input.
        format: "parquet", "arrow", "jsonl", "csv", "tsv" or "text".
        bytes: size of the file as it is stored; 0 for standard input.
        rereadable: False for standard input: what was read from it is gone, so that such a job cannot be resumed.
        row_count: rows in the file, bad ones included; None while that is not known without reading it all.
        id_type: Arrow type of the id column, or None where no id was asked for; null for a file of 0 bytes.
        kept_types: Arrow types of the carried columns, in their order.
        is_enough: set by a job whose task sees only the beginnings of long texts; rows then have no more of them.
    """

    is_enough: IsEnough | None = None
    id_type: pa.DataType | None
    kept_types: tuple[pa.DataType, ...]

    def __init__(self, source: Source, columns: InputColumns) -> None:
        self.source, self.columns = source, columns
        self.path, self.name, self.format = source.path, str(source.path), source.format
        self.rereadable = not source.is_standard_input
        try:
            self.bytes = source.path.stat().st_size if self.rereadable else 0
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror})") from error
        self.row_count: int | None = None

    @abstractmethod
    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        """Stream the rows in order, holding a bounded number of them at a time.

        Args:
            first_row: number of the file's first row among all rows of the job, so that the row at position
                `file_row` of the file is numbered `first_row + file_row`, whatever is skipped.
            skip: rows at the beginning of the file that are left out, as cheaply as the format allows.

        Raises:
            InputError: if the file cannot be read further; a bad row is no such case, it is yielded with its reason.
        """

    @property
    @abstractmethod
    def fraction_read(self) -> float:
        """How much of the file `rows` has been through, 0 to 1; an estimate for the progress bar."""

    def require_column(self, column: str, found: list[str]) -> None:
        """Raise InputError unless `column` is exactly once among the columns found."""
        if column not in found:
            shown_names = ", ".join(found[:50]) or "none"
            more = f" and {len(found) - 50} more" if len(found) > 50 else ""
            raise InputError(f"{self.name}: no column {column!r}; columns found: {shown_names}{more}")
        if found.count(column) > 1:
            raise InputError(f"{self.name}: column {column!r} appears {found.count(column)} times, expected once")

    def strings_only(self) -> None:
        """Set the types of a format without types: strings, or null where there is not one byte that could differ."""
        found = pa.null() if self.rereadable and not self.bytes else pa.string()
        self.id_type = None if self.columns.id is None else found
        self.kept_types = (found,) * len(self.columns.kept)
