"""What the CPU at hand can do, and how a kernel's work is spread over its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

__all__ = ["has_tiles", "in_parts", "missing_features"]

WORTH_A_THREAD = 1 << 16
"""Numbers below which a part is not worth handing to another core: some ten microseconds of work."""


def missing_features(dtype: torch.dtype) -> list[str]:
    """Reasons why this CPU runs none of these kernels in `dtype`; empty where it does."""
    if dtype not in (torch.float32, torch.bfloat16):
        return [f"needs dtype float32 or bfloat16, got {str(dtype).removeprefix('torch.')}"]
    needed = ["avx512f", "avx512bw", "avx512vl", "avx512dq", *["avx512bf16"] * (dtype == torch.bfloat16)]
    has = _features()
    missing = [name for name in needed if not has.get(name)]
    return [f"needs a CPU with {', '.join(missing)}, this one has not"] if missing else []


def has_tiles() -> bool:
    """Whether this CPU multiplies bf16 in tiles (AMX), which kernels here do not, and libraries do."""
    return bool(_features().get("amx-bf16"))


def in_parts(count: int, numbers: int, run: Callable[[int, int], None]) -> None:
    """`run(first, end)` over 0..count, on as many cores as torch uses here, all at once.

    Args:
        count: things that can be parted.
        numbers: how many numbers are read and written in all, which decides whether parting pays.
        run: computes things first..end-1; lets other Python threads run meanwhile.
    """
    parts = min(torch.get_num_threads(), count, max(1, numbers // WORTH_A_THREAD))
    if parts <= 1:
        run(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    threads = _threads(parts - 1, os.getpid())
    others = [threads.submit(run, *edges[part : part + 2]) for part in range(1, parts)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


@cache
def _features() -> dict[str, bool]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features())


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of those that its parent began."""
    return ThreadPoolExecutor(count, "padless-llvm")
