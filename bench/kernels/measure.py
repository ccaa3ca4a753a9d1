"""One case through all systems: whoever is there is checked, whoever is right is timed, in one interleaved run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..gpu.peers import Absent
from ..timing import ratio, spread
from .case import Case, Ready
from .ceilings import Ceilings
from .check import Oracle
from .peers import Peer
from .systems import BASELINE, available_memory, chosen_row, ready_row, rows_of
from .timing import peak_bytes, time_systems

__all__ = ["measure_case"]

_ORACLE_BYTES = {"cpu": 1 << 30, "cuda": 1 << 36}
"""What the reference of an attention may take at most; a smaller part of what is free, where that is less."""


def measure_case(case: Case, peers: Mapping[str, Peer], rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    """Figures of one case for the report; see docs/benchmarks.md for their names.

    Args:
        case: what is computed.
        peers: by name; those that are for another op are passed over.
        rounds: timed turns of each system.
        ceilings: what of_ceiling is of.
    """
    with torch.no_grad():
        oracle = Oracle(case, min(available_memory(case.device) // 4, _ORACLE_BYTES[case.device.type]))
        checks: dict[str, dict[str, Any]] = {}
        left_out: dict[str, str] = {}
        failed: dict[str, str] = {}
        sound: dict[str, Ready] = {}
        for name, build in _systems(case, peers).items():
            reason = _check(case, oracle, name, build, checks, left_out, sound)
            if reason is not None:
                failed[name] = reason
        seconds = time_systems({name: ready.call for name, ready in sound.items()}, case.device, rounds)
        peaks = {name: peak_bytes(ready.call, case.device) for name, ready in sound.items()}
    systems = [_figures(case, name, seconds, checks[name], peaks[name], sound[name], ceilings) for name in sound]
    return {
        "op": case.op,
        "case": case.name,
        "dtype": _name(case.dtype),
        "lengths": case.lengths.name,
        "seqlen": case.lengths.seqlen,
        "texts": len(case.lengths.lengths),
        "longest": case.lengths.longest,
        "tokens": case.lengths.tokens,
        "flops": case.cost.flops,
        "bytes": case.cost.bytes,
        "baseline": BASELINE,
        "chosen": chosen_row(case),
        "systems": systems,
        "left_out": left_out,
        "failed": failed,
    }


def _systems(case: Case, peers: Mapping[str, Peer]) -> dict[str, Callable[[], Ready]]:
    def row(name: str) -> Callable[[], Ready]:
        return lambda: ready_row(case, name)

    def other(peer: Peer) -> Callable[[], Ready]:
        def build() -> Ready:
            reason = peer.missing(case)
            if reason is not None:
                raise Absent(reason)
            return peer.build(case)

        return build

    rows = {name: row(name) for name in rows_of(case.op)}
    return rows | {name: other(peer) for name, peer in peers.items() if case.op in peer.ops}


def _check(
    case: Case,
    oracle: Oracle,
    name: str,
    build: Callable[[], Ready],
    checks: dict[str, dict[str, Any]],
    left_out: dict[str, str],
    sound: dict[str, Ready],
) -> str | None:
    """Call a system once and judge it; returns why it failed. One that cannot take part is noted in `left_out`."""
    try:
        ready = build()
        against = oracle if ready.against is None else Oracle(ready.against, 0)
        checks[name], reason = against.judge(ready.results(ready.call()))
    except Absent as absent:
        left_out[name] = str(absent)
        return None
    except torch.OutOfMemoryError as error:
        left_out[name] = f"out of memory: {_first_line(error)}"
        return None
    except Exception as error:
        # A fault that the device keeps would make every figure after this one worthless: it surfaces here.
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)
        return f"{type(error).__name__}: {_first_line(error)}"
    finally:
        gc.collect(0)
    if reason is None:
        sound[name] = ready
    return reason


def _figures(
    case: Case,
    name: str,
    seconds: Mapping[str, tuple[float, ...]],
    check: Mapping[str, Any],
    peak: int | None,
    ready: Ready,
    ceilings: Ceilings,
) -> dict[str, Any]:
    times = spread(seconds[name])
    cost = case.cost if ready.against is None else ready.against.cost
    ratios = ratio(seconds, name, BASELINE) if BASELINE in seconds else None
    return {
        "system": name,
        "us": {key: value * 1e6 for key, value in asdict(times).items()},
        "ratio": None if ratios is None else ratios.median,
        "ratio_spread": None if ratios is None else asdict(ratios),
        "tflops": cost.flops / times.median / 1e12,
        "gbps": cost.bytes / times.median / 1e9,
        "tokens_per_second": case.lengths.tokens / times.median,
        "of_ceiling": ceilings.share(cost, _name(case.dtype), times.median),
        "peak_bytes": peak,
        "check": dict(check),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]
