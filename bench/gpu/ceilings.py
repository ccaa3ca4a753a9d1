"""The two ceilings of a card, measured in the same run as what is held against them: matrix products and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .case import Context, Figures
from .timing import measure

__all__ = ["copy_gigabytes", "run_ceilings"]


def run_ceilings(context: Context) -> Figures:
    """TFLOP/s of large products in bf16 and GB/s of a large copy, bytes read and written; the best size counts.

    Random data: a card draws less power on zeros, and so clocks higher.
    """
    sizes = (32,) if context.dry else (4096, 8192)
    products: dict[str, Callable[[], object]] = {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=context.device).bfloat16() for _ in range(2))
        products[f"gemm bf16 {size}"] = functools.partial(torch.mm, a, b)
    source = torch.randint(0, 1 << 30, ((1 << 8 if context.dry else 1 << 29),), device=context.device).int()
    target = torch.empty_like(source)
    calls = {**products, "copy": lambda: target.copy_(source)}
    timings = measure(calls, context, rounds=12)
    if timings is None:
        return {"status": "ok"}
    microseconds = {name: timing.device.median for name, timing in timings.items()}
    teraflops = {size: 2.0 * size**3 / microseconds[f"gemm bf16 {size}"] / 1e6 for size in sizes}
    return {
        "status": "ok",
        "gemm_tflops": round(max(teraflops.values()), 1),
        "copy_gbps": round(copy_gigabytes(source, microseconds["copy"]), 1),
        "timed": {name: timing.figures() for name, timing in timings.items()},
    }


def copy_gigabytes(source: torch.Tensor, microseconds: float) -> float:
    """GB/s of a copy, read and write counted."""
    return 2 * source.numel() * source.element_size() / microseconds / 1e3
