"""What Parquet and Arrow files share: typed columns in record batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError
from .carried import carried_type, plain_type
from .input_file import InputColumns, InputFile
from .long_texts import BEGINNING, InvalidUtf8Error, IsEnough, LongText, text_of_utf8
from .pairs import pair_problem
from .rows import Row, good_row
from .sources import Source

__all__ = ["BATCH_BYTES", "MAX_BATCH_ROWS", "ColumnarInput", "first_line"]

BATCH_BYTES = 16 << 20
MAX_BATCH_ROWS = 8192


class ColumnarInput(InputFile):
    """A file with a schema: one string column of texts, and any other columns a job asks for."""

    def __init__(self, source: Source, columns: InputColumns) -> None:
        super().__init__(source, columns)
        self._rows_read = 0

    @property
    def fraction_read(self) -> float:
        if self.row_count is None:
            return 0.0
        return self._rows_read / self.row_count if self.row_count else 1.0

    def check_schema(self, schema: pa.Schema) -> None:
        """Set `id_type` and `kept_types`.

        Raises:
            InputError: if a column is missing or of a type that cannot serve.
        """
        columns = self.columns
        for column in columns.names:
            self.require_column(column, schema.names)
        found = schema.field(columns.text).type
        if not (_is_string(found) or pa.types.is_null(found)):
            raise InputError(f"{self.name}: column {columns.text!r} has type {found}, expected string")
        if columns.pair is not None:
            found = schema.field(columns.pair).type
            if not (_is_string(found) or pa.types.is_null(found) or _is_list_of_strings(found)):
                raise InputError(
                    f"{self.name}: pair column {columns.pair!r} has type {found}, expected string or list<string>"
                )
        self.id_type = None if columns.id is None else self._id_type(schema.field(columns.id).type)
        self.kept_types = tuple(self._kept_type(column, schema.field(column).type) for column in columns.kept)

    def rows_of(self, batch: pa.RecordBatch, first_row: int) -> Iterator[Row]:
        """The rows of a batch whose first is row `_rows_read` of the file."""
        columns = self.columns
        texts = self._texts(batch.column(columns.text))
        nothing = [None] * len(texts)
        pairs = nothing if columns.pair is None else _values(batch.column(columns.pair))
        ids = nothing if columns.id is None else _values(batch.column(columns.id))
        kept = [_values(batch.column(column)) for column in columns.kept]
        del batch
        for i, found in enumerate(texts):
            text, unseen = found if isinstance(found, LongText) else (found, 0)
            file_row = self._rows_read
            self._rows_read += 1
            repairs: list[str] = []
            row_id = _kept_value(ids[i], "id", repairs)
            problem = _problem(text, "text") or (columns.pair is not None and _pair_problem(pairs[i])) or ""
            if problem:
                yield Row(first_row + file_row, self.name, file_row, row_id, None, "error", problem)
                continue
            carried = ()
            if kept:
                named = zip(columns.kept, kept, strict=True)
                carried = tuple(_kept_value(values[i], f"column {column!r}", repairs) for column, values in named)
            yield good_row(first_row + file_row, self.name, file_row, row_id, text, pairs[i], carried, repairs, unseen)

    def _texts(self, column: pa.Array) -> list[Any]:
        """As `_values`; of texts that are longer than a beginning, no more than the job needs."""
        if self.is_enough is None or column.nbytes <= BEGINNING or pa.types.is_null(column.type):
            return _values(column)
        column = _plain(column)
        lengths = pc.binary_length(column)  # pyright: ignore[reportAttributeAccessIssue]
        sizes = [size or 0 for size in lengths.to_pylist()]
        if max(sizes) <= BEGINNING:
            return _values(column)
        return [
            _value(scalar) if size <= BEGINNING else _long_text(scalar, self.is_enough)
            for scalar, size in zip(column, sizes, strict=True)
        ]

    def _id_type(self, found: pa.DataType) -> pa.DataType:
        if _is_string(found):
            return pa.string()
        if pa.types.is_integer(found):
            return found
        column = self.columns.id
        raise InputError(f"{self.name}: id column {column!r} has type {found}, expected an integer or string")

    def _kept_type(self, column: str, found: pa.DataType) -> pa.DataType:
        carried = carried_type(found)
        if carried is None:
            raise InputError(f"{self.name}: column {column!r} has type {found}, which cannot be carried into Parquet")
        return carried


@dataclass(frozen=True)
class _NotUtf8:
    """In the place of a value that is not UTF-8: where, and what can be saved of it (of a list or a struct nothing)."""

    at: int
    saved: str | None


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _is_string(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _is_string(found.value_type)
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _is_list_of_strings(found: pa.DataType) -> bool:
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(kind(found) for kind in kinds) and (
        _is_string(found.value_type) or pa.types.is_null(found.value_type)  # pyright: ignore[reportAttributeAccessIssue]
    )


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column as `plain_type` has them; `_NotUtf8` in the place of one that is not UTF-8."""
    column = _plain(column)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _plain(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    plain = plain_type(column.type)
    if plain != column.type:
        column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column.cast(plain)
        column = column if column.type == plain else column.cast(plain)
    return column


def _long_text(scalar: pa.Scalar, is_enough: IsEnough) -> object:
    try:
        return text_of_utf8(memoryview(scalar.as_buffer()), is_enough)
    except InvalidUtf8Error as error:
        return _NotUtf8(error.at, None)


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        saved = error.object.decode("utf-8", errors="replace") if _is_string(scalar.type) else None
        return _NotUtf8(error.start, saved)


def _problem(value: object, what: str) -> str:
    if isinstance(value, _NotUtf8):
        return f"invalid UTF-8 at byte {value.at} of the {what}"
    return "" if isinstance(value, str | list) else "null, expected a string"


def _pair_problem(value: object) -> str:
    if isinstance(value, list):
        return pair_problem(value, "pair")
    return f"pair: {problem}" if (problem := _problem(value, "pair")) else ""


def _kept_value(value: Any, what: str, repairs: list[str]) -> Any:
    if not isinstance(value, _NotUtf8):
        return value
    repairs.append(f"{what}: invalid UTF-8 replaced by {'null' if value.saved is None else 'U+FFFD'}")
    return value.saved
