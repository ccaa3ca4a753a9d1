"""A file of `torch.save`, old or new, read without torch and without its pickle being carried out.

Since torch 1.6 such a file is a zip archive of a pickle and one member per storage; before, a row of pickles with the
storages behind them. Either way the pickle is walked (`pickle_tree.py`), and values are read, in pieces, from where it
says that they are. What is in the file may be nested; what is no tensor is there as plain Python.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, FileIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from .archive import check_directory, check_members
from .files import one_line, open_file, shown
from .pickle_tree import MOST_PICKLE_BYTES, PickleTree, Storage, TensorPiece, read_pickle
from .safetensors_file import DTYPES, PIECE_BYTES

__all__ = ["TYPES", "TorchFile"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\n" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
TYPES = {**DTYPES, "BOOL": torch.bool}


@dataclass(frozen=True)
class Run:
    """Bytes of the file."""

    begin: int
    end: int


class TorchFile:
    """One file of `torch.save`.

    Args:
        path: a regular file.
        allowed: the only modules and names that its pickle may hold; None: any, none of which is called.
        label: what messages call it; None: by its path.

    Attributes:
        path: as given.
        label: as given, or the path.
        root: what was saved; see `PickleTree.root`.

    Raises:
        WeightsError: the file is no such file, or not a whole one.
    """

    def __init__(self, path: Path, *, allowed: frozenset[str] | None = None, label: Path | None = None) -> None:
        self.path = path
        self.label = label or path
        with open_file(path) as stream:
            self._status = _status(stream)
            start = stream.read(len(LEGACY_START))
            stream.seek(0)
            if start != LEGACY_START and start[:2] != b"PK":
                raise WeightsError(f"{self.label}: not a file of torch.save")
            read = _read_legacy if start == LEGACY_START else _read_archive
            # What the zip reader and the pickle's decoder raise where a file is not what it claims to be.
            broken = (ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError, struct.error)
            try:
                tree, self._storages = read(stream, allowed)
            except (*broken, zipfile.BadZipFile) as error:
                raise WeightsError(f"{self.label}: not a readable file of torch.save ({one_line(error)})") from None
        self.root = tree.root

    def check(self, tensors: Mapping[str, TensorPiece]) -> dict[str, list[str]]:
        """See that these tensors are whole pieces of the file, none of which overlaps another.

        So the values that they hold together are never more than the file has, whatever it says.

        Returns:
            First name -> all names, of each piece; in the order given.

        Raises:
            WeightsError: naming the tensor.
        """
        groups: dict[tuple[int, int], list[str]] = {}
        empty: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            where = f"{self.label}: tensor {shown(name)}"
            if not _is_dense(tensor):
                strides = f"strides {list(tensor.strides)} for shape {list(tensor.shape)}"
                raise WeightsError(f"{where}: {strides}, expected each value once and no gaps")
            storage = tensor.storage
            if tensor.first + tensor.numel > storage.numel:
                raise WeightsError(
                    f"{where}: {tensor.nbytes:,} bytes from byte {tensor.first * storage.itemsize:,} on, "
                    f"its storage has {storage.numel * storage.itemsize:,}"
                )
            begin = self._begin(tensor)
            if not tensor.nbytes:
                empty[name] = [name]
                continue
            names = groups.setdefault((begin, begin + tensor.nbytes), [])
            names.append(name)
            one = tensors[names[0]]
            if (one.shape, one.strides, one.storage.dtype) != (tensor.shape, tensor.strides, storage.dtype):
                raise WeightsError(f"{where}: the same bytes as {shown(names[0])}, yet another shape or dtype")
        spans = sorted(groups)
        for one, other in pairwise(spans):
            if other[0] < one[1]:
                names = f"{shown(groups[one][0])} and {shown(groups[other][0])}"
                raise WeightsError(f"{self.label}: tensors {names} overlap in the file")
        return {names[0]: names for names in groups.values()} | empty

    def pieces(self, tensor: TensorPiece) -> Iterator[Tensor]:
        """The values of a checked tensor in order, in pieces of one dimension; each is valid until the next.

        Only where its dimensions lie in another order in the file is the whole tensor in memory.
        """
        if not _is_contiguous(tensor):
            yield self.values(tensor).reshape(-1)
            return
        step = PIECE_BYTES // tensor.storage.itemsize
        buffer = torch.empty(min(tensor.nbytes, PIECE_BYTES), dtype=torch.uint8)
        with self._opened(tensor) as stream:
            for first in range(0, tensor.numel, step):
                piece = buffer[: min(step, tensor.numel - first) * tensor.storage.itemsize]
                self._fill(stream, piece)
                yield piece.view(TYPES[tensor.storage.dtype])

    def values(self, tensor: TensorPiece) -> Tensor:
        """A checked tensor as a whole, in its shape."""
        whole = torch.empty(tensor.nbytes, dtype=torch.uint8)
        with self._opened(tensor) as stream:
            self._fill(stream, whole)
        return whole.view(TYPES[tensor.storage.dtype]).as_strided(tensor.shape, tensor.strides)

    def _begin(self, tensor: TensorPiece) -> int:
        return self._storages[tensor.storage.key].begin + tensor.first * tensor.storage.itemsize

    @contextmanager
    def _opened(self, tensor: TensorPiece) -> Iterator[FileIO]:
        """The file, at the tensor's first byte."""
        with open_file(self.path) as stream:
            if _status(stream) != self._status:
                raise WeightsError(f"{self.label}: changed while it was read")
            stream.seek(self._begin(tensor))
            yield stream

    def _fill(self, stream: FileIO, target: Tensor) -> None:
        view = target.numpy().data
        while view:
            try:
                got = stream.readinto(view)
            except OSError as error:
                raise WeightsError(f"{self.label}: cannot be read ({one_line(error)})") from None
            if not got:
                raise WeightsError(f"{self.label}: ends inside a tensor")
            view = view[got:]


def _status(stream: FileIO) -> tuple[int, int, int, int]:
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_dense(tensor: TensorPiece) -> bool:
    """Whether the values are a run of the file, each once, whatever the order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size != 1 and tensor.numel:
            if stride != expected:
                return False
            expected *= size
    return True


def _is_contiguous(tensor: TensorPiece) -> bool:
    expected = 1
    for stride, size in zip(reversed(tensor.strides), reversed(tensor.shape), strict=True):
        if size != 1 and tensor.numel:
            if stride != expected:
                return False
            expected *= size
    return True


def _read_archive(stream: FileIO, allowed: frozenset[str] | None) -> tuple[PickleTree, dict[str, Run]]:
    check_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        folder = check_members(archive)
        pickle = archive.getinfo(f"{folder}/data.pkl")
        if pickle.file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"a pickle of {pickle.file_size:,} bytes, expected at most {MOST_PICKLE_BYTES:,}")
        tree = read_pickle(BytesIO(archive.read(pickle)), allowed)
        members = {key: archive.getinfo(f"{folder}/data/{key}") for key in tree.storages}
    size = _status(stream)[2]
    return tree, {key: _run(stream, size, tree.storages[key], member) for key, member in members.items()}


def _run(stream: FileIO, size: int, storage: Storage, member: zipfile.ZipInfo) -> Run:
    """Where a storage is: behind the header that stands before each member."""
    stream.seek(member.header_offset)
    mark, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    begin = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    end = begin + storage.numel * storage.itemsize
    if mark != b"PK\3\4" or member.file_size != end - begin or end > size:
        raise ValueError(f"storage {shown(storage.key)}: {member.file_size:,} bytes, expected {end - begin:,}")
    return Run(begin, end)


def _read_legacy(stream: FileIO, allowed: frozenset[str] | None) -> tuple[PickleTree, dict[str, Run]]:
    """The pickles: a magic number, a version, facts of the machine, what was saved, the keys of its storages."""
    size = _status(stream)[2]
    start = BytesIO(stream.read(2 * MOST_PICKLE_BYTES))
    _, version, machine = (read_pickle(start).root for _ in range(3))
    if version != LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("an unknown version, or a byte order other than little-endian")
    tree = read_pickle(start, allowed)
    keys = read_pickle(start, frozenset()).root
    if not isinstance(keys, list) or set(tree.storages) - {key for key in keys if isinstance(key, str)}:
        raise ValueError("storages that are not in the file")
    runs: dict[str, Run] = {}
    position = start.tell()
    for key in keys:
        storage = tree.storages.get(key) if isinstance(key, str) else None
        if storage is None or key in runs:
            raise ValueError(f"storage {shown(key)}: of a kind that is not read, or there twice")
        stream.seek(position)
        begin = position + 8
        end = begin + storage.numel * storage.itemsize
        if stream.read(8) != storage.numel.to_bytes(8, "little") or end > size:
            raise ValueError(f"storage {shown(key)}: expected {storage.numel:,} values, the file has others")
        runs[key] = Run(begin, end)
        position = end
    return tree, runs
