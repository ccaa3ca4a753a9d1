"""Writing a checkpoint as transformers does: `model.safetensors`, or shards with an index, under the same names.

Values are written piece by piece from where they are, so memory does not grow with the model. Files appear whole, by
renaming, and at no moment does the folder hold parts of two checkpoints that a reader would take for one.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import OptionError, WeightsError
from .files import INDEX_NAME, WEIGHTS_NAME
from .safetensors_file import DTYPES, PIECE_BYTES

__all__ = ["Outgoing", "save_tensors", "save_weights"]

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.bool: "BOOL"}
SHARD_NAME = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written, which need not be in memory.

    Attributes:
        name: in the file.
        dtype: in the file.
        shape: its sizes.
        pieces: makes its values in order, as tensors of one dimension and of that dtype; called once.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.numel * self.dtype.itemsize


def save_weights(model: nn.Module, folder: Path, *, max_shard_size: int) -> None:
    """Write a model's parameters and persistent buffers into `folder`.

    A parameter of several names is written once: under its own name of the class's `tied` table (name -> own name)
    where the class has one, else under its first.

    Args:
        model: its `state_dict()` is written, in its dtypes.
        folder: as of `save_tensors`, and so are the errors.
        max_shard_size: as of `save_tensors`.
    """
    tensors = [
        Outgoing(name, tensor.dtype, tuple(tensor.shape), partial(_pieces, tensor))
        for name, tensor in _once(model).items()
    ]
    save_tensors(tensors, folder, max_shard_size=max_shard_size)


def save_tensors(tensors: Sequence[Outgoing], folder: Path, *, max_shard_size: int) -> int:
    """Write tensors into `folder`, as one checkpoint.

    Args:
        tensors: in the order in which they are dealt to files; their names differ.
        folder: must exist; the weights of an earlier call there are replaced.
        max_shard_size: bytes of tensors in a file; a larger tensor gets a file of its own.

    Returns:
        How many files hold tensors.

    Raises:
        OptionError: `max_shard_size` is not positive.
        WeightsError: the files cannot be written; what was there before is still whole, or gone, but never mixed.
    """
    if max_shard_size < 1:
        raise OptionError(f"max_shard_size: expected at least 1 byte, got {max_shard_size}")
    try:
        return _save(tensors, folder, max_shard_size)
    except OSError as error:
        raise WeightsError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None


def _save(tensors: Sequence[Outgoing], folder: Path, max_shard_size: int) -> int:
    shards = _shards(tensors, max_shard_size)
    names = [WEIGHTS_NAME]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = dict(zip(names, shards, strict=True))
    with ExitStack() as temporary:
        written: dict[str, Path] = {}
        for name, held in files.items():
            written[name] = _temporary(folder, name, temporary)
            _write(written[name], held)
        if len(shards) > 1:
            written[INDEX_NAME] = _temporary(folder, INDEX_NAME, temporary)
            _write_index(written[INDEX_NAME], files)
        stale = [path for path in folder.iterdir() if SHARD_NAME.fullmatch(path.name) and path.name not in files]
        # Without its index an older sharded checkpoint is no checkpoint; then the new files come, the index last.
        for path in [folder / INDEX_NAME, *([folder / WEIGHTS_NAME] if len(shards) > 1 else []), *stale]:
            path.unlink(missing_ok=True)
        for name, path in written.items():
            path.replace(folder / name)
        _sync(folder)
    return len(shards)


def _once(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model under one name."""
    tied: Mapping[str, str] = getattr(model, "tied", {})
    found: dict[str, Tensor] = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in found.items():
        alias = name in tied and found.get(tied[name]) is tensor
        if not alias and id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor.detach()
    return kept


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    return tensor.reshape(-1).split(PIECE_BYTES // 8)


def _shards(tensors: Sequence[Outgoing], largest: int) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _temporary(folder: Path, name: str, cleaning: ExitStack) -> Path:
    path = folder / f".{name}.{os.getpid()}.tmp"
    path.unlink(missing_ok=True)
    cleaning.callback(path.unlink, missing_ok=True)
    return path


def _write(path: Path, tensors: Sequence[Outgoing]) -> None:
    # Wide dtypes first, so that every tensor begins at a multiple of its own width.
    order = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in order:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in order:
            for piece in tensor.pieces():
                stream.write(piece.cpu().contiguous().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_index(path: Path, files: Mapping[str, Sequence[Outgoing]]) -> None:
    tensors = [tensor for shard in files.values() for tensor in shard]
    metadata = {"total_parameters": sum(t.numel for t in tensors), "total_size": sum(t.nbytes for t in tensors)}
    weight_map = {tensor.name: file for file, shard in files.items() for tensor in shard}
    with path.open("x", encoding="utf-8") as stream:
        json.dump({"metadata": metadata, "weight_map": weight_map}, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
