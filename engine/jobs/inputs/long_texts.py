"""Long texts, of which a job is handed a beginning where its model sees no more.

A document of 100 MB is 100 MB of UTF-8, and 100 to 400 MB more as a str. It is decoded to its end all the same, in
pieces that are dropped: what is wrong with it is found, and its characters are counted.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

__all__ = ["BEGINNING", "InvalidUtf8Error", "IsEnough", "LongText", "beginning_of", "text_of_utf8", "utf8_pieces"]

BEGINNING = 1 << 21
"""Bytes that a job is handed of a longer text; where its model sees more, the job gets the text whole."""

PIECE = 1 << 20

IsEnough = Callable[[str], bool]
"""Whether a model sees the same of every text that begins with this one."""


class LongText(NamedTuple):
    """What a job is handed of a text.

    Attributes:
        text: the text, or a beginning of it.
        unseen: characters of it that follow.
    """

    text: str
    unseen: int = 0


class InvalidUtf8Error(ValueError):
    """Bytes that are no UTF-8.

    Attributes:
        at: the first byte that cannot be decoded.
    """

    def __init__(self, at: int) -> None:
        super().__init__(f"invalid UTF-8 at byte {at}")
        self.at = at


def beginning_of(pieces: Iterable[str], is_enough: IsEnough) -> LongText | None:
    """The first piece of a text where that is enough; None, with the other pieces unread, where it is not.

    Args:
        pieces: the text; all of them are read where the first is enough.
        is_enough: of the job's task.
    """
    left = iter(pieces)
    text = next(left, "")
    return LongText(text, sum(map(len, left))) if is_enough(text) else None


def text_of_utf8(content: memoryview, is_enough: IsEnough | None) -> LongText:
    """A text, or a beginning of it where that is enough.

    Raises:
        InvalidUtf8Error: anywhere in it.
    """
    if is_enough is not None and len(content) > BEGINNING:
        found = beginning_of(utf8_pieces(len(content), lambda start, end: content[start:end]), is_enough)
        if found is not None:
            return found
    try:
        return LongText(str(content, "utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidUtf8Error(error.start) from None


def utf8_pieces(size: int, part: Callable[[int, int], bytes | memoryview]) -> Iterator[str]:
    """UTF-8 as text, piece by piece; the first is of `BEGINNING` bytes, less those of a character that is cut.

    Args:
        size: bytes in all.
        part: the bytes from one place to another.

    Raises:
        InvalidUtf8Error: when it comes so far.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, end = 0, min(BEGINNING, size)
    while start < size:
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(part(start, end), final=end == size)
        except UnicodeDecodeError as error:
            raise InvalidUtf8Error(start - pending + error.start) from None
        start, end = end, min(end + PIECE, size)
