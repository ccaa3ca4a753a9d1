"""JSON Lines: a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ...errors import InputError
from .byte_streams import ByteStream
from .input_file import InputColumns
from .json_long_lines import LONG_LINE_BYTES, LongLine, parse_long_line
from .lines import LineReader, Unreadable, decoded
from .lines_input import LinesInput
from .long_texts import InvalidUtf8Error, LongText
from .pairs import pair_problem, pair_without_surrogates
from .rows import Row, good_row, note_replaced, shown, without_surrogates
from .sources import Source

__all__ = ["JsonLinesInput"]

_LINES_SEARCHED_FOR_COLUMN = 1000
_LONGEST_LINE_SEARCHED = 1 << 20
_JSON_NAMES = {type(None): "null", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


class JsonLinesInput(LinesInput):
    """A file of one JSON object a line. Blank lines are no rows.

    Strings of an id column or a carried column stay as they are; other values become their JSON text, null and a
    missing field become null. Of a field that an object has twice, the last counts.
    """

    def __init__(self, source: Source, columns: InputColumns) -> None:
        """Check that the file can be opened and that its first rows know the columns.

        Raises:
            InputError: if the file cannot be opened; if its first 1,000 lines hold objects, and none of them has a
                column; or if standard input was taken for JSON Lines by default and begins with something else.
        """
        super().__init__(source, columns)
        self.strings_only()
        self._check_columns()

    def rows(self, first_row: int, skip: int = 0) -> Iterator[Row]:
        with self._lines() as lines:
            filled = filter(_is_filled, lines)
            file_row = sum(1 for _ in islice(filled, skip))
            for line in map(self._opened, filled):
                yield self._row(line, lines.count, first_row + file_row, file_row)
                file_row += 1
            self.row_count = file_row

    def _opened(self, line: bytes | Unreadable) -> LongLine | LongText | Unreadable:
        """The line as text, or what is needed of it."""
        if isinstance(line, bytes) and len(line) > LONG_LINE_BYTES and self.is_enough is not None:
            columns = self.columns
            others = [name for name in (columns.pair, columns.id, *columns.kept) if name is not None]
            try:
                found = parse_long_line(line, columns.text, others, self.is_enough)
            except InvalidUtf8Error as error:
                return Unreadable(f"{error} of the line")
            if found is not None:
                return found
        return decoded(line)

    def _row(self, line: LongLine | LongText | Unreadable, line_number: int, number: int, file_row: int) -> Row:
        is_long = isinstance(line, LongLine)
        record = line.record if is_long else _parse(line)
        row_id = None
        if isinstance(record, dict):
            repairs: list[str] = []
            # Only an escape can bring a lone surrogate into text that was UTF-8.
            has_escapes = isinstance(line, LongText) and "\\u" in line.text
            row_id = self._id(record, repairs)
            problem = self._text_problem(record)
            pair = None if self.columns.pair is None else record.get(self.columns.pair)
            if not problem and self.columns.pair is not None:
                problem = self._pair_problem(record, self.columns.pair)
            if not problem:
                text = record[self.columns.text]
                kept = tuple(_carried(record.get(name), f"column {name!r}", repairs) for name in self.columns.kept)
                if has_escapes:
                    text = without_surrogates(text, "text", repairs)
                    pair = pair_without_surrogates(pair, repairs)
                if is_long:
                    note_replaced(line.replaced, "text", repairs)
                unseen = line.unseen if is_long else 0
                return good_row(number, self.name, file_row, row_id, text, pair, kept, repairs, unseen)
        else:
            problem = record
        return Row(number, self.name, file_row, row_id, None, "error", f"line {line_number}: {problem}")

    def _text_problem(self, record: dict[str, Any]) -> str:
        column = self.columns.text
        if column not in record:
            return _missing(column, record)
        value = record[column]
        return "" if isinstance(value, str) else f"field {column!r} is {_described(value)}, expected a string"

    def _pair_problem(self, record: dict[str, Any], column: str) -> str:
        if column not in record:
            return _missing(column, record)
        value = record[column]
        if not isinstance(value, str | list):
            return f"field {column!r} is {_described(value)}, expected a string or an array of strings"
        return pair_problem(value, f"field {column!r}", _described)

    def _id(self, record: dict[str, Any], repairs: list[str]) -> str | None:
        return None if self.columns.id is None else _carried(record.get(self.columns.id), "id", repairs)

    def _check_columns(self) -> None:
        wanted = dict.fromkeys(self.columns.names)
        found: dict[str, None] = {}
        first_problem = ""
        with ByteStream(self.source, looking=True) as stream:
            lines = LineReader(stream.reader, self.name)
            for line in map(decoded, filter(_is_filled, islice(lines, _LINES_SEARCHED_FOR_COLUMN))):
                if isinstance(line, LongText) and len(line.text) > _LONGEST_LINE_SEARCHED:
                    continue
                record = _parse(line)
                if isinstance(record, dict):
                    found.update(dict.fromkeys(record))
                    for column in record:
                        wanted.pop(column, None)
                elif not first_problem:
                    first_problem = f"line {lines.count}: {record}"
                if not wanted or (first_problem and self.source.assumed):
                    break
        if not found and first_problem and self.source.assumed:
            raise InputError(
                f"{self.name}: {first_problem}; standard input is JSON Lines unless --input-format says otherwise"
            )
        if found:
            for column in wanted:
                self.require_column(column, [shown(name).strip("'") for name in found])


def _is_filled(line: bytes | Unreadable) -> bool:
    return isinstance(line, Unreadable) or bool(line and not line.isspace())


def _parse(line: LongText | Unreadable) -> dict[str, Any] | str:
    """The line's JSON object, or what is wrong with the line."""
    if isinstance(line, Unreadable):
        return line.reason
    try:
        record = json.loads(line.text)
    except json.JSONDecodeError as error:
        return f"malformed JSON at character {error.pos} ({error.msg})"
    except (RecursionError, ValueError) as error:
        return f"malformed JSON ({str(error).splitlines()[0]})"
    return record if isinstance(record, dict) else f"found {_described(record)}, expected a JSON object"


def _carried(value: object, what: str, repairs: list[str]) -> str | None:
    if isinstance(value, str):
        return without_surrogates(value, what, repairs)
    return None if value is None else json.dumps(value)


def _missing(column: str, record: dict[str, Any]) -> str:
    found = ", ".join(shown(name) for name in list(record)[:20]) or "none"
    return f"no field {column!r}; fields found: {found}"


def _described(value: object) -> str:
    name = _JSON_NAMES.get(type(value), "string")
    return name if value is None else f"{name} {shown(value)}"
