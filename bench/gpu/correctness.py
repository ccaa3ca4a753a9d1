"""Part `correctness` of the GPU report: the attention kernel at real sizes against the fp64 oracle, and its bits.

Every case checks: the 2x rule text by text, the same bits in 250 repeats, and the same bits for a text alone and in the
batch. The other kernels: `correctness_ops.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...autotune.device import identify
from ...engine.contract import Call
from . import correctness_ops
from .bits import poison, repeat, some
from .case import Case, Context, Figures
from .oracle import COPIES, bits, check_attention
from .problem import Inputs, Problem, alone, make_inputs

__all__ = ["attention_call", "cases"]

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
ODD_HEAD_DIMS = (24, 60)
HOSTILE = (0, 0, 1, 127, 128, 129, 0, 63, 64, 65, 2, 511, 512, 513, 3, 1024, 0, 2047, 31, 33, 191, 193, 16, 0, 0)
HOSTILE_KEYS = (7, 0, 1, 64, 129, 128, 5, 0, 513, 512, 64, 63, 65, 2047, 1, 1000, 33, 128, 0, 191, 1, 2, 300, 0, 3)
KINDS: dict[str, dict[str, object]] = {
    "full": {},
    "sliding": {"window": (64, 64)},
    "causal": {"causal": True},
    "bias": {"bias": "both"},
    "cross": {"lengths_k": HOSTILE_KEYS},
    "lse": {},
}
MORE_KINDS: dict[str, dict[str, object]] = {
    "causal bias": {"causal": True, "bias": "left"},
    "cross causal": {"lengths_k": HOSTILE_KEYS, "causal": True},
    "cross sliding": {"lengths_k": HOSTILE_KEYS, "window": (64, 64)},
    "sliding causal": {"window": (128, 0), "causal": True},
    "narrow window": {"window": (3, 0)},
    "grouped heads": {"heads": 8, "heads_k": 2},
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def cases(context: Context) -> list[Case]:
    """Long ones first: they take the longest, and the short ones fill what is left of the time."""
    attention = _tiny() if context.dry else [*_long(context), *_real(), *_grid()]
    unproven = [] if context.dry else _unproven()
    return [*attention, *correctness_ops.cases(context), *unproven]


def attention_call(problem: Problem, device: torch.device, lse: bool = False) -> Call:
    """The facts that the dispatch table would have about `problem`."""
    bounded = problem.window != (-1, -1)
    return Call(
        "attention",
        device="cuda",
        dtype=problem.dtype,
        sm=identify(device).sm if device.type == "cuda" else None,
        head_dim=problem.head_dim,
        window="sliding" if bounded else "causal" if problem.causal else "full",
        bias="none" if problem.bias is None else "t5",
        cross=problem.lengths_k is not None,
        lse=lse,
        deterministic=True,
    )


def _case(name: str, problem: Problem, *, texts: Sequence[int] | None = None, heavy: bool = False) -> Case:
    lse = name.endswith("lse")
    return Case(name, lambda context: _check(context, problem, texts, lse, heavy), heavy)


def _check(
    context: Context, problem: Problem, texts: Sequence[int] | None, lse: bool, heavy: bool, gluon: bool = False
) -> Figures:
    from ...kernels import attention, attention_hopper

    attend = attention_hopper.varlen_attention if gluon else attention.varlen_attention
    refusals = attention_hopper.refusals if gluon else attention.unsupported
    reasons = refusals(attention_call(problem, context.device, lse))
    if reasons:
        return {"status": "left out", "reason": "; ".join(reasons)}
    inputs = make_inputs(problem, context.device)

    def run(given: Inputs) -> tuple[Tensor, ...]:
        result = attend(*given.arguments(), **given.options(), return_lse=lse)
        return result if isinstance(result, tuple) else (result,)

    poison([inputs.q])
    first = run(inputs)
    memory = context.memory if heavy else context.memory // 16
    verdict = check_attention(inputs, first[0], first[1] if lse else None, memory, texts)
    repeated = repeat(lambda: run(inputs), first, context)
    differ = [text for text in some(problem.lengths) if not _same_alone(inputs, text, first, run(alone(inputs, text)))]
    reasons = [verdict.broken] if verdict.broken else []
    if repeated["repeats_differ"]:
        reasons.append(f"{repeated['repeats_differ']} of {repeated['repeats']} repeats gave other bits")
    reasons += [f"text {text} ({problem.lengths[text]} tokens): other bits alone than in the batch" for text in differ]
    figures = {"status": "failed" if reasons else "ok", **verdict.figures(), **repeated, "tokens": problem.tokens}
    return figures | ({"reason": "; ".join(reasons)} if reasons else {})


def _same_alone(inputs: Inputs, text: int, batch: Sequence[Tensor], single: Sequence[Tensor]) -> bool:
    start = sum(inputs.problem.lengths[:text])
    rows = slice(start, start + inputs.problem.lengths[text])
    pieces = (batch[0][rows], *(lse[:, rows] for lse in batch[1:]))
    return all(torch.equal(bits(mine), bits(theirs)) for mine, theirs in zip(single, pieces, strict=True))


def _grid() -> list[Case]:
    """bf16 in every head size and kind; fp16 and fp32 in a third of them, so that each size and kind has each."""
    found = []
    for third, dtype in enumerate(DTYPES):
        for row, head_dim in enumerate(HEAD_DIMS):
            for column, (kind, options) in enumerate(KINDS.items()):
                if dtype == torch.bfloat16 or (row + column) % 3 == third:
                    problem = replace(Problem(HOSTILE, 4, head_dim, dtype), **options)
                    found.append(_case(f"attention/{_short(dtype)} d{head_dim} {kind}", problem))
    for head_dim in ODD_HEAD_DIMS:
        for dtype in DTYPES:
            problem = Problem(HOSTILE, 4, head_dim, dtype, window=(64, 64))
            found.append(_case(f"attention/{_short(dtype)} d{head_dim} sliding", problem))
    for kind, options in MORE_KINDS.items():
        problem = replace(Problem(HOSTILE, 4, 64, torch.bfloat16), **options)
        found.append(_case(f"attention/bf16 d64 {kind}", problem))
    return found


def _real() -> list[Case]:
    """Batches as the models of the README would send them."""
    news, articles = _lengths(65536, 8, 512), _lengths(65536, 128, 8192)
    half = torch.bfloat16
    return [
        _case("attention/real BERT-base", Problem(news, 12, 64, half)),
        _case("attention/real MiniLM", Problem(_lengths(131072, 4, 256), 12, 32, half)),
        _case("attention/real ModernBERT sliding", Problem(articles, 12, 64, half, window=(64, 64))),
        _case("attention/real ModernBERT global", Problem(articles, 12, 64, half), heavy=True),
        _case("attention/real mT5 encoder", Problem(news, 6, 64, half, bias="both")),
        _case("attention/real MegatronBERT causal", Problem(_lengths(32768, 64, 2048), 16, 64, half, causal=True)),
        _case("attention/real fp32", Problem(news[:64], 12, 64, torch.float32)),
    ]


def _unproven() -> list[Case]:
    """The Gluon kernel, which no GPU has run and which might hang: after all others."""
    bf16 = Problem(HOSTILE, 4, 64, torch.bfloat16)
    problems = {
        "bf16 d64": bf16,
        "fp16 d128 lse": Problem(HOSTILE, 4, 128, torch.float16),
        "bf16 d128 grouped heads": Problem(HOSTILE, 8, 128, torch.bfloat16, heads_k=2),
        "bf16 d64 equal": replace(bf16, lengths=(384,) * 5),
    }

    def case(name: str, problem: Problem) -> Case:
        return Case(f"gluon/{name}", lambda here: _check(here, problem, None, name.endswith("lse"), False, True))

    return [case(name, problem) for name, problem in problems.items()]


def _long(context: Context) -> list[Case]:
    """One text as long as the oracle's memory allows, up to 32k, among tiny ones; and indices beyond 32 bits."""
    longest = max([length for length in (4096, 8192, 16384) if length**2 * 8 * COPIES <= context.memory], default=2048)
    if context.memory * 1.05 >= 32768**2 * 8 * COPIES:
        longest = 32768
    lengths = (1, longest, 0, 129, 4097)
    base = Problem(lengths, 2, 64, torch.bfloat16)
    found = [
        _case(f"attention/long {longest} bf16 full", base, heavy=True),
        _case(f"attention/long {longest} bf16 sliding", replace(base, window=(64, 64)), heavy=True),
        _case(f"attention/long {longest} bf16 causal", replace(base, causal=True), heavy=True),
        _case(f"attention/long {longest} bf16 bias", replace(base, bias="both"), heavy=True),
        _case(f"attention/long {longest} fp16 lse", base.with_dtype(torch.float16), heavy=True),
        _case(f"attention/long {longest} fp32 full", replace(base, heads=1).with_dtype(torch.float32), heavy=True),
    ]
    # q, k and v in one buffer of 2,304 elements a token, and an output of 768: both pass 2^31 elements.
    lengths = (*(512,) * 5499, 300, *(512,) * 2, 77)
    problem = Problem(lengths, 12, 64, torch.bfloat16)
    if problem.tokens * 3072 * 2 * 2 < context.memory:
        texts = (0, 1800, 3640, 5498, 5499, 5501, 5502)
        found.append(_case("attention/beyond 2^31 elements", problem, texts=texts, heavy=True))
    return found


def _tiny() -> list[Case]:
    lengths, keys = (0, 1, 17, 0, 40, 3), (2, 0, 30, 5, 16, 1)
    found = []
    for kind, options in {**KINDS, "grouped heads": MORE_KINDS["grouped heads"]}.items():
        options = options | ({"lengths_k": keys} if "lengths_k" in options else {})
        options = options | ({"window": (8, 8)} if "window" in options else {})
        options = options | ({"heads": 2, "heads_k": 1} if "heads" in options else {})
        problem = replace(Problem(lengths, 1, 16, torch.float32), **options)
        found.append(_case(f"attention/fp32 d16 {kind}", problem))
    for dtype in (torch.float16, torch.bfloat16):
        found.append(_case(f"attention/{_short(dtype)} d24 full", Problem(lengths, 1, 24, dtype)))
    return found


def _lengths(tokens: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Seeded lengths, short ones more often, that sum to `tokens`."""
    generator = random.Random(tokens + longest)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        length = int(shortest * (longest / shortest) ** generator.random())
        lengths.append(min(length, left))
    return tuple(lengths)


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
