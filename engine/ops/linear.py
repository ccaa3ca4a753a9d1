"""A GEMM with what follows it: bias, activation, residual. The specification, the oracle and the last row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "finish", "linear"]


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


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """`residual + activation(x @ weight^T + bias)`; gated, the activation's half times the other (GLU).

    Args:
        x: `[tokens, in_features]`, any floating dtype.
        weight: `[out_features, in_features]`, same dtype.
        bias: `[out_features]` or None.
        epilogue: a key of `ACTIVATIONS`.
        gated: the first half of the outputs is activated and multiplied by the second ("GLU Variants Improve
            Transformer", Shazeer 2020, section 2); halves `out_features` below.
        residual: `[tokens, out_features]` or None, added last.

    Returns:
        `[tokens, out_features]` in x's dtype.
    """
    return finish(F.linear(x, weight, bias), epilogue=epilogue, gated=gated, residual=residual)


def finish(out: Tensor, *, epilogue: str = "none", gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """What `linear` does with `x @ weight^T + bias`, `[tokens, out_features]`: activation, gate, residual."""
    if gated:
        activated, gate = out.chunk(2, dim=-1)
        out = ACTIVATIONS[epilogue](activated) * gate
    else:
        out = ACTIVATIONS[epilogue](out)
    return out if residual is None else residual + out
