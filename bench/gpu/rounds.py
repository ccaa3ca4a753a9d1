"""Wall-clock time of calls that end in a wait for the device, in turns; and the device memory that a call needs."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping

import torch

from .case import Context

__all__ = ["peak_bytes", "time_rounds"]


def time_rounds(
    calls: Mapping[str, Callable[[], object]],
    context: Context,
    *,
    seconds: float,
    least: int = 5,
    most: int = 20,
) -> dict[str, list[float]] | None:
    """Seconds of each call in each round; None in a dry run.

    Each round calls all of them, in another order each time, so that a slow moment hits everybody and none always
    follows the same other one.

    Args:
        calls: what to run, by name; compiled and checked already.
        context: where.
        seconds: what all rounds together should take; says how many there are.
        least: rounds at the least, whatever they take.
        most: rounds at the most.
    """
    if context.dry:
        return None
    start = time.perf_counter()
    for call in calls.values():
        call()
    _settle(context.device)
    once = time.perf_counter() - start
    rounds = min(max(int(seconds / max(once, 1e-6)), least), most)
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffled = list(calls.items()), random.Random(0)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffled.shuffle(order)
            for name, call in order:
                _settle(context.device)
                start = time.perf_counter()
                call()
                _settle(context.device)
                found[name].append(time.perf_counter() - start)
    finally:
        if enabled:
            gc.enable()
    return found


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Device memory that `call` takes at its height, beyond what was taken before it; on a CPU 0, without a call."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
