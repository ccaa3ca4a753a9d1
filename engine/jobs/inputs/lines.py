"""Lines of bytes, each of bounded length, with the line that an unreadable file stops at."""

from __future__ import annotations

import io
from dataclasses import dataclass

from ...errors import InputError
from .long_texts import InvalidUtf8Error, IsEnough, LongText, text_of_utf8

__all__ = ["MAX_LINE_BYTES", "LineReader", "Unreadable", "content_of", "decoded", "read_problem"]

MAX_LINE_BYTES = 1 << 28
"""A longer line is a bad row and is passed over in pieces: a small compressed file may unpack to any length."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DROPPED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in for a line that cannot be used."""

    reason: str


class LineReader:
    """The lines of a binary stream with their ends, the byte order mark dropped. Keeps no reference to a line.

    Attributes:
        count: lines read so far.

    Raises:
        InputError: while iterating, naming the file and the last good line, if the stream cannot be read further.
    """

    def __init__(self, reader: io.BufferedReader, name: str) -> None:
        self._reader, self._name = reader, name
        self.count = 0

    def __iter__(self) -> LineReader:
        return self

    def __next__(self) -> bytes | Unreadable:
        try:
            line = self._reader.readline(MAX_LINE_BYTES + 1)
            is_long = len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")
            if is_long:
                del line
                while (rest := self._reader.readline(_DROPPED_BYTES)) and not rest.endswith(b"\n"):
                    pass
                line = Unreadable(f"longer than {MAX_LINE_BYTES} bytes")
        except OSError as error:
            raise InputError(f"{self._name}: unreadable after line {self.count} ({read_problem(error)})") from error
        if isinstance(line, bytes):
            if not line:
                raise StopIteration
            if not self.count:
                line = line.removeprefix(_BYTE_ORDER_MARK)
        self.count += 1
        return line


def content_of(line: bytes) -> memoryview:
    """The line without its end."""
    end = len(line)
    if line.endswith(b"\n"):
        end -= 1
    if line.endswith(b"\r", 0, end):
        end -= 1
    return memoryview(line)[:end]  # a view: the line may be a document of 100 MB


def decoded(line: bytes | Unreadable, is_enough: IsEnough | None = None) -> LongText | Unreadable:
    """The line without its end, as text, or a beginning of it where that is enough."""
    if isinstance(line, Unreadable):
        return line
    try:
        return text_of_utf8(content_of(line), is_enough)
    except InvalidUtf8Error as error:
        return Unreadable(f"{error} of the line")


def read_problem(error: OSError) -> str:
    """What an OSError says, on one line."""
    return (error.strerror or str(error) or type(error).__name__).splitlines()[0]
