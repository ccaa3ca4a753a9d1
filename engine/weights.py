"""Checkpoints: safetensors files streamed, tensor by tensor, into a model that already exists.

Every name, shape and dtype is compared before the first value is copied, so an error lists all that is wrong at once
and nothing is ever left at its random initialisation. Pickled checkpoints are refused: unpickling runs code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import read_json
from .errors import ConfigError, WeightsError

__all__ = ["INDEX_NAME", "WEIGHTS_NAME", "NameRules", "load_weights"]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors", re.ASCII)
MOST_SHARDS = 10_000
MOST_NAMES_LISTED = 20

FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "I8", "U8")

LFS_POINTER = b"version https://git-lfs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NameRules:
    """How a checkpoint's tensor names become the names of a model's parameters, in this order.

    Attributes:
        prefixes: the first of these that a name begins with is dropped, such as "bert.".
        renames: (regular expression, replacement) pairs, applied in turn, such as
            (r"LayerNorm\\.gamma$", "LayerNorm.weight").
        ignored: regular expressions, searched in the resulting name, of tensors that the model may lack; what the
            model has is loaded all the same, what it lacks is dropped with one log line.
    """

    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def apply(self, name: str) -> str:
        """The model's name for the checkpoint's tensor `name`."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class _Stored:
    """One tensor of a checkpoint, not yet read."""

    name: str
    path: Path
    file: Any
    shape: tuple[int, ...]
    dtype: str


@dataclass
class _Faults:
    """What does not match, gathered over all tensors so that one error tells it all."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def raise_if_any(self, where: Path) -> None:
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.misshapen),
            ("wrong dtype", self.mistyped),
            ("given twice", self.twice),
        )
        parts = [f"{kind}: {_listed(names)}" for kind, names in kinds if names]
        if parts:
            raise WeightsError(f"{where}: tensors do not fit the model: {'; '.join(parts)}")


def load_weights(
    model: nn.Module,
    folder: Path,
    rules: NameRules,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Fill a model's parameters and persistent buffers from `folder`.

    Values are copied into the storage that is already there, so parameters that are views of one buffer stay views, and
    tied parameters need only one of their names in the file. Files are memory-mapped and read one tensor at a time.

    Args:
        model: its `state_dict()` says which tensors are expected. Moved to `dtype` and `device` first; where it is
            there already, its storage stays.
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
        rules: how names in the file become names in the model.
        dtype: of the floating-point parameters afterwards; None keeps the model's own.
        device: of the model afterwards.

    Raises:
        WeightsError: a file is missing, unreadable or not where it may be; tensors are missing, unexpected, misshapen
            or of the wrong kind of dtype; a value is NaN or infinite, in the file or in the parameter's dtype.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError("load_weights needs a model whose parameters have storage, got one on the meta device")
    model.to(device=device, dtype=dtype)
    paths, index = _checkpoint_files(folder)
    source = paths[0] if index is None else folder / INDEX_NAME
    with ExitStack() as files:
        stored = [tensor for path in paths for tensor in _open(path, files)]
        if index is not None:
            _compare_with_index(stored, index, source)
        for target, tensor in _match(model, stored, rules, source):
            _copy(target, tensor)


def _checkpoint_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    single = folder / WEIGHTS_NAME
    index = folder / INDEX_NAME
    if single.exists():
        return [single], None
    if index.exists():
        weight_map = _read_index(index)
        return [_shard(folder, name, index) for name in sorted(set(weight_map.values()))], weight_map
    pickled = sorted(path.name for path in folder.glob("*.bin") if path.name.startswith("pytorch_model"))
    if pickled:
        raise WeightsError(
            f"{folder / pickled[0]}: a pickled checkpoint, which can run code when it is read; expected "
            f"{WEIGHTS_NAME}: save the model again with a current transformers, which writes it"
        )
    raise WeightsError(f"{folder}: holds no weights; expected {WEIGHTS_NAME} or {INDEX_NAME}")


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = read_json(path, what="weight index").get("weight_map")
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"weight index {path}: weight_map: expected an object with an entry per tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise WeightsError(
                f"weight index {path}: tensor {tensor!r:.80}: expected the name of a .safetensors file "
                f"in the same folder, got {shard!r:.80}"
            )
    shards = len(set(weight_map.values()))
    if shards > MOST_SHARDS:
        raise WeightsError(f"weight index {path}: {shards:,} shards, expected at most {MOST_SHARDS:,}")
    return weight_map


def _shard(folder: Path, name: str, index: Path) -> Path:
    """The shard's path, refused where a link leads out of the folder; the hub's cache links into its own `blobs`."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise WeightsError(f"{path}: no such file, though {index.name} names it") from None
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, blobs):
        raise WeightsError(f"{path}: a link that leads out of the model folder, to {real}")
    return path


def _open(path: Path, files: ExitStack) -> Iterable[_Stored]:
    try:
        with path.open("rb") as stream:
            begin = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    if begin == LFS_POINTER:
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights; fetch them with 'git lfs pull'")
    try:
        file = files.enter_context(safe_open(path, framework="pt", device="cpu"))
        return [_stored(name, path, file) for name in file.keys()]  # noqa: SIM118 (the file is not iterable)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({_one_line(error)})") from None


def _stored(name: str, path: Path, file: Any) -> _Stored:
    lazy = file.get_slice(name)
    return _Stored(name, path, file, tuple(lazy.get_shape()), str(lazy.get_dtype()))


def _compare_with_index(stored: Sequence[_Stored], index: dict[str, str], source: Path) -> None:
    held = {(tensor.name, tensor.path.name) for tensor in stored}
    absent = sorted(name for name, shard in index.items() if (name, shard) not in held)
    if absent:
        raise WeightsError(f"weight index {source}: tensors that their shard does not hold: {_listed(absent)}")


def _match(model: nn.Module, stored: Sequence[_Stored], rules: NameRules, source: Path) -> list[tuple[Tensor, _Stored]]:
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    faults = _Faults()
    pairs: dict[str, tuple[Tensor, _Stored]] = {}
    dropped: list[str] = []
    for tensor in stored:
        name = rules.apply(tensor.name)
        target = targets.get(name)
        if target is None:
            ignored = any(re.search(pattern, name) for pattern in rules.ignored)
            (dropped if ignored else faults.unexpected).append(tensor.name)
        elif name in pairs:
            faults.twice.append(f"{name} (as {pairs[name][1].name} and as {tensor.name})")
        else:
            pairs[name] = (target, tensor)
            if tuple(target.shape) != tensor.shape:
                faults.misshapen.append(f"{name} (found {list(tensor.shape)}, expected {list(target.shape)})")
            kinds = FLOATS if target.is_floating_point() else INTEGERS
            if tensor.dtype not in kinds:
                faults.mistyped.append(f"{name} (found {tensor.dtype}, expected one of {', '.join(kinds)})")
    # A tied parameter has several names for one tensor: any of them will do.
    filled = {id(target) for target, _ in pairs.values()}
    faults.missing.extend(name for name, target in targets.items() if id(target) not in filled)
    faults.raise_if_any(source)
    if dropped:
        logger.info("%s: %d tensors that this model does not have: %s", source, len(dropped), _listed(dropped))
    return list(pairs.values())


def _copy(target: Tensor, tensor: _Stored) -> None:
    try:
        values = tensor.file.get_tensor(tensor.name)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{tensor.path}: tensor {tensor.name!r} cannot be read ({_one_line(error)})") from None
    values = values.to(target.dtype)
    if values.is_floating_point() and not values.isfinite().all():
        bad = int(values.numel() - values.isfinite().sum())
        found = f"{bad:,} of {values.numel():,} values are NaN or infinite in {target.dtype}"
        raise WeightsError(f"{tensor.path}: tensor {tensor.name!r}: {found}, expected finite values")
    # Into the storage that is there, and counted by `_version`, so that copies prepared from older values are dropped.
    with torch.no_grad():
        target.copy_(values)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:MOST_NAMES_LISTED])
    return shown if len(names) <= MOST_NAMES_LISTED else f"{shown} and {len(names) - MOST_NAMES_LISTED} more"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
