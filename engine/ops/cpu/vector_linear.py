"""The row `cpu_llvm` of `linear`: the CPU row's GEMM, and a GELU, gated or not, in one pass of `kernels/llvm`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....kernels.llvm.activation import ACTIVATIONS, activate
from ....kernels.llvm.host import missing_features
from ...contract import Call
from ..linear import Rotation
from . import linear as cpu
from .linear import prepare

__all__ = ["linear", "prepare", "unsupported"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = cpu.unsupported(call) or missing_features(call.dtype)
    if call.epilogue not in ACTIVATIONS:
        reasons.append(f"needs epilogue {' or '.join(ACTIVATIONS)}, got {call.epilogue}")
    features = (call.hidden or 0) // (2 if call.gated else 1)
    if features % 16:
        reasons.append(f"needs a multiple of 16 activated features, got {features}")
    return reasons


def linear(
    x: Tensor,
    weight: Tensor | tuple[Tensor, ...],
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
    """As `engine/ops/linear.py`, with the weight from `prepare`; it has no statistics."""
    if wide or rope is not None or not len(x):
        how: dict[str, Any] = {"epilogue": epilogue, "gated": gated, "residual": residual, "rope": rope}
        return cpu.linear(x, weight, bias, **how, turned=turned, wide=wide, statistics=statistics)
    out = activate(cpu.product(x, weight, bias), epilogue, gated=gated)
    out = out if residual is None else residual + out
    return (out, None) if statistics else out
