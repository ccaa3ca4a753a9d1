"""The `torch_varlen` row of attention: torch's own varlen attention, FlashAttention 2 inside torch, on NVIDIA GPUs.

What `varlen_attn` of the installed torch takes is looked up once, when this module is imported: torch 2.10 has it
without a window, 2.11 with one, 2.12 and newer want grouped heads announced (`enable_gqa`) and let the number of
splits be said, where 1 keeps a text's bits independent of its neighbours.

Where torch and the contract part (`aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp`):

- A query that sees no key has a log-sum-exp of +inf; here -inf.
- Causal is the window (-1, 0), or (left, 0).
- A window edge at or beyond the longest key text is read as no edge, which is wrong in texts with more queries than
  keys; torch is told of a longer one.
- With `max_q` 1 and grouped heads q is reshaped to one token a text, and so empty texts are refused; torch is told 2.
- A batch without tokens or keys is not launched; views whose rows are not 16-byte aligned are copied.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..contract import Call
from ..errors import BackendError
from ..memo import Memo
from .flash_limits import aligned, longest_keys, nothing_seen, refusals, refuse_bias, with_lse

__all__ = ["unsupported", "varlen_attention"]

NEEDED = ("scale", "window_size", "return_aux")


def _module() -> Any:
    """torch's module, or None before 2.10. Not an import statement, so that older torches are a reason, no error."""
    try:
        return import_module("torch.nn.attention.varlen")
    except ModuleNotFoundError:
        return None


def _taken(module: Any) -> frozenset[str]:
    """The parameters of its `varlen_attn`."""
    return frozenset() if module is None else frozenset(signature(module.varlen_attn).parameters)


MODULE = _module()
TAKEN = _taken(MODULE)


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = []
    if missing := [name for name in NEEDED if name not in TAKEN]:
        reasons.append(f"needs a torch whose varlen_attn takes {', '.join(missing)} (2.11), got {torch.__version__}")
    if call.device != "cuda" or torch.version.hip is not None:
        reasons.append(f"needs device cuda, got {call.device if torch.version.hip is None else 'ROCm'}")
    return reasons + refusals(call)


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
    """As `engine/ops/attention.py`, without T5's bias, in fp16 or bf16.

    Raises:
        InputError: a bias is given.
        BackendError: this torch has no such attention.
    """
    if MODULE is None:
        raise BackendError(f"the torch_varlen row needs torch 2.11 or newer, got {torch.__version__}")
    refuse_bias("torch_varlen", position_bias)
    if q.shape[0] == 0 or k.shape[0] == 0:
        return nothing_seen(q, return_lse)
    longest_k = longest_keys(k, max_seqlen, cu_seqlens_k, max_seqlen_k)
    options: dict[str, Any] = {}
    if "enable_gqa" in TAKEN:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    if "num_splits" in TAKEN:
        options["num_splits"] = 1
    result = MODULE.varlen_attn(
        aligned(q),
        aligned(k),
        aligned(v),
        cu_seqlens,
        cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
        max(max_seqlen, 2),
        longest_k if cu_seqlens_k is None else longest_k + max_seqlen,
        return_aux=MODULE.AuxRequest(lse=True) if return_lse else None,
        scale=softmax_scale,
        window_size=(max(window[0], -1), 0 if causal else max(window[1], -1)),
        **options,
    )
    return with_lse(*result) if return_lse else result
