"""The `flash_attn` row of attention: Dao's FlashAttention 2, 3 or 4, whichever of them is installed and suits the GPU.

The newest that suits is taken once, when this module is imported. Where the libraries and the contract part, as read
in their sources (Dao-AILab/flash-attention: `csrc/flash_attn/flash_api.cpp` at 2.7.0 to 2.8.4, `hopper/flash_api.cpp`,
`flash_attn/cute/interface.py`), the difference is made up for here:

- A query that sees no key has a log-sum-exp of +inf in version 2, and in version 3 where no text has keys; here -inf.
- Version 2 reads a window edge at or beyond the longest key text as no edge, which is wrong for queries that stand
  left of the first key, that is in texts with more queries than keys; it is told of a longer one.
- Version 2 reshapes q to one token a text where `max_seqlen` is 1 and heads are grouped, and so refuses empty texts;
  it is told 2.
- Version 4 spells an open window edge None.
- None takes a batch without texts, and 2 none without tokens: nothing is launched then.
- Rows are read 16 bytes at a time and an address between is an error on the device: such views are copied.

All of them align causal and window bottom-right, take grouped heads, and count zeros where a query sees no key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Generation:
    """One of the three libraries.

    Attributes:
        number: 2, 3 or 4.
        module: where its `flash_attn_varlen_func` is imported from.
        sm: lowest and highest compute capability it is written for, as integers.
        lse_option: the parameter that asks for the log-sum-exp.
        open_edge: how it spells a window edge that is not there.
    """

    number: int
    module: str
    sm: tuple[int, int]
    lse_option: str = "return_attn_probs"
    open_edge: int | None = -1

    @property
    def parameters(self) -> set[str]:
        """What `varlen_attention` below passes by name, beside q, k and v."""
        lengths = {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}
        return {*lengths, "softmax_scale", "causal", "window_size", self.lse_option}


GENERATIONS = (
    Generation(4, "flash_attn.cute", sm=(90, 119), lse_option="return_lse", open_edge=None),
    Generation(3, "flash_attn_interface", sm=(90, 99)),
    Generation(2, "flash_attn", sm=(80, 129)),
)
"""Newest first."""


@dataclass(frozen=True)
class Choice:
    """The library that serves, or why none does."""

    generation: Generation | None = None
    attend: Callable[..., Any] | None = None
    reasons: tuple[str, ...] = ()


def choose(sm: int | None) -> Choice:
    """The newest library that can be imported and suits a GPU of compute capability `sm`; None for no such GPU."""
    if sm is None:
        return Choice(reasons=("needs a CUDA device, found none",))
    reasons = []
    for generation in GENERATIONS:
        name, (lowest, highest) = f"flash-attn {generation.number}", generation.sm
        if not lowest <= sm <= highest:
            reasons.append(f"{name} needs sm_{lowest} to sm_{highest}, got sm_{sm}")
            continue
        try:
            attend = import_module(generation.module).flash_attn_varlen_func
        except ModuleNotFoundError as error:
            reasons.append(f"{name} needs package {error.name}, not installed")
            continue
        except Exception as error:  # built for another torch, driver or compiler: whatever it raises is a reason
            reasons.append(f"{name} cannot be imported: {_first_line(error)}")
            continue
        missing = generation.parameters - set(signature(attend).parameters)
        if missing:
            reasons.append(f"{name} needs a release whose flash_attn_varlen_func takes {', '.join(sorted(missing))}")
            continue
        return Choice(generation, attend)
    return Choice(reasons=tuple(reasons))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _compute_capability() -> int | None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


CHOICE = choose(_compute_capability())


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = [*CHOICE.reasons, *refusals(call)]
    if CHOICE.generation is not None and call.sm is not None:
        number, (lowest, highest) = CHOICE.generation.number, CHOICE.generation.sm
        if not lowest <= call.sm <= highest:
            # Several GPUs of several kinds: the library was chosen for the one that was current.
            reasons.append(f"flash-attn {number} needs sm_{lowest} to sm_{highest}, got sm_{call.sm}")
        if number == 4 and call.sm >= 100 and (call.head_dim or 0) > 128:
            reasons.append(f"flash-attn 4 on sm_{call.sm} needs head_dim up to 128, got {call.head_dim}")
    return reasons


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
        BackendError: no such library can serve here.
    """
    generation, attend = CHOICE.generation, CHOICE.attend
    if generation is None or attend is None:
        raise BackendError(f"the flash_attn row cannot serve: {'; '.join(CHOICE.reasons)}")
    refuse_bias("flash_attn", position_bias)
    if q.shape[0] == 0 or k.shape[0] == 0:
        return nothing_seen(q, return_lse)
    longest_k = longest_keys(k, max_seqlen, cu_seqlens_k, max_seqlen_k)
    if generation.number == 2:
        max_seqlen, longest_k = max(max_seqlen, 2), longest_k if cu_seqlens_k is None else longest_k + max_seqlen
    left, right = (generation.open_edge if edge < 0 else edge for edge in window)
    result = attend(
        aligned(q),
        aligned(k),
        aligned(v),
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=longest_k,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=(left, right),
        **{generation.lse_option: return_lse},
    )
    if return_lse:
        return with_lse(*result[:2])
    # Version 4 returns a pair always.
    return result[0] if isinstance(result, tuple) else result
