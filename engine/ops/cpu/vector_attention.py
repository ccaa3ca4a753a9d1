"""The row `cpu_llvm` of `attention`: fused attention inside texts, `kernels/llvm/attention.py`."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ....kernels.llvm.attention import PADDING, attend, supports_head_dim
from ....kernels.llvm.host import missing_features
from ...contract import Call
from ...errors import InputError
from ...memo import Memo
from ..traced import traceable_attention
from . import attention as cpu

__all__ = ["unsupported", "varlen_attention"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = cpu.unsupported(call) or missing_features(call.dtype)
    if not reasons and call.head_dim is not None and not supports_head_dim(call.head_dim, call.dtype):
        step = 32 if call.dtype == torch.bfloat16 else 16
        reasons.append(f"needs head_dim a multiple of {step} and at most 256, got {call.head_dim}")
    return reasons


@traceable_attention("cpu_llvm_attention")
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
) -> Tensor:
    """As `engine/ops/attention.py`, for self-attention in fp32 or bf16.

    Raises:
        InputError: asked for what `unsupported` refuses: other texts' keys, causal attention, the log-sum-exp; or
            `cu_seqlens` does not rise from 0 to the number of tokens.
    """
    cpu.refuse(cu_seqlens_k=cu_seqlens_k is not None, causal=causal, return_lse=return_lse)
    memo = Memo() if memo is None else memo
    heads, head_dim = q.shape[1:]
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    # A kernel reads and writes as far as texts go: that is looked up, whatever the caller says of the longest.
    longest = memo.once(cu_seqlens, ("longest of", len(q)), partial(_longest, cu_seqlens, len(q)))
    bias = None
    if position_bias is not None:
        kind = longest, bias_max_distance, bias_bidirectional
        bias = memo.once(position_bias, ("padded bias", *kind), partial(_padded_bias, position_bias, *kind))
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    bounds = cu_seqlens.to(torch.int32).contiguous()
    return attend(q, k, v, bounds, longest, window=window, scale=scale, bias=bias)


def _longest(cu_seqlens: Tensor, tokens: int) -> int:
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    longest, shortest = max(lengths, default=0), min(lengths, default=0)
    if bounds[:1] != [0] or bounds[-1] != tokens or shortest < 0:
        shown = ", ".join(map(str, bounds[:8])) + ", ..." * (len(bounds) > 8)
        raise InputError(f"attention: cu_seqlens must rise from 0 to the number of tokens, {tokens}, got [{shown}]")
    return longest


def _padded_bias(position_bias: Tensor, longest: int, max_distance: int, bidirectional: bool) -> Tensor:
    return F.pad(cpu.bias_by_distance(position_bias, longest, max_distance, bidirectional), (0, PADDING))
