"""Part `attention` of the GPU report: the attention kernel beside the kernels of others, and beside itself.

A kernel is checked against the fp64 oracle, on some texts and a few heads, before it is timed: ours by the 2x rule, a
peer by a relative error that any sound kernel of its dtype stays under. FLOPs are counted exactly, for the pairs of
query and key that see each other. Targets are this project's aims for one H200.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import decode
from .bits import some
from .case import Case, Context, Figures
from .ceilings import run_ceilings
from .oracle import check_attention, relative_error
from .peers import PEERS, UNPROVEN, Absent, Peer, build_peer
from .problem import Inputs, Problem, make_inputs
from .timing import Timing, measure, ratio_of_rounds

__all__ = ["CHECKED_QUERIES", "cases", "checked_heads", "equal", "warm_cases"]

OURS = "padless"
TOKENS = 16384
WINDOW = (64, 64)
RELATIVE_ERROR = 2e-2
"""Of a peer's output, in bf16, to the oracle's: rounding alone gives a third of it at most."""

CHECKED_QUERIES = 2048
"""Of each text that is checked before a timing, its last ones: the oracle of 32k tokens would take the whole card."""

TARGETS = {512: 340.0, 1024: 400.0, 2048: 450.0, 4096: 470.0, 8192: 490.0}
"""TFLOP/s at head dim 64: the published curve of FlashAttention-3 on an H100."""


FLEX_LENGTHS = (512, 2048, 8192, 32768)


def cases(context: Context) -> list[Case]:
    """In the order of their weight: what is cut off when time runs out stands last."""
    if context.dry:
        lengths = (9, 9, 9, 9)
        problem = Problem(lengths, 2, 16, torch.float32)
        return [
            Case("ceilings", run_ceilings),
            Case("equal/9", functools.partial(_against_peers, problem, {})),
            Case("mixed/9", functools.partial(_mixed, replace(problem, lengths=(17, 3, 0, 8)))),
            Case("window/9", functools.partial(_against_peers, replace(problem, window=(2, 2)), {})),
            Case("bias/9", functools.partial(_with_bias, problem)),
            *decode.cases(context),
        ]
    bf16 = functools.partial(equal, dtype=torch.bfloat16)
    found = [Case("ceilings", run_ceilings)]
    found += [
        Case(f"equal/{length}", functools.partial(_against_peers, bf16(length), {"target_tflops": target}))
        for length, target in TARGETS.items()
    ]
    found += [Case(f"mixed/{longest}", functools.partial(_mixed, _ragged(longest))) for longest in (512, 2048, 8192)]
    found += [
        Case(f"window/{length}", functools.partial(_against_peers, _windowed(length), {"target_ratio": 1.5}))
        for length in (2048, 8192, 32768, 4096, 16384)
    ]
    found += [Case(f"bias/{length}", functools.partial(_with_bias, bf16(length))) for length in (512, 2048)]
    found += decode.cases(context)
    found += [
        Case(f"equal d{head_dim}/{length}", functools.partial(_against_peers, bf16(length, head_dim=head_dim), {}))
        for head_dim in (128, 32)
        for length in (512, 4096)
    ]
    found.append(Case("causal/2048", functools.partial(_against_peers, replace(bf16(2048), causal=True), {})))
    unproven = functools.partial(_against_peers, names=(UNPROVEN,))
    found += [
        Case(f"gluon/{length}", functools.partial(unproven, bf16(length), {"target_tflops": TARGETS[length]}))
        for length in (4096, 512)
    ]
    found.append(Case("gluon d128/4096", functools.partial(unproven, bf16(4096, head_dim=128), {})))
    found.append(Case("gluon mixed/2048", functools.partial(unproven, _ragged(2048), {})))
    return found


def warm_cases(context: Context) -> list[Case]:
    """The same calls once each, in several processes, so that the timed run finds everything compiled."""
    return [] if context.dry else [case for case in cases(context) if case.name != "ceilings"]


def equal(length: int, *, dtype: torch.dtype, head_dim: int = 64) -> Problem:
    """`TOKENS` tokens in texts of one length, 1,024 channels in heads."""
    return Problem((length,) * (TOKENS // length), 1024 // head_dim, head_dim, dtype)


def _windowed(length: int) -> Problem:
    return Problem((length,) * (32768 // length), 12, 64, torch.bfloat16, window=WINDOW)


def _ragged(longest: int) -> Problem:
    """Lengths spread evenly from an eighth of `longest` to `longest`, shuffled by their order."""
    lengths: list[int] = []
    step = 0
    while (left := TOKENS * 2 - sum(lengths)) > 0:
        lengths.append(min(longest // 8 + (step * 5741) % (longest - longest // 8 + 1), left))
        step += 1
    return Problem(tuple(lengths), 16, 64, torch.bfloat16)


def _against_peers(problem: Problem, extra: Figures, context: Context, names: Sequence[str] | None = None) -> Figures:
    """Ours and the peers of these names, or every proven one, as far as they are there, on one problem."""
    inputs = make_inputs(problem, context.device)
    if names is None:
        # flex_attention is compiled for each shape, for seconds: a few must do.
        flex = problem.head_dim == 64 and max(problem.lengths) in FLEX_LENGTHS
        names = [name for name in PEERS if name != UNPROVEN and (flex or name != "flex")]
    failure, calls, absent = _sound(inputs, context, names)
    if failure is not None:
        return {"status": "failed", "reason": failure}
    timings = measure(calls, context)
    figures = {"status": "ok", "flops": problem.flops, "tokens": problem.tokens, **extra, "absent": absent}
    if timings is None:
        return figures | {"timed": dict.fromkeys(calls)}
    figures["timed"] = _timed(timings, dict.fromkeys(timings, problem.flops))
    peers = [name for name in timings if name != OURS]
    if peers:
        best = min(peers, key=lambda name: timings[name].device.median)
        figures |= {"best_peer": best, "ratio": figures["timed"][best]["ratio"]}
    return figures


def _mixed(problem: Problem, context: Context) -> Figures:
    """Mixed lengths beside equal ones of as many operations a token: the length weighted by the texts' tokens."""
    length = max(round(sum(n * n for n in problem.lengths) / problem.tokens), 1)
    same = replace(problem, lengths=(length,) * max(problem.tokens // length, 1))
    peers = () if context.dry else ("torch varlen", "flash-attn 3", "flash-attn 4")
    inputs = make_inputs(problem, context.device)
    failure, calls, absent = _sound(inputs, context, peers)
    if failure is not None:
        return {"status": "failed", "reason": failure}
    calls["padless, equal lengths"] = _ours(make_inputs(same, context.device)).call
    flops = dict.fromkeys(calls, problem.flops) | {"padless, equal lengths": same.flops}
    timings = measure(calls, context)
    figures = {"status": "ok", "equal_length": length, "texts": len(problem.lengths), "target_ratio": 0.95}
    figures |= {"tokens": problem.tokens, "flops": problem.flops, "absent": absent}
    if timings is None:
        return figures | {"timed": dict.fromkeys(calls)}
    figures["timed"] = _timed(timings, flops)
    # The two batches differ by a few tokens: their rates are compared, not their times.
    times = figures["timed"]["padless, equal lengths"]["ratio"]
    return figures | {"ratio": round(times * problem.flops / same.flops, 3)}


def _with_bias(problem: Problem, context: Context) -> Figures:
    """T5's bias computed inside, beside the same kernel without it and beside what else can."""
    biased = replace(problem, bias="both")
    inputs = make_inputs(biased, context.device)
    failure, calls, absent = _sound(inputs, context, ("flex",))
    if failure is not None:
        return {"status": "failed", "reason": failure}
    calls["padless, no bias"] = _ours(replace(inputs, problem=problem, position_bias=None)).call
    timings = measure(calls, context)
    figures = {"status": "ok", "flops": problem.flops, "tokens": problem.tokens, "target_ratio": 0.85}
    figures["absent"] = absent
    if timings is None:
        return figures | {"timed": dict.fromkeys(calls)}
    figures["timed"] = _timed(timings, dict.fromkeys(timings, problem.flops))
    return figures | {"ratio": figures["timed"]["padless, no bias"]["ratio"]}


def _timed(timings: Mapping[str, Timing], flops: Mapping[str, int]) -> dict[str, Figures]:
    """Each kernel's time, its TFLOP/s, and how many times faster ours was, by rounds."""
    return {
        name: {
            **timing.figures(),
            "tflops": round(flops[name] / timing.device.median / 1e6, 1),
            "ratio": round(ratio_of_rounds(timings, OURS, name), 3),
        }
        for name, timing in timings.items()
    }


def _ours(inputs: Inputs) -> Peer:
    from ...kernels.attention import varlen_attention

    arguments, options = inputs.arguments(), inputs.options()
    return Peer(lambda: varlen_attention(*arguments, **options), lambda out: out)


def _sound(
    inputs: Inputs, context: Context, names: Sequence[str]
) -> tuple[str | None, dict[str, Callable[[], object]], dict[str, str]]:
    """What is wrong with ours, the calls that gave the right result, and a reason for each that is missing."""
    ours = _ours(inputs)
    checked = checked_heads(inputs)
    references: list[tuple[slice, slice, Tensor]] = []
    texts = [] if context.warm else some(inputs.problem.lengths, 3)
    verdict = check_attention(
        checked,
        ours.packed(ours.call())[:, : checked.problem.heads],
        None,
        context.memory,
        texts,
        CHECKED_QUERIES,
        lambda rows, heads, _eager, reference: references.append((rows, heads, reference)),
    )
    calls: dict[str, Callable[[], object]] = {OURS: ours.call}
    absent: dict[str, str] = {}
    if verdict.broken is not None:
        return verdict.broken, calls, absent
    for name in names:
        try:
            peer = build_peer(name, inputs)
            out = peer.packed(peer.call())
            errors = [relative_error(out[rows, heads], reference) for rows, heads, reference in references]
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
            if context.device.type == "cuda":
                # A fault that the device keeps would fail every case after this one; it ends this process instead.
                torch.cuda.synchronize()
        else:
            if all(error <= RELATIVE_ERROR for error in errors):
                calls[name] = peer.call
            else:
                absent[name] = f"wrong result: relative error {max(errors):.2e}"
    return None, calls, absent


def checked_heads(inputs: Inputs, heads: int = 2) -> Inputs:
    """The first heads of these inputs, as a problem of their own; all heads of grouped ones."""
    problem = inputs.problem
    if problem.heads_k:
        return inputs
    heads = min(heads, problem.heads)
    bias = None if inputs.position_bias is None else inputs.position_bias[:, :heads]
    q, k, v = (x[:, :heads] for x in (inputs.q, inputs.k, inputs.v))
    return replace(inputs, problem=replace(problem, heads=heads), q=q, k=k, v=v, position_bias=bias)
