"""Columns that are carried into the output: their types, over all files of a job, and their values without loss."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import InputError
from .input_file import InputColumns, InputFile

__all__ = ["carried_type", "common_type", "id_type", "kept_fields", "plain_type"]


def kept_fields(files: Sequence[InputFile], columns: InputColumns) -> tuple[pa.Field, ...]:
    """Names and Arrow types of the carried columns, in the job's order.

    Files may differ where a wider type holds the values of both (int32 and int64, float and double, null and anything).

    Raises:
        InputError: naming two files whose types of a column have no such type.
    """
    types = zip(*(file.kept_types for file in files), strict=True)
    return tuple(
        pa.field(name, _agreed(files, list(found), f"column {name!r}"))
        for name, found in zip(columns.kept, types, strict=True)
    )


def id_type(files: Sequence[InputFile]) -> pa.DataType | None:
    """Arrow type of the id column over all files, a string or an integer; None where no id was asked for.

    Raises:
        InputError: naming two files of which one has integers and the other strings.
    """
    types = [file.id_type for file in files if file.id_type is not None]
    if not types:
        return None
    found = _agreed(files, types, f"id column {files[0].columns.id!r}")
    return pa.string() if pa.types.is_null(found) else found


def carried_type(found: pa.DataType) -> pa.DataType | None:
    """The type in which a column of type `found` is carried, or None where Parquet has no place for it."""
    carried = found
    if isinstance(found, pa.BaseExtensionType):
        carried = found.storage_type
    elif pa.types.is_dictionary(found):
        carried = found.value_type
    elif pa.types.is_string_view(found):
        carried = pa.string()
    elif pa.types.is_binary_view(found):
        carried = pa.binary()
    try:
        pa.array(pa.nulls(1, found).cast(plain_type(found)).to_pylist(), carried)
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([("column", carried)])).close()
    except (pa.ArrowException, TypeError):
        return None
    return carried


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type to cast to before values become Python's, so that none is lost: times as integers, at any depth.

    Python's own times know no nanoseconds and no year beyond 9999.
    """
    types = pa.types
    if isinstance(found, pa.BaseExtensionType):
        return plain_type(found.storage_type)
    if types.is_temporal(found) and not types.is_interval(found):
        return pa.int64() if found.bit_width == 64 else pa.int32()
    if types.is_dictionary(found):
        return plain_type(found.value_type)
    if types.is_string_view(found):
        return pa.string()
    if types.is_binary_view(found):
        return pa.binary()
    if types.is_struct(found):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in found])
    if types.is_map(found):
        return pa.map_(plain_type(found.key_type), plain_type(found.item_type))
    if types.is_fixed_size_list(found):
        return pa.list_(plain_type(found.value_type), found.list_size)
    if types.is_large_list(found):
        return pa.large_list(plain_type(found.value_type))
    if types.is_list(found):
        return pa.list_(plain_type(found.value_type))
    return found


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds every value of both without loss, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return next((wide for family in _FAMILIES for wide in family(one, other)), None)


def _strings(one: pa.DataType, other: pa.DataType) -> list[pa.DataType]:
    for narrow, wide in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        if {one, other} == {narrow, wide}:
            return [wide]
    return []


def _numbers(one: pa.DataType, other: pa.DataType) -> list[pa.DataType]:
    def holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
        if pa.types.is_integer(narrow):
            unsigned, bits = pa.types.is_unsigned_integer(narrow), narrow.bit_width
            if pa.types.is_floating(wide):
                return bits <= _EXACT_BITS[wide]
            if pa.types.is_unsigned_integer(wide):
                return unsigned and bits <= wide.bit_width
            return bits + unsigned <= wide.bit_width
        return pa.types.is_floating(wide) and narrow.bit_width <= wide.bit_width

    if not all(pa.types.is_integer(found) or pa.types.is_floating(found) for found in (one, other)):
        return []
    return [wide for wide in _NUMBERS if holds(wide, one) and holds(wide, other)]


_FAMILIES = (_strings, _numbers)
# Narrowest first.
_NUMBERS = (
    *(pa.uint8(), pa.int8(), pa.uint16(), pa.int16(), pa.uint32(), pa.int32(), pa.uint64(), pa.int64()),
    *(pa.float16(), pa.float32(), pa.float64()),
)
_EXACT_BITS = {pa.float16(): 8, pa.float32(): 16, pa.float64(): 32}


def _agreed(files: Sequence[InputFile], types: Sequence[pa.DataType], what: str) -> pa.DataType:
    agreed, first = types[0], 0
    for position, found in enumerate(types):
        common = common_type(agreed, found)
        if common is None:
            raise InputError(
                f"{files[position].name}: {what} has type {found}, expected {agreed} as in {files[first].name}"
            )
        if common != agreed:
            agreed, first = common, position
    return agreed
