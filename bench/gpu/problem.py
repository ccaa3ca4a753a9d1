"""One attention problem: its shape, its inputs as a model would hand them over, its exact number of operations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Inputs", "Problem", "alone", "last_queries", "make_inputs", "visible_pairs"]

BUCKETS = 32
BIAS_REACH = 128


@dataclass(frozen=True)
class Problem:
    """The shape of a packed batch and what is asked of it.

    Attributes:
        lengths: tokens of each text.
        heads: heads of q.
        head_dim: channels of a head.
        dtype: of q, k and v.
        heads_k: heads of k and v; 0 is as many as q.
        lengths_k: keys of each text; None for self-attention.
        window: keys seen to the left and to the right, -1 unbounded.
        causal: no key to the right is seen.
        bias: T5's relative positions: None, "both" directions or "left" only.
    """

    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: torch.dtype
    heads_k: int = 0
    lengths_k: tuple[int, ...] | None = None
    window: tuple[int, int] = (-1, -1)
    causal: bool = False
    bias: str | None = None

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def flops(self) -> int:
        """Of the two products, for the pairs of query and key that see each other: 4 a channel, head and pair."""
        return 4 * self.heads * self.head_dim * visible_pairs(self)

    def with_dtype(self, dtype: torch.dtype) -> Problem:
        return replace(self, dtype=dtype)


@dataclass(frozen=True)
class Inputs:
    """Arguments of `varlen_attention` for one problem."""

    problem: Problem
    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    cu_seqlens_k: Tensor | None
    position_bias: Tensor | None

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The positional ones."""
        return self.q, self.k, self.v, self.cu_seqlens, max(self.problem.lengths, default=0)

    def options(self) -> dict[str, Any]:
        """The keyword ones that differ from their defaults."""
        options: dict[str, Any] = {}
        if self.cu_seqlens_k is not None:
            assert self.problem.lengths_k is not None
            options |= {"cu_seqlens_k": self.cu_seqlens_k, "max_seqlen_k": max(self.problem.lengths_k, default=0)}
        if self.problem.window != (-1, -1):
            options["window"] = self.problem.window
        if self.problem.causal:
            options["causal"] = True
        if self.position_bias is not None:
            options |= {"position_bias": self.position_bias, "bias_max_distance": BIAS_REACH}
            options["bias_bidirectional"] = self.problem.bias == "both"
        return options


def make_inputs(problem: Problem, device: torch.device, seed: int = 0) -> Inputs:
    """Seeded random inputs: q, k and v are strided views of one fused projection, as in a model.

    Keys are drawn larger than one, so that a softmax over many of them is not just their mean.
    """
    generator = torch.Generator(device).manual_seed(seed)
    heads_k = problem.heads_k or problem.heads
    tokens_k = problem.tokens if problem.lengths_k is None else sum(problem.lengths_k)

    def normal(rows: int, heads: int) -> Tensor:
        # Drawn in the dtype itself: at 2^31 elements a wider copy would not fit.
        dtype = problem.dtype if device.type == "cuda" else torch.float32
        drawn = torch.randn(rows, heads, problem.head_dim, generator=generator, device=device, dtype=dtype)
        return drawn.to(problem.dtype)

    if problem.lengths_k is None:
        fused = normal(problem.tokens, problem.heads + 2 * heads_k)
        q, k, v = fused.split([problem.heads, heads_k, heads_k], dim=1)
    else:
        q = normal(problem.tokens, problem.heads)
        k, v = normal(tokens_k, 2 * heads_k).split([heads_k, heads_k], dim=1)
    k.mul_(2.0)
    bias = None
    if problem.bias is not None:
        bias = torch.randn(BUCKETS, problem.heads, generator=generator, device=device).to(problem.dtype)
    cu_seqlens_k = None if problem.lengths_k is None else _edges(problem.lengths_k, device)
    return Inputs(problem, q, k, v, _edges(problem.lengths, device), cu_seqlens_k, bias)


def alone(inputs: Inputs, text: int) -> Inputs:
    """Text number `text` as a batch of its own: the same memory, other edges."""
    problem = inputs.problem
    lengths_k = problem.lengths if problem.lengths_k is None else problem.lengths_k
    start, start_k = sum(problem.lengths[:text]), sum(lengths_k[:text])
    rows, rows_k = slice(start, start + problem.lengths[text]), slice(start_k, start_k + lengths_k[text])
    single = replace(
        problem,
        lengths=(problem.lengths[text],),
        lengths_k=None if problem.lengths_k is None else (lengths_k[text],),
    )
    device = inputs.q.device
    return Inputs(
        single,
        inputs.q[rows],
        inputs.k[rows_k],
        inputs.v[rows_k],
        _edges(single.lengths, device),
        None if single.lengths_k is None else _edges(single.lengths_k, device),
        inputs.position_bias,
    )


def last_queries(single: Inputs, most: int) -> Inputs:
    """The last `most` queries of a batch of one text, with all its keys; queries and keys align at their ends."""
    problem = single.problem
    if problem.tokens <= most:
        return single
    lengths_k = problem.lengths if problem.lengths_k is None else problem.lengths_k
    trimmed = replace(problem, lengths=(most,), lengths_k=lengths_k)
    edges, edges_k = _edges((most,), single.q.device), _edges(lengths_k, single.q.device)
    return Inputs(trimmed, single.q[-most:], single.k, single.v, edges, edges_k, single.position_bias)


def visible_pairs(problem: Problem) -> int:
    """How many pairs of a query and a key see each other, counted exactly, over all texts and one head."""
    left, right = problem.window[0], 0 if problem.causal else problem.window[1]
    pairs = 0
    lengths_k = problem.lengths if problem.lengths_k is None else problem.lengths_k
    for length, length_k in zip(problem.lengths, lengths_k, strict=True):
        position = torch.arange(length, dtype=torch.int64) + (length_k - length)
        first = (position - left).clamp(min=0) if left >= 0 else torch.zeros_like(position)
        last = (position + right).clamp(max=length_k - 1) if right >= 0 else torch.full_like(position, length_k - 1)
        pairs += int((last - first + 1).clamp(min=0).sum())
    return pairs


def _edges(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
