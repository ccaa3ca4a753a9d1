"""Part `tune` of the GPU report: the fastest configuration of each call that the five families make.

The search is `autotune/search.py`: every candidate is held against the oracle before it is timed, and the default stays
unless something beats it. What is found is in report.json and, for `padless tune --import`, in configs.json. Each call
has its seconds; of a kernel with many candidates those are tried that the cost model puts first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton

from ...autotune.cost import label, rank
from ...autotune.device import identify
from ...autotune.entries import entry_of, hash_of
from ...autotune.exchange import record_tree
from ...autotune.lookup import process_lookup
from ...autotune.machine import Machine, machine_of
from ...autotune.search import Found, Progress, SearchError, Subject, search
from ...engine.contract import Call
from .case import Case, Context, Figures
from .machine import driver_version
from .standard import name_of, standard_calls, tiny_calls
from .subjects import subject
from .timing import measure

__all__ = ["cases", "find", "warm_cases"]

SECONDS = 30.0
"""What one call may take before its last round."""

MOST = 24
"""Candidates of one call; one in a dry run."""

PROCESSES_A_CALL = 4
"""Among as many processes the candidates of a call are dealt out for compiling."""


def cases(context: Context) -> list[Case]:
    """One case for each call that has an entry of its own in the tuned configurations."""
    return [Case(name_of(call), functools.partial(_tune, call)) for call in _calls(context)]


def warm_cases(context: Context) -> list[Case]:
    """The candidates of each call, dealt out to processes that compile them."""
    return [
        Case(f"{name_of(call)} {deal}", functools.partial(_compile, call, deal))
        for call in _calls(context)
        for deal in range(PROCESSES_A_CALL)
    ]


def find(
    call: Call,
    context: Context,
    *,
    seconds: float,
    most: int | None = None,
    progress: Progress | None = None,
) -> Found[Any]:
    """Search for the fastest configuration of a call on the context's device.

    Args:
        call: the facts.
        context: where; nothing is timed in a dry one.
        seconds: see `search`, as of the others.

    Raises:
        OptionError: no kernel serves the call.
        SearchError: its default configuration fails or is wrong.
        RuntimeError: the device was lost.
    """
    found = subject(call, context)
    return search(
        found,
        functools.partial(_rounds, context),
        seconds=seconds,
        machine=_machine(call, context),
        first=_serving(found, context),
        most=most,
        settle=torch.cuda.synchronize if context.device.type == "cuda" else None,
        progress=progress,
    )


def _calls(context: Context) -> Sequence[Call]:
    if context.dry:
        return tiny_calls()
    return standard_calls(torch.bfloat16, identify(context.device).sm)


def _machine(call: Call, context: Context) -> Machine:
    return machine_of(call.sm, identify(context.device).multiprocessors)


def _serving(found: Subject[Any], context: Context) -> Sequence[Any]:
    """The configuration that serves now, where something was measured before."""
    device = identify(context.device)
    kernel_hash = functools.partial(hash_of, found.call.op)
    known = {"triton": triton.__version__, "kernel_hash": kernel_hash}
    return (process_lookup().find(found.call, device, found.candidates, found.default, **known).config,)


def _rounds(
    context: Context, calls: Mapping[str, Callable[[], object]], rounds: int
) -> Mapping[str, Sequence[float]] | None:
    timings = measure(calls, context, rounds)
    return None if timings is None else {name: timing.rounds for name, timing in timings.items()}


def _tune(call: Call, context: Context) -> Figures:
    try:
        found = find(call, context, seconds=SECONDS, most=1 if context.dry else MOST)
    except SearchError as error:
        return {"status": "failed", "reason": str(error)}
    measured = found.us is not None
    figures: Figures = {
        "status": "ok",
        "shipped": label(found.default),
        "best": label(found.best) if measured else None,
        "tried": found.tried,
        "refused": dict(found.refused),
        "untried": len(found.untried),
        "stopped": found.stopped,
    }
    if not measured:
        return figures
    figures |= {"gain": round(found.gain, 3), "us": found.us, "default_us": found.default_us}
    figures["timed"] = {name: round(value, 2) for name, value in found.timed.items()}
    device, driver = identify(context.device), driver_version()
    entry = entry_of(found, device, None if driver == "unknown" else driver)
    return figures if entry is None else figures | {"record": record_tree(device.slug, call.op, entry)}


def _compile(call: Call, deal: int, context: Context) -> Figures:
    of = subject(call, context)
    refused = 0
    order = rank(of.candidates, of.default, call, of.load, _machine(call, context))[:MOST]
    for config in [of.default, *order][deal::PROCESSES_A_CALL]:
        try:
            of.run(config)
        except Exception:
            # It is tried again before it would be timed, and named then.
            torch.cuda.synchronize()
            refused += 1
    return {"status": "ok", "refused": refused}
