"""The rows `cpu_llvm` of `norm`, `rms_norm` and `no_norm`: `kernels/llvm/norm.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.llvm.host import missing_features
from ....kernels.llvm.norm import normalise, scale_and_shift
from ...contract import Call
from .. import norm as eager

__all__ = ["defers", "layer_norm", "no_norm", "prepare", "rms_norm", "unsupported"]


@dataclass(frozen=True)
class Prepared:
    """A parameter as it was, and in fp32."""

    given: Tensor
    wide: Tensor


def unsupported(call: Call) -> list[str]:
    """Why these rows cannot serve `call`."""
    reasons = missing_features(call.dtype)
    if call.hidden is not None and call.hidden % 16:
        reasons.append(f"needs hidden a multiple of 16, got {call.hidden}")
    return reasons


def defers(call: Call) -> list[str]:
    """Why these rows leave `call` to the rows below."""
    if call.op != "rms_norm" or call.dtype == torch.bfloat16:
        return []
    # T5's scores are not scaled: another last bit of a norm is found a hundred times larger in its outputs, and only
    # torch's own operators have the bits that transformers has.
    return ["leaves rms_norm in float32 to the operators that transformers uses"]


def prepare(weight: Tensor, bias: Tensor | None = None, *, call: Call) -> tuple[Prepared | None, ...]:
    """The parameters in fp32 beside themselves; of an RMS norm there is one."""
    parameters = (weight,) if call.op == "rms_norm" else (weight, bias)
    return tuple(
        None if one is None else Prepared(one.detach(), one.detach().float().contiguous()) for one in parameters
    )


def layer_norm(
    x: Tensor, weight: Prepared, bias: Prepared | None, *, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `engine/ops/norm.py`, with the parameters from `prepare`."""
    total = x if residual is None else residual + x
    if not _serves(total, weight):
        given = None if bias is None else bias.given
        return eager.layer_norm(x, weight.given, given, eps=eps, residual=residual)
    shift = None if bias is None else bias.wide
    out = normalise(total, weight.wide, shift, eps=eps, centred=True, dtype=weight.given.dtype)
    return out if residual is None else (out, total)


def rms_norm(
    x: Tensor, weight: Prepared, *, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `engine/ops/norm.py`, with the parameter from `prepare`."""
    total = x if residual is None else residual + x
    if not _serves(total, weight):
        return eager.rms_norm(x, weight.given, eps=eps, residual=residual)
    out = normalise(total, weight.wide, None, eps=eps, centred=False, dtype=weight.given.dtype)
    return out if residual is None else (out, total)


def no_norm(
    x: Tensor, weight: Prepared, bias: Prepared, *, residual: Tensor | None = None, wide: bool = False
) -> Tensor:
    """As `engine/ops/norm.py`, with the parameters from `prepare`."""
    if not _serves(x, weight) or not (residual is None or _serves(residual, weight)):
        return eager.no_norm(x, weight.given, bias.given, residual=residual, wide=wide)
    beside = None if residual is None else residual.contiguous()
    dtype = torch.float32 if wide else x.dtype
    return scale_and_shift(x.contiguous(), beside, weight.wide, bias.wide, dtype=dtype)


def _serves(x: Tensor, weight: Prepared) -> bool:
    """Whether the tensors of this call are what the kernel takes; parameters may be of another dtype than the model."""
    return x.dim() == 2 and x.shape[1] % 16 == 0 and not missing_features(x.dtype) and _known(weight.given.dtype)


def _known(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.bfloat16)
