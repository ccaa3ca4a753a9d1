"""Timing with the GPU's own clock: cases in turns, a cold L2, and a host that is always ahead.

The calls of a round come in another order each round, so that no call always follows the same one while clocks drift.
Before each timed call the L2 is overwritten and the GPU is put to sleep for a moment, so that the host has queued the
whole call before the first event fires: what is measured is the device's time. What the host spent is given beside it.
A call that waits for the device in its middle pays for that in both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..timing import Spread, spread
from .case import Context

__all__ = ["Timing", "measure", "ratio_of_rounds"]

SLEEP_CYCLES = 600_000
"""About a third of a millisecond: longer than the host needs for any of the calls measured here."""

FLUSH_BYTES = 256 << 20
"""More than any L2 there is."""


@dataclass(frozen=True)
class Timing:
    """Times of one case, in microseconds.

    Attributes:
        device: between the events before and after the call; median, p20 and p80 over the rounds.
        host: until the call returned.
        rounds: the device's time of each round.
    """

    device: Spread
    host: Spread
    rounds: tuple[float, ...]

    def figures(self) -> dict[str, Any]:
        rounded = {name: round(value, 2) for name, value in asdict(self.device).items()}
        return {"us": rounded, "host_us": round(self.host.median, 1)}


def measure(calls: Mapping[str, Callable[[], object]], context: Context, rounds: int = 40) -> dict[str, Timing] | None:
    """Time `calls` in turns; None in a dry run or to warm up, where each is called once.

    Args:
        calls: what to run, by name; already compiled and checked.
        context: where.
        rounds: timed turns of each.
    """
    if context.dry or context.warm:
        for call in calls.values():
            call()
        return None
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=context.device)
    for _ in range(3):
        for call in calls.values():
            call()
    torch.cuda.synchronize()
    device: dict[str, list[float]] = {name: [] for name in calls}
    host: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffled = list(calls.items()), random.Random(0)
    for _ in range(rounds):
        pairs = {}
        shuffled.shuffle(order)
        for name, call in order:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
            before.record()
            start = time.perf_counter()
            call()
            host[name].append((time.perf_counter() - start) * 1e6)
            after.record()
            pairs[name] = (before, after)
        torch.cuda.synchronize()
        for name, (before, after) in pairs.items():
            device[name].append(before.elapsed_time(after) * 1e3)
    return {name: Timing(spread(device[name]), spread(host[name]), tuple(device[name])) for name in calls}


def ratio_of_rounds(timings: Mapping[str, Timing], name: str, baseline: str) -> float:
    """How many times faster `name` is than `baseline`: the median of the ratios of the rounds."""
    pairs = zip(timings[name].rounds, timings[baseline].rounds, strict=True)
    return spread([other / own for own, other in pairs]).median
