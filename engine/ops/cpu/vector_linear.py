"""The row `cpu_llvm` of `linear`: the CPU row's GEMM, and in one pass of `kernels/llvm` what follows it.

That is a GELU, gated or not, or the rotation of queries and keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....kernels.llvm.activation import ACTIVATIONS, activate
from ....kernels.llvm.host import missing_features
from ....kernels.llvm.rope import rotate
from ...contract import Call
from ..linear import Rotation
from . import linear as cpu
from .linear import prepare

__all__ = ["linear", "prepare", "unsupported"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = cpu.unsupported(call) or missing_features(call.dtype)
    if call.rope:
        if (call.head_dim or 0) % 32:
            reasons.append(f"needs head_dim a multiple of 32, got {call.head_dim}")
        return reasons
    if call.epilogue not in ACTIVATIONS:
        reasons.append(f"needs rope, or epilogue {' or '.join(ACTIVATIONS)}, got {call.epilogue}")
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
    if rope is not None and len(x):
        out = cpu.product(x, weight, bias)
        rotate(out, turned, *(table.contiguous() for table in rope))
        return (out, None) if statistics else out
    if wide or not len(x) or epilogue not in ACTIVATIONS:
        how: dict[str, Any] = {"epilogue": epilogue, "gated": gated, "residual": residual, "rope": rope}
        return cpu.linear(x, weight, bias, **how, turned=turned, wide=wide, statistics=statistics)
    out = activate(cpu.product(x, weight, bias), epilogue, gated=gated)
    out = out if residual is None else residual + out
    return (out, None) if statistics else out
