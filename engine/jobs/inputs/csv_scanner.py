"""One long record of a CSV file, line by line: what `csv.reader` does, in the memory that its text takes.

The standard library's reader holds a field in four bytes a character, twice while it grows, and each line apart.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

__all__ = ["Blocks", "CsvScanner"]

_BLOCK_PIECES = 4096


class Blocks:
    """Many pieces of text, joined a few thousand at a time, so that short ones cost no more than their characters."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._pieces: list[str] = []

    def append(self, piece: str) -> None:
        """Add a piece."""
        self._pieces.append(piece)
        if len(self._pieces) == _BLOCK_PIECES:
            self.close()

    def close(self) -> list[str]:
        """Join what is left over; the blocks."""
        if self._pieces:
            self.blocks.append("".join(self._pieces))
            self._pieces.clear()
        return self.blocks


class CsvScanner:
    """Takes the lines of one record until it ends, and makes the fields that are wanted.

    Attributes:
        count: fields so far; of the whole record once `take` has returned True.
    """

    def __init__(self, delimiter: str, wanted: Sequence[int]) -> None:
        self._delimiter, self._wanted = delimiter, wanted
        self._fields: dict[int, list[str]] = {}
        self._field = Blocks()
        self._is_quoted = False
        self.count = 0

    def take(self, line: str) -> bool:
        """Take the next line with its end; True where the record ends with it.

        Raises:
            csv.Error: if something else than a delimiter follows a closing quote.
        """
        start = 0
        while True:
            if self._is_quoted:
                end = line.find('"', start)
                if end < 0:
                    self._add(line[start:])
                    return False
                if line.startswith('"', end + 1):
                    self._add(line[start : end + 1])
                    start = end + 2
                    continue
                self._add(line[start:end])
                start = end + 1
                if start == len(line) or line[start] in "\r\n":
                    return self._end_field()
                if line[start] != self._delimiter:
                    raise csv.Error(f"'{self._delimiter}' expected after '\"'")
                start += 1
                self._end_field()
            elif line.startswith('"', start):
                self._is_quoted = True
                start += 1
            else:
                end = line.find(self._delimiter, start)
                self._add(line[start:end] if end >= 0 else line[start:].rstrip("\r\n"))
                self._end_field()
                if end < 0:
                    return True
                start = end + 1

    def fields(self) -> list[str]:
        """The wanted fields, in the order they were asked for; the record must have all of them. To be called once."""
        return ["".join(self._fields.pop(position)) for position in self._wanted]

    def _add(self, piece: str) -> None:
        if self.count in self._wanted:
            self._field.append(piece)

    def _end_field(self) -> bool:
        if self.count in self._wanted:
            self._fields[self.count] = self._field.close()
            self._field = Blocks()
        self._is_quoted = False
        self.count += 1
        return True
