"""What the rows around FlashAttention share: its limits, and what its kernels must not be handed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import Call
from ..errors import InputError

__all__ = ["aligned", "longest_keys", "nothing_seen", "refusals", "refuse_bias", "with_lse"]

DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
ALIGNMENT = 8
"""Elements of 2 bytes in the 16 that are read at once: head sizes, strides and offsets are multiples of it."""


def refusals(call: Call) -> list[str]:
    """Why no FlashAttention serves `call`, whatever the GPU."""
    reasons = []
    if call.dtype not in DTYPES:
        reasons.append(f"needs dtype float16 or bfloat16, got {str(call.dtype).removeprefix('torch.')}")
    if call.bias not in (None, "none"):
        reasons.append(f"needs a call without position bias, got bias {call.bias}")
    if call.head_dim is not None and (call.head_dim > MAX_HEAD_DIM or call.head_dim % ALIGNMENT):
        reasons.append(f"needs head_dim up to {MAX_HEAD_DIM}, a multiple of {ALIGNMENT}, got {call.head_dim}")
    return reasons


def refuse_bias(row: str, position_bias: Tensor | None) -> None:
    """Raise InputError for a call with a bias, which dispatch never makes to `row`."""
    if position_bias is not None:
        raise InputError(f"attention: the {row} row takes no position_bias, got one of {list(position_bias.shape)}")


def longest_keys(k: Tensor, max_seqlen: int, cu_seqlens_k: Tensor | None, max_seqlen_k: int | None) -> int:
    """An upper bound on the keys of a text: all there are, where the caller says nothing of texts of their own."""
    if cu_seqlens_k is None:
        return max_seqlen
    return len(k) if max_seqlen_k is None else max_seqlen_k


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy where some row would not start at a multiple of 16 bytes: reading one is an error on the GPU."""
    steps = (x.stride(0), x.stride(1), x.storage_offset())
    readable = x.stride(-1) == 1 and all(step % ALIGNMENT == 0 for step in steps)
    return x if readable else x.clone(memory_format=torch.contiguous_format)


def nothing_seen(q: Tensor, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """The attention of queries without any key, or of no queries."""
    out = q.new_zeros(q.shape)
    return (out, q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=torch.float32)) if return_lse else out


def with_lse(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The pair as the contract wants it: FlashAttention 2 writes +inf for a query that sees no key."""
    return out, lse.masked_fill(lse.isposinf(), -math.inf)
