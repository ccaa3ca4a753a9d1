"""Records of a CSV file; a broken one costs its own first line and nothing after it."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TextIO

__all__ = ["CsvRecords"]

MAX_RECORD_CHARACTERS = 1 << 27
_LINE_OVERHEAD = 64


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
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_CHARACTERS))
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
            if '"' in line or not line:
                lines.give_back_all()
                record = self._quoted(wanted)
                if record is not None:
                    yield record
                continue
            # Without a quote the fields lie open, and those that nobody wants are not made.
            body = line.rstrip("\r\n")
            number = lines.accept()
            if not body:
                continue
            if (found := body.count(delimiter)) != delimiters:
                yield number, self._wrong_count(found + 1)
            else:
                fields = body.split(delimiter, last)
                yield number, [fields[position] for position in wanted]

    def _quoted(self, wanted: Sequence[int]) -> tuple[int, list[str] | str] | None:
        lines = self._lines
        try:
            record = next(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            return lines.reject(), f"malformed CSV ({error})"
        if not record:
            lines.accept()
            return None
        if len(record) != len(self.header):
            # A quote left open may have swallowed the lines that follow: give them back.
            return lines.reject(), self._wrong_count(len(record))
        return lines.accept(), [record[position] for position in wanted]

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
        self._record_characters = 0
        self.used = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.take()
        if line is None:
            raise StopIteration
        self._record_characters += len(line) + _LINE_OVERHEAD
        if not line:
            raise csv.Error(f"line longer than {MAX_RECORD_CHARACTERS} characters")
        if self._record_characters > MAX_RECORD_CHARACTERS + _LINE_OVERHEAD:
            raise csv.Error(f"record longer than {MAX_RECORD_CHARACTERS} characters, is a quote left open?")
        return line

    def take(self) -> str | None:
        """The next line, as one of the current record, or None at the end."""
        if self._given_back:
            line = self._given_back.popleft()
        else:
            line = self._handle.readline(MAX_RECORD_CHARACTERS + 1)
            if not line:
                return None
            if len(line) > MAX_RECORD_CHARACTERS and not line.endswith(("\n", "\r")):
                while not line.endswith(("\n", "\r")) and line:
                    line = self._handle.readline(1 << 20)
                line = ""
        self._record.append(line)
        return line

    def accept(self) -> int:
        """Take all lines of the current record as used; return the number of its first line."""
        return self._advance(len(self._record))

    def reject(self) -> int:
        """Take only the first line of the current record as used and give the others back; return its number."""
        self._given_back.extendleft(reversed(self._record[1:]))
        return self._advance(1)

    def give_back_all(self) -> None:
        """Take no line of the current record as used."""
        self._given_back.extendleft(reversed(self._record))
        self._record.clear()
        self._record_characters = 0

    def _advance(self, lines: int) -> int:
        first = self.used + 1
        self.used += lines
        self._record.clear()
        self._record_characters = 0
        return first
