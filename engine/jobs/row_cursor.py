"""The rows of one shard after the other, for a reader that gets some of the shards only, in rising order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .inputs.input_file import InputFile
from .inputs.long_texts import IsEnough
from .inputs.reader import read_rows
from .inputs.rows import Row

__all__ = ["RowCursor"]


class RowCursor:
    """Goes forward through the inputs, leaving out the rows of other shards.

    Where all files know how many rows they have (Parquet), a gap is skipped as the format allows; elsewhere the rows in
    it are read on, so that a worker goes through the inputs once, not once for every shard.
    """

    def __init__(self, files: Sequence[InputFile], rows_per_shard: int, is_enough: IsEnough | None = None) -> None:
        self._files, self._rows_per_shard, self._is_enough = files, rows_per_shard, is_enough
        self._rows: Iterator[Row] | None = None
        self._next = 0
        self._counted = all(file.row_count is not None for file in files)

    def shard(self, index: int) -> Iterator[Row]:
        """The rows of shard `index`, which no earlier call asked for or went past; none past the end."""
        first = index * self._rows_per_shard
        if self._rows is None or (self._counted and first != self._next):
            self._rows, self._next = read_rows(self._files, first, self._is_enough), first
        while self._next < first + self._rows_per_shard:
            row = next(self._rows, None)
            if row is None:
                return
            self._next = row.number + 1
            if row.number >= first:
                yield row
