"""The CPU row of `decode_attention`: torch's fused attention over the cache as it lies, one call where it can be.

Sequences that step together have as many keys each, in slots of one size: all of them are one call on a strided view
of the cache, and nothing is copied. Otherwise there is a call for each run of keys that is read, and sequences that
read the same one, as beams read their text, are its queries. Rows outside of a sequence's keys are never looked at.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from ...contract import Call
from ...relative_position import relative_position_bucket

__all__ = ["decode_attention", "unsupported"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = []
    if call.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"needs dtype float32 or bfloat16, got {str(call.dtype).removeprefix('torch.')}")
    if call.lse:
        reasons.append("needs a call without log-sum-exp, got one with it")
    return reasons


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
) -> Tensor:
    """As `engine/ops/decode.py`, in fp32 or bf16, without the log-sum-exp."""
    sequences, heads, _ = q.shape
    first, sizes = starts.tolist(), lengths.tolist()
    group = heads // k.shape[1]
    positions = [size - 1 for size in sizes] if query_positions is None else query_positions.tolist()

    def bias(rows: list[int], keys: int) -> Tensor | None:
        """`[rows or 1, heads, 1, keys]` of these sequences."""
        if position_bias is None:
            return None
        own = [positions[row] for row in rows]
        places = torch.tensor(own[:1] if _all_equal(own) else own)
        distance = torch.arange(keys) - places[:, None]
        buckets = relative_position_bucket(distance, position_bias.shape[0], bias_max_distance, bias_bidirectional)
        return position_bias[buckets].permute(0, 2, 1)[:, :, None].to(q.dtype)

    def attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=softmax_scale, enable_gqa=group > 1
        )

    step = first[1] - first[0] if sequences > 1 else 0
    slots = step > 0 and all(b - a == step for a, b in itertools.pairwise(first))
    if slots and sizes[0] and _all_equal(sizes) and sizes[0] <= step and first[-1] + sizes[0] <= len(k):
        keys, values = (_slots(x, first[0], step, sequences, sizes[0]) for x in (k, v))
        return attended(q[:, :, None], keys, values, bias(list(range(sequences)), sizes[0]))[:, :, 0]
    out = torch.empty_like(q)
    runs: dict[tuple[int, int], list[int]] = {}
    for row, place in enumerate(zip(first, sizes, strict=True)):
        runs.setdefault(place, []).append(row)
    for (start, size), rows in runs.items():
        if not size:
            out[rows] = 0.0
            continue
        keys, values = (x[start : start + size].transpose(0, 1)[None] for x in (k, v))
        mask = bias(rows, size)
        # [1, heads, rows, head_dim]: one key run, several queries.
        queries = q[rows].transpose(0, 1)[None]
        mask = None if mask is None else mask.permute(2, 1, 0, 3)
        out[rows] = attended(queries, keys, values, mask)[0].transpose(0, 1)
    return out


def _slots(x: Tensor, start: int, step: int, count: int, size: int) -> Tensor:
    """`[count, heads_k, size, head_dim]`, a view: `size` rows from `start`, `start + step`, … on."""
    rows, heads, channel = x.stride()
    shape = (count, x.shape[1], size, x.shape[2])
    return x.as_strided(shape, (step * rows, heads, rows, channel), x.storage_offset() + start * rows)


def _all_equal(values: list[int]) -> bool:
    return values.count(values[0]) == len(values)
