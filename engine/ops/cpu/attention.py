"""The CPU row of `attention`: full self-attention over runs of texts of one length, a cache-sized block at a time.

The encoder sorts texts by length, so neighbours in a batch mostly share theirs. Each run of equal lengths is one
batched product Q K^T, one softmax and one product with V; no mask is built and no key is padded. What decides the speed
is that a block of scores is written, normalised and read again while it is in the core's cache: whole-batch products
ran 3 to 4 times slower here, torch's fused attention (which splits queries into blocks of 32) 1.4 to 1.7 times.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...contract import Call

__all__ = ["unsupported", "varlen_attention"]

SCORES_PER_BLOCK = 1 << 19
"""Scores held at once, in elements: 1 MiB in bf16, 2 MiB in fp32, the size of the second-level caches of two cores."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = []
    if call.window != "full":
        reasons.append(f"needs window full, got {call.window}")
    if call.bias != "none":
        reasons.append(f"needs position bias none, got {call.bias}")
    if call.cross:
        reasons.append("needs self-attention, got cross-attention")
    if call.lse:
        reasons.append("returns no log-sum-exp")
    return reasons


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, softmax_scale: float | None = None
) -> Tensor:
    """As `engine/ops/attention.py`, for full self-attention without bias."""
    heads, head_dim = q.shape[1:]
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = q.new_empty(q.shape)
    scratch = q.new_empty(max(SCORES_PER_BLOCK, heads * max_seqlen))
    for start, count, length in _equal_runs(cu_seqlens):
        texts = max(1, SCORES_PER_BLOCK // (heads * length * length))
        for first in range(start, start + count * length, texts * length):
            stop = min(first + texts * length, start + count * length)
            _attend(q[first:stop], k[first:stop], v[first:stop], out[first:stop], length, scale, scratch)
    return out


def _equal_runs(cu_seqlens: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first row, number of texts, length) of each run of neighbours of one length; empty texts have no rows."""
    lengths, counts = torch.unique_consecutive(cu_seqlens.diff(), return_counts=True)
    start = 0
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        if length:
            yield start, count, length
        start += length * count


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, length: int, scale: float, scratch: Tensor) -> None:
    """Attention inside each of several texts of one length; q, k, v, out are `[texts * length, heads, head_dim]`."""
    queries, keys, values = (_by_head(x, length) for x in (q, k, v))
    keys = keys.transpose(1, 2)
    target = out.unflatten(0, (-1, length)).transpose(1, 2)
    rows = max(1, len(scratch) // (len(queries) * length))
    for first in range(0, length, rows):
        block = queries[:, first : first + rows]
        scores = scratch[: block.shape[0] * block.shape[1] * length].view(block.shape[0], block.shape[1], length)
        torch.baddbmm(scores, block, keys, beta=0, alpha=scale, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        context = torch.bmm(scores, values)
        target[:, :, first : first + rows] = context.unflatten(0, (target.shape[0], -1))


def _by_head(x: Tensor, length: int) -> Tensor:
    """`[texts * length, heads, head_dim]` as `[texts * heads, length, head_dim]`; a view where there is one text."""
    return x.unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1)
