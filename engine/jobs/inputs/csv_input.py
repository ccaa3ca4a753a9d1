"""CSV and TSV files with a header line."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from ...errors import InputError
from .byte_streams import ByteStream
from .csv_records import CsvRecords
from .input_file import InputColumns, InputFile
from .lines import read_problem
from .pairs import pair_of_field, pair_without_surrogates
from .rows import Row, good_row
from .sources import Source

__all__ = ["CsvInput"]

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]+")
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class CsvInput(InputFile):
    """A CSV or TSV file in UTF-8. Every field is a string; an empty one is the empty string.

    Bytes that are no UTF-8 make a row bad in the text and the pair, become U+FFFD in what is carried, and are nobody's
    business in other columns.
    """

    def __init__(self, source: Source, columns: InputColumns) -> None:
        """Read the header line and find the columns.

        Raises:
            InputError: if the file cannot be read, lacks a column, or has no header line though it is not empty.
        """
        super().__init__(source, columns)
        self.strings_only()
        self._stream: ByteStream | None = None
        self._done = False
        self._names = columns.names
        self._places: list[int] = []
        with self._open(looking=True) as records:
            header = records.header
        if not header and (self.bytes or not self.rereadable):
            raise InputError(f"{self.name}: empty, expected a header line")
        if header:
            for column in self._names:
                self.require_column(column, header)
            self._places = [header.index(column) for column in self._names]

    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        with self._open() as records:
            file_row = 0
            try:
                if records.header:
                    found = records.records(self._places)
                    file_row = sum(1 for _ in islice(found, skip))
                    for line_number, fields in found:
                        yield self._row(fields, line_number, first_row + file_row, file_row)
                        file_row += 1
            except OSError as error:
                place = f"after line {records.line_number}"
                raise InputError(f"{self.name}: unreadable {place} ({read_problem(error)})") from error
            self.row_count = file_row

    @property
    def fraction_read(self) -> float:
        if self._stream is None or not self.bytes:
            return float(self._done or (self.rereadable and not self.bytes))
        return min(self._stream.bytes_read / self.bytes, 1.0)

    @contextmanager
    def _open(self, *, looking: bool = False) -> Iterator[CsvRecords]:
        with ByteStream(self.source, looking=looking) as stream:
            # Bytes that are no UTF-8 come through as lone surrogates, so that they spoil their own field only.
            text = io.TextIOWrapper(stream.reader, "utf-8", "surrogateescape", newline="")
            try:
                records = CsvRecords(text, _DELIMITERS[self.format])
                if any(map(_ESCAPED_BYTE.search, records.header)):
                    raise ValueError("invalid UTF-8")
            except ValueError as error:
                raise InputError(f"{self.name}: header line: {error}") from error
            except OSError as error:
                raise InputError(f"{self.name}: unreadable in the header line ({read_problem(error)})") from error
            if not looking:
                self._stream, self._done = stream, False
            try:
                yield records
            finally:
                if not looking:
                    self._stream, self._done = None, True

    def _row(self, fields: list[str] | str, line_number: int, number: int, file_row: int) -> Row:
        if isinstance(fields, str):
            return Row(number, self.name, file_row, None, None, "error", f"line {line_number}: {fields}")
        columns = self.columns
        values = dict(zip(self._names, fields, strict=True))
        repairs: list[str] = []
        row_id = None if columns.id is None else _repaired(values[columns.id], "id", repairs)
        for column in (columns.text, columns.pair):
            if column is not None and _has_escaped_bytes(values[column]):
                reason = f"line {line_number}: invalid UTF-8 in column {column!r}"
                return Row(number, self.name, file_row, row_id, None, "error", reason)
        pair = None if columns.pair is None else pair_without_surrogates(pair_of_field(values[columns.pair]), repairs)
        kept = tuple(_repaired(values[column], f"column {column!r}", repairs) for column in columns.kept)
        return good_row(number, self.name, file_row, row_id, values[columns.text], pair, kept, repairs)


def _has_escaped_bytes(field: str) -> bool:
    return not field.isascii() and _ESCAPED_BYTE.search(field) is not None


def _repaired(field: str, what: str, repairs: list[str]) -> str:
    if not _has_escaped_bytes(field):
        return field
    repairs.append(f"{what}: invalid UTF-8 replaced by U+FFFD")
    return _ESCAPED_BYTE.sub("\ufffd", field)
