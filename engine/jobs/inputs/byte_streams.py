"""The bytes of an input from beginning to end: counted, decompressed, and whole or an error."""

from __future__ import annotations

import io
import sys
from bz2 import BZ2Decompressor
from collections.abc import Callable
from lzma import LZMADecompressor, LZMAError
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa

from ...errors import InputError
from .sources import Source

__all__ = ["ByteStream"]

_BUFFER_BYTES = 1 << 16
# A file may ask for a dictionary of 4 GiB; that of `xz -9` takes 65 MiB.
_XZ_MEMORY_BYTES = 1 << 28


class ByteStream:
    """An open input, to be used as a context manager.

    Reading from `reader` raises OSError where the input ends early, is damaged, or is not the size it had when it was
    opened: a cut line must never be taken for the last one.

    Args:
        source: what to open.
        looking: only the beginning is looked at; what is read of standard input will be there for the next reader.

    Raises:
        InputError: if it cannot be opened.
    """

    def __init__(self, source: Source, *, looking: bool = False) -> None:
        name = str(source.path)
        try:
            if source.is_standard_input:
                self._raw = _StandardInputReader(name, looking=looking)
            else:
                self._raw = _WholeFile(source.path.open("rb", buffering=0))
            self.reader = _decompressed(self._raw, source.compression)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file as it is stored, up to the buffers on the way."""
        return self._raw.count

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()
        self._raw.close()


class _WholeFile(io.RawIOBase):
    """A file that must end where it ended when it was opened."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._expected = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = self._file.readinto(buffer) or 0
        self.count += count
        if not count and len(buffer) and self.count != self._expected:
            raise OSError(f"it changed while it was read: found {self.count} bytes, expected {self._expected}")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _StandardInput:
    """Standard input with its beginning kept, so that the checks before a job can look at it, each from the start."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.beginning = bytearray()
        self.is_kept = True


_standard_input: _StandardInput | None = None


def _shared_standard_input(name: str) -> _StandardInput:
    global _standard_input
    if sys.stdin is None:
        raise InputError(f"{name}: standard input is closed")
    if _standard_input is None or _standard_input.file is not sys.stdin.buffer:
        _standard_input = _StandardInput(sys.stdin.buffer)
    return _standard_input


class _StandardInputReader(io.RawIOBase):
    """Reads standard input from its beginning; once opened for more than a look, nothing is kept any more."""

    def __init__(self, name: str, *, looking: bool) -> None:
        self._shared = _shared_standard_input(name)
        if not self._shared.is_kept:
            raise InputError(f"{name}: standard input can be read only once")
        self._shared.is_kept = looking
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        shared = self._shared
        content = bytes(shared.beginning[self.count : self.count + len(buffer)])
        if not content:
            content = shared.file.read1(len(buffer))  # pyright: ignore[reportAttributeAccessIssue]
            if shared.is_kept:
                shared.beginning += content
        buffer[: len(content)] = content
        self.count += len(content)
        return len(content)


class _Native(io.RawIOBase):
    """One of Arrow's streams as a raw stream of Python."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self._stream.readinto(buffer)
        except pa.ArrowException as error:
            raise OSError(str(error)) from error


class _Members(io.RawIOBase):
    """The contents of one compressed stream after another, by the standard library's decompressors.

    Arrow has no xz, and its bz2 does not get past an empty stream.
    """

    def __init__(self, raw: io.RawIOBase, make: Callable[[], BZ2Decompressor | LZMADecompressor]) -> None:
        self._raw, self._make = raw, make
        self._decompressor: BZ2Decompressor | LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            content = self._read(len(buffer))
        except (LZMAError, EOFError) as error:
            raise OSError(str(error)) from error
        buffer[: len(content)] = content
        return len(content)

    def _read(self, size: int) -> bytes:
        while True:
            stored = b""
            if self._decompressor is None or self._decompressor.eof:
                stored = self._next_stream(b"" if self._decompressor is None else self._decompressor.unused_data)
                if not stored:
                    return b""
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                stored = self._raw.read(_BUFFER_BYTES)
                if not stored:
                    raise OSError("Truncated compressed stream")
            if content := self._decompressor.decompress(stored, size):
                return content

    def _next_stream(self, stored: bytes) -> bytes:
        """The first bytes of the next stream, or nothing; zeros that fill up a block stand between two."""
        while not (stored := stored.lstrip(b"\0")):
            stored = self._raw.read(_BUFFER_BYTES) or b""
            if not stored:
                return b""
        return stored


def _decompressed(raw: io.RawIOBase, compression: str | None) -> io.BufferedReader:
    if compression is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)
    if compression == "xz":
        content = _Members(raw, lambda: LZMADecompressor(memlimit=_XZ_MEMORY_BYTES))
    elif compression == "bz2":
        content = _Members(raw, BZ2Decompressor)
    else:
        content = _Native(pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression))
    return io.BufferedReader(content, _BUFFER_BYTES)
