"""From what a search found to an entry of a file, and which kernel file an op's candidates stand in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from ..engine.contract import Call
from ..kernels import attention, decode, embed, linear, mlm_head, mobilebert, norm, norm_linear, pool, rope, trigram
from .device import Device
from .kernel_hash import source_hash
from .key import key_of
from .record import Entry, Provenance, Tiling
from .search import Found

__all__ = ["KERNELS", "candidates_of", "default_of", "entry_of", "hash_of", "is_candidate", "tiling_of"]

KERNELS: dict[str, Any] = {
    "attention": attention,
    "decode_attention": decode,
    "linear": linear,
    "norm_linear": norm_linear,
    "norm": norm,
    "rms_norm": norm,
    "no_norm": norm,
    "mobilebert_in": mobilebert,
    "mobilebert_out": mobilebert,
    "mlm_head": mlm_head,
    "embed": embed,
    "trigram": trigram,
    "rope": rope,
    "pool": pool,
}
"""The module of each op that has candidates."""

NO_HASH = "0" * 16


def candidates_of(op: str) -> Sequence[Any]:
    """What may be chosen for an op."""
    return KERNELS[op].CANDIDATES


def default_of(call: Call) -> Any:
    """The configuration of a call where nothing was measured."""
    return KERNELS[call.op].default_config(call)


def tiling_of(config: Any) -> Tiling:
    """A configuration of the kernels as a file has it."""
    return Tiling(tuple(sorted(config.blocks)), config.num_warps, config.num_stages, config.max_registers)


def is_candidate(op: str, tiling: Tiling) -> bool:
    """Whether an op's kernel would take it."""
    return op in KERNELS and any(tiling_of(config) == tiling for config in candidates_of(op))


def hash_of(op: str) -> str | None:
    """The hash of the source of an op's kernel, as its launcher asks for it; None where there is no source."""
    return source_hash(KERNELS[op].__name__.rpartition(".")[2])


def entry_of(found: Found[Any], device: Device, driver: str | None) -> Entry | None:
    """The entry of what was found; None where nothing was timed, or the winner is no candidate.

    A default that stays is an entry too, where it is a candidate: it says that this call was measured, and takes the
    place of what was found before.

    Args:
        found: by `search`.
        device: the GPU it was found on.
        driver: its driver's version, None if unknown.
    """
    tiling = tiling_of(found.best)
    if found.us is None or found.default_us is None or not is_candidate(found.call.op, tiling):
        return None
    provenance = Provenance(
        gpu=device.name,
        multiprocessors=device.multiprocessors,
        sm=device.sm,
        torch=torch.__version__,
        triton=triton.__version__,
        driver=driver,
        kernel_hash=hash_of(found.call.op) or NO_HASH,
        us=round(found.us, 3),
        default_us=round(found.default_us, 3),
    )
    return Entry(key_of(found.call), tiling, provenance)
