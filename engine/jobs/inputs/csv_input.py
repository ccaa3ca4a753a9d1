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
from .long_texts import BEGINNING, InvalidUtf8Error, LongText, beginning_of, utf8_pieces
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
            header = [*map(_decoded, records.header)]
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
            # A character for each byte: a str with one emoji in it would take four times its text. What divides
            # records and fields is ASCII, which is part of no other character of UTF-8.
            text = io.TextIOWrapper(stream.reader, "latin-1", newline="")
            try:
                records = CsvRecords(text, _DELIMITERS[self.format])
                if any(map(_has_escaped_bytes, map(_decoded, records.header))):
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
        found = self._text(values[columns.text])
        pair = None if columns.pair is None else _decoded(values[columns.pair])
        for column, value in ((columns.text, found.text), (columns.pair, pair)):
            if value is not None and _has_escaped_bytes(value):
                reason = f"line {line_number}: invalid UTF-8 in column {column!r}"
                return Row(number, self.name, file_row, row_id, None, "error", reason)
        choices = None if pair is None else pair_without_surrogates(pair_of_field(pair), repairs)
        kept = tuple(_repaired(values[column], f"column {column!r}", repairs) for column in columns.kept)
        return good_row(number, self.name, file_row, row_id, found.text, choices, kept, repairs, found.unseen)

    def _text(self, field: str) -> LongText:
        """The text, or a beginning of it where that is enough; with escaped bytes where it is no UTF-8."""
        if self.is_enough is not None and len(field) > BEGINNING:
            pieces = utf8_pieces(len(field), lambda start, end: field[start:end].encode("latin-1"))
            try:
                found = beginning_of(pieces, self.is_enough)
            except InvalidUtf8Error:
                return LongText("\udcff")
            if found is not None:
                return found
        return LongText(_decoded(field))


def _decoded(field: str) -> str:
    """A field as text; bytes that are no UTF-8 come through as lone surrogates, so that they spoil this one only."""
    return field if field.isascii() else field.encode("latin-1").decode("utf-8", "surrogateescape")


def _has_escaped_bytes(field: str) -> bool:
    return not field.isascii() and _ESCAPED_BYTE.search(field) is not None


def _repaired(field: str, what: str, repairs: list[str]) -> str:
    field = _decoded(field)
    if not _has_escaped_bytes(field):
        return field
    repairs.append(f"{what}: invalid UTF-8 replaced by U+FFFD")
    return _ESCAPED_BYTE.sub("\ufffd", field)
