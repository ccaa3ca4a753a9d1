"""Long lines of JSON: the text in them, without a str of the whole line.

The long strings of the line are taken out first, and what is left is parsed as any other line. A line that is in any
way unusual is left to the parser of the standard library as it stands, so that nothing is read or refused otherwise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .lines import content_of
from .long_texts import BEGINNING, PIECE, IsEnough, beginning_of, utf8_pieces
from .rows import surrogates_replaced

__all__ = ["LONG_LINE_BYTES", "LongLine", "parse_long_line"]

LONG_LINE_BYTES = 2 * BEGINNING

_MOST_STRINGS = 10_000

# Possessive, or a document of many escapes would be remembered place by place.
_CHARACTERS = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+'
_CONTENT = re.compile(_CHARACTERS)
_STRING = re.compile(rb'"' + _CHARACTERS + rb'"')
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_OTHER_HALF = re.compile(rb"\\u[dD][c-fC-F]")
# Nothing that a line holds looks like it.
_STAND_IN = f"long string {os.urandom(16).hex()} "


class LongLine:
    """A line whose text was long, and is a beginning now.

    Attributes:
        record: the parsed line, the text in it a beginning.
        unseen: characters of the text that follow.
        replaced: lone surrogates in all of the text that are, or would be, replaced by U+FFFD.
    """

    def __init__(self, record: dict[str, Any], unseen: int, replaced: int) -> None:
        self.record, self.unseen, self.replaced = record, unseen, replaced


def parse_long_line(line: bytes, column: str, others: Sequence[str], is_enough: IsEnough) -> LongLine | None:
    """The object of a line with a long text of which a beginning is enough; None where it has to be parsed whole.

    Args:
        line: with its end.
        column: the text's.
        others: columns that must stay whole.
        is_enough: of the job's task.

    Raises:
        InvalidUtf8Error: anywhere in the line.
    """
    content = content_of(line)
    for _ in utf8_pieces(len(content), lambda start, end: content[start:end]):
        pass
    found = _without_long_strings(line, len(content))
    if found is None:
        return None
    rest, places = found
    try:
        record = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(stand_in := record.get(column), str):
        return None
    place = places.get(stand_in)
    if place is None or any(_STAND_IN in json.dumps(record.get(name)) for name in others):
        return None
    replaced = _Replaced()
    text = beginning_of(replaced.pieces(_pieces(line, *place)), is_enough)
    if text is None:
        return None
    record[column] = text.text
    return LongLine(record, text.unseen, replaced.count)


def _without_long_strings(line: bytes, size: int) -> tuple[str, dict[str, tuple[int, int]]] | None:
    """The line with a stand-in for each long string, and where the string of each stand-in begins and ends."""
    kept: list[bytes] = []
    places: dict[str, tuple[int, int]] = {}
    done = position = 0
    for _ in range(_MOST_STRINGS):
        position = line.find(b'"', position, size)
        if position < 0:
            kept.append(line[done:size])
            return b"".join(kept).decode(), places
        string = _STRING.match(line, position, size)
        if string is None:
            return None
        if string.end() - position > BEGINNING:
            name = f"{_STAND_IN}{len(places)}"
            kept += [line[done:position], f'"{name}"'.encode()]
            places[name] = position + 1, string.end() - 1
            done = string.end()
        position = string.end()
    return None


def _pieces(line: bytes, start: int, end: int) -> Iterator[str]:
    """The string between two quotes, piece by piece, none of them ending within an escape or a character."""
    size = BEGINNING
    while start < end:
        stop = start + size if start + size < end else end
        if stop < end:
            stop = _cut(line, start, stop)
        yield json.loads(b'"%b"' % line[start:stop])
        start, size = stop, PIECE


def _cut(line: bytes, start: int, stop: int) -> int:
    """The last place up to `stop` that is not within an escape, a pair of surrogates or a character."""
    while line[stop] & 0xC0 == 0x80:
        stop -= 1
    stop = _end(line, start, stop)
    splits_pair = _HALF_PAIR.match(line, stop - 6) and _OTHER_HALF.match(line, stop)
    return _end(line, start, stop - 6) if splits_pair else stop


def _end(line: bytes, start: int, stop: int) -> int:
    found = _CONTENT.match(line, start, stop)
    assert found is not None  # it matches nothing at all, if need be
    return found.end()


class _Replaced:
    """Replaces lone surrogates in pieces that split no pair, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def pieces(self, pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            text, count = surrogates_replaced(piece)
            self.count += count
            yield text
