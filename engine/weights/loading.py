"""Checkpoints: tensors streamed, piece by piece, into a model that already exists.

Every name, shape and dtype is compared before the first value is copied, so an error lists all that is wrong at once
and nothing is left at its random initialisation unless the caller allowed it by name. Pickled checkpoints are read only
where the caller asks for them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import WeightsError
from .files import INDEX_NAME, MOST_TENSORS, WEIGHTS_NAME, Checkpoint, find_checkpoint, listed
from .pickled import PickledFile
from .safetensors_file import PIECE_BYTES, SafetensorsFile, StoredTensor

__all__ = ["INDEX_NAME", "WEIGHTS_NAME", "LoadReport", "NameRules", "load_weights"]

FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "I8", "U8")

LEAST_PROGRESS_BYTES = 200 * 10**6
"""Smaller checkpoints load before a progress bar is read."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NameRules:
    """How tensor names of a checkpoint and parameter names of a model are made comparable, in this order.

    A tensor is for the parameter whose name becomes the same: a checkpoint with the prefix "bert." fits a model without
    it and the other way round.

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
        """What `name`, of a tensor or of a parameter, is compared by."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint left open.

    Attributes:
        initialised: those of the `optional` submodules that the checkpoint lacks; their parameters are as they were,
            except those that are tied to one outside.
        dropped: tensors of the checkpoint that the model does not have and `NameRules.ignored` allows.
    """

    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


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
        parts = [f"{kind}: {listed(names)}" for kind, names in kinds if names]
        if parts:
            raise WeightsError(f"{where}: tensors do not fit the model: {'; '.join(parts)}")


def load_weights(
    model: nn.Module,
    folder: Path,
    rules: NameRules,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    optional: Sequence[str] = (),
    replaceable: bool = False,
    tied: Mapping[str, str] | None = None,
    pickled: bool = False,
    progress: bool = False,
) -> LoadReport:
    """Fill a model's parameters and persistent buffers from `folder`.

    Values are copied into the storage that is already there, so parameters that are views of one buffer stay views.
    Beside the model, memory holds one piece of 8 MiB and its conversion, however large the checkpoint.

    Args:
        model: its `state_dict()` says which tensors are expected. Moved to `dtype` and `device` first; where it is
            there already, its storage stays.
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
        rules: how names in the file and in the model are compared.
        dtype: of the floating-point parameters afterwards; None keeps the model's own.
        device: of the model afterwards.
        optional: submodules such as "classifier" that the checkpoint may lack as a whole; lacking a part is an error.
        replaceable: an optional submodule of which the checkpoint has another shape counts as lacking.
        tied: name -> name of the parameter it is another name for; both must be the same object, or the first not be in
            the model at all. The file may hold any of the names; several must hold the same values. Names of the model
            that share a parameter are tied without being told.
        pickled: where there is no safetensors file, read `pytorch_model.bin` or its shards, with `weights_only=True`.
        progress: show a bar on stderr for a checkpoint of more than 200 MB.

    Returns:
        Which optional submodules are left to be initialised, and which tensors were dropped.

    Raises:
        WeightsError: a file is missing, unreadable or not where it may be; tensors are missing, unexpected, misshapen
            or of the wrong kind of dtype; tied names differ; a value is NaN or infinite, in the file or in the
            parameter's dtype.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError("load_weights needs a model whose parameters have storage, got one on the meta device")
    checkpoint = find_checkpoint(folder, pickled=pickled)
    with ExitStack() as files:
        stored = _tensors(checkpoint, files)
        groups, report = _match(model, stored, rules, tied or {}, optional, replaceable, checkpoint.source)
        if report.dropped:
            dropped = f"{len(report.dropped)} tensors that this model does not have: {listed(report.dropped)}"
            logger.info("%s: %s", checkpoint.source, dropped)
        model.to(device=device, dtype=dtype)
        targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
        total = sum(tensor.nbytes for _, tensors in groups for tensor in tensors)
        hidden = not progress or total < LEAST_PROGRESS_BYTES
        with tqdm(
            total=total, desc="loading weights", unit="B", unit_scale=True, disable=hidden, file=sys.stderr
        ) as bar:
            following = [tensors[0].file for _, tensors in groups[1:]]
            for (name, tensors), after in zip_longest(groups, following):
                _copy(targets[name], tensors, bar.update)
                for tensor in tensors:
                    if tensor.file is not after:
                        tensor.file.close()
    return report


def _tensors(checkpoint: Checkpoint, files: ExitStack) -> list[StoredTensor]:
    stored: list[StoredTensor] = []
    for path in checkpoint.paths:
        file = PickledFile(path) if checkpoint.pickled else SafetensorsFile(path)
        files.callback(file.close)
        file.close()
        stored.extend(file.tensors)
        if len(stored) > MOST_TENSORS:
            raise WeightsError(f"{checkpoint.source}: more than {MOST_TENSORS:,} tensors")
    if checkpoint.weight_map is not None:
        held = {(tensor.name, tensor.file.path.name) for tensor in stored}
        absent = sorted(name for name, shard in checkpoint.weight_map.items() if (name, shard) not in held)
        if absent:
            raise WeightsError(
                f"weight index {checkpoint.source}: tensors that their shard does not hold: {listed(absent)}"
            )
    return stored


def _match(
    model: nn.Module,
    stored: Iterable[StoredTensor],
    rules: NameRules,
    tied: Mapping[str, str],
    optional: Sequence[str],
    replaceable: bool,
    source: Path,
) -> tuple[list[tuple[str, list[StoredTensor]]], LoadReport]:
    """(a name of the parameter, the tensors that hold its values) for each parameter, in the order of the file."""
    targets = _named(model, tied)
    names = _comparable(targets, rules)
    faults = _Faults()
    found: dict[str, StoredTensor] = {}
    misshapen: dict[str, str] = {}
    dropped: list[str] = []
    for tensor in stored:
        name = names.get(rules.apply(tensor.name))
        if name is None:
            ignored = any(re.search(pattern, rules.apply(tensor.name)) for pattern in rules.ignored)
            (dropped if ignored else faults.unexpected).append(tensor.name)
        elif name in found:
            faults.twice.append(f"{name} (as {found[name].name} and as {tensor.name})")
        else:
            found[name] = tensor
            target = targets[name]
            if tuple(target.shape) != tensor.shape:
                misshapen[name] = f"{name} (found {list(tensor.shape)}, expected {list(target.shape)})"
            kinds = FLOATS if target.is_floating_point() else INTEGERS
            if tensor.dtype not in kinds:
                faults.mistyped.append(f"{name} (found {tensor.dtype}, expected one of {', '.join(kinds)})")
    for place in optional if replaceable else ():
        if any(_within(name, place) for name in misshapen):
            for name in [name for name in found if _within(name, place)]:
                dropped.append(found.pop(name).name)
                misshapen.pop(name, None)
    faults.misshapen.extend(misshapen.values())
    groups: dict[int, tuple[str, list[StoredTensor]]] = {}
    for name, tensor in found.items():
        own = tied.get(name, name)
        groups.setdefault(id(targets[name]), (own, []))[1].append(tensor)
    absent = [place for place in optional if not any(_within(name, place) for name in found)]
    initialised: set[str] = set()
    for name, target in targets.items():
        if id(target) not in groups and name not in tied:
            places = [place for place in absent if _within(name, place)]
            if places:
                initialised.add(min(places, key=len))
            else:
                faults.missing.append(name)
    faults.raise_if_any(source)
    return list(groups.values()), LoadReport(tuple(p for p in optional if p in initialised), tuple(dropped))


def _named(model: nn.Module, tied: Mapping[str, str]) -> dict[str, Tensor]:
    """What every name that may be in the file stands for."""
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, own in tied.items():
        if own not in targets:
            raise ValueError(f"tied: {name!r} is said to be {own!r}, which the model does not have")
        if targets.setdefault(name, targets[own]) is not targets[own]:
            raise ValueError(f"tied: {name!r} and {own!r} are two parameters of this model")
    return targets


def _comparable(targets: Mapping[str, Tensor], rules: NameRules) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, target in targets.items():
        first = names.setdefault(rules.apply(name), name)
        if targets[first] is not target:
            raise ValueError(f"rules make the parameters {first!r} and {name!r} one")
    return names


def _within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def _copy(target: Tensor, tensors: Sequence[StoredTensor], advance: Callable[[int], object]) -> None:
    """Copy one of the tensors into the target; the others must have the same values."""
    first, *others = tensors
    held = target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
    bad = 0
    # Into the storage that is there, and counted by `_version`, so that copies prepared from older values are dropped.
    with torch.no_grad():
        flat = held.view(-1)
        for begin, count in _pieces(first):
            values = first.file.read(first.name, begin, count).to(target.dtype)
            bad += _not_finite(values)
            flat[begin : begin + count].copy_(values)
            advance(count * first.itemsize)
        if held is not target:
            target.copy_(held)
    if bad:
        raise WeightsError(
            f"{first.file.path}: tensor {first.name!r}: {bad:,} of {first.numel:,} values are NaN or infinite in "
            f"{target.dtype}, expected finite values"
        )
    for other in others:
        _compare(first, other)
        advance(other.nbytes)


def _compare(one: StoredTensor, other: StoredTensor) -> None:
    for begin, count in _pieces(one):
        ours = one.file.read(one.name, begin, count).clone()  # one file has one buffer
        theirs = other.file.read(other.name, begin, count)
        common = torch.promote_types(ours.dtype, theirs.dtype)
        if not torch.equal(ours.to(common), theirs.to(common)):
            where = one.file.path if one.file is other.file else f"{one.file.path} and {other.file.path.name}"
            raise WeightsError(
                f"{where}: tensors {one.name!r} and {other.name!r} are names of one parameter, but their values "
                "differ; expected one of them, or the same values"
            )


def _pieces(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """(first value, number of values) of each piece to read."""
    step = PIECE_BYTES // tensor.itemsize
    for begin in range(0, tensor.numel, step):
        yield begin, min(step, tensor.numel - begin)


def _not_finite(values: Tensor) -> int:
    """How many values are NaN or infinite; counted only where the extremes, found without a temporary, show one."""
    if not values.is_floating_point() or torch.isfinite(torch.stack(torch.aminmax(values))).all():
        return 0
    return values.numel() - int(values.isfinite().sum())
