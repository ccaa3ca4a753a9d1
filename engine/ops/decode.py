"""Attention of one query a sequence to the keys kept for it: the specification, the oracle and the last row.

The step of generation. Each sequence is attended to on its own, in a plain loop, as in `attention.py`. Sources:
"Attention Is All You Need" (Vaswani et al. 2017, section 3.2.1); heads that share keys and values as in "GQA" (Ainslie
et al. 2023, section 2.2); relative positions as in T5 (Raffel et al. 2020, section 2.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..relative_position import relative_position_bucket

__all__ = ["decode_attention"]


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    max_length: int,
    *,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = False,
    query_positions: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q K^T + bias) V for one query of each sequence, over the `lengths[i]` keys from `starts[i]` on.

    Serves a static cache `[sequences, capacity, heads_k, head_dim]`, flattened to rows, with `starts[i] = i * capacity`
    and, for cross-attention, a packed encoder output with `starts = cu_seqlens[:-1]`. Rows of k and v outside of every
    sequence's keys are never read: a cache may hold anything there, NaN too.

    Args:
        q: `[sequences, heads, head_dim]`, any floating dtype; may be strided.
        k: `[rows, heads_k, head_dim]`, q's dtype; `heads` is a multiple of `heads_k`: query head h reads key head
            `h // (heads // heads_k)`. May be strided.
        v: `[rows, heads_k, head_dim]`.
        starts: int32 or int64 `[sequences]`; row of k and v that holds a sequence's first key; they may share rows.
        lengths: int32 `[sequences]`; keys a sequence sees, at positions 0, 1, 2 …; may be 0.
        max_length: no length is greater; in keys, trusted. It changes no result.
        softmax_scale: factor on the scores; None is `head_dim ** -0.5`.
        position_bias: T5's bucket table `[num_buckets, heads]`, added to the scaled scores; None for no bias.
        bias_max_distance: distance, in tokens, from which all positions share the last bucket.
        bias_bidirectional: whether keys to the right of the query have buckets of their own.
        query_positions: int32 `[sequences]`; where a query stands among its keys, for the bias. None is beside the last
            key, `lengths - 1`.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        `[sequences, heads, head_dim]` in q's dtype; zeros for a sequence without keys. With `return_lse` also fp32
        (fp64 for fp64 inputs) `[heads, sequences]`, natural log, -inf for a sequence without keys.
    """
    heads, head_dim = q.shape[1:]
    group = heads // k.shape[1]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    statistics = torch.promote_types(q.dtype, torch.float32)
    positions = lengths - 1 if query_positions is None else query_positions
    outputs, lses = [q.new_zeros(0, heads, head_dim)], [q.new_zeros(heads, 0, dtype=statistics)]
    sequences = zip(q, starts.tolist(), lengths.tolist(), positions.tolist(), strict=True)
    for query, start, length, position in sequences:
        keys, values = (x[start : start + length].transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v))
        scores = (query[:, None] @ keys.transpose(1, 2)).to(statistics) * scale
        if position_bias is not None:
            distance = torch.arange(length, device=q.device) - position
            buckets = relative_position_bucket(distance, position_bias.shape[0], bias_max_distance, bias_bidirectional)
            scores = scores + position_bias[buckets].T[:, None].to(statistics)
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None])
        outputs.append((weights.to(q.dtype) @ values).transpose(0, 1))
        lses.append(lse)
    output = torch.cat(outputs)
    return (output, torch.cat(lses, dim=1)) if return_lse else output
