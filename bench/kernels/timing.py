"""Times of systems on one case, in turns: by the GPU's own clock with a cold L2, or by the wall clock of a CPU.

On a CPU a turn of a quick call is several calls, so that it lasts longer than the clock's own noise; caches are left as
the system before left them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..gpu.case import Context
from ..gpu.timing import measure
from ..timing import interleave, time_call

__all__ = ["peak_bytes", "time_systems"]

TURN_SECONDS = 1e-3
"""How long a turn of a quick call lasts at least, on a CPU."""

MOST_CALLS = 1000


def time_systems(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, tuple[float, ...]]:
    """Seconds of one call of each system, `[rounds]`; round i of all systems ran within one turn.

    Args:
        calls: what to time, by name; called before, so nothing is left to compile.
        device: where they compute.
        rounds: timed turns of each.
    """
    if not calls:
        return {}
    if device.type == "cuda":
        timings = measure(calls, Context(device, dry=False, memory=0), rounds)
        assert timings is not None
        return {name: tuple(microseconds / 1e6 for microseconds in each.rounds) for name, each in timings.items()}
    counts = {name: _calls_a_turn(call) for name, call in calls.items()}
    turns = {name: _repeated(call, counts[name]) for name, call in calls.items()}
    seconds = interleave(turns, rounds, warmups=0)
    return {name: tuple(each / counts[name] for each in seconds[name]) for name in calls}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call allocates at its peak beyond what was allocated before; None on a CPU, where nobody counts."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = call()
    torch.cuda.synchronize(device)
    del kept
    return torch.cuda.max_memory_allocated(device) - before


def _calls_a_turn(call: Callable[[], object]) -> int:
    call()  # the check ran in a memory that was another
    return min(max(round(TURN_SECONDS / max(time_call(call), 1e-9)), 1), MOST_CALLS)


def _repeated(call: Callable[[], object], count: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(count):
            call()

    return turn
