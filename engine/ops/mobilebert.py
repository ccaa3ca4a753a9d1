"""MobileBERT's layer in front of its attention and behind it. The specification, the oracle and the last row.

A layer of the published shape keeps 128 channels between two bottlenecks of 512, and its networks widen 128 to 512 and
back (Sun et al. 2020, sections 3.1 to 3.3). Nothing here looks beyond a token's own row, so all of it can stay on chip
but the rows that come and go.

The residual stream is fp32 under half precision: nothing bounds what `no_norm` lets through. What enters a product is
rounded to the weights' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import ACTIVATIONS
from .norm import layer_norm, no_norm

__all__ = ["NORMS", "mobilebert_in", "mobilebert_out"]

NORMS = ("no_norm", "layer_norm")
"""`normalization_type` of the configuration."""


def mobilebert_in(
    x: Tensor,
    narrow_weight: Tensor,
    narrow_bias: Tensor,
    narrow_scale: Tensor,
    narrow_shift: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    shared_scale: Tensor,
    shared_shift: Tensor,
    qk_weight: Tensor,
    qk_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    *,
    norm: str = "no_norm",
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Both input bottlenecks, and queries, keys and values: `narrow = norm(x W_n)`, `shared = norm(x W_s)`, Q and K
    from `shared`, V from x.

    Args:
        x: `[tokens, hidden]`, the layer's input of the residual stream: fp32, or the weights' dtype.
        narrow_weight: `[width, hidden]`; narrow_bias, narrow_scale and narrow_shift `[width]`, the latter two of the
            norm. `shared_…` alike.
        qk_weight: `[2 * width, width]`, the queries' rows before the keys'; qk_bias `[2 * width]`.
        v_weight: `[width, hidden]`; v_bias `[width]`.
        norm: one of `NORMS`.
        eps: of `layer_norm`.

    Returns:
        `narrow [tokens, width]` of the residual stream, fp32 for half precision under `no_norm` and in the weights'
        dtype under `layer_norm`, and `qkv [tokens, 3 * width]` in the weights' dtype.
    """
    dtype = qk_weight.dtype
    x = x.to(dtype)
    narrow = _normalised(F.linear(x, narrow_weight, narrow_bias), None, narrow_scale, narrow_shift, norm, eps)
    shared = _normalised(F.linear(x, shared_weight, shared_bias), None, shared_scale, shared_shift, norm, eps)
    qk = F.linear(shared.to(dtype), qk_weight, qk_bias)
    return narrow, torch.cat([qk, F.linear(x, v_weight, v_bias)], dim=1)


def mobilebert_out(
    context: Tensor,
    narrow: Tensor,
    x: Tensor,
    attended_weight: Tensor,
    attended_bias: Tensor,
    attended_scale: Tensor,
    attended_shift: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    down_scale: Tensor,
    down_shift: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    *,
    networks: int,
    activation: str = "relu",
    norm: str = "no_norm",
    eps: float = 1e-12,
    last_eps: float = 1e-5,
) -> Tensor:
    """The attention's output, the stack of feed-forward networks, and the way back to full width, each
    `norm(residual + dense(·))`.

    Args:
        context: `[tokens, width]` in the weights' dtype, the attention's heads side by side.
        narrow: `[tokens, width]`, of the residual stream: `mobilebert_in`'s.
        x: `[tokens, hidden]`, of the residual stream: the layer's input.
        attended_weight: `[width, width]`; its bias, scale and shift `[width]`.
        up_weight: `[networks * inner, width]`, the networks one after the other; up_bias `[networks * inner]`.
        down_weight: `[networks * width, inner]`; down_bias, down_scale and down_shift `[networks * width]`.
        out_weight: `[hidden, width]`; out_bias, out_scale and out_shift `[hidden]`.
        networks: how many are stacked, 1 at least.
        activation: a key of `ACTIVATIONS`, of the networks.
        norm: one of `NORMS`.
        eps: of `layer_norm`, except that behind the last network, whose is `last_eps`.

    Returns:
        `[tokens, hidden]` of the residual stream, fp32 for half precision under `no_norm` and in the weights' dtype
        under `layer_norm`.
    """
    dtype = attended_weight.dtype
    attended = F.linear(context.to(dtype), attended_weight, attended_bias)
    narrow = _normalised(attended, narrow, attended_scale, attended_shift, norm, eps)
    parts = (up_weight, up_bias, down_weight, down_bias, down_scale, down_shift)
    each = zip(*(part.unflatten(0, (networks, -1)) for part in parts), strict=True)
    for index, (up, up_shift, down, down_added, scale, shift) in enumerate(each):
        inner = ACTIVATIONS[activation](F.linear(narrow.to(dtype), up, up_shift))
        last = index == networks - 1
        narrow = _normalised(F.linear(inner, down, down_added), narrow, scale, shift, norm, last_eps if last else eps)
    return _normalised(F.linear(narrow.to(dtype), out_weight, out_bias), x, out_scale, out_shift, norm, eps)


def _normalised(out: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "no_norm":
        return no_norm(out, scale, shift, residual=residual, wide=True)
    normalised = layer_norm(out, scale, shift, eps=eps, residual=residual)
    return normalised[0] if isinstance(normalised, tuple) else normalised
