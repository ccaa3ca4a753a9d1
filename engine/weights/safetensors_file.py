"""Reading a safetensors file: its header with suspicion, its values in small pieces with plain reads.

The safetensors library maps the whole file, whose pages then count as memory of this process beside the parameters they
are copied to, and accepts headers of 100 MB. Here memory stays at one piece, whatever the file says.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import WeightsError
from .files import MOST_JSON_BYTES, one_line, open_file, parse_object, shown

__all__ = ["DTYPES", "PIECE_BYTES", "CheckpointFile", "SafetensorsFile", "StoredTensor"]

PIECE_BYTES = 8 * 2**20
"""Read at once: large enough that starting the threads of an operation costs nothing, small beside any model."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What can be loaded."""

BITS = {
    **{name: dtype.itemsize * 8 for name, dtype in DTYPES.items()},
    **{"C64": 64, "U64": 64, "U32": 32, "U16": 16, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
"""Every dtype of the format."""

MOST_DIMENSIONS = 64
LARGEST_SIZE = 2**63 - 1


class CheckpointFile(Protocol):
    """A file with tensors, opened when it is first read from."""

    path: Path

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Values `first` to `first + count` of a tensor as one dimension, in the stored dtype, on the CPU.

        Valid until the next call. Raises WeightsError where the file cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of the file; reading opens it again."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not yet read.

    Attributes:
        name: as the file has it.
        file: where it is.
        shape: its sizes.
        dtype: the format's name, a key of `DTYPES` where it can be loaded.
        offset: of its first byte, in units that only compare within one file.
    """

    name: str
    file: CheckpointFile
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a value, rounded up."""
        return -(-BITS[self.dtype] // 8)

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.numel * BITS[self.dtype] // 8


class SafetensorsFile:
    """One safetensors file.

    Args:
        path: a file that may be read; see `find_checkpoint`.

    Attributes:
        tensors: what the header names, in the order of the data.

    Raises:
        WeightsError: the file is not a whole and exact safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = ExitStack()
        self._stream: FileIO | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        with open_file(path) as stream:
            self._status = _status(stream)
            try:
                self._data, entries = _read_header(stream, self._status[2])
            except (ValueError, OSError) as error:
                raise WeightsError(f"{path}: not a readable safetensors file ({one_line(error)})") from None
        self.tensors = [StoredTensor(name, self, *entry) for name, entry in entries]
        self._by_name = {tensor.name: tensor for tensor in self.tensors}

    def read(self, name: str, first: int, count: int) -> Tensor:
        """See `CheckpointFile.read`."""
        tensor = self._by_name[name]
        dtype = DTYPES[tensor.dtype]
        if self._buffer.numel() < count * dtype.itemsize:
            self._buffer = torch.empty(max(PIECE_BYTES, count * dtype.itemsize), dtype=torch.uint8)
        piece = self._buffer[: count * dtype.itemsize]
        try:
            stream = self._stream or self._reopen()
            stream.seek(self._data + tensor.offset + first * dtype.itemsize)
            target = piece.numpy().data
            while target:
                got = stream.readinto(target)
                if not got:
                    raise WeightsError(f"{self.path}: tensor {name!r} cannot be read (the file ends inside it)")
                target = target[got:]
        except OSError as error:
            raise WeightsError(f"{self.path}: tensor {name!r} cannot be read ({one_line(error)})") from None
        return piece.view(dtype)

    def close(self) -> None:
        """See `CheckpointFile.close`."""
        self._open.close()
        self._stream = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _reopen(self) -> FileIO:
        stream = self._open.enter_context(open_file(self.path))
        if _status(stream) != self._status:
            raise WeightsError(f"{self.path}: changed while it was read")
        self._stream = stream
        return stream


def _status(stream: FileIO) -> tuple[int, int, int, int]:
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


Entry = tuple[tuple[int, ...], str, int]


def _read_header(stream: FileIO, size: int) -> tuple[int, list[tuple[str, Entry]]]:
    """Where the data begins, and (name, (shape, dtype, offset in the data)) of every tensor.

    ValueError says what is wrong.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise ValueError(f"{len(prefix)} bytes, expected at least 8")
    (length,) = struct.unpack("<Q", prefix)
    if length > size - 8:
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    if length > MOST_JSON_BYTES:
        raise ValueError(f"a header of {length:,} bytes, expected at most {MOST_JSON_BYTES:,}")
    text = stream.read(length)
    if len(text) < length or text[:1] != b"{":
        raise ValueError("a header that does not begin with '{'")
    header = parse_object(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__: expected an object of strings")
    spans: list[tuple[int, int, str, Entry]] = []
    for name, raw in header.items():
        shape, dtype, begin, end = _entry(name, raw)
        spans.append((begin, end, name, (shape, dtype, begin)))
    spans.sort(key=lambda span: span[:2])
    position = 0
    for begin, end, name, _ in spans:
        if begin != position:
            raise ValueError(f"tensor {shown(name)}: begins at byte {begin:,} of the data, expected {position:,}")
        position = end
    data = 8 + length
    if position != size - data:
        raise ValueError(f"{size - data:,} bytes of data, expected {position:,}")
    return data, [(name, entry) for _, _, name, entry in spans]


def _entry(name: str, raw: Any) -> tuple[tuple[int, ...], str, int, int]:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {shown(name)}: unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {shown(name)}: shape {shown(shape)}, expected at most {MOST_DIMENSIONS} sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)}: data_offsets {shown(offsets)}, expected where it begins and ends")
    bits = math.prod(shape) * BITS[dtype]
    begin, end = offsets
    if bits > LARGEST_SIZE or bits % 8 or end - begin != bits // 8:
        raise ValueError(
            f"tensor {shown(name)}: bytes {begin:,} to {end:,} do not hold {dtype} of shape {shown(shape)}"
        )
    return tuple(shape), dtype, begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in value)
