"""Writing a checkpoint as transformers does: `model.safetensors`, or shards with an index, under the same names.

Values are written piece by piece from where they are, so memory does not grow with the model. Files appear whole, by
renaming, and at no moment does the folder hold parts of two checkpoints that a reader would take for one.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import OptionError, WeightsError
from .files import INDEX_NAME, WEIGHTS_NAME
from .safetensors_file import DTYPES, PIECE_BYTES

__all__ = ["save_weights"]

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.bool: "BOOL"}
SHARD_NAME = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


def save_weights(model: nn.Module, folder: Path, *, max_shard_size: int) -> None:
    """Write a model's parameters and persistent buffers into `folder`.

    A parameter of several names is written once: under its own name of the class's `tied` table (name -> own name)
    where the class has one, else under its first.

    Args:
        model: its `state_dict()` is written, in its dtypes.
        folder: must exist; the weights of an earlier call there are replaced.
        max_shard_size: bytes of tensors in a file; a larger tensor gets a file of its own.

    Raises:
        OptionError: `max_shard_size` is not positive.
        WeightsError: the files cannot be written; what was there before is still whole, or gone, but never mixed.
    """
    if max_shard_size < 1:
        raise OptionError(f"max_shard_size: expected at least 1 byte, got {max_shard_size}")
    try:
        _save(model, folder, max_shard_size)
    except OSError as error:
        raise WeightsError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None


def _save(model: nn.Module, folder: Path, max_shard_size: int) -> None:
    shards = _shards(_once(model), max_shard_size)
    names = [WEIGHTS_NAME]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = dict(zip(names, shards, strict=True))
    with ExitStack() as temporary:
        written: dict[str, Path] = {}
        for name, tensors in files.items():
            written[name] = _temporary(folder, name, temporary)
            _write(written[name], tensors)
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


def _shards(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > largest:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _temporary(folder: Path, name: str, cleaning: ExitStack) -> Path:
    path = folder / f".{name}.{os.getpid()}.tmp"
    path.unlink(missing_ok=True)
    cleaning.callback(path.unlink, missing_ok=True)
    return path


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Wide dtypes first, so that every tensor begins at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            flat = tensors[name].reshape(-1)
            for piece in flat.split(PIECE_BYTES // 8):
                stream.write(piece.cpu().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_index(path: Path, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    tensors = [tensor for shard in files.values() for tensor in shard.values()]
    metadata = {"total_parameters": sum(t.numel() for t in tensors), "total_size": sum(t.nbytes for t in tensors)}
    weight_map = {name: file for file, shard in files.items() for name in shard}
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
