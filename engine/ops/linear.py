"""A GEMM with what follows it: bias, activation, residual. The specification, the oracle and the last row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "linear"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
}
"""The epilogues of `linear`. "gelu" is x * Phi(x) with the exact erf (Hendrycks & Gimpel 2016, section 2)."""


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, epilogue: str = "none", residual: Tensor | None = None
) -> Tensor:
    """`residual + activation(x @ weight^T + bias)`.

    Args:
        x: `[tokens, in_features]`, any floating dtype.
        weight: `[out_features, in_features]`, same dtype.
        bias: `[out_features]` or None.
        epilogue: a key of `ACTIVATIONS`.
        residual: `[tokens, out_features]` or None, added last.

    Returns:
        `[tokens, out_features]` in x's dtype.
    """
    out = ACTIVATIONS[epilogue](F.linear(x, weight, bias))
    return out if residual is None else residual + out
