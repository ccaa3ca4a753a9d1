"""Normalisation of token rows. The specification, the oracle and the last row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["layer_norm", "no_norm", "rms_norm"]


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last axis (Ba, Kiros & Hinton 2016, section 3).

    Args:
        x: `[tokens, hidden]`, any floating dtype; statistics are fp32 for half precision.
        weight: `[hidden]`.
        bias: `[hidden]` or None.
        eps: added to the biased variance.
        residual: `[tokens, hidden]` of any floating dtype, or None; added to x before.

    Returns:
        `[tokens, hidden]` in the weight's dtype; with a residual that and `residual + x`, in the wider dtype of both.
    """
    total = x if residual is None else residual + x
    if total.dtype == weight.dtype:
        out = F.layer_norm(total, (x.shape[-1],), weight, bias, eps)
    else:
        wide = torch.promote_types(torch.promote_types(total.dtype, weight.dtype), torch.float32)
        scale, shift = weight.to(wide), None if bias is None else bias.to(wide)
        out = F.layer_norm(total.to(wide), (x.shape[-1],), scale, shift, eps).to(weight.dtype)
    return out if residual is None else (out, total)


def no_norm(x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor | None = None, wide: bool = False) -> Tensor:
    """`(residual + x) * weight + bias`, what MobileBERT has in place of a norm (Sun et al. 2020, section 3.3).

    Nothing bounds the result, which reaches 2.5e7 in the published weights.

    Args:
        x: `[tokens, hidden]`, any floating dtype; half precision is computed in fp32 and rounded once.
        weight: `[hidden]`.
        bias: `[hidden]`.
        residual: `[tokens, hidden]` or None, of any floating dtype.
        wide: half precision is not rounded at all, for a residual stream in fp32.

    Returns:
        `[tokens, hidden]` in x's dtype; where `wide`, fp32 for half precision.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) if residual is None else residual.to(dtype) + x
    out = torch.addcmul(bias.to(dtype), total, weight.to(dtype))
    return out if wide else out.to(x.dtype)


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis (Zhang & Sennrich 2019, section 3), as in T5.

    Args:
        x: `[tokens, hidden]`, any floating dtype; the mean is fp32 for half precision, and the quotient is rounded to
            the weight's dtype before it is scaled, as T5 was trained.
        weight: `[hidden]`.
        eps: added to the mean square.
        residual: `[tokens, hidden]` of any floating dtype, or None; added to x before.

    Returns:
        `[tokens, hidden]` in the weight's dtype; with a residual that and `residual + x`, in the wider dtype of both.
    """
    total = x if residual is None else residual + x
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    out = weight * scaled.to(weight.dtype)
    return out if residual is None else (out, total)
