"""Plain text: every line is a text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from ...errors import InputError
from .input_file import InputColumns
from .lines import Unreadable, decoded
from .lines_input import LinesInput
from .rows import Row
from .sources import Source

__all__ = ["PlainTextInput"]


class PlainTextInput(LinesInput):
    """A text file: every line is a row, an empty one too; the line's number less one is its position."""

    def __init__(self, source: Source, columns: InputColumns) -> None:
        """Check that the file can be opened.

        Raises:
            InputError: if it cannot, or if a column beside the text was asked for: plain text has no columns.
        """
        super().__init__(source, columns)
        for column in (columns.pair, columns.id, *columns.kept):
            if column is not None:
                raise InputError(f"{self.name}: no column {column!r}; a plain text file has no columns")
        self.strings_only()

    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        with self._lines() as lines:
            for _ in islice(lines, skip):
                pass
            for file_row, line in enumerate(map(partial(decoded, is_enough=self.is_enough), lines), start=skip):
                number = first_row + file_row
                if isinstance(line, Unreadable):
                    reason = f"line {file_row + 1}: {line.reason}"
                    yield Row(number, self.name, file_row, None, None, "error", reason)
                else:
                    yield Row(number, self.name, file_row, None, line.text, unseen=line.unseen)
            self.row_count = lines.count
