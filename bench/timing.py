"""Wall-clock timing that a busy or warming machine does not fool.

The cases take turns (A B C, A B C, ...), so that a slow minute hits all of them; a ratio is taken within each round and
only then its median, so that what hit one round cancels. Garbage is collected before a turn, never inside it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Spread", "interleave", "only_new_garbage", "ratio", "spread", "time_call"]


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile of some measurements, in the unit of the measurements."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """Median, p20 and p80 of `values`, interpolated between neighbours (numpy's default rule).

    Raises:
        ValueError: if `values` is empty.
    """
    if not values:
        raise ValueError("spread of no values")
    ordered = sorted(values)

    def percentile(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    return Spread(statistics.median(ordered), percentile(0.2), percentile(0.8))


def ratio(seconds: Mapping[str, Sequence[float]], name: str, baseline: str) -> Spread:
    """How many times faster `name` is than `baseline`: the ratio of each round, then its spread.

    Args:
        seconds: what `interleave` returned; round i of every case ran within one turn.
        name: the case that is rated.
        baseline: the case it is rated against.
    """
    return spread([other / own for own, other in zip(seconds[name], seconds[baseline], strict=True)])


def time_call(call: Callable[[], object]) -> float:
    """Seconds of wall clock that `call` takes, with the garbage collector off and left as it was found."""
    with _without_gc():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def interleave(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmups: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, list[float]]:
    """Time the cases in turns.

    Args:
        cases: what to run, by name; they run in this order in every round.
        rounds: timed turns of each case, at least 1.
        warmups: turns before those, not timed.
        progress: called with name and seconds after every timed call.

    Returns:
        Seconds of each round, `[rounds]`, by case.

    Raises:
        ValueError: if `rounds` is below 1 or `warmups` below 0.
    """
    if rounds < 1 or warmups < 0:
        raise ValueError(f"rounds must be at least 1 and warmups at least 0, got {rounds} and {warmups}")
    for _ in range(warmups):
        for call in cases.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with only_new_garbage():
        for _ in range(rounds):
            for name, call in cases.items():
                gc.collect()
                seconds[name].append(time_call(call))
                if progress is not None:
                    progress(name, seconds[name][-1])
    return seconds


_depth = 0
"""Of `only_new_garbage`: the outermost counts. Asking the collector what it has frozen is as slow as a look."""


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """What is there now is not looked at by the collector: with transformers imported each look takes half a second."""
    global _depth
    if _depth == 0:
        gc.collect()
        gc.freeze()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            gc.unfreeze()


@contextmanager
def _without_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
