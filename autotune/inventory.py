"""What the files of this machine hold for a GPU, and of each entry whether it serves or why it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.contract import Call
from .device import Device
from .key import Key
from .lookup import USER_CACHE, Configuration, Lookup
from .record import Entry

__all__ = ["Known", "Subject", "call_of", "inventory"]


@dataclass(frozen=True)
class Subject:
    """What can be tuned of one op.

    Attributes:
        op: a key of the dispatch table.
        candidates: all configurations that may be handed out.
        default: the configuration of a call where nothing was measured.
        kernel_hash: of the kernel's source as it is now.
    """

    op: str
    candidates: Sequence[Configuration]
    default: Callable[[Call], Configuration]
    kernel_hash: Callable[[], str | None]


@dataclass(frozen=True)
class Known:
    """An entry of a file.

    Attributes:
        op: that it is for.
        source: "user cache", "shipped nvidia-h200" or "shipped sm_90".
        entry: with its key, configuration and provenance.
        verdict: "serves", or why it does not.
    """

    op: str
    source: str
    entry: Entry
    verdict: str


def inventory(lookup: Lookup, device: Device, subjects: Sequence[Subject], triton: str) -> list[Known]:
    """Every entry for this GPU, in the order of ops and sources.

    Args:
        lookup: whose files are looked at. It is asked as kernels ask it, so its counts rise.
        device: a GPU; of anything else nothing is known.
        subjects: the ops.
        triton: version.
    """
    found = []
    for subject in subjects:
        for source, entry in lookup.entries(subject.op, device):
            call = call_of(subject.op, entry.key, device)
            answer = lookup.find(
                call,
                device,
                subject.candidates,
                subject.default(call),
                triton=triton,
                kernel_hash=subject.kernel_hash,
            )
            serves = answer.entry == entry and answer.source == source
            verdict = "serves" if serves else _reason(source, entry, device, subject, triton, answer.source)
            found.append(Known(subject.op, source, entry, verdict))
    return found


def call_of(op: str, key: Key, device: Device) -> Call:
    """A call that has this key, on this GPU."""
    facts: dict[str, Any] = dict(key)
    dtype = getattr(torch, facts.pop("dtype", "float32"), None)
    return Call(op, device=device.type, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32, sm=device.sm,
                **facts)  # fmt: skip


def _reason(source: str, entry: Entry, device: Device, subject: Subject, triton: str, serving: str) -> str:
    """Why an entry does not serve, as far as it can be told; the order is that in which the lookup asks."""
    found = entry.provenance
    if found.gpu is not None and (found.gpu, found.multiprocessors) != (device.name, device.multiprocessors):
        return f"of another GPU: {found.gpu}, {found.multiprocessors} multiprocessors"
    if source == USER_CACHE:
        if found.triton != triton:
            return f"of another triton: {found.triton}, this is {triton}"
        if found.kernel_hash != subject.kernel_hash():
            return "of another source of the kernel"
    blocks = dict(entry.tiling.blocks)
    if not any(dict(candidate.blocks) == blocks for candidate in subject.candidates):
        return "none of the kernel's candidates"
    return f"{serving} comes first" if serving != source else "not used"
