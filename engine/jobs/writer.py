"""One shard of vectors: a Parquet file that appears under its name only when it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .durable import commit, temporary, writing
from .inputs.rows import Row

__all__ = ["ShardWriter", "shard_schema"]


def shard_schema(dimension: int, id_column: str | None = None, id_type: pa.DataType | None = None) -> pa.Schema:
    """Columns of a shard: `row` int64, the id column if there is one, `embedding` fixed_size_list<float32>."""
    fields = [pa.field("row", pa.int64(), nullable=False)]
    if id_column is not None:
        fields.append(pa.field(id_column, id_type))
    element = pa.field("element", pa.float32(), nullable=False)
    fields.append(pa.field("embedding", pa.list_(element, dimension), nullable=False))
    return pa.schema(fields)


class ShardWriter:
    """Writes windows of vectors as they come, one row group each, so that a shard is never whole in memory.

    Used as a context manager: leaving without `commit` removes the temporary file.

    Args:
        path: final name of the shard.
        schema: from `shard_schema`.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows_written = 0
        self._schema = schema
        self._committed = False
        with writing(path):
            # Vectors do not compress and do not repeat: dictionaries and codecs would cost time and save nothing.
            self._writer = pq.ParquetWriter(
                temporary(path), schema, compression="none", use_dictionary=False, write_statistics=False
            )

    def write(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        """Append the vectors `[rows, dimension]` float32 of the given rows.

        Raises:
            JobError: if the disk refuses.
        """
        if not rows:
            return
        embedding_type = self._schema.field("embedding").type
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns = [
            pa.array([row.number for row in rows], pa.int64()),
            pa.FixedSizeListArray.from_arrays(flat, type=embedding_type),
        ]
        if len(self._schema) == 3:
            columns.insert(1, pa.array([row.id for row in rows], self._schema.field(1).type))
        with writing(self.path):
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema), row_group_size=len(rows))
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
            with temporary(self.path).open("rb") as handle:
                digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
                size = handle.tell()
        commit(self.path)
        self._committed = True
        return size, digest

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._committed:
            return
        with suppress(OSError):  # the error on its way out is the one to report
            self._writer.close()
        temporary(self.path).unlink(missing_ok=True)
