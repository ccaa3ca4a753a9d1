"""Varlen attention over packed texts: the specification, the oracle and the last row of the table.

Each text is attended to on its own, in a plain loop, so that there is nothing here to get wrong; speed is the business
of the rows above this one. Sources: "Attention Is All You Need" (Vaswani et al. 2017, section 3.2.1); sliding windows
as in Longformer (Beltagy et al. 2020, section 3.1); relative positions as in T5 (Raffel et al. 2020, section 2.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..memo import Memo
from ..relative_position import relative_position_bucket
from .traced import traceable_attention

__all__ = ["attention_with_weights", "varlen_attention"]

HUGE = 2.0**16
"""A log-sum-exp so large is rounded, in fp32, by a part in 256 of a weight; that is as much as the scores are."""


@traceable_attention("eager_attention", differentiable=True)
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = True,
    return_lse: bool = False,
    memo: Memo | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T + bias) V for every text of a packed batch; no text sees another.

    Args:
        q: `[tokens, heads, head_dim]`, any floating dtype; may be strided.
        k: `[tokens_k, heads_k, head_dim]`; `heads` is a multiple of `heads_k` (grouped heads).
        v: `[tokens_k, heads_k, head_dim]`.
        cu_seqlens: int32 `[texts + 1]`; text i is rows `cu_seqlens[i]:cu_seqlens[i + 1]` of q.
        max_seqlen: longest text in q, in tokens; trusted.
        cu_seqlens_k: the same for k and v; None for self-attention.
        max_seqlen_k: longest text in k; None for self-attention.
        window: keys seen to the left and to the right of a query, inclusive; -1 is unbounded.
        causal: a query sees no key to its right. Causal and window align bottom-right where q and k lengths differ.
        softmax_scale: factor on the scores; None is `head_dim ** -0.5`.
        position_bias: T5's bucket table `[num_buckets, heads]`, added to the scaled scores; None for no bias.
        bias_max_distance: distance, in tokens, from which all positions share the last bucket.
        bias_bidirectional: whether keys to the right have buckets of their own.
        return_lse: also return the log-sum-exp of the scores.
        memo: shared by calls between which nobody writes to `cu_seqlens` or `position_bias`: what a row derives from
            them is made by the first. None keeps nothing.

    Returns:
        `[tokens, heads, head_dim]` in q's dtype; zeros for a query that sees no key. With `return_lse` also fp32
        (fp64 for fp64 inputs) `[heads, tokens]`, natural log, -inf for a query that sees no key.
    """
    heads, head_dim = q.shape[1:]
    statistics = torch.promote_types(q.dtype, torch.float32)
    outputs, lses = [q.new_zeros(0, heads, head_dim)], [q.new_zeros(heads, 0, dtype=statistics)]
    for queries, keys, values in _texts(q, k, v, cu_seqlens, cu_seqlens if cu_seqlens_k is None else cu_seqlens_k):
        weights, lse = _weights(
            queries, keys, window, causal, softmax_scale, position_bias, bias_max_distance, bias_bidirectional
        )
        outputs.append((weights.to(q.dtype) @ values).transpose(0, 1))
        lses.append(lse)
    output = torch.cat(outputs)
    return (output, torch.cat(lses, dim=1)) if return_lse else output


def attention_with_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = True,
    dropout: float = 0.0,
) -> tuple[Tensor, list[Tensor]]:
    """`varlen_attention` for what no fused kernel can serve: its weights, and dropout on them.

    Args:
        dropout: probability with which a weight is set to 0; the others are scaled by `1 / (1 - dropout)`.

    Returns:
        The attention, and for every text its softmax weights, before dropout, `[heads, length, length_k]` in q's dtype.
    """
    outputs, kept = [q.new_zeros(0, *q.shape[1:])], []
    for queries, keys, values in _texts(q, k, v, cu_seqlens, cu_seqlens if cu_seqlens_k is None else cu_seqlens_k):
        weights, _ = _weights(
            queries, keys, window, causal, softmax_scale, position_bias, bias_max_distance, bias_bidirectional
        )
        kept.append(weights.to(q.dtype))
        outputs.append((F.dropout(kept[-1], dropout) @ values).transpose(0, 1))
    return torch.cat(outputs), kept


def _texts(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """q, k and v of one text after the other, `[heads, length, head_dim]` each, grouped heads repeated."""
    group = q.shape[1] // k.shape[1]
    spans = zip(itertools.pairwise(cu_seqlens.tolist()), itertools.pairwise(cu_seqlens_k.tolist()), strict=True)
    for (start, stop), (start_k, stop_k) in spans:
        keys, values = (x[start_k:stop_k].transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v))
        # A copy, as the others are: a GEMM may add up in another order where a text begins at another alignment.
        yield q[start:stop].transpose(0, 1).clone(memory_format=torch.contiguous_format), keys, values


def _weights(
    queries: Tensor,
    keys: Tensor,
    window: tuple[int, int],
    causal: bool,
    softmax_scale: float | None,
    position_bias: Tensor | None,
    bias_max_distance: int,
    bias_bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Softmax weights `[heads, length, length_k]` and log-sum-exp `[heads, length]` of one text, in fp32 or fp64."""
    scale = queries.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    statistics = torch.promote_types(queries.dtype, torch.float32)
    scores = (queries @ keys.transpose(1, 2)).to(statistics) * scale
    distance = _relative_positions(queries.shape[1], keys.shape[1], queries.device)
    if position_bias is not None:
        buckets = relative_position_bucket(distance, position_bias.shape[0], bias_max_distance, bias_bidirectional)
        scores = scores + position_bias[buckets].permute(2, 0, 1).to(statistics)
    scores = scores.masked_fill(~_visible(distance, window, causal), -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    subtracted = lse.masked_fill(lse.isneginf(), 0.0)[..., None]
    weights = torch.exp(scores - subtracted)
    # Next to huge scores lse has lost what makes the weights sum to 1.
    return weights / torch.where(subtracted.detach().abs() < HUGE, 1.0, weights.sum(dim=-1, keepdim=True)), lse


def _relative_positions(length_q: int, length_k: int, device: torch.device) -> Tensor:
    """int64 `[length_q, length_k]`: key position minus query position, last query beside last key."""
    positions_q = torch.arange(length_q, device=device) + (length_k - length_q)
    return torch.arange(length_k, device=device)[None, :] - positions_q[:, None]


def _visible(distance: Tensor, window: tuple[int, int], causal: bool) -> Tensor:
    left, right = window
    visible = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        visible &= distance >= -left
    if right >= 0:
        visible &= distance <= right
    if causal:
        visible &= distance <= 0
    return visible
