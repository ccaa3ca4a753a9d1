"""The last check before results are written: which rows hold NaN or infinity, in whatever columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

__all__ = ["not_finite"]


def not_finite(columns: Sequence[pa.Array]) -> np.ndarray:
    """Indices of the rows of which a float, at any depth of lists and structs, is NaN or infinite; nulls are not."""
    if not columns:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.logical_or.reduce([_marks(column) for column in columns]))


def _marks(column: pa.Array) -> np.ndarray:
    """bool `[rows]`, true where a row holds a number that is not finite."""
    kind = column.type
    marks = np.zeros(len(column), dtype=bool)
    if pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False)
        marks = np.logical_not(np.isfinite(values))
        if column.null_count:
            marks &= column.is_valid().to_numpy(zero_copy_only=False)
    elif pa.types.is_fixed_size_list(kind) and not column.null_count:
        inner = _marks(column.flatten())
        marks = np.any(inner.reshape(len(column), kind.list_size), axis=1) if len(column) else marks
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        import pyarrow.compute as pc  # takes its time to import, for columns that few tasks have

        parents = pc.call_function("list_parent_indices", [column]).to_numpy(zero_copy_only=False)
        marks[parents[_marks(column.flatten())]] = True
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            marks |= _marks(child)
    return marks
