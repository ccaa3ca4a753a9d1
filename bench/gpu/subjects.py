"""From the facts of a call to something that can be searched: inputs of real sizes, the kernel, and its oracle.

A key of the tuned configurations says nothing of texts and tokens, so they are chosen here, once for each op: what a
batch of the models that make such calls looks like, and large enough for a GPU to be busy. An op that goes over rows
moves `BYTES`, more than any L2 holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...autotune.entries import KERNELS, candidates_of, default_of
from ...autotune.footprint import Load
from ...autotune.search import Subject
from ...engine.contract import Call
from ...engine.errors import OptionError
from . import fused_problems as fused
from . import row_problems as rows
from .attention import CHECKED_QUERIES, checked_heads
from .bits import poison, some
from .case import Context
from .decode import decode_references, make_decode
from .fused_problems import ALL, Results
from .oracle import check_attention, two_times_rule
from .problem import BUCKETS, Problem, make_inputs

__all__ = ["subject"]

BYTES = 1 << 28
"""Moved by one call of an op that memory bounds."""

FLOPS = 2e11
"""Of one call of a product: by arithmetic a third of a millisecond on an H200."""

LENGTHS = {
    "full": (2048,) * 3 + (512,) * 16 + (128,) * 16,
    "causal": (2048,) * 4 + (512,) * 16,
    "sliding": (8192, *(2048,) * 3, *(512,) * 4),
    "bias": (1024,) * 4 + (512,) * 16 + (128,) * 32,
}
"""16,384 tokens in texts of several lengths, by what a query sees: sentences and passages; documents for a window."""

WINDOW = (64, 64)
KEPT = (4096, 1024)
"""Keys that the sequences of a decoding batch keep, in turns."""

POOLED = (512,) * 64 + (128,) * 256 + (32,) * 512
PREDICTED = 512
"""Rows of which a head predicts tokens, and how many tokens there are."""
VOCABULARY = 30_522

TINY = (9, 3, 20)
"""Texts of a dry run."""

CHECKED_ROWS = 512
"""Of the first rows, of those in the middle and of the last, held against the oracle."""

Pieces = Sequence[tuple[Any, Results, Results]]
"""Parts of the outputs: an index, and what eager gives for it in the same dtype and in fp64."""


def subject(call: Call, context: Context) -> Subject[Any]:
    """The subject of a call.

    Args:
        call: the facts; `sm` is that of the context's device.
        context: where; a dry one takes a few tokens. The widths are always those of the call.

    Raises:
        OptionError: no kernel serves the call.
    """
    if call.op not in KERNELS:
        raise OptionError(f"{call.op}: expected one of {', '.join(KERNELS)}")
    if reasons := KERNELS[call.op].unsupported(call):
        raise OptionError(f"{call.op}: no kernel serves it: {'; '.join(reasons)}")
    return _BUILDERS[call.op](call, context)


def _made(call: Call, load: Load, run: Callable[[Any], Results], pieces: Callable[[], Pieces]) -> Subject[Any]:
    """A subject whose results are held against pieces that are computed at the first check.

    Each check runs into poisoned memory: the allocator would else hand out what the last candidate wrote, and rows that
    this one forgets would be right.
    """
    known: list[Pieces] = []
    shapes: list[Tensor] = []

    def wrong(config: Any) -> str | None:
        if not known:
            known.append(pieces())
            shapes.extend(x.new_zeros(()).expand(x.shape) for x in run(config))
        poison(shapes)
        found = run(config)
        for at, eager, reference in known[0]:
            for place, (got, same, right) in enumerate(zip(found, eager, reference, strict=True)):
                if got.dtype == torch.int64:
                    continue  # tokens: which of two that are nearly as likely comes first is no error
                *_, broken = two_times_rule(got[at], same.to(got.dtype), right)
                if broken is not None:
                    return f"output {place}: {broken}"
        return None

    return Subject(call, load, default_of(call), candidates_of(call.op), run, wrong)


def _of_problem(call: Call, load: Load, problem: fused.Problem, checked: int = CHECKED_ROWS) -> Subject[Any]:
    """A subject of an op that computes each row by itself."""
    middle = problem.tokens // 2

    def pieces() -> Pieces:
        places = [slice(0, checked), slice(middle, middle + checked), slice(max(problem.tokens - checked, 0), None)]
        return [(at, problem.eager(None, at), problem.eager(torch.float64, at)) for at in places]

    return _made(call, load, lambda config: problem.rows(ALL, config), pieces)


def _tokens(bytes_a_token: float, context: Context, flops_a_token: float = 0.0) -> int:
    """A power of two from 4,096 to 65,536."""
    if context.dry:
        return 37
    wanted = FLOPS / flops_a_token if flops_a_token else BYTES / bytes_a_token
    room = context.memory / 8 / bytes_a_token
    return min(max(1 << int(min(wanted, room)).bit_length() - 1, 4096), 65536)


def _attention(call: Call, context: Context) -> Subject[Any]:
    head_dim, biased = call.head_dim or 64, call.bias == "t5"
    lengths = TINY if context.dry else LENGTHS["bias" if biased else call.window or "full"]
    heads = 1 if context.dry else max(1024 // head_dim, 1)
    causal = call.window == "causal"
    bias = None if not biased else "left" if causal else "both"
    window = WINDOW if call.window == "sliding" else (-1, -1)
    problem = Problem(lengths, heads, head_dim, call.dtype, window=window, causal=causal, bias=bias)
    inputs = make_inputs(problem, context.device)
    arguments, options = inputs.arguments(), inputs.options()

    def run(config: Any) -> Results:
        out = KERNELS["attention"].varlen_attention(*arguments, **options, config=config)
        assert isinstance(out, Tensor)
        return (out,)

    def pieces() -> Pieces:
        checked = checked_heads(inputs)
        found: list[tuple[Any, Results, Results]] = []

        def keep(at: slice, of: slice, eager: Tensor, reference: Tensor) -> None:
            found.append(((at, of), (eager,), (reference,)))

        out = run(default_of(call))[0][:, : checked.problem.heads]
        check_attention(checked, out, None, context.memory, some(lengths, 3), CHECKED_QUERIES, keep)
        return found

    return _made(call, Load(lengths, heads), run, pieces)


def _decode(call: Call, context: Context) -> Subject[Any]:
    head_dim = call.head_dim or 64
    sequences, heads = (3, 2) if context.dry else (64 if context.memory >> 30 >= 24 else 16, max(1024 // head_dim, 1))
    kept = TINY if context.dry else tuple(KEPT[row % len(KEPT)] for row in range(sequences))
    capacity = max(kept)
    inputs = make_decode(kept, capacity, heads, head_dim, context, call.dtype)
    bias = None
    if call.bias == "t5":
        generator = torch.Generator(context.device).manual_seed(5)
        bias = torch.randn(BUCKETS, heads, generator=generator, device=context.device).to(call.dtype)

    def run(config: Any) -> Results:
        out = KERNELS["decode_attention"].decode_attention(*inputs, capacity, position_bias=bias, config=config)
        assert isinstance(out, Tensor)
        return (out,)

    def pieces() -> Pieces:
        eager, reference = decode_references(*inputs, capacity, bias)
        return [(ALL, (eager,), (reference,))]

    return _made(call, Load(kept, heads), run, pieces)


def _linear(call: Call, context: Context) -> Subject[Any]:
    inner, hidden = call.inner or 768, call.hidden or 768
    tokens = _tokens(call.dtype.itemsize * (inner + hidden), context, 2.0 * inner * hidden)
    options: dict[str, Any] = {"epilogue": call.epilogue or "none", "gated": call.gated}
    options["head_dim"] = call.head_dim if call.rope else None
    if call.op == "norm_linear":
        make = fused.norm_linear(inner, hidden, norm=call.norm or "layer_norm", **options)
    else:
        # Families without gates and rotations have biases.
        make = fused.linear(inner, hidden, residual=call.residual, bias=not (call.gated or call.rope), **options)
    return _of_problem(call, Load((tokens,)), make(context, call.dtype, tokens))


def _norm(call: Call, context: Context) -> Subject[Any]:
    hidden, kind = call.hidden or 768, {"norm": "layer", "rms_norm": "rms", "no_norm": "none"}[call.op]
    tokens = _tokens(4.0 * hidden * call.dtype.itemsize, context)
    return _of_problem(call, Load((tokens,)), fused.norm(hidden, kind)(context, call.dtype, tokens))


def _mobilebert(call: Call, context: Context) -> Subject[Any]:
    hidden, width, tokens = call.hidden or 512, call.inner or 128, 37 if context.dry else 16384
    if call.op == "mobilebert_in":
        make = fused.mobilebert_in(hidden, width)
    else:
        make = fused.mobilebert_out(hidden, width, 4 * width, 2 if context.dry else 4)
    return _of_problem(call, Load((tokens,)), make(context, call.dtype, tokens))


def _head(call: Call, context: Context) -> Subject[Any]:
    count, vocabulary = (7, 50) if context.dry else (PREDICTED, VOCABULARY)
    problem = fused.head(call.hidden or 768, vocabulary, 5)(context, call.dtype, count)
    return _of_problem(call, Load((count,), vocabulary=vocabulary), problem, checked=64)


def _embed(call: Call, context: Context) -> Subject[Any]:
    hidden = call.hidden or 768
    tokens = _tokens(2.0 * hidden * call.dtype.itemsize, context)
    return _of_problem(call, Load((tokens,)), rows.embed(hidden, tokens, call.dtype, context))


def _trigram(call: Call, context: Context) -> Subject[Any]:
    lengths = TINY if context.dry else POOLED
    return _of_problem(call, Load(lengths), rows.trigram((call.hidden or 384) // 3, lengths, call.dtype, context))


def _rope(call: Call, context: Context) -> Subject[Any]:
    head_dim = call.head_dim or 64
    heads = 2 if context.dry else max(768 // head_dim, 1)
    tokens = _tokens(4.0 * heads * head_dim * call.dtype.itemsize, context)
    return _of_problem(call, Load((tokens,), heads), rows.rope(head_dim, heads, tokens, call.dtype, context))


def _pool(call: Call, context: Context) -> Subject[Any]:
    lengths = TINY if context.dry else POOLED
    return _of_problem(call, Load(lengths), rows.pool(call.hidden or 768, lengths, call.dtype, context))


_BUILDERS: dict[str, Callable[[Call, Context], Subject[Any]]] = {
    "attention": _attention,
    "decode_attention": _decode,
    **dict.fromkeys(("linear", "norm_linear"), _linear),
    **dict.fromkeys(("norm", "rms_norm", "no_norm"), _norm),
    **dict.fromkeys(("mobilebert_in", "mobilebert_out"), _mobilebert),
    "mlm_head": _head,
    "embed": _embed,
    "trigram": _trigram,
    "rope": _rope,
    "pool": _pool,
}
