"""Entries as `padless tune` will write them, and the GPUs and calls they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from padless.autotune.device import Device, slugify
from padless.autotune.key import key_of
from padless.autotune.record import Entry, Provenance, Tiling
from padless.engine.contract import Call

TRITON = "3.6.0"
KERNEL_HASH = "0123456789abcdef"


def gpu(name: str = "NVIDIA H200", sm: int | None = 90, multiprocessors: int = 132) -> Device:
    return Device("cuda", name, slugify(name), sm, multiprocessors, frozenset())


H200 = gpu()
H100 = gpu("NVIDIA H100 80GB HBM3")


def attention_call(head_dim: int = 64, **facts: Any) -> Call:
    facts = {"dtype": torch.bfloat16, "window": "full", "bias": "none", "sm": 90} | facts
    return Call("attention", device="cuda", head_dim=head_dim, **facts)


def linear_call(**facts: Any) -> Call:
    facts = {"dtype": torch.bfloat16, "sm": 90, "hidden": 1536, "inner": 384, "epilogue": "gelu"} | facts
    return Call("linear", device="cuda", **facts)


def tiling(rows: int = 128, keys: int = 64, warps: int = 8, stages: int = 2) -> Tiling:
    """One of the candidates of attention, if the numbers are."""
    return Tiling((("BLOCK_M", rows), ("BLOCK_N", keys), ("TMA", 0)), warps, stages, 255)


def provenance(device: Device = H200, **changes: Any) -> Provenance:
    made = Provenance(
        gpu=device.name,
        multiprocessors=device.multiprocessors,
        sm=device.sm,
        torch="2.11.0+cu130",
        triton=TRITON,
        driver="580.95.05",
        kernel_hash=KERNEL_HASH,
        us=38.25,
        default_us=41.5,
    )
    return replace(made, **changes)


def entry(call: Call | None = None, config: Tiling | None = None, device: Device = H200, **changes: Any) -> Entry:
    """An entry of attention, unless another call and configuration are named; `changes` are of its provenance."""
    return Entry(key_of(call or attention_call()), config or tiling(), provenance(device, **changes))


def several() -> tuple[Entry, ...]:
    """A file's worth: four head sizes, and the first of them by other versions."""
    sizes = [entry(attention_call(head_dim), tiling(keys=32)) for head_dim in (64, 96, 128, 32)]
    return (*sizes, entry(triton="3.5.1"), entry(kernel_hash="fedcba9876543210"))
