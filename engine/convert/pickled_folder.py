"""A model folder whose weights are pickled: the same names and values as safetensors, and every other file as it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CONFIG_NAME, LARGEST_CONFIG, model_type, read_json, read_json_value
from ..errors import ConfigError, OptionError, WeightsError
from ..hub import DATA_FILES
from ..models import CLASSES, FAMILIES, family_class
from ..models.pretrained import LARGEST_SHARD
from ..weights.files import (
    INDEX_NAME,
    MOST_TENSORS,
    PICKLED_INDEX_NAME,
    PICKLED_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    find_checkpoint,
    inside,
    listed,
    open_file,
    shown,
)
from ..weights.pickle_tree import TensorPiece
from ..weights.pickled import NAMES
from ..weights.safetensors_file import DTYPES, PIECE_BYTES, SafetensorsFile, StoredTensor
from ..weights.torch_file import TorchFile
from ..weights.writing import Outgoing, save_tensors
from .tensors import outgoing, sent

__all__ = ["PickledModel", "read_pickled_model", "write_pickled_model"]

LARGEST_COPY = 200 * 2**20
"""Bytes of a configuration, a vocabulary or a sentencepiece model."""

MODULE_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
MOST_NAMES = 4
"""Of one piece of a file, where each name is written; so a small file stays small."""

OLD_TENSOR = "torch._utils _rebuild_tensor"


@dataclass(frozen=True)
class PickledModel:
    """A model folder.

    Attributes:
        folder: where it is.
        parts: folder inside it, "" for itself -> its checkpoint, for each that has weights.
        others: folders inside it without weights.
        how: an expression that loads what comes of it, with "{}" for its folder.
    """

    folder: Path
    parts: dict[str, Checkpoint]
    others: tuple[str, ...]
    how: str


def read_pickled_model(folder: Path, file: Path | None = None) -> PickledModel:
    """Look through a model folder; the weights are not opened yet.

    Args:
        folder: of transformers or of sentence-transformers.
        file: its weights, where they do not have a usual name.

    Raises:
        ConfigError: a configuration is missing or cannot be read.
        OptionError: there is nothing pickled in it, or `file` is one of several shards.
        WeightsError: there are no weights, or not where they may be.
    """
    names = ["", *_modules(folder)]
    parts: dict[str, Checkpoint] = {}
    if file is not None:
        if file.name != PICKLED_NAME and (folder / PICKLED_INDEX_NAME).exists():
            raise OptionError(f"{file}: one of several files, expected their folder {folder}")
        parts[""] = Checkpoint(file, (file,), pickled=True)
    for name in names:
        if name not in parts and _has_weights(folder / name):
            parts[name] = find_checkpoint(folder / name, pickled=True)
    if not parts:
        parts[""] = find_checkpoint(folder, pickled=True)  # which raises
    if not any(checkpoint.pickled for checkpoint in parts.values()):
        raise OptionError(f"{folder}: its weights are safetensors already; there is nothing to convert")
    described = (folder / name for name in names if name in parts and (folder / name / CONFIG_NAME).exists())
    transformer = next(described, folder)
    kind = model_type(transformer)
    others = tuple(name for name in names if name not in parts)
    how = "padless.load({})" if len(names) > 1 else _how(kind, transformer)
    return PickledModel(folder, parts, others, how)


def write_pickled_model(model: PickledModel, target: Path, dtype: torch.dtype | None) -> tuple[list[Outgoing], int]:
    """Write it into the empty folder `target`; what was written, and in how many files.

    Raises:
        WeightsError, ConfigError: naming file and tensor.
    """
    written: list[Outgoing] = []
    files = 0
    for name in (*model.parts, *model.others):
        (target / name).mkdir(parents=True, exist_ok=True)
        _copy_files(model.folder / name, target / name)
        if name in model.parts:
            tensors = list(_tensors(model.parts[name], _ties(model.folder / name), dtype))
            files += save_tensors(tensors, target / name, max_shard_size=LARGEST_SHARD)
            written += tensors
        if dtype is not None and "model_type" in _raw_config(target / name):
            _set_dtype(target / name / CONFIG_NAME, dtype)
    return written, files


def _modules(folder: Path) -> list[str]:
    """The folders of a sentence-transformers model, but for the root."""
    path = folder / "modules.json"
    if not path.exists():
        return []
    entries = read_json_value(path, what="module list")
    found = []
    for entry in entries if isinstance(entries, list) else [None]:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or (name and not MODULE_FOLDER.fullmatch(name)):
            raise ConfigError(f"{path}: path: expected the name of a folder beside it, got {shown(name)}")
        if name and (folder / name).is_symlink():
            raise ConfigError(f"{path}: path: {name} is a link, expected a folder")
        if name and (folder / name).is_dir():
            found.append(name)
    return list(dict.fromkeys(found))


def _has_weights(folder: Path) -> bool:
    known = (WEIGHTS_NAME, INDEX_NAME, PICKLED_NAME, PICKLED_INDEX_NAME)
    return any(os.path.lexists(folder / name) for name in known)


def _copy_files(source: Path, target: Path) -> None:
    """Everything that is data and no weights; nothing else is looked at."""
    patterns = [pattern for pattern in DATA_FILES if not pattern.endswith(".safetensors")]
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_dir() or path.name.endswith(".index.json"):
            continue
        with open_file(inside(source, path.name)) as stream:
            content = stream.read(LARGEST_COPY + 1)
        if len(content) > LARGEST_COPY:
            raise WeightsError(f"{path}: more than {LARGEST_COPY:,} bytes, expected a configuration or a vocabulary")
        (target / path.name).write_bytes(content)


def _tensors(checkpoint: Checkpoint, ties: bool, dtype: torch.dtype | None) -> Iterator[Outgoing]:
    seen: set[str] = set()
    for path in checkpoint.paths:
        found = list(_of_torch(path, ties, dtype) if checkpoint.pickled else _of_safetensors(path, dtype))
        for tensor, names in found:
            twice = sorted(seen.intersection(names))
            if twice:
                raise WeightsError(f"{checkpoint.source}: tensors in two files: {listed(twice)}")
            seen.update(names)
            yield tensor
        if len(seen) > MOST_TENSORS:
            raise WeightsError(f"{checkpoint.source}: more than {MOST_TENSORS:,} tensors")
    absent = sorted(set(checkpoint.weight_map or ()) - seen)
    if absent:
        raise WeightsError(f"weight index {checkpoint.source}: tensors that no shard holds: {listed(absent)}")


def _of_torch(path: Path, ties: bool, dtype: torch.dtype | None) -> Iterator[tuple[Outgoing, list[str]]]:
    """Each tensor of a file, and its names there."""
    file = TorchFile(path, allowed=NAMES | {OLD_TENSOR})
    if not isinstance(file.root, dict):
        raise WeightsError(f"{path}: expected a table of tensors, got {type(file.root).__name__}")
    for name, value in file.root.items():
        if not isinstance(name, str) or not isinstance(value, TensorPiece):
            raise WeightsError(f"{path}: {shown(name)}: expected a tensor, got {type(value).__name__}")
    for first, names in file.check(file.root).items():
        # T5 and mT5 share their table whatever their configuration says of the output.
        shared = ties or first == "shared.weight"
        if not shared and len(names) > MOST_NAMES:
            raise WeightsError(f"{path}: {listed(names)}: one piece of the file, but the configuration ties nothing")
        tensor = outgoing(first, file, file.root[first], dtype)
        yield tensor, names
        for other in () if shared else names[1:]:
            yield replace(tensor, name=other, pieces=outgoing(other, file, file.root[other], dtype).pieces), []


def _of_safetensors(path: Path, dtype: torch.dtype | None) -> Iterator[tuple[Outgoing, list[str]]]:
    for stored in SafetensorsFile(path).tensors:
        if stored.dtype not in DTYPES:
            raise WeightsError(f"{path}: {shown(stored.name)}: {stored.dtype} is not read")
        read = partial(_read, stored)
        yield sent(stored.name, path, DTYPES[stored.dtype], stored.shape, read, dtype), [stored.name]


def _read(stored: StoredTensor) -> Iterator[Tensor]:
    step = PIECE_BYTES // stored.itemsize
    for first in range(0, stored.numel, step):
        yield stored.file.read(stored.name, first, min(step, stored.numel - first))
    stored.file.close()


def _raw_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    return read_json(path, what="model configuration", largest=LARGEST_CONFIG) if path.exists() else {}


def _ties(folder: Path) -> bool:
    """Whether loading makes one parameter of the names that share their values in the file."""
    raw = _raw_config(folder)
    kind = raw.get("model_type")
    if kind in FAMILIES:
        return family_class(kind, "Config", source=str(folder / CONFIG_NAME)).from_folder(folder).tie_word_embeddings
    return raw.get("tie_word_embeddings") is not False


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    raw = _raw_config(path.parent)
    raw.pop("torch_dtype", None)
    raw["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _how(kind: str, folder: Path) -> str:
    if kind not in FAMILIES:
        return "transformers.AutoModel.from_pretrained({})"
    prefix = FAMILIES[kind][1]
    asked = _raw_config(folder).get("architectures")
    known = [f"{prefix}{name}" for name in CLASSES[kind]]
    named = asked[0] if isinstance(asked, list) and asked and asked[0] in known else "AutoModel"
    return f"padless.{named}.from_pretrained({{}})"
