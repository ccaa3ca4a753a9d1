"""Tables in memory: their rows as a job has them, with what is wrong with each, and results beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ..errors import InputError
from ..jobs.inputs.pairs import pair_problem
from ..jobs.inputs.rows import Row, shown

__all__ = ["appended", "rows_of"]


def rows_of(table: pa.Table, text_column: str, pair_column: str | None = None) -> list[Row]:
    """The rows of a table, numbered from 0; one without a text, or without a pair where there is such a column, has
    kind "error" and the reason.

    A column of another type is no fault of the table: where values are of several types, Ray makes columns of Python
    objects, and of one type in a block that happens to hold no other.

    Raises:
        InputError: there is no such column.
    """
    texts = _values(_column(table, text_column))
    pairs = [None] * len(texts) if pair_column is None else _values(_column(table, pair_column))
    rows = []
    for number, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        reason = "" if isinstance(text, str) else _problem(text, "text")
        if not reason and pair_column is not None:
            usable = isinstance(pair, str | list)
            reason = pair_problem(pair, "pair") if usable else f"pair: {_problem(pair, 'pair')}"
        if reason:
            rows.append(Row(number, "", number, None, None, "error", reason))
        else:
            rows.append(Row(number, "", number, None, text, pair=pair))
    return rows


def appended(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table with these columns behind its own.

    Raises:
        InputError: it has one of them already.
    """
    for name, values in columns.items():
        if name in table.column_names:
            raise InputError(f"column {name!r} is in the table already, expected another name for the result")
        table = table.append_column(name, values)
    return table


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    count = table.column_names.count(name)
    if not count:
        raise InputError(f"no column {name!r}; columns found: {', '.join(table.column_names[:50]) or 'none'}")
    if count > 1:
        raise InputError(f"column {name!r} appears {count} times, expected once")
    return table.column(name)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; a UnicodeDecodeError in the place of one that is not UTF-8, which Parquet does not rule out."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for chunk in column.chunks for scalar in chunk]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _problem(value: Any, what: str) -> str:
    if value is None:
        return "null, expected a string"
    if isinstance(value, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {value.start} of the {what}"
    return f"{type(value).__name__} {shown(value)}, expected a string"
