"""Reading what `torch.save` wrote, where the caller asks for it: a zip archive of a pickle and one member per storage.

The archive and the pickle are checked before torch sees them: no compressed member, no operation or name that a table
of tensors does not need, nothing deep or shared that takes long to take apart. Then `torch.load(weights_only=True)`
maps the file, which allocates nothing, and each tensor is checked to be a plain piece of it.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Sequence
from io import FileIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from .archive import check_directory, check_members
from .files import MOST_TENSORS, one_line, open_file, shown
from .safetensors_file import DTYPES, StoredTensor

__all__ = ["PickledFile"]

MOST_PICKLE_BYTES = 2**20
MOST_OPERATIONS = 200_000
"""A tensor takes about 35 operations and 150 bytes."""

MOST_TUPLE_DEPTH = 3
"""A tensor's arguments hold its shape: two levels, and one more where it was a parameter."""

MOST_MAPPED_BYTES = 32 * 2**20
"""Read before the file is mapped anew, so that pages already copied do not stay in this process's memory."""

OPERATIONS = frozenset(
    (
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINUNICODE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "NONE"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    )
)
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NAMES = frozenset(
    (
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"),
        *(f"torch {kind}Storage" for kind in STORAGES),
    )
)

FORMAT_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.bool: "BOOL"}


class PickledFile:
    """One file written by `torch.save`, holding a table of tensors.

    Args:
        path: a file that may be read; see `find_checkpoint`.

    Attributes:
        tensors: the table, in the order of the data.

    Raises:
        WeightsError: the file is not such a table, or holds anything beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as stream:
            try:
                _check_archive(stream)
            except (ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
                raise WeightsError(f"{path}: not a readable file of torch.save ({one_line(error)})") from None
        self._mapped = self._map()
        self._read_bytes = 0
        self.tensors = _described(self, self._mapped)

    def read(self, name: str, first: int, count: int) -> Tensor:
        """See `CheckpointFile.read`."""
        if self._mapped is None or self._read_bytes > MOST_MAPPED_BYTES:
            self.close()
            self._mapped = self._map()
        piece = self._mapped[name].detach().view(-1)[first : first + count]
        self._read_bytes += piece.numel() * piece.element_size()
        return piece

    def close(self) -> None:
        """See `CheckpointFile.close`."""
        self._mapped = None
        self._read_bytes = 0

    def _map(self) -> dict[str, Tensor]:
        # torch raises whatever it stumbles over in a file that is not what it claims to be.
        try:
            found = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise WeightsError(f"{self.path}: not a readable file of torch.save ({one_line(error)})") from None
        if not isinstance(found, dict):
            raise WeightsError(f"{self.path}: expected a table of tensors, got {type(found).__name__}")
        if len(found) > MOST_TENSORS:
            raise WeightsError(f"{self.path}: {len(found):,} tensors, expected at most {MOST_TENSORS:,}")
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise WeightsError(f"{self.path}: {shown(name)}: expected a tensor, got {type(value).__name__}")
        return found


def _check_archive(stream: FileIO) -> None:
    """ValueError where the archive is anything but plain members beside a small pickle of a table of tensors."""
    check_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        folder = check_members(archive)
        pickle = archive.getinfo(f"{folder}/data.pkl")
        if pickle.file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"a pickle of {pickle.file_size:,} bytes, expected at most {MOST_PICKLE_BYTES:,}")
        _check_pickle(archive.read(pickle))


def _check_pickle(pickle: bytes) -> None:
    """Walk the operations, none of which is carried out; ValueError at the first that a table of tensors does not need.

    Only the nesting of tuples is followed: hashing one that is deep, or that holds another many times, never ends.
    """
    stack: list[int | None] = []  # depth of the tuple there, 0 for anything else, None for a mark
    memo: dict[int, int] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
        name = operation.name
        if count >= MOST_OPERATIONS:
            raise ValueError(f"a pickle of more than {MOST_OPERATIONS:,} operations")
        if name not in OPERATIONS:
            raise ValueError(f"the pickle uses {name}, which a table of tensors does not need")
        if name == "GLOBAL" and argument not in NAMES:
            raise ValueError(f"the pickle asks for {shown(argument)}, which a table of tensors does not need")
        if name == "MARK":
            stack.append(None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_integer(argument)] = _top(stack)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo.get(_integer(argument), 0))
            if stack[-1]:
                raise ValueError("the pickle uses one tuple twice")
        else:
            taken = _take(stack, operation)
            if name.startswith("TUPLE"):
                depth = 1 + max(taken, default=0)
                if depth > MOST_TUPLE_DEPTH:
                    raise ValueError("the pickle nests tuples")
                stack.append(depth)
            elif operation.stack_after:
                stack.append(0)


def _take(stack: list[int | None], operation: pickletools.OpcodeInfo) -> Sequence[int]:
    """Remove what an operation takes from the stack; ValueError where it is not there."""
    wanted = list(operation.stack_before)
    taken: list[int] = []
    if pickletools.stackslice in wanted:
        while stack and stack[-1] is not None:
            taken.append(stack.pop() or 0)
        if not stack:
            raise ValueError("a broken pickle (no mark)")
        stack.pop()
        wanted = [kind for kind in wanted if kind not in (pickletools.markobject, pickletools.stackslice)]
    for _ in wanted:
        taken.append(_top(stack))
        stack.pop()
    return taken


def _top(stack: list[int | None]) -> int:
    top = stack[-1] if stack else None
    if top is None:
        raise ValueError("a broken pickle (nothing on its stack)")
    return top


def _integer(argument: object) -> int:
    assert isinstance(argument, int)
    return argument


def _described(file: PickledFile, mapped: dict[str, Tensor]) -> list[StoredTensor]:
    """The tensors of the table, each a plain and whole piece of the file; tied parameters are names of one piece."""
    found = []
    for name, tensor in mapped.items():
        where = f"{file.path}: tensor {shown(name)}"
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise WeightsError(f"{where}: expected a plain tensor, got one of layout {tensor.layout}")
        if not tensor.is_contiguous():
            strides = f"strides {list(tensor.stride())} for shape {list(tensor.shape)}"
            raise WeightsError(f"{where}: {strides}, expected its values one after the other")
        end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
        if tensor.numel() and end > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{where}: {end:,} bytes, its storage has {tensor.untyped_storage().nbytes():,}")
        dtype = FORMAT_NAMES[tensor.dtype]
        found.append(StoredTensor(name, file, tuple(tensor.shape), dtype, tensor.data_ptr() if tensor.numel() else 0))
    found.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    for one, other in pairwise(found):
        same = (one.offset, one.nbytes) == (other.offset, other.nbytes)
        if one.nbytes and not same and other.offset < one.offset + one.nbytes:
            raise WeightsError(f"{file.path}: tensors {shown(one.name)} and {shown(other.name)} overlap in the file")
    return found
