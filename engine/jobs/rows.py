"""A row on its way through a job: the text, or the reason why there is none."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ..errors import InputError

__all__ = ["InputFile", "Row", "make_row", "shown"]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One input row.

    Attributes:
        number: position among all rows of all inputs, from 0; the column `row` of the output.
        file: the input file, as the caller named it.
        file_row: position among the rows of that file, from 0.
        id: value of the id column, or None.
        text: what to compute on, or None where the row is bad.
        kind: "ok"; "repaired" where the text was changed before use; "error" where there is no text.
        reason: what was found and what was expected; empty for "ok".
        pair: the second text of a pair, or the choices that belong to `text`; None where the job has none.
        kept: values of the columns that are carried into the output, in the job's order of them.
    """

    number: int
    file: str
    file_row: int
    id: int | str | None
    text: str | None
    kind: Literal["ok", "repaired", "error"] = "ok"
    reason: str = ""
    pair: str | list[str] | None = None
    kept: tuple[object, ...] = ()


class InputFile(ABC):
    """One input file. Building it checks that the file can be read and has the columns; `rows` streams it.

    Attributes:
        path: the file.
        name: the path as the caller gave it, for messages and records.
        format: "parquet", "jsonl", "csv" or "text".
        bytes: size of the file.
        id_type: Arrow type of the id column, or None where no id was asked for.
    """

    format: str
    id_type: pa.DataType | None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.bytes = path.stat().st_size

    @abstractmethod
    def rows(self, first_row: int) -> Iterator[Row]:
        """Stream the rows in order, the first numbered `first_row`, holding a bounded number of them at a time.

        Raises:
            InputError: if the file cannot be read further; a bad row is no such case, it is yielded with its reason.
        """

    @property
    @abstractmethod
    def fraction_read(self) -> float:
        """How much of the file `rows` has been through, 0 to 1; an estimate for the progress bar."""

    def _require_column(self, column: str, found: list[str]) -> None:
        """Raise InputError unless `column` is exactly once among the columns found."""
        if column not in found:
            shown_names = ", ".join(found[:50]) or "none"
            raise InputError(f"{self.name}: no column {column!r}; columns found: {shown_names}")
        if found.count(column) > 1:
            raise InputError(f"{self.name}: column {column!r} appears {found.count(column)} times, expected once")


def make_row(number: int, file: str, file_row: int, row_id: int | str | None, text: str) -> Row:
    """A row with a text, lone surrogates in the text or the id replaced by U+FFFD and reported.

    No UTF-8 file and no tokenizer takes half of a surrogate pair; left in, one such row would fail its whole batch.
    """
    repaired = []
    if not text.isascii() and _SURROGATE.search(text):
        text, count = _SURROGATE.subn("\ufffd", text)
        repaired.append(f"text: {count} lone surrogates replaced by U+FFFD")
    if isinstance(row_id, str) and not row_id.isascii() and _SURROGATE.search(row_id):
        row_id, count = _SURROGATE.subn("\ufffd", row_id)
        repaired.append(f"id: {count} lone surrogates replaced by U+FFFD")
    if repaired:
        return Row(number, file, file_row, row_id, text, "repaired", "; ".join(repaired))
    return Row(number, file, file_row, row_id, text)


def shown(value: object, limit: int = 40) -> str:
    """A value as it appears in a message: one line, ASCII, cut to `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
