"""CSV and TSV files with a header line; a broken record costs its own first line and nothing after it."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from ..errors import InputError
from .rows import InputFile, Row, make_row

__all__ = ["CsvInput"]

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_MAX_RECORD_CHARACTERS = 1 << 27


class CsvInput(InputFile):
    """A CSV (or, with a tab as delimiter, TSV) file in UTF-8: RFC 4180 quoting, a header line, blank lines skipped."""

    format = "csv"

    def __init__(self, path: Path, text_column: str, id_column: str | None, delimiter: str = ",") -> None:
        """Read the header line and find the columns.

        Raises:
            InputError: if the file cannot be read, has no header line, or lacks a column.
        """
        super().__init__(path)
        self.delimiter = delimiter
        self.id_type = None if id_column is None else pa.string()
        self._lines: _Lines | None = None
        self._done = False
        with self._open() as handle:
            self.columns = self._header(_Lines(handle))
        self._require_column(text_column, self.columns)
        self._text_index = self.columns.index(text_column)
        self._id_index = None
        if id_column is not None:
            self._require_column(id_column, self.columns)
            self._id_index = self.columns.index(id_column)

    def rows(self, first_row: int) -> Iterator[Row]:
        with self._open() as handle:
            lines = self._lines = _Lines(handle)
            self._done = False
            try:
                self._header(lines)
                file_row = 0
                for line_number, record in self._records(lines):
                    if record != []:
                        yield self._row(record, line_number, first_row + file_row, file_row)
                        file_row += 1
            except OSError as error:
                raise InputError(f"{self.name}: unreadable ({error.strerror})") from error
            finally:
                self._lines, self._done = None, True

    @property
    def fraction_read(self) -> float:
        if self._lines is None:
            return float(self._done or not self.bytes)
        return min(self._lines.bytes_read / self.bytes, 1.0)

    def _open(self) -> TextIO:
        try:
            # Bytes that are no UTF-8 come through as lone surrogates, so that they spoil their own record only.
            return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror})") from error

    def _header(self, lines: _Lines) -> list[str]:
        for _, record in self._records(lines, header=True):
            if isinstance(record, str):
                raise InputError(f"{self.name}: header line: {record}")
            if record:
                return record
        raise InputError(f"{self.name}: empty, expected a header line")

    def _records(self, lines: _Lines, *, header: bool = False) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (number of the first line, fields or what is wrong with them) for every record."""
        # The limit is one of the whole process and 128 KiB by default; a document may be longer.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_RECORD_CHARACTERS))
        while True:
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                line_number = lines.reject()
                yield line_number, f"malformed CSV ({error})"
                continue
            if not header and record and len(record) != len(self.columns):
                # A quote left open may have swallowed the lines that follow: give them back.
                problem = f"found {len(record)} fields, expected {len(self.columns)}"
                yield lines.reject(), problem
                continue
            invalid = lines.has_escaped_bytes()
            yield lines.accept(), "invalid UTF-8" if invalid else record

    def _row(self, record: list[str] | str, line_number: int, number: int, file_row: int) -> Row:
        if isinstance(record, str):
            return Row(number, self.name, file_row, None, None, "error", f"line {line_number}: {record}")
        row_id = None if self._id_index is None else record[self._id_index]
        return make_row(number, self.name, file_row, row_id, record[self._text_index])


class _Lines:
    """Lines of a file for `csv.reader`, remembering those of the current record so that they can be given back."""

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        self._record_characters = 0
        self._first_line = 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._handle)
        self._record.append(line)
        self._record_characters += len(line)
        if self._record_characters > _MAX_RECORD_CHARACTERS:
            raise csv.Error(f"record longer than {_MAX_RECORD_CHARACTERS} characters, is a quote left open?")
        return line

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file, up to the text layer's own buffer."""
        return self._handle.buffer.tell()

    def has_escaped_bytes(self) -> bool:
        """True where the current record holds bytes that are not UTF-8."""
        return any(not line.isascii() and _ESCAPED_BYTE.search(line) for line in self._record)

    def accept(self) -> int:
        """Take all lines of the current record as used; return the number of its first line."""
        return self._advance(len(self._record))

    def reject(self) -> int:
        """Take only the first line of the current record as used and give the others back; return its number."""
        self._given_back.extendleft(reversed(self._record[1:]))
        return self._advance(1)

    def _advance(self, lines: int) -> int:
        first = self._first_line
        self._first_line += lines
        self._record.clear()
        self._record_characters = 0
        return first
