"""Parquet files, read a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import InputError
from .columnar import BATCH_BYTES, MAX_BATCH_ROWS, ColumnarInput, first_line, text_value
from .input_file import InputColumns
from .parquet_pages import StringPages, find_pages
from .rows import Row
from .sources import Source

__all__ = ["ParquetInput"]

_READ_BUFFER_BYTES = 1 << 20


class ParquetInput(ColumnarInput):
    """A Parquet file. Row groups before the first row that is wanted are not read.

    Where a job sees only the beginnings of long texts, those of a row group with a large page are read page by page.
    """

    def __init__(self, source: Source, columns: InputColumns) -> None:
        """Open the footer and check the columns.

        Raises:
            InputError: if the file is no readable Parquet, or a column is missing or of another type.
        """
        super().__init__(source, columns)
        with self._open() as file:
            self.check_schema(file.schema_arrow)
            self.row_count = file.metadata.num_rows
            self._batch_rows = _rows_per_batch(file.metadata, columns.names)

    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        with self._open() as file:
            metadata = file.metadata
            groups = list(range(metadata.num_row_groups))
            self._rows_read = 0
            while groups and self._rows_read + metadata.row_group(groups[0]).num_rows <= skip:
                self._rows_read += metadata.row_group(groups.pop(0)).num_rows
            if not groups:
                return
            for some, pages in self._stretches(metadata, groups):
                for batch, texts in self._batches(file, some, pages):
                    dropped = min(max(skip - self._rows_read, 0), len(batch))
                    self._rows_read += dropped
                    if texts is not None:
                        texts = islice(texts, dropped, len(batch))
                    yield from self.rows_of(batch.slice(dropped), first_row, texts)

    def _stretches(
        self, metadata: pq.FileMetaData, groups: list[int]
    ) -> Iterator[tuple[list[int], StringPages | None]]:
        """The row groups, those by themselves whose texts are read page by page."""
        ordinary: list[int] = []
        column, others = self.columns.text, self._others()
        if self.is_enough is None or column in others:
            yield groups, None
            return
        with self._opened() as handle:
            for group in groups:
                try:
                    pages = find_pages(handle, metadata, group, column, BATCH_BYTES)
                except OSError as error:
                    raise self._unreadable(error) from error
                if pages is None:
                    ordinary.append(group)
                    continue
                if ordinary:
                    yield ordinary, None
                yield [group], pages
                ordinary = []
            if ordinary:
                yield ordinary, None

    def _opened(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from error

    def _batches(
        self, file: pq.ParquetFile, groups: list[int], pages: StringPages | None
    ) -> Iterator[tuple[pa.RecordBatch, Iterator[object] | None]]:
        """Batches, and of those without the column of texts the texts."""
        columns = self.columns.names if pages is None else self._others()
        if pages is not None and not columns:
            rows = file.metadata.row_group(groups[0]).num_rows
            yield pa.record_batch([pa.nulls(rows)], names=["nothing"]), self._texts_of(pages)
            return
        texts = None if pages is None else self._texts_of(pages)
        batches = file.iter_batches(batch_size=self._batch_rows, row_groups=groups, columns=columns, use_threads=False)
        while (batch := self._next(batches)) is not None:
            yield batch, texts

    def _texts_of(self, pages: StringPages) -> Iterator[object]:
        values = pages.values()
        while True:
            try:
                value = next(values)
            except StopIteration:
                return
            except (ValueError, IndexError, OSError, pa.ArrowException) as error:
                raise self._unreadable(error) from error
            yield None if value is None else text_value(value, self.is_enough)

    def _others(self) -> list[str]:
        """The columns that are read beside the texts; the texts' own where it is carried too."""
        columns = self.columns
        return list(dict.fromkeys(name for name in (columns.pair, columns.id, *columns.kept) if name is not None))

    def _open(self) -> pq.ParquetFile:
        try:
            # Without a read buffer, or with a memory map, a whole column chunk (often the whole file) would become
            # resident; buffered it is read page by page.
            return pq.ParquetFile(self.path, memory_map=False, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.name}: not a readable Parquet file ({first_line(error)})") from error

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self.name}: unreadable after row {self._rows_read} ({first_line(error)})")


def _rows_per_batch(metadata: pq.FileMetaData, columns: list[str]) -> int:
    """Rows whose `columns` take about `BATCH_BYTES`, by the file's own sizes, so that long documents stay few."""
    size, rows = 1, 1
    wanted = set(columns)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        group_size = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted
        )
        if row_group.num_rows and group_size * rows > size * row_group.num_rows:
            size, rows = group_size, row_group.num_rows
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // size))
