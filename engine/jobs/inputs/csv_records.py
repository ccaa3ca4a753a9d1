"""Records of a CSV file; a broken one costs its own first line and nothing after it."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TextIO

__all__ = ["CsvRecords"]

MAX_LINE_CHARACTERS = 1 << 27
"""A longer line is a bad record, and passed over in pieces."""

MAX_RECORD_BYTES = 1 << 28
"""What the lines of one record may take in memory; a quote left open would else swallow the whole file."""

_LINE_OVERHEAD_BYTES = 64
_DROPPED_CHARACTERS = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"


class CsvRecords:
    """The records of a file after its header line: RFC 4180 quoting, blank lines skipped.

    Args:
        handle: the file, opened with `newline=""`; a line ends with LF, CR LF or CR.
        delimiter: one character.

    Attributes:
        header: names of the columns; [] where the file holds nothing but blank lines.

    Raises:
        ValueError: if the header line is malformed.
        OSError: while iterating too, if the file cannot be read.
    """

    def __init__(self, handle: TextIO, delimiter: str) -> None:
        self._lines = _Lines(handle)
        self._delimiter = delimiter
        # The limit is one of the whole process and 128 KiB by default; a document may be longer.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        self.header: list[str] = []
        while not self.header:
            try:
                self.header = next(csv.reader(self._lines, delimiter=delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(str(error)) from error
            self._lines.accept()

    @property
    def line_number(self) -> int:
        """Number of the last line that was taken as used, from 1."""
        return self._lines.used

    def records(self, wanted: Sequence[int]) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (number of the first line, the fields at the `wanted` positions or what is wrong) for every record."""
        lines, delimiter = self._lines, self._delimiter
        delimiters, last = len(self.header) - 1, max(wanted) + 1
        while (line := lines.take()) is not None:
            if '"' in line:
                yield from self._quoted(line, wanted)
                continue
            # Without a quote the fields lie open, and those that nobody wants are not made.
            body = line.rstrip("\r\n")
            number = lines.accept()
            if not line:
                yield number, f"line longer than {MAX_LINE_CHARACTERS} characters"
            elif not body:
                continue
            elif (found := body.count(delimiter)) != delimiters:
                yield number, self._wrong_count(found + 1)
            else:
                fields = body.split(delimiter, last)
                yield number, [fields[position] for position in wanted]

    def _quoted(self, first: str, wanted: Sequence[int]) -> Iterator[tuple[int, list[str] | str]]:
        """Yield the record that begins with this line."""
        lines = self._lines
        try:
            record = next(csv.reader(chain((first,), lines), delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            yield lines.reject(), f"malformed CSV ({error})"
            return
        if len(record) != len(self.header):
            # A quote left open may have swallowed the lines that follow: give them back.
            yield lines.reject(), self._wrong_count(len(record))
        else:
            yield lines.accept(), [record[position] for position in wanted]

    def _wrong_count(self, found: int) -> str:
        return f"found {found} fields, expected {len(self.header)}"


class _Lines:
    """Lines of a file for `csv.reader`, remembering those of the current record so that they can be given back.

    A line that is too long to be held is "" here; no line of a file is.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        self._record_bytes = 0
        self._is_first = True
        self.used = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.take()
        if line is None:
            raise StopIteration
        if not line:
            raise csv.Error(f"line longer than {MAX_LINE_CHARACTERS} characters")
        if self._record_bytes > MAX_RECORD_BYTES:
            raise csv.Error(f"record longer than {MAX_RECORD_BYTES} bytes, is a quote left open?")
        return line

    def take(self) -> str | None:
        """The next line, as one of the current record, or None at the end."""
        if self._given_back:
            line = self._given_back.popleft()
        else:
            line = self._read()
            if line is None:
                return None
        self._record.append(line)
        self._record_bytes += len(line) + _LINE_OVERHEAD_BYTES
        return line

    def _read(self) -> str | None:
        line = self._handle.readline(MAX_LINE_CHARACTERS + 1)
        if self._is_first:
            line, self._is_first = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            return None
        if len(line) <= MAX_LINE_CHARACTERS or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._handle.readline(_DROPPED_CHARACTERS)
        return ""

    def accept(self) -> int:
        """Take all lines of the current record as used; return the number of its first line."""
        return self._advance(len(self._record))

    def reject(self) -> int:
        """Take only the first line of the current record as used and give the others back; return its number."""
        self._given_back.extendleft(reversed(self._record[1:]))
        return self._advance(1)

    def _advance(self, lines: int) -> int:
        first = self.used + 1
        self.used += lines
        self._record.clear()
        self._record_bytes = 0
        return first
