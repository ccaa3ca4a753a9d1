"""One shard of results: a Parquet file that appears under its name only when it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import OptionError
from .durable import commit, temporary, writing
from .inputs.rows import Row

__all__ = ["ShardWriter", "shard_schema"]


def shard_schema(results: Sequence[pa.Field], id_field: pa.Field | None, carried: Sequence[pa.Field]) -> pa.Schema:
    """Columns of a shard: `row` int64, the id column if there is one, carried columns, results, and `truncated`:
    whether the model did not see the whole text.

    Raises:
        OptionError: if two of them have the same name.
    """
    fields = [pa.field("row", pa.int64(), nullable=False), *([] if id_field is None else [id_field]), *carried]
    names = [field.name for field in fields]
    results = [*results, pa.field("truncated", pa.bool_(), nullable=False)]
    for field in results:
        if field.name in names:
            raise OptionError(f"{field.name!r} is the name of a result column, expected another name for an input's")
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{name!r} is the name of several output columns, expected different names")
    return pa.schema([*fields, *results])


class ShardWriter:
    """Writes windows of results as they come, one row group each, so that a shard is never whole in memory.

    Whoever does not come to `commit` calls `discard`.

    Args:
        path: final name of the shard.
        schema: from `shard_schema`.
        has_id: whether the schema's second column is the id.
        carried: how many columns of `Row.kept` follow.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, has_id: bool, carried: int) -> None:
        self.path = path
        self.rows_written = 0
        self._schema = schema
        self._inputs = _input_columns(has_id, carried)
        self._committed = False
        with writing(path):
            self._file = DigestedFile(temporary(path))
            try:
                # Floats hardly compress and do not repeat: dictionaries and codecs would cost time and save nothing.
                self._writer = pq.ParquetWriter(
                    self._file, schema, compression="none", use_dictionary=False, write_statistics=False
                )
            except OSError:
                self._file.close()
                temporary(path).unlink(missing_ok=True)
                raise

    def write(self, rows: Sequence[Row], results: Sequence[pa.Array], truncated: Sequence[bool]) -> None:
        """Append the results of the given rows, an array for each result column.

        Raises:
            JobError: if the disk refuses.
        """
        if not rows:
            return
        types = [field.type for field in self._schema]
        inputs = [
            pa.array([value(row) for row in rows], kind) for value, kind in zip(self._inputs, types, strict=False)
        ]
        batch = pa.record_batch([*inputs, *results, pa.array(truncated, pa.bool_())], schema=self._schema)
        with writing(self.path):
            self._writer.write_batch(batch, row_group_size=len(rows))
        self.rows_written += len(rows)

    def commit(self) -> tuple[int, str]:
        """Finish the file, fsync it and give it its name.

        Returns:
            Its size in bytes and its BLAKE2b-256 digest in hexadecimal.

        Raises:
            JobError: if the disk refuses.
        """
        with writing(self.path):
            self._writer.close()
            self._file.close()
        commit(self.path)
        self._committed = True
        return self._file.tell(), self._file.digest()

    def discard(self) -> None:
        """Close and remove the temporary file of a shard that is not committed."""
        if self._committed:
            return
        with suppress(OSError):  # the error on its way out is the one to report
            self._writer.close()
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            temporary(self.path).unlink(missing_ok=True)


class DigestedFile:
    """A file that is written from its beginning to its end, with the digest of what was written."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("wb", buffering=0)
        self._digest = hashlib.blake2b(digest_size=32)
        self._bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        """Write all of the content, or raise OSError."""
        view = memoryview(content).cast("B")
        written = 0
        while written < len(view):
            written += self._handle.write(view[written:]) or 0
        self._digest.update(view)
        self._bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written."""
        return self._bytes

    def digest(self) -> str:
        """BLAKE2b-256 of what was written, hexadecimal."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """There is nothing held back."""

    def close(self) -> None:
        """Close the file; `tell` and `digest` still answer."""
        self._handle.close()

    @property
    def closed(self) -> bool:
        return self._handle.closed


def _input_columns(has_id: bool, carried: int) -> list[Callable[[Row], Any]]:
    """What each column before the results holds of a row."""
    columns: list[Callable[[Row], Any]] = [attrgetter("number")]
    if has_id:
        columns.append(attrgetter("id"))
    return [*columns, *(lambda row, index=index: row.kept[index] for index in range(carried))]
