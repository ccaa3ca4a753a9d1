"""Arrow IPC: files (also called Feather version 2), read batch by batch, and streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from ...errors import InputError
from .byte_streams import ByteStream
from .columnar import BATCH_BYTES, MAX_BATCH_ROWS, ColumnarInput, first_line
from .input_file import InputColumns
from .rows import Row
from .sources import Source

__all__ = ["ArrowInput"]

_FILE_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"


class ArrowInput(ColumnarInput):
    """An Arrow IPC file or stream, whichever its first bytes say. Of standard input a stream only.

    The columns that a job uses are in memory for one record batch at a time, as large as whoever wrote it made it. No
    memory map: a file that shrinks under one kills the process.
    """

    def __init__(self, source: Source, columns: InputColumns) -> None:
        """Read the schema and check the columns.

        Raises:
            InputError: if it is no readable Arrow IPC, or a column is missing or of another type.
        """
        super().__init__(source, columns)
        self._is_file = self._looks_like_a_file()
        with self._open(looking=True) as reader:
            self.check_schema(reader.schema)
            self._places = [reader.schema.get_field_index(column) for column in columns.names]
            if hasattr(reader, "count_rows"):  # from the batches' headers; of files only, and not in every pyarrow
                self.row_count = self._count(reader)

    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        self._rows_read = 0
        with self._open(columns=self._places) as reader:
            for batch in self._batches(reader):
                dropped = min(max(skip - self._rows_read, 0), len(batch))
                self._rows_read += dropped
                rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * len(batch) // max(batch.nbytes, 1)))
                for start in range(dropped, len(batch), rows):
                    yield from self.rows_of(batch.slice(start, rows), first_row)
        self.row_count = self._rows_read

    def _looks_like_a_file(self) -> bool:
        with ByteStream(self.source, looking=True) as stream:
            try:
                magic = stream.reader.read(len(_FILE_MAGIC))
            except OSError as error:
                raise self._unreadable(error) from error
        if magic.startswith(_FEATHER_1_MAGIC):
            raise InputError(f"{self.name}: is Feather version 1, expected version 2 (Arrow IPC)")
        if magic == _FILE_MAGIC and not self.rereadable:
            raise InputError(f"{self.name}: is an Arrow file, expected an Arrow stream on standard input")
        return magic == _FILE_MAGIC

    @contextmanager
    def _open(self, *, looking: bool = False, columns: list[int] | None = None) -> Iterator[Any]:
        options = ipc.IpcReadOptions(use_threads=False, included_fields=columns)
        with ExitStack() as stack:
            try:
                if self._is_file:
                    reader = ipc.open_file(stack.enter_context(pa.OSFile(str(self.path))), options=options)
                else:
                    stream = stack.enter_context(ByteStream(self.source, looking=looking))
                    reader = ipc.open_stream(pa.PythonFile(stream.reader, "r"), options=options)
            except (OSError, pa.ArrowException) as error:
                raise self._unreadable(error) from error
            yield reader

    def _count(self, reader: Any) -> int:
        try:
            return reader.count_rows()
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _batches(self, reader: Any) -> Iterator[pa.RecordBatch]:
        position = 0
        while not self._is_file or position < reader.num_record_batches:
            try:
                batch = reader.get_batch(position) if self._is_file else reader.read_next_batch()
                for column in batch.columns:
                    _check_offsets(column)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                place = f"after row {self._rows_read}"
                raise InputError(f"{self.name}: unreadable {place} ({first_line(error)})") from error
            position += 1
            yield batch

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.name}: not a readable Arrow file or stream ({first_line(error)})")


def _check_offsets(column: pa.Array) -> None:
    """Raise ArrowInvalid where the file's offsets point outside of its data; read by them, they end the process."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):  # checked after the offsets, and a matter of one row
            raise
