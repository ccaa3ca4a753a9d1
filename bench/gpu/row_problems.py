"""Ops that go over rows of memory once: embed, trigram, rope and pool, as problems of the GPU report's form.

Each is what a model asks for: tables of a real vocabulary, ids from all over them, texts of mixed lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.ops import embed as eager_embed
from ...engine.ops import pool as eager_pool
from ...engine.ops import rope as eager_rope
from ...engine.ops import trigram as eager_trigram
from .case import Context
from .fused_problems import ALL, Problem, Results

__all__ = ["embed", "pool", "rope", "trigram"]

VOCABULARY = 30_522
PLACES = 512

Cast = Callable[[Tensor], Tensor]


def _to(dtype: torch.dtype | None) -> Cast:
    return lambda x: x if dtype is None else x.to(dtype)


def _drawing(context: Context, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator(context.device).manual_seed(13)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=context.device).to(dtype)

    return draw


def _ids(tokens: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(tokens, device=device) * 7919 % count


def _edges(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def embed(hidden: int, tokens: int, dtype: torch.dtype, context: Context) -> Problem:
    """Word, position and type, summed and normalised: BERT's, which is the most that there is to do."""
    from ...kernels import embed as kernels

    draw, device = _drawing(context, dtype), context.device
    vocabulary = 50 if context.dry else VOCABULARY
    ids, places, kinds = _ids(tokens, vocabulary, device), _ids(tokens, PLACES, device), _ids(tokens, 2, device)
    tables = draw(vocabulary, hidden), draw(PLACES, hidden), draw(2, hidden), draw(hidden), draw(hidden)

    def call(function: Callable[..., Tensor], at: slice, to: Cast, **options: Any) -> Results:
        return (function(ids[at], places[at], kinds[at], *map(to, tables), eps=1e-12, **options),)

    return Problem(
        tokens,
        lambda at, config=None: call(kernels.embed, at, _to(None), config=config),
        lambda wanted, at=ALL: call(eager_embed.embed, at, _to(wanted)),
        None,
        None,
        2.0 * tokens * hidden * dtype.itemsize,
    )


def trigram(width: int, lengths: Sequence[int], dtype: torch.dtype, context: Context) -> Problem:
    """MobileBERT's three neighbours side by side, `width` channels each; rows are tokens, taken from the whole."""
    from ...kernels import trigram as kernels

    vocabulary, tokens = 50 if context.dry else VOCABULARY, sum(lengths)
    word = _drawing(context, dtype)(vocabulary, width)
    ids, edges = _ids(tokens, vocabulary, context.device), _edges(lengths, context.device)

    def rows(at: slice, config: Any = None) -> Results:
        return (kernels.trigram(ids, edges, word, config=config)[at],)

    def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
        return (eager_trigram.trigram(ids, edges, _to(wanted)(word))[at],)

    return Problem(tokens, rows, eager, None, None, 4.0 * tokens * width * dtype.itemsize)


def rope(head_dim: int, heads: int, tokens: int, dtype: torch.dtype, context: Context) -> Problem:
    """Queries and keys of a fused projection, turned."""
    from ...kernels import rope as kernels

    fused = _drawing(context, dtype)(tokens, 3 * heads, head_dim)
    q, k = fused[:, :heads], fused[:, heads : 2 * heads]
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=context.device).float() / head_dim)
    angles = torch.arange(PLACES, device=context.device).float()[:, None] * frequencies
    cos, sin, places = angles.cos(), angles.sin(), _ids(tokens, PLACES, context.device)

    def rows(at: slice, config: Any = None) -> Results:
        return tuple(kernels.rope(q[at], k[at], places[at], cos, sin, config=config))

    def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
        to = _to(wanted)
        return tuple(eager_rope.rope(to(q[at]), to(k[at]), places[at], cos, sin))

    return Problem(tokens, rows, eager, None, None, 4.0 * tokens * heads * head_dim * dtype.itemsize)


def pool(hidden: int, lengths: Sequence[int], dtype: torch.dtype, context: Context) -> Problem:
    """The mean of each text, scaled to unit length; rows are texts, taken from the whole."""
    from ...kernels import pool as kernels

    tokens = sum(lengths)
    x, edges = _drawing(context, dtype)(tokens, hidden), _edges(lengths, context.device)

    def rows(at: slice, config: Any = None) -> Results:
        return (kernels.pool(x, edges, mode="mean", normalize=True, config=config)[at],)

    def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
        return (eager_pool.pool(_to(wanted)(x), edges, mode="mean", normalize=True)[at],)

    return Problem(len(lengths), rows, eager, None, None, float(tokens * hidden * dtype.itemsize))
