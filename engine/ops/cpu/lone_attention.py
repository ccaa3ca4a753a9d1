"""The CPU row of `attention` for deterministic=True: the CPU row on each text by itself."""

from __future__ import annotations

from torch import Tensor

from ...contract import Call
from ...memo import Memo
from . import attention as cpu
from .tiles import only_deterministic

__all__ = ["unsupported", "varlen_attention"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return [*only_deterministic(call), *cpu.unsupported(call)]


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = True,
    memo: Memo | None = None,
) -> Tensor:
    """As `engine/ops/attention.py`, for self-attention in fp32 or bf16."""
    kind = window, softmax_scale, position_bias, bias_max_distance, bias_bidirectional
    return cpu.self_attention(q, k, v, cu_seqlens, max_seqlen, *kind, memo, alone=True)
