"""Part `candidates` of the GPU report: which of a kernel's tilings is fastest for each kind of call.

A quick round over all of them, then a longer one among the best and the shipped one. Each is held against the oracle
before it is timed. Ends in time even where much must still be compiled: what was not tried is counted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...engine.contract import Call
from .attention import CHECKED_QUERIES, checked_heads, equal
from .bits import some
from .case import Case, Context, Figures
from .correctness import attention_call
from .decode import decode_references, make_decode
from .oracle import check_attention, two_times_rule
from .problem import Problem, make_inputs
from .timing import measure, ratio_of_rounds

__all__ = ["cases", "label", "warm_cases", "worth_trying"]

SECONDS = 30.0
"""What one kind of call may take before its last round."""

FINALISTS = 6
PROCESSES_A_CALL = 6
"""Among as many processes the tilings of one kind of call are dealt out for compiling."""

SHIPPED = "shipped"

REGISTERS = 255
"""Of a thread: the most there are."""

SHARED_BYTES = 227 << 10
"""Of a program on sm_90 and sm_100, which have the most."""

SM_OF_TMA = 90


@dataclass(frozen=True)
class Subject:
    """One kernel at one kind of call.

    Attributes:
        call: the kernel with a tiling.
        shipped: the tiling it has unless told otherwise.
        candidates: the others that are worth a try.
        pieces: rows and heads of the output, with what eager gives for them in the same dtype and in fp64.
        broken: why the shipped tiling is wrong, or None.
    """

    call: Callable[[Any], Tensor]
    shipped: Any
    candidates: Sequence[Any]
    pieces: Sequence[tuple[slice, slice, Tensor, Tensor]]
    broken: str | None


Prepare = Callable[[Context], Subject]


def cases(context: Context) -> list[Case]:
    """One case for each kind of call that has an entry of its own in the tuned configurations."""
    return [Case(name, functools.partial(_sweep, prepare)) for name, prepare in _subjects(context).items()]


def warm_cases(context: Context) -> list[Case]:
    """The tilings of each kind of call, dealt out to processes that compile them."""
    return [
        Case(f"{name} {deal}", functools.partial(_compile, prepare, deal))
        for name, prepare in _subjects(context).items()
        for deal in range(PROCESSES_A_CALL)
    ]


def label(config: Any) -> str:
    """A tiling in one line: "BLOCK_M=128 BLOCK_N=64 TMA=1 warps=8 stages=3 registers=255"."""
    blocks = " ".join(f"{name}={value}" for name, value in config.blocks)
    registers = "" if config.max_registers is None else f" registers={config.max_registers}"
    return f"{blocks} warps={config.num_warps} stages={config.num_stages}{registers}"


def worth_trying(candidates: Sequence[Any], shipped: Any, call: Call) -> list[Any]:
    """The candidates without those that would be another under a second name, or hold more than a GPU has room for.

    Args:
        candidates: of one kernel.
        shipped: its tiling unless told otherwise; not among the result.
        call: the kind of call. Tensor descriptors (TMA) need sm_90: elsewhere the kernel runs without them.
    """
    found = {_as_run(shipped, call): shipped}
    for config in candidates:
        if not _too_large(config, call):
            found.setdefault(_as_run(config, call), config)
    return list(found.values())[1:]


def _as_run(config: Any, call: Call) -> tuple[Any, ...]:
    """What tells one tiling from another on this GPU; no TMA is TMA=0."""
    blocks = dict(config.blocks)
    tma = bool(blocks.pop("TMA", 0)) and (call.sm or SM_OF_TMA) >= SM_OF_TMA
    return tuple(sorted(blocks.items())), tma, config.num_warps, config.num_stages, config.max_registers


def _too_large(config: Any, call: Call) -> bool:
    """Whether the numbers that a tile keeps, or its keys and values in flight, cannot be where they must."""
    blocks = dict(config.blocks)
    if "BLOCK_M" not in blocks or "BLOCK_N" not in blocks:
        return False
    rows, keys, channels = blocks["BLOCK_M"], blocks["BLOCK_N"], call.head_dim or 64
    wide = call.dtype == torch.float32
    # Scores and sums are fp32 in registers; in fp32 so are the operands, as the tensor cores have no use for them.
    numbers = rows * (keys + channels) + (rows + keys) * channels * wide
    in_flight = config.num_stages * 2 * keys * channels * call.dtype.itemsize
    return numbers > REGISTERS * 32 * config.num_warps or in_flight > SHARED_BYTES


def _subjects(context: Context) -> dict[str, Prepare]:
    if context.dry:
        tiny = Problem((9, 3, 20), 1, 16, torch.float32)
        return {
            "fp32 d16 full": functools.partial(_attention, tiny),
            "decode d16": functools.partial(_decode, [9, 5, 0], 9, 2, 16),
        }
    bf16 = functools.partial(equal, dtype=torch.bfloat16)
    problems = {
        "bf16 d64 full, 512": bf16(512),
        "bf16 d64 full, 8192": bf16(8192),
        "bf16 d64 sliding, 8192": replace(bf16(8192), window=(64, 64)),
        "bf16 d64 bias, 512": replace(bf16(512), bias="both"),
        "bf16 d32 full, 256": bf16(256, head_dim=32),
        "bf16 d64 causal, 2048": replace(bf16(2048), causal=True),
        "bf16 d128 full, 2048": bf16(2048, head_dim=128),
        "fp32 d64 full, 512": replace(bf16(512), dtype=torch.float32),
    }
    found: dict[str, Prepare] = {name: functools.partial(_attention, problem) for name, problem in problems.items()}
    decode = {"decode bf16 d64, 64 x 4096": functools.partial(_decode, [4096] * 64, 4096, 16, 64)}
    # Decoding stands in the middle: what is last may find no time.
    names = list(found)
    return {name: found[name] for name in names[:4]} | decode | {name: found[name] for name in names[4:]}


def _attention(problem: Problem, context: Context) -> Subject:
    from ...kernels.attention import CANDIDATES, default_config, varlen_attention

    inputs = make_inputs(problem, context.device)
    arguments, options = inputs.arguments(), inputs.options()
    kind = attention_call(problem, context.device)
    shipped = default_config(kind)
    candidates = worth_trying(CANDIDATES, shipped, kind)

    def call(config: Any) -> Tensor:
        out = varlen_attention(*arguments, **options, config=config)
        assert isinstance(out, Tensor)
        return out

    pieces: list[tuple[slice, slice, Tensor, Tensor]] = []
    if context.warm:
        return Subject(call, shipped, candidates, pieces, None)
    checked = checked_heads(inputs)
    texts, out = some(problem.lengths, 3), call(shipped)[:, : checked.problem.heads]
    verdict = check_attention(
        checked, out, None, context.memory, texts, CHECKED_QUERIES, lambda *piece: pieces.append(piece)
    )
    return Subject(call, shipped, candidates, pieces, verdict.broken)


def _decode(lengths: Sequence[int], capacity: int, heads: int, head_dim: int, context: Context) -> Subject:
    from ...kernels.decode import CANDIDATES, decode_attention, default_config

    inputs = make_decode(lengths, capacity, heads, head_dim, context)
    problem = Problem((), heads, head_dim, inputs[0].dtype)
    kind = replace(attention_call(problem, context.device), op="decode_attention")
    shipped = default_config(kind)
    candidates = worth_trying(CANDIDATES, shipped, kind)

    def call(config: Any) -> Tensor:
        out = decode_attention(*inputs, capacity, config=config)
        assert isinstance(out, Tensor)
        return out

    if context.warm:
        return Subject(call, shipped, candidates, (), None)
    eager, reference = decode_references(*inputs, capacity)
    pieces = [(slice(None), slice(None), eager, reference)]
    return Subject(call, shipped, candidates, pieces, two_times_rule(call(shipped), eager, reference)[3])


def _compile(prepare: Prepare, deal: int, context: Context) -> Figures:
    subject = prepare(context)
    refused = 0
    dealt = [subject.shipped, *subject.candidates][deal::PROCESSES_A_CALL]
    for config in dealt:
        try:
            subject.call(config)
        except Exception:
            # It is tried again before it would be timed, and named then.
            torch.cuda.synchronize()
            refused += 1
    return {"status": "ok", "refused": refused}


def _sweep(prepare: Prepare, context: Context) -> Figures:
    start = time.monotonic()
    subject = prepare(context)
    if subject.broken is not None:
        return {"status": "failed", "reason": f"{label(subject.shipped)}: {subject.broken}"}
    calls: dict[str, Callable[[], object]] = {SHIPPED: functools.partial(subject.call, subject.shipped)}
    refused: dict[str, str] = {}
    untried = 0
    for config in subject.candidates[:3] if context.dry else subject.candidates:
        if time.monotonic() - start > SECONDS:
            untried += 1
            continue
        reason = _unsound(functools.partial(subject.call, config), subject.pieces)
        if reason is None:
            calls[label(config)] = functools.partial(subject.call, config)
        else:
            refused[label(config)] = reason
    return _rated(calls, label(subject.shipped), context) | {"refused": refused, "untried": untried}


def _unsound(call: Callable[[], Tensor], pieces: Sequence[tuple[slice, slice, Tensor, Tensor]]) -> str | None:
    try:
        out = call()
        for rows, heads, eager, reference in pieces:
            *_, broken = two_times_rule(out[rows, heads], eager, reference)
            if broken is not None:
                return f"wrong: {broken}"
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return None


def _rated(calls: dict[str, Callable[[], object]], shipped: str, context: Context) -> Figures:
    figures: Figures = {"status": "ok", "shipped": shipped, "tried": len(calls)}
    quick = measure(calls, context, rounds=6)
    if quick is None:
        return figures | {"best": None}
    ranked = sorted(quick, key=lambda name: quick[name].device.median)
    finalists = {name: calls[name] for name in dict.fromkeys([SHIPPED, *ranked[:FINALISTS]])}
    timings = measure(finalists, context)
    assert timings is not None
    best = min(timings, key=lambda name: timings[name].device.median)
    return figures | {
        "best": shipped if best == SHIPPED else best,
        "gain": round(ratio_of_rounds(timings, best, SHIPPED), 3),
        "timed": {name: timing.figures() for name, timing in timings.items()},
        "quick_us": {name: round(timing.device.median, 1) for name, timing in quick.items()},
    }
