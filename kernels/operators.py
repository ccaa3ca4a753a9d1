"""The table of operators `padless::…`: of each launcher how many results it has, and their shapes without computing.

What a launcher takes is read from its signature, by `registration.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launch import Config

__all__ = ["OPERATORS", "RUN", "Operator"]

RUN = 64
"""Columns of which `linear` finds statistics together, in every tiling that it ships: no shape may depend on a GPU."""


@dataclass(frozen=True)
class Operator:
    """One launcher as an operator.

    Attributes:
        fake: called with the launcher's arguments, all by name; returns what the launcher would, of the right shapes,
            dtypes and strides.
        results: how many tensors the operator returns, always.
        asked_by: the launcher returns the first of them alone unless its argument of this name is True, or a tensor or
            number; None where it always returns all.
    """

    fake: Callable[..., Tensor | tuple[Tensor, ...]]
    results: int = 1
    asked_by: str | None = None


def _like(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=x.dtype if dtype is None else dtype, device=x.device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _attention(q: Tensor, return_lse: bool, **_: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Of both attentions: `[rows, heads, head_dim]` and fp32 `[heads, rows]`, contiguous."""
    rows, heads, _channels = q.shape
    out = _like(q, *q.shape)
    return (out, _like(q, heads, rows, dtype=torch.float32)) if return_lse else out


def _rope(q: Tensor, k: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    return _like(q, *q.shape), _like(k, *k.shape)


def _pool(hidden: Tensor, cu_seqlens: Tensor, return_finite: bool, **_: Any) -> Tensor | tuple[Tensor, Tensor]:
    texts = cu_seqlens.shape[0] - 1
    pooled = _like(hidden, texts, hidden.shape[1], dtype=torch.float32)
    return (pooled, _like(hidden, texts, dtype=torch.bool)) if return_finite else pooled


def _embed(input_ids: Tensor, word: Tensor, **_: Any) -> Tensor:
    return _like(word, input_ids.shape[0], word.shape[1])


def _trigram(input_ids: Tensor, word: Tensor, **_: Any) -> Tensor:
    return _like(word, input_ids.shape[0], 3 * word.shape[1])


def _linear(
    x: Tensor, weight: Tensor, gated: bool, residual: Tensor | None, wide: bool, statistics: bool,
    config: Config | None, **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    dtype = _wide(x.dtype) if wide else x.dtype
    dtype = dtype if residual is None else torch.promote_types(dtype, residual.dtype)
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    out = _like(x, x.shape[0], outputs, dtype=dtype)
    if not statistics:
        return out
    run = RUN if config is None else config["BLOCK_N"] // config["PARTS"]
    return out, _like(x, x.shape[0], -(-outputs // run), 2, dtype=torch.float32)


def _norm_linear(x: Tensor, weight: Tensor, gated: bool, **_: Any) -> Tensor:
    return _like(x, x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0])


def _norm(x: Tensor, weight: Tensor, residual: Tensor | None, **_: Any) -> Tensor | tuple[Tensor, Tensor]:
    out = _like(x, *x.shape, dtype=weight.dtype)
    if residual is None:
        return out
    return out, _like(x, *x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


def _no_norm(x: Tensor, wide: bool, **_: Any) -> Tensor:
    return _like(x, *x.shape, dtype=_wide(x.dtype) if wide else x.dtype)


def _mobilebert_in(x: Tensor, narrow_scale: Tensor, qk_weight: Tensor, norm: str, **_: Any) -> tuple[Tensor, Tensor]:
    tokens, width, dtype = x.shape[0], narrow_scale.shape[0], qk_weight.dtype
    narrow = _like(x, tokens, width, dtype=_wide(dtype) if norm == "no_norm" else dtype)
    return narrow, _like(x, tokens, 3 * width, dtype=dtype)


def _mobilebert_out(x: Tensor, attended_weight: Tensor, norm: str, **_: Any) -> Tensor:
    dtype = attended_weight.dtype
    return _like(x, *x.shape, dtype=_wide(dtype) if norm == "no_norm" else dtype)


def _mlm_head(
    hidden: Tensor, decoder_weight: Tensor, top_k: int | None, **_: Any
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    rows, vocabulary = hidden.shape[0], decoder_weight.shape[0]
    if top_k is None:
        return _like(hidden, rows, vocabulary)
    kept = min(top_k, vocabulary)
    values, lse = (_like(hidden, *shape, dtype=torch.float32) for shape in ((rows, kept), (rows,)))
    return values, _like(hidden, rows, kept, dtype=torch.int64), lse


OPERATORS: dict[str, Operator] = {
    "varlen_attention": Operator(_attention, 2, "return_lse"),
    "decode_attention": Operator(_attention, 2, "return_lse"),
    "rope": Operator(_rope, 2),
    "pool": Operator(_pool, 2, "return_finite"),
    "embed": Operator(_embed),
    "trigram": Operator(_trigram),
    "linear": Operator(_linear, 2, "statistics"),
    "norm_linear": Operator(_norm_linear),
    "layer_norm": Operator(_norm, 2, "residual"),
    "rms_norm": Operator(_norm, 2, "residual"),
    "no_norm": Operator(_no_norm),
    "mobilebert_in": Operator(_mobilebert_in, 2),
    "mobilebert_out": Operator(_mobilebert_out),
    "mlm_head": Operator(_mlm_head, 3, "top_k"),
}
