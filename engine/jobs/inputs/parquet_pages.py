"""The pages of a Parquet column of strings, found and read one by one.

Arrow holds a page, a copy of its dictionary and a copy of the values at once: three times a document of 100 MB, and its
compressed bytes. Here a value is a view of its page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Page", "StringPages", "find_pages"]

_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "BROTLI")
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_PLAIN, _DICTIONARIES = 0, (2, 8)
_HEADER_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Page:
    """A page as its header tells it.

    Attributes:
        kind: of Parquet's PageType.
        at: where its content begins in the file.
        stored: bytes in the file.
        size: bytes of it decompressed.
        values: rows, nulls too; of a dictionary its entries.
        encoding: of Parquet's Encoding.
        levels: in a data page of version 2, bytes of definition levels, which are not compressed; else 0.
        is_compressed: by the codec of the column.
    """

    kind: int
    at: int
    stored: int
    size: int
    values: int
    encoding: int
    levels: int
    is_compressed: bool


class StringPages:
    """The values of a column of strings in a row group."""

    def __init__(self, file: BinaryIO, pages: list[Page], compression: str, *, nullable: bool) -> None:
        self._file, self._nullable = file, nullable
        self._codec = None if compression == "UNCOMPRESSED" else pa.Codec(compression.lower())
        self.pages = pages

    def values(self) -> Iterator[memoryview | None]:
        """The bytes of each value, a view of its page, in the order of the rows.

        Raises:
            ValueError, IndexError, OSError: the pages are damaged.
        """
        dictionary: list[memoryview] = []
        for page in self.pages:
            levels, content = self._read(page)
            if page.kind == _DICTIONARY:
                dictionary = list(_plain(content, page.values))
                continue
            present = np.ones(page.values, dtype=bool)
            if self._nullable:
                if page.kind == _DATA:
                    end = 4 + int.from_bytes(content[:4], "little")
                    levels, content = content[4:end], content[end:]
                present = _runs(levels, 1, page.values).astype(bool)
            count = int(present.sum())
            if page.encoding == _PLAIN:
                found = _plain(content, count)
            else:
                indices = _runs(content[1:], content[0], count) if count else np.empty(0, dtype=np.int64)
                if count and indices.max() >= len(dictionary):
                    raise ValueError(f"an index of {indices.max()} into a dictionary of {len(dictionary)}")
                found = (dictionary[index] for index in indices.tolist())
            del levels, content
            for is_there in present.tolist():
                yield next(found) if is_there else None

    def _read(self, page: Page) -> tuple[memoryview, memoryview]:
        """Definition levels, where they stand apart, and what else is in the page, decompressed."""
        self._file.seek(page.at)
        stored = self._file.read(page.stored)
        if len(stored) != page.stored:
            raise ValueError(f"a page of {page.stored:,} bytes ends after {len(stored):,}")
        levels, content = memoryview(stored)[: page.levels], memoryview(stored)[page.levels :]
        size = page.size - page.levels
        if self._codec is not None and page.is_compressed:
            # Of nothing a codec may have made a byte, which some do not read again.
            content = memoryview(self._codec.decompress(pa.py_buffer(content), size)) if size else content[:0]
        if len(content) != size:
            raise ValueError(f"a page of {size:,} bytes has {len(content):,}")
        return levels, content


def find_pages(
    file: BinaryIO, metadata: pq.FileMetaData, group: int, column: str, page_bytes: int
) -> StringPages | None:
    """The pages of a flat column of strings; None where none has more than `page_bytes`, or one is of an unusual kind.

    Raises:
        OSError: the file cannot be read.
    """
    index = metadata.schema.names.index(column) if metadata.schema.names.count(column) == 1 else -1
    if index < 0:
        return None
    schema, chunk = metadata.schema.column(index), metadata.row_group(group).column(index)
    is_flat = schema.path == column and not schema.max_repetition_level and schema.max_definition_level <= 1
    if not is_flat or schema.physical_type != "BYTE_ARRAY" or chunk.compression not in _CODECS:
        return None
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset and chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    try:
        pages = list(_pages(file, start, start + chunk.total_compressed_size))
    except (ValueError, IndexError, KeyError, RecursionError):
        return None
    rows = sum(page.values for page in pages if page.kind != _DICTIONARY)
    if rows != metadata.row_group(group).num_rows or all(page.size <= page_bytes for page in pages):
        return None
    return StringPages(file, pages, chunk.compression, nullable=schema.max_definition_level == 1)


def _pages(file: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """Raises ValueError, IndexError or KeyError where a header is not as it should be, or of a kind not read here."""
    while start < end:
        file.seek(start)
        reader = _Compact(file.read(min(_HEADER_BYTES, end - start)))
        header = reader.struct()
        kind, size, stored = header[1], header[2], header[3]
        own = header[{_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}[kind]]
        encoding = own[4] if kind == _DATA_2 else own[2]
        known = (_PLAIN, 2) if kind == _DICTIONARY else (_PLAIN, *_DICTIONARIES)
        levels = own[5] if kind == _DATA_2 else 0
        repeats = own[6] if kind == _DATA_2 else 0
        level_encoding = own[3] if kind == _DATA else 3
        if encoding not in known or level_encoding != 3 or repeats or min(size, stored, own[1], levels) < 0:
            raise ValueError("of an unusual kind")
        start += reader.at
        yield Page(kind, start, stored, size, own[1], encoding, levels, own.get(7, True) if kind == _DATA_2 else True)
        start += stored
    if start != end:
        raise ValueError("pages beyond the end of the column")


class _Compact:
    """Structs in Thrift's compact protocol, as dicts of field numbers."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content, self.at = content, 0

    def struct(self) -> dict[int, Any]:
        """The next struct; raises ValueError where it holds what no page header does."""
        found: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._signed()
            found[number] = self._value(kind & 15)
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            return self.bytes(self.varint())
        if kind == 12:
            return self.struct()
        raise ValueError(f"a field of type {kind}")

    def bytes(self, size: int) -> bytes | memoryview:
        """The next so many bytes; raises ValueError where there are fewer."""
        self.at += size
        if self.at > len(self._content):
            raise ValueError("a value beyond the end of its page")
        return self._content[self.at - size : self.at]

    def varint(self) -> int:
        """The next number without a sign; raises IndexError at the end."""
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _signed(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)


def _plain(content: memoryview, count: int) -> Iterator[memoryview]:
    at = 0
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(content[at:start], "little")
        if start > len(content) or at > len(content):
            raise ValueError("a value beyond the end of its page")
        yield content[start:at]


def _runs(content: memoryview, bits: int, count: int) -> np.ndarray:
    """int64 `[count]` of so many bits each, stored in runs of one number and in groups of eight.

    Raises:
        ValueError: they end before that.
    """
    if bits > 32:
        raise ValueError(f"numbers of {bits} bits")
    found = np.zeros(count, dtype=np.int64)
    done, reader = 0, _Compact(content)
    while done < count:
        header = reader.varint()
        if header & 1:
            numbers = min((header >> 1) * 8, count - done)
            packed = np.frombuffer(reader.bytes((header >> 1) * bits), dtype=np.uint8)
            unpacked = np.unpackbits(packed, bitorder="little")[: numbers * bits].reshape(numbers, bits)
            found[done : done + numbers] = unpacked @ (1 << np.arange(bits, dtype=np.int64))
        else:
            numbers = min(header >> 1, count - done)
            found[done : done + numbers] = int.from_bytes(reader.bytes((bits + 7) // 8), "little")
        if not numbers:
            raise ValueError("levels or indices end before the last value of their page")
        done += numbers
    return found
