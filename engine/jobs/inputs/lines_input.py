"""What JSON Lines and plain text share: a row is a line, so that a bad line cannot hurt its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .byte_streams import ByteStream
from .input_file import InputColumns, InputFile
from .lines import LineReader
from .sources import Source

__all__ = ["LinesInput"]


class LinesInput(InputFile):
    """An input of lines, and how far it has been read.

    Raises:
        InputError: on building it, if the file cannot be opened.
    """

    def __init__(self, source: Source, columns: InputColumns) -> None:
        super().__init__(source, columns)
        self._stream: ByteStream | None = None
        self._done = False
        ByteStream(source, looking=True).__exit__(None, None, None)

    @property
    def fraction_read(self) -> float:
        if self._stream is None or not self.bytes:
            return float(self._done or (self.rereadable and not self.bytes))
        return min(self._stream.bytes_read / self.bytes, 1.0)

    @contextmanager
    def _lines(self) -> Iterator[LineReader]:
        """The lines of the file; leaving it says that nobody will go on."""
        with ByteStream(self.source) as stream:
            self._stream, self._done = stream, False
            try:
                yield LineReader(stream.reader, self.name)
            finally:
                self._stream, self._done = None, True
