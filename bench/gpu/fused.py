"""Part `fused` of the GPU report: products with what follows them, norms, MobileBERT's halves, the head, at real sizes.

Each case is held against its eager op in fp64 by the 2x rule and repeated for its bits, and then timed beside what it
replaces: the same product alone by cuBLAS, which no epilogue can beat by much, and the ops one by one. Bytes are those
that must cross the memory bus once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bits import poison, repeat
from .case import Case, Context, Figures
from .ceilings import run_ceilings
from .fused_problems import Problem, head, linear, mobilebert_in, mobilebert_out, norm, norm_linear
from .oracle import Verdict, bits
from .timing import measure, ratio_of_rounds

__all__ = ["cases", "warm_cases"]

OURS = "padless"
ALONE = "the product alone, cuBLAS"
EAGER = "op by op"

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Use:
    """One case.

    Attributes:
        make: the problem, for a context, a dtype and a number of tokens.
        tokens: of the timed run.
        target: figures that it aims at on an H200, for the report.
        timed: dtypes in which it is timed; in others it is checked alone.
        half: there is no fp32.
    """

    make: Callable[[Context, torch.dtype, int], Problem]
    tokens: int = 65536
    target: Mapping[str, float] = field(default_factory=dict)
    timed: tuple[str, ...] = ("bf16",)
    half: bool = False


def _uses(dry: bool) -> dict[str, Use]:
    def size(real: int, tiny: int) -> int:
        return tiny if dry else real

    wide, inner, hidden = size(2304, 24), size(1152, 12), size(768, 16)
    geglu = {"epilogue": "gelu", "gated": True}
    uses = {
        "linear/ModernBERT GeGLU": Use(linear(hidden, wide, **geglu), target={"target_of_product": 1.0}),
        "linear/ModernBERT QKV and RoPE": Use(linear(hidden, 3 * hidden, head_dim=size(64, 8))),
        "linear/ModernBERT residual": Use(linear(inner, hidden, residual=True)),
        "linear/BERT gelu": Use(linear(hidden, size(3072, 20), epilogue="gelu", bias=True)),
        "linear/BERT residual": Use(linear(size(3072, 20), hidden, residual=True, bias=True)),
        "linear/mT5-small gate": Use(linear(size(512, 16), size(2048, 24), epilogue="gelu_tanh", gated=True)),
        "norm_linear/ModernBERT GeGLU": Use(norm_linear(hidden, wide, norm="layer_norm", **geglu), half=True),
        "norm_linear/ModernBERT QKV": Use(norm_linear(hidden, 3 * hidden, norm="layer_norm"), half=True),
        "norm_linear/mT5-small gate": Use(
            norm_linear(size(512, 16), size(2048, 24), norm="rms_norm", epilogue="gelu_tanh", gated=True), half=True
        ),
        "norm/768 layer norm and residual": Use(norm(hidden, "layer"), target={"target_gbps": 3900.0}),
        "norm/1024 layer norm and residual": Use(norm(size(1024, 24), "layer"), target={"target_gbps": 3900.0}),
        "norm/512 rms norm and residual": Use(norm(size(512, 20), "rms"), target={"target_gbps": 3900.0}),
        "norm/512 NoNorm and residual": Use(norm(size(512, 20), "none")),
        "mobilebert/in": Use(mobilebert_in(size(512, 24), size(128, 16))),
        "mobilebert/out": Use(mobilebert_out(size(512, 24), size(128, 16), size(512, 20), size(4, 2))),
        "mobilebert/in, one text": Use(mobilebert_in(size(512, 24), size(128, 16)), tokens=128),
        "mobilebert/out, one text": Use(
            mobilebert_out(size(512, 24), size(128, 16), size(512, 20), size(4, 2)), tokens=128
        ),
        "head/BERT, 5 of 30,522": Use(head(hidden, size(30_522, 50), 5), tokens=4096),
        "head/ModernBERT, 5 of 50,368": Use(head(hidden, size(50_368, 70), 5), tokens=4096),
        "head/BERT, one row": Use(head(hidden, size(30_522, 50), 5), tokens=1),
    }
    return {name: use for name, use in uses.items() if not (dry and name in _ALIKE)}


_ALIKE = ("norm/1024 layer norm and residual", "mobilebert/in, one text", "mobilebert/out, one text",
          "head/ModernBERT, 5 of 50,368")  # fmt: skip
"""What differs from another use by its size alone, which a dry run does not have; they were a third of it."""


def cases(context: Context) -> list[Case]:
    """The card's ceilings; every use in every dtype, and those that are timed after they were checked."""
    found = [Case("ceilings", run_ceilings)]
    for name, use in _uses(context.dry).items():
        dry = "bf16" if use.half else "fp32"
        for short, dtype in DTYPES.items():
            if (context.dry and short != dry) or (use.half and short == "fp32"):
                continue
            found.append(Case(f"{name}, {short}", _bind(use, short, dtype)))
    return found


def warm_cases(context: Context) -> list[Case]:
    """What compiles something."""
    return [case for case in cases(context) if case.name != "ceilings"]


def _bind(use: Use, short: str, dtype: torch.dtype) -> Callable[[Context], Figures]:
    return lambda context: _run(use, short, dtype, context)


def _run(use: Use, short: str, dtype: torch.dtype, context: Context) -> Figures:
    timed = context.dry or short in use.timed
    few = 37 if context.dry else 2051
    checked = use.make(context, dtype, min(use.tokens, few))
    if context.warm:
        checked.ours()
        return {"status": "ok"}
    figures = _check(checked, context)
    if figures["status"] != "ok" or not timed:
        return figures
    problem = use.make(context, dtype, min(use.tokens, 3 * few) if context.dry else use.tokens)
    # A large batch is a grid of another size, or another schedule: the bits of a row must be the same.
    at = slice(problem.tokens // 2, problem.tokens // 2 + 7)
    if not _same(problem.rows(at), [whole[at] for whole in problem.ours()]):
        rows = f"rows {at.start}..{at.stop - 1} of {problem.tokens}"
        return figures | {"status": "failed", "reason": f"{rows}: other bits alone than in the batch"}
    return figures | _time(problem, use, context)


def _check(problem: Problem, context: Context) -> Figures:
    """Rule, repeats, and rows by themselves."""
    eager, reference = problem.eager(None), problem.eager(torch.float64)
    poison(eager)
    first = problem.ours()
    verdict = Verdict()
    for place, (got, same, right) in enumerate(zip(first, eager, reference, strict=True)):
        if got.dtype == torch.int64:
            continue  # tokens: which of two that are nearly as likely comes first is no error
        verdict.add(f"output {place}", got, same.to(got.dtype), right)
    repeated = repeat(problem.ours, first, context)
    reasons = [verdict.broken] if verdict.broken else []
    if repeated["repeats_differ"]:
        reasons.append(f"{repeated['repeats_differ']} of {repeated['repeats']} repeats gave other bits")
    at = slice(problem.tokens // 3, problem.tokens // 3 + 5)
    if not _same(problem.rows(at), [whole[at] for whole in first]):
        reasons.append(f"rows {at.start}..{at.stop - 1}: other bits alone than in the batch")
    figures = {"status": "failed" if reasons else "ok", **verdict.figures(), **repeated}
    return figures | ({"reason": "; ".join(reasons)} if reasons else {})


def _time(problem: Problem, use: Use, context: Context) -> Figures:
    calls: dict[str, Callable[[], object]] = {OURS: problem.ours, EAGER: lambda: problem.eager(None)}
    if problem.product is not None:
        calls[ALONE] = problem.product
    timings = measure(calls, context)
    if timings is None:
        return {"tokens": problem.tokens, "timed": dict.fromkeys(calls)}  # the target is one of real sizes
    figures: Figures = {"tokens": problem.tokens, **use.target}
    rows: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        microseconds = timing.device.median
        rate = (
            {"gbps": round(problem.bytes / microseconds / 1e3, 1)}
            if problem.flops is None
            else {"tflops": round(problem.flops / microseconds / 1e6, 1)}
        )
        rows[name] = {**timing.figures(), **rate, "ratio": round(ratio_of_rounds(timings, OURS, name), 3)}
    figures["timed"] = rows
    figures["tokens_per_second"] = round(problem.tokens / timings[OURS].device.median * 1e6)
    if ALONE in rows:
        figures["of_product"] = rows[ALONE]["ratio"]
    return figures


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(mine), bits(other)) for mine, other in zip(ours, theirs, strict=True))
