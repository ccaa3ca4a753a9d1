"""Parquet files, read a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .rows import InputFile, Row, make_row

__all__ = ["ParquetInput"]

_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 8192
_READ_BUFFER_BYTES = 1 << 20


class ParquetInput(InputFile):
    """A Parquet file with one string column of texts and, if asked for, one integer or string column of ids."""

    format = "parquet"

    def __init__(self, path: Path, text_column: str, id_column: str | None) -> None:
        """Open the footer and check the columns.

        Raises:
            InputError: if the file is no readable Parquet, or a column is missing or of another type.
        """
        super().__init__(path)
        self.text_column, self.id_column = text_column, id_column
        with self._open() as file:
            schema, metadata = file.schema_arrow, file.metadata
            self.row_count = metadata.num_rows
            self._check_text_type(schema)
            self.id_type = self._id_type(schema)
            self._batch_rows = _rows_per_batch(metadata, text_column)
        self._rows_read = 0

    def rows(self, first_row: int) -> Iterator[Row]:
        columns = [self.text_column] if self.id_column is None else [self.text_column, self.id_column]
        self._rows_read = 0
        with self._open() as file:
            batches = file.iter_batches(batch_size=self._batch_rows, columns=columns, use_threads=False)
            while (batch := self._next(batches)) is not None:
                texts = _strings(batch.column(self.text_column))
                ids = self._ids(batch)
                for text, row_id in zip(texts, ids, strict=True):
                    file_row = self._rows_read
                    self._rows_read += 1
                    yield self._row(first_row + file_row, file_row, row_id, text)

    @property
    def fraction_read(self) -> float:
        return self._rows_read / self.row_count if self.row_count else 1.0

    def _row(self, number: int, file_row: int, row_id: int | str | None, text: str | UnicodeDecodeError | None) -> Row:
        if isinstance(text, str):
            return make_row(number, self.name, file_row, row_id, text)
        reason = "null, expected a string" if text is None else f"invalid UTF-8 at byte {text.start} of the text"
        return Row(number, self.name, file_row, row_id, None, "error", reason)

    def _open(self) -> pq.ParquetFile:
        try:
            # Without a read buffer, or with a memory map, a whole column chunk (often the whole file) would become
            # resident; buffered it is read page by page.
            return pq.ParquetFile(self.path, memory_map=False, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.name}: not a readable Parquet file ({_first_line(error)})") from error

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.name}: unreadable after row {self._rows_read} ({_first_line(error)})") from error

    def _check_text_type(self, schema: pa.Schema) -> None:
        self._require_column(self.text_column, schema.names)
        found = schema.field(self.text_column).type
        if not (_is_string(found) or pa.types.is_null(found)):
            raise InputError(f"{self.name}: column {self.text_column!r} has type {found}, expected string")

    def _id_type(self, schema: pa.Schema) -> pa.DataType | None:
        if self.id_column is None:
            return None
        self._require_column(self.id_column, schema.names)
        found = schema.field(self.id_column).type
        if _is_string(found):
            return pa.string()
        if pa.types.is_integer(found):
            return found
        raise InputError(f"{self.name}: id column {self.id_column!r} has type {found}, expected an integer or string")

    def _ids(self, batch: pa.RecordBatch) -> list[int | str | None]:
        if self.id_column is None:
            return [None] * len(batch)
        column = batch.column(self.id_column)
        if not _is_string(column.type):
            return column.to_pylist()
        broken = "\ufffd"
        return [broken if isinstance(value, UnicodeDecodeError) else value for value in _strings(column)]


def _rows_per_batch(metadata: pq.FileMetaData, column: str) -> int:
    """Rows that hold about `_BATCH_BYTES` of text, by the file's own sizes, so that long documents stay few."""
    size, rows = 1, 1
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        group_size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
        if row_group.num_rows and group_size * rows > size * row_group.num_rows:
            size, rows = group_size, row_group.num_rows
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * rows // size))


def _is_string(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _is_string(found.value_type)
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _strings(column: pa.Array) -> list[str | UnicodeDecodeError | None]:
    """Python strings of a string column; where the file holds bytes that are not UTF-8, the error in their place."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decode(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decode(value: bytes | None) -> str | UnicodeDecodeError | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError as error:
        return error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
