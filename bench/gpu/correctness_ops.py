"""Part `correctness` of the GPU report, the other kernels: decode, rope, pool, embed and trigram at real sizes.

Each is held against its eager op in fp64 by the 2x rule, repeated for its bits, and asked for a slice of the same work.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.ops.decode import decode_attention as eager_decode
from ...engine.ops.embed import embed as eager_embed
from ...engine.ops.pool import pool as eager_pool
from ...engine.ops.rope import rope as eager_rope
from ...engine.ops.trigram import trigram as eager_trigram
from .bits import poison, repeat, some
from .case import Case, Context, Figures
from .oracle import Verdict, bits
from .problem import BUCKETS

__all__ = ["cases"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
Results = Sequence[Tensor]


def cases(context: Context) -> list[Case]:
    """Every kernel in every dtype it is likely to meet."""
    found = []
    for short, dtype in (("fp32", torch.float32),) if context.dry else DTYPES.items():
        found += [
            Case(f"decode/{short} self", _bind(_decode, dtype, heads_k=0, bias=False)),
            Case(f"decode/{short} grouped heads", _bind(_decode, dtype, heads_k=2, bias=False)),
            Case(f"decode/{short} bias", _bind(_decode, dtype, heads_k=0, bias=True)),
            Case(f"rope/{short}", _bind(_rope, dtype)),
            Case(f"embed/{short} BERT", _bind(_embed, dtype, types=True, positions=True)),
            Case(f"embed/{short} ModernBERT", _bind(_embed, dtype, types=False, positions=False)),
            Case(f"trigram/{short}", _bind(_trigram, dtype)),
        ]
        modes = ("mean",) if context.dry else MODES
        found += [Case(f"pool/{short} {mode}", _bind(_pool, dtype, mode=mode, skip=0)) for mode in modes]
        found.append(Case(f"pool/{short} mean after a prompt", _bind(_pool, dtype, mode="mean", skip=3)))
        found.append(Case(f"pool/{short} mean normalised", _bind(_pool, dtype, mode="mean", skip=0, normalize=True)))
    return found


def _bind(check: Callable[..., Figures], dtype: torch.dtype, **options: object) -> Callable[[Context], Figures]:
    return lambda context: check(context, dtype, **options)


def _judge(
    context: Context,
    kernel: Callable[[], Results],
    eager: Results,
    reference: Results,
    slices: Callable[[Results], list[str]],
) -> Figures:
    """Rule, repeats and slices of one kernel.

    Args:
        context: where.
        kernel: the call under test.
        eager: what eager gives in the same dtype.
        reference: what eager gives in fp64.
        slices: given the kernel's results, the parts that come out in other bits when they are computed alone.
    """
    poison(eager)
    first = kernel()
    verdict = Verdict()
    for place, (got, same, right) in enumerate(zip(first, eager, reference, strict=True)):
        verdict.add(f"output {place}", got, same, right)
    repeated = repeat(kernel, first, context)
    reasons = [verdict.broken] if verdict.broken else []
    if repeated["repeats_differ"]:
        reasons.append(f"{repeated['repeats_differ']} of {repeated['repeats']} repeats gave other bits")
    reasons += [f"{part}: other bits alone than in the batch" for part in slices(first)]
    figures = {"status": "failed" if reasons else "ok", **verdict.figures(), **repeated}
    return figures | ({"reason": "; ".join(reasons)} if reasons else {})


def _decode(context: Context, dtype: torch.dtype, *, heads_k: int, bias: bool) -> Figures:
    from ...kernels.decode import decode_attention

    heads, head_dim, capacity = (4, 16, 40) if context.dry else (8, 64, 8192)
    heads_k = min(heads_k, 2) if context.dry else heads_k
    hostile = [0, 1, 63, 64, 65, 127, 128, 129, 511, 512, 513, 4096, 4097, 8191, 8192, 0]
    lengths = [0, 1, 17, 40] if context.dry else [*hostile, *_lengths(16, 1, capacity)]
    sequences, drawn = len(lengths), _normal(context, dtype)
    q = drawn(sequences, heads, head_dim)
    k, v = (drawn(sequences * capacity, heads_k or heads, head_dim) for _ in range(2))
    starts = torch.arange(sequences, device=context.device) * capacity
    counts = torch.tensor(lengths, dtype=torch.int32, device=context.device)
    table = drawn(BUCKETS, heads) if bias else None

    def run(function: Callable[..., Tensor | tuple[Tensor, Tensor]], rows: slice, wide: bool) -> Results:
        cast = (lambda x: x.double()) if wide else (lambda x: x)
        options = {} if table is None else {"position_bias": cast(table)}
        arguments = (cast(q[rows]), cast(k), cast(v), starts[rows], counts[rows], capacity)
        return tuple(function(*arguments, **options, return_lse=True))

    def differing(first: Results) -> list[str]:
        wrong = []
        for row in some(lengths):
            alone = run(decode_attention, slice(row, row + 1), False)
            whole = (first[0][row : row + 1], first[1][:, row : row + 1])
            if not _same(alone, whole):
                wrong.append(f"sequence {row} ({lengths[row]} keys)")
        return wrong

    everything = slice(0, sequences)
    eager, reference = (run(eager_decode, everything, wide) for wide in (False, True))
    return _judge(context, lambda: run(decode_attention, everything, False), eager, reference, differing)


def _rope(context: Context, dtype: torch.dtype) -> Figures:
    from ...kernels.rope import rope

    tokens, heads, head_dim, positions = (50, 2, 8, 20) if context.dry else (65536, 12, 64, 8192)
    fused = _normal(context, dtype)(tokens, 3 * heads, head_dim)
    q, k = fused[:, :heads], fused[:, heads : 2 * heads]
    angles = torch.arange(positions, device=context.device).float()[:, None] * _frequencies(head_dim, context.device)
    rows = torch.arange(tokens, device=context.device) * 7919 % positions
    cos, sin = angles.cos(), angles.sin()

    def run(at: slice) -> Results:
        return rope(q[at], k[at], rows[at], cos, sin)

    def differing(first: Results) -> list[str]:
        at = slice(tokens // 3, tokens // 3 + 17)
        return [] if _same(run(at), [x[at] for x in first]) else [f"tokens {at.start}..{at.stop - 1}"]

    eager, reference = eager_rope(q, k, rows, cos, sin), eager_rope(q.double(), k.double(), rows, cos, sin)
    return _judge(context, lambda: run(slice(0, tokens)), eager, reference, differing)


def _pool(context: Context, dtype: torch.dtype, *, mode: str, skip: int, normalize: bool = False) -> Figures:
    from ...kernels.pool import pool

    hidden_size = 24 if context.dry else 768
    # A kernel that sums in blocks has its edges here; with a prompt left out, some texts have no token left.
    lengths = [1, 2, 17, 40] if context.dry else [1, 2, 3, 4, 127, 128, 129, 8192, *_lengths(500, 1, 512)]
    hidden = _normal(context, dtype)(sum(lengths), hidden_size)
    edges = [0, *itertools.accumulate(lengths)]
    if normalize:
        # One text whose vector no one can use: it must be told apart.
        hidden[edges[3]] = float("nan")

    def run(function: Callable[..., Any], rows: Tensor, bounds: Sequence[int]) -> Results:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=context.device)
        if not normalize:
            return (function(rows, cu_seqlens, mode=mode, skip=skip),)
        vectors, finite = function(rows, cu_seqlens, mode=mode, skip=skip, normalize=True, return_finite=True)
        return vectors.masked_fill(~finite[:, None], 0.0), finite.to(vectors.dtype)

    def differing(first: Results) -> list[str]:
        wrong = []
        for text in some(lengths):
            alone = run(pool, hidden[edges[text] : edges[text + 1]], [0, lengths[text]])
            if not _same(alone, [output[text : text + 1] for output in first]):
                wrong.append(f"text {text} ({lengths[text]} tokens)")
        return wrong

    eager, reference = run(eager_pool, hidden, edges), run(eager_pool, hidden.double(), edges)
    return _judge(context, lambda: run(pool, hidden, edges), eager, reference, differing)


def _embed(context: Context, dtype: torch.dtype, *, types: bool, positions: bool) -> Figures:
    from ...kernels.embed import embed

    tokens, vocabulary, hidden = (40, 50, 24) if context.dry else (65536, 30522, 768)
    drawn, device = _normal(context, dtype), context.device
    ids = torch.arange(tokens, device=device) * 7919 % vocabulary
    places = torch.arange(tokens, device=device) % 16
    kinds = torch.arange(tokens, device=device) % 2 if types else None
    tables = [
        drawn(vocabulary, hidden),
        drawn(16, hidden) if positions else None,
        drawn(2, hidden) if types else None,
        drawn(hidden),
        drawn(hidden) if types else None,
    ]

    def run(function: Callable[..., Tensor], at: slice, wide: bool) -> Results:
        cast = [table.double() if wide and table is not None else table for table in tables]
        return (function(ids[at], places[at], None if kinds is None else kinds[at], *cast, eps=1e-12),)

    def differing(first: Results) -> list[str]:
        at = slice(tokens // 3, tokens // 3 + 5)
        return [] if _same(run(embed, at, False), [first[0][at]]) else [f"tokens {at.start}..{at.stop - 1}"]

    everything = slice(0, tokens)
    eager, reference = (run(eager_embed, everything, wide) for wide in (False, True))
    return _judge(context, lambda: run(embed, everything, False), eager, reference, differing)


def _trigram(context: Context, dtype: torch.dtype) -> Figures:
    from ...kernels.trigram import trigram

    vocabulary, width = (50, 8) if context.dry else (30522, 128)
    lengths = [0, 1, 5, 0, 2] if context.dry else [0, 0, 1, 2, 0, 511, 512, 513, *_lengths(400, 1, 512), 0]
    word = _normal(context, dtype)(vocabulary, width)
    ids = torch.arange(sum(lengths), device=context.device) * 7919 % vocabulary
    edges = [0, *itertools.accumulate(lengths)]

    def run(function: Callable[..., Tensor], at: Tensor, bounds: Sequence[int], table: Tensor) -> Results:
        return (function(at, torch.tensor(bounds, dtype=torch.int32, device=context.device), table),)

    def differing(first: Results) -> list[str]:
        wrong = []
        for text in some(lengths):
            rows = slice(edges[text], edges[text + 1])
            if not _same(run(trigram, ids[rows], [0, lengths[text]], word), [first[0][rows]]):
                wrong.append(f"text {text} ({lengths[text]} tokens)")
        return wrong

    eager, reference = run(eager_trigram, ids, edges, word), run(eager_trigram, ids, edges, word.double())
    return _judge(context, lambda: run(trigram, ids, edges, word), eager, reference, differing)


def _normal(context: Context, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator(context.device).manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=context.device).to(dtype)

    return draw


def _frequencies(head_dim: int, device: torch.device) -> Tensor:
    return 10000.0 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)


def _lengths(count: int, shortest: int, longest: int) -> list[int]:
    generator = random.Random(count)
    return [generator.randint(shortest, longest) for _ in range(count)]


def _same(ours: Results, theirs: Results) -> bool:
    return all(torch.equal(bits(mine), bits(other)) for mine, other in zip(ours, theirs, strict=True))
