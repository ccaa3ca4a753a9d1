"""Records of a CSV file; a broken one costs its own first line and nothing after it."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TextIO

from .csv_scanner import Blocks, CsvScanner

__all__ = ["CsvRecords"]

MAX_LINE_BYTES = 1 << 28
"""A longer line is a bad record, and passed over in pieces."""

MAX_RECORD_BYTES = 1 << 28
"""A longer record is a bad one; a quote left open would else swallow the whole file."""

LONG_RECORD_BYTES = 1 << 20
"""From here on `CsvScanner` reads the record."""

_DROPPED_BYTES = 1 << 20
_BYTE_ORDER_MARK = "\xef\xbb\xbf"


class CsvRecords:
    """The records of a file after its header line: RFC 4180 quoting, blank lines skipped.

    Args:
        handle: the file, a character for each byte, opened with `newline=""`; a line ends with LF, CR LF or CR.
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
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        self.header: list[str] = []
        while not self.header:
            try:
                self.header = next(csv.reader(self._lines, delimiter=delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(str(error)) from error
            self._lines.accept()
        self._lines.is_header = False

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
            # Without a quote the fields lie open, and those that nobody wants are not made. No more than two copies of
            # the line at a time: it may be a document of 100 MB.
            number = lines.accept()
            if not line:
                yield number, f"line longer than {MAX_LINE_BYTES} bytes"
                continue
            line = line.rstrip("\r\n")
            if not line:
                continue
            if (found := line.count(delimiter)) != delimiters:
                yield number, self._wrong_count(found + 1)
                continue
            fields = line.split(delimiter, last)
            del line
            yield number, [fields[position] for position in wanted]

    def _quoted(self, first: str, wanted: Sequence[int]) -> Iterator[tuple[int, list[str] | str]]:
        """Yield the record that begins with this line."""
        lines = self._lines
        try:
            count, fields = self._short(first, wanted) or self._long(wanted)
        except csv.Error as error:
            yield lines.reject(), f"malformed CSV ({error})"
            return
        if count != len(self.header):
            # A quote left open may have swallowed the lines that follow: give them back.
            yield lines.reject(), self._wrong_count(count)
        else:
            number = lines.accept()  # before the fields are joined, which takes the memory of the lines
            yield number, fields()

    def _short(self, first: str, wanted: Sequence[int]) -> tuple[int, Callable[[], list[str]]] | None:
        """Number of fields and what gives the wanted ones, or None for a long record."""
        if self._lines.is_long:
            return None
        try:
            record = next(csv.reader(chain((first,), self._lines), delimiter=self._delimiter, strict=True))
        except _LongRecordError:
            return None
        return len(record), lambda: [record[position] for position in wanted]

    def _long(self, wanted: Sequence[int]) -> tuple[int, Callable[[], list[str]]]:
        scanner = CsvScanner(self._delimiter, wanted)
        with closing(self._lines.again()) as lines:
            for line in lines:
                if scanner.take(line):
                    return scanner.count, scanner.fields
        raise csv.Error("unexpected end of data")

    def _wrong_count(self, found: int) -> str:
        return f"found {found} fields, expected {len(self.header)}"


class _LongRecordError(csv.Error):
    """The record is too long for `csv.reader`."""


class _Block(str):
    """Several lines in one string."""


class _Lines:
    """Lines of a file for `csv.reader`, remembering those of the current record so that they can be given back.

    A line that is too long to be held is "" here; no line of a file is.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        self._lines_in_record = 0
        self._bytes = 0
        self._is_first = True
        self.is_header = True
        self.used = 0

    @property
    def is_long(self) -> bool:
        """Whether the current record, no header line, is one for `again`."""
        return not self.is_header and self._bytes > LONG_RECORD_BYTES

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.take()
        if line is None:
            raise StopIteration
        if not line:
            raise csv.Error(f"line longer than {MAX_LINE_BYTES} bytes")
        if self.is_long:
            raise _LongRecordError
        return line

    def again(self) -> Generator[str, None, None]:
        """The lines of the current record from its first, and those that follow, kept in blocks.

        Raises:
            csv.Error: if the record grows too long.
        """
        self._given_back.extendleft(reversed(self._record))
        self._bytes = self._lines_in_record = 0
        self._record.clear()
        kept = Blocks()
        try:
            while (line := self.take()) is not None:
                if len(self._record) > 1 and line:
                    kept.append(self._record.pop())
                if not line:
                    raise csv.Error(f"line longer than {MAX_LINE_BYTES} bytes")
                if self._bytes > MAX_RECORD_BYTES:
                    raise csv.Error(f"record longer than {MAX_RECORD_BYTES} bytes, is a quote left open?")
                yield line
        finally:
            # The first line stays by itself: it may be the only one that is used.
            self._record[1:1] = map(_Block, kept.close())

    def take(self) -> str | None:
        """The next line, as one of the current record, or None at the end."""
        line = self._given_back.popleft() if self._given_back else self._read()
        if isinstance(line, _Block):
            self._given_back.extendleft(reversed(list(io.StringIO(line, newline=""))))
            line = self._given_back.popleft()
        if line is not None:
            self._record.append(line)
            self._lines_in_record += 1
            self._bytes += len(line)
        return line

    def accept(self) -> int:
        """Take all lines of the current record as used; return the number of its first line."""
        return self._advance(self._lines_in_record)

    def reject(self) -> int:
        """Take only the first line of the current record as used and give the others back; return its number."""
        self._given_back.extendleft(reversed(self._record[1:]))
        return self._advance(1)

    def _advance(self, lines: int) -> int:
        first = self.used + 1
        self.used += lines
        self._record.clear()
        self._bytes = self._lines_in_record = 0
        return first

    def _read(self) -> str | None:
        line = self._handle.readline(MAX_LINE_BYTES + 1)
        if self._is_first:
            line, self._is_first = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            return None
        if len(line) <= MAX_LINE_BYTES or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._handle.readline(_DROPPED_BYTES)
        return ""
