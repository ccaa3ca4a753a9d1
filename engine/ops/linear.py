"""A GEMM with what follows it: bias, activation, residual. The specification, the oracle and the last row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .rope import rotated

__all__ = ["ACTIVATIONS", "Rotation", "finish", "linear"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return torch.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "mish": F.mish,
    "relu6": F.relu6,
    "relu2": _relu2,
    "sigmoid": torch.sigmoid,
    "quick_gelu": _quick_gelu,
}
"""The epilogues of `linear`. "gelu" is x * Phi(x) with the exact erf (Hendrycks & Gimpel 2016, section 2)."""


Rotation = tuple[Tensor, Tensor, Tensor]
"""Rows of the tables, cosines and sines: the last three arguments of `engine/ops/rope.py`."""


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    rope: Rotation | None = None,
    turned: int = 0,
    wide: bool = False,
    statistics: bool = False,
) -> Any:
    """`residual + activation(x @ weight^T + bias)`; gated, the activation's half times the other (GLU).

    Args:
        x: `[tokens, in_features]`, any floating dtype.
        weight: `[out_features, in_features]`, same dtype.
        bias: `[out_features]` or None.
        epilogue: a key of `ACTIVATIONS`.
        gated: the first half of the outputs is activated and multiplied by the second ("GLU Variants Improve
            Transformer", Shazeer 2020, section 2); halves `out_features` below.
        residual: `[tokens, out_features]` of any floating dtype, or None; added last.
        rope: with it the first `turned` outputs, heads of `2 * cos.shape[1]` channels, are rotated as in
            `engine/ops/rope.py`: queries and keys of a fused projection. Without epilogue, gate and residual.
        turned: a multiple of the channels of a head; 0 without `rope`.
        wide: half precision is not rounded behind the product, and the result is fp32: of a gated layer whose halves
            fit in fp16, the product need not.
        statistics: also return what `norm_linear` of the same row of the table can use of these results, or None where
            the row has no such thing, as this one.

    Returns:
        `[tokens, out_features]` in x's dtype, or the residual's where that is wider; fp32 at least where `wide`. With
        `statistics` that and the row's own.
    """
    out = F.linear(x, weight, bias)
    out = finish(out, epilogue=epilogue, gated=gated, residual=residual, rope=rope, turned=turned, wide=wide)
    return (out, None) if statistics else out


def finish(
    out: Tensor,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    rope: Rotation | None = None,
    turned: int = 0,
    wide: bool = False,
) -> Tensor:
    """What `linear` does with `x @ weight^T + bias`, `[tokens, out_features]`: activation, gate, residual; rotation."""
    if rope is not None:
        channels = 2 * rope[1].shape[1]
        heads = out[:, :turned].unflatten(1, (-1, channels))
        return torch.cat([rotated(heads, *rope).flatten(1), out[:, turned:]], dim=1)
    if wide:
        out = out.to(torch.promote_types(out.dtype, torch.float32))
    if gated:
        activated, gate = out.chunk(2, dim=-1)
        out = ACTIVATIONS[epilogue](activated) * gate
    else:
        out = ACTIVATIONS[epilogue](out)
    return out if residual is None else residual + out
