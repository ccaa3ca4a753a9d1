"""Normalisation of token rows. The specification, the oracle and the last row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["layer_norm"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last axis (Ba, Kiros & Hinton 2016, section 3).

    Args:
        x: `[tokens, hidden]`, any floating dtype; statistics are fp32 for half precision.
        weight: `[hidden]`.
        bias: `[hidden]` or None.
        eps: added to the biased variance.

    Returns:
        `[tokens, hidden]` in x's dtype.
    """
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
