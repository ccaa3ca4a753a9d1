"""The two ceilings of a machine, measured in the same run as what is held against them: products and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..gemm import Product, gemm_ceiling
from ..timing import spread
from .cost import Cost
from .timing import time_systems

__all__ = ["Ceilings", "measure_ceilings"]

PRODUCT_SIZES = (4096, 8192)
"""Of the square products on a GPU; the faster one counts."""

PRODUCTS = (Product("qkv", 768, 2304, 1), Product("up", 768, 3072, 1), Product("down", 3072, 768, 1))
"""Of BERT-base, on a CPU; the fastest counts."""

COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best.

    Attributes:
        tflops: TFLOP/s of large matrix products, by dtype.
        gbps: GB/s of a large copy, read and written counted.
    """

    tflops: dict[str, float]
    gbps: float

    def share(self, cost: Cost, dtype: str, seconds: float) -> float:
        """How much of the slower ceiling a call reaches: the least time that both allow over its own; 1 is all.

        Above 1 the data were in a cache, which the copy is too large for.
        """
        least = max(cost.flops / self.tflops[dtype] / 1e12, cost.bytes / self.gbps / 1e9)
        return least / seconds


def measure_ceilings(device: torch.device, dtypes: Sequence[torch.dtype]) -> Ceilings:
    """Time large products in each dtype and a copy that no cache holds; seconds on a CPU, less on a GPU."""
    copied = COPIED_BYTES[device.type] // 4
    source = torch.ones(copied, dtype=torch.int32, device=device)
    copy = functools.partial(torch.empty_like(source).copy_, source)
    gigabytes = 2 * 4 * copied / spread(time_systems({"copy": copy}, device, ROUNDS)["copy"]).median / 1e9
    del source, copy
    return Ceilings({_name(dtype): _teraflops(device, dtype) for dtype in dtypes}, gigabytes)


def _teraflops(device: torch.device, dtype: torch.dtype) -> float:
    if device.type == "cpu" and dtype != torch.float16:
        return max(gemm_ceiling(dtype, PRODUCTS, tokens=1024, repeats=3).teraflops.values())
    sizes = PRODUCT_SIZES if device.type == "cuda" else (1024,)
    generator = torch.Generator(device).manual_seed(0)
    calls: dict[str, Callable[[], Any]] = {}
    for size in sizes:
        # Random data: a card draws less power on zeros, and so clocks higher.
        a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
        calls[str(size)] = functools.partial(torch.mm, a, b)
    seconds = time_systems(calls, device, ROUNDS)
    return max(2.0 * size**3 / spread(seconds[str(size)]).median / 1e12 for size in sizes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
