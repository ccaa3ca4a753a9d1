"""JSON Lines and plain text: one row a line, so that a bad line cannot hurt its neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ..errors import InputError
from .rows import InputFile, Row, make_row, shown

__all__ = ["JsonLinesInput", "PlainTextInput"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINES_SEARCHED_FOR_COLUMN = 1000
_JSON_NAMES = {type(None): "null", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


class _LinesInput(InputFile):
    """What both formats share: raw lines, the byte order mark dropped, and how far the file has been read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: BinaryIO | None = None
        self._done = False
        self._open().close()

    @property
    def fraction_read(self) -> float:
        if self._handle is None:
            return float(self._done or not self.bytes)
        return min(self._handle.tell() / self.bytes, 1.0) if self.bytes else 1.0

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror})") from error

    def _lines(self) -> Iterator[bytes]:
        with self._open() as handle:
            self._handle, self._done = handle, False
            try:
                yield from _lines_of(handle)
            except OSError as error:
                raise InputError(f"{self.name}: unreadable ({error.strerror})") from error
            finally:
                self._handle, self._done = None, True


class PlainTextInput(_LinesInput):
    """A text file: every line is a row, an empty one too; the line's number less one is its position."""

    format = "text"
    id_type = None

    def __init__(self, path: Path, id_column: str | None) -> None:
        """Check that the file can be opened.

        Raises:
            InputError: if it cannot, or if an id column was asked for: plain text has no columns.
        """
        super().__init__(path)
        if id_column is not None:
            raise InputError(f"{self.name}: no column {id_column!r}; a plain text file has no columns")

    def rows(self, first_row: int) -> Iterator[Row]:
        for file_row, line in enumerate(self._lines()):
            number = first_row + file_row
            try:
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                reason = f"line {file_row + 1}: invalid UTF-8 at byte {error.start} of the line"
                yield Row(number, self.name, file_row, None, None, "error", reason)
            else:
                yield make_row(number, self.name, file_row, None, text)


class JsonLinesInput(_LinesInput):
    """A file of one JSON object a line. Blank lines are no rows; numbers of an id column become strings."""

    format = "jsonl"

    def __init__(self, path: Path, text_column: str, id_column: str | None) -> None:
        """Check that the file can be opened and that its first rows know the columns.

        Raises:
            InputError: if the file cannot be opened, or no object in its first 1,000 lines has the column.
        """
        super().__init__(path)
        self.text_column, self.id_column = text_column, id_column
        self.id_type = None if id_column is None else pa.string()
        for column in (text_column, id_column):
            if column is not None:
                self._check_column(column)

    def rows(self, first_row: int) -> Iterator[Row]:
        file_row = 0
        for line_number, line in enumerate(self._lines(), start=1):
            if line.strip():
                yield self._row(line, line_number, first_row + file_row, file_row)
                file_row += 1

    def _row(self, line: bytes, line_number: int, number: int, file_row: int) -> Row:
        record = _parse(line)
        row_id = None
        if isinstance(record, dict):
            row_id = self._id(record)
            if self.text_column not in record:
                found = ", ".join(shown(name) for name in list(record)[:20]) or "none"
                problem = f"no field {self.text_column!r}; fields found: {found}"
            elif isinstance(text := record[self.text_column], str):
                return make_row(number, self.name, file_row, row_id, text)
            else:
                problem = f"field {self.text_column!r} is {_described(text)}, expected a string"
        else:
            problem = record
        return Row(number, self.name, file_row, row_id, None, "error", f"line {line_number}: {problem}")

    def _id(self, record: dict[str, object]) -> str | None:
        value = record.get(self.id_column) if self.id_column is not None else None
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def _check_column(self, column: str) -> None:
        found: dict[str, None] = {}
        with self._open() as handle:
            for line in islice(_lines_of(handle), _LINES_SEARCHED_FOR_COLUMN):
                record = _parse(line)
                if isinstance(record, dict):
                    if column in record:
                        return
                    found.update(dict.fromkeys(record))
        if found:
            self._require_column(column, [shown(name).strip("'") for name in found])


def _lines_of(handle: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(handle):
        yield line if number else line.removeprefix(_BYTE_ORDER_MARK)


def _parse(line: bytes) -> dict[str, object] | str:
    """The line's JSON object, or what is wrong with the line."""
    try:
        record = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return f"malformed JSON at character {error.pos} ({error.msg})"
    except (RecursionError, ValueError) as error:
        return f"malformed JSON ({str(error).splitlines()[0]})"
    return record if isinstance(record, dict) else f"found {_described(record)}, expected a JSON object"


def _described(value: object) -> str:
    name = _JSON_NAMES.get(type(value), "string")
    return name if value is None else f"{name} {shown(value)}"
