"""The row `cpu_llvm` of `linear`.

In bf16 the product too is compiled, `kernels/llvm/product.py`, with all that follows it; such a row's bits are its own.
Otherwise it is the CPU row's GEMM, and one pass behind it for a GELU, gated or not, or for the rotation of queries and
keys.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ....kernels.llvm import product
from ....kernels.llvm.activation import ACTIVATIONS, activate
from ....kernels.llvm.host import has_tiles, missing_features
from ....kernels.llvm.rope import rotate
from ...contract import Call
from ..linear import Rotation
from . import linear as cpu

__all__ = ["Weights", "linear", "prepare", "unsupported"]

WORTH_A_CORE = 1 << 23
"""Multiplications of each of several cores, a tenth of a millisecond. Smaller ones are left to oneDNN, whose threads
begin within microseconds."""


class Weights:
    """A bf16 weight, laid out for whoever takes the product, when it first does.

    Args:
        weight: `[out_features, in_features]`.
        bias: `[out_features]`, or None.
        gated: half of the outputs gates the other.
        deterministic: a row's bits must be its own, so that only one of them may.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gated: bool, deterministic: bool) -> None:
        self._weight, self._bias = weight.detach(), bias
        self._gated, self._deterministic = gated, deterministic

    @cached_property
    def packed(self) -> product.Packed:
        """For `kernels/llvm/product.py`."""
        return product.pack(self._weight, self._bias, gated=self._gated)

    @cached_property
    def library(self) -> Tensor:
        """For oneDNN."""
        return torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def compiled(self, tokens: int) -> bool:
        """Whether the product of so many rows is for the compiled kernel."""
        cores = torch.get_num_threads()
        return cores == 1 or self._deterministic or tokens * self._weight.numel() >= cores * WORTH_A_CORE


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = missing_features(call.dtype)
    compiled = not reasons and _is_compiled(call)
    if not reasons and call.deterministic and not compiled:
        return ["needs bfloat16 and features in multiples of 64 from multiples of 8 where deterministic=True"]
    if not (compiled and call.deterministic):
        # Small products of several threads are a library's.
        reasons = cpu.unsupported(call) or reasons
    if call.rope:
        if (call.head_dim or 0) % 32:
            reasons.append(f"needs head_dim a multiple of 32, got {call.head_dim}")
        return reasons
    known = product.EPILOGUES if compiled else ACTIVATIONS
    if call.epilogue not in known:
        reasons.append(f"needs rope, or epilogue {' or '.join(known)}, got {call.epilogue}")
    features = (call.hidden or 0) // (2 if call.gated else 1)
    if features % 16:
        reasons.append(f"needs a multiple of 16 activated features, got {features}")
    return reasons


def prepare(weight: Tensor, bias: Tensor | None, *, call: Call) -> tuple[Any, Tensor | None]:
    """`Weights` where the product is compiled, otherwise as the CPU row."""
    if _is_compiled(call):
        return Weights(weight, bias, call.gated, call.deterministic), bias
    return cpu.prepare(weight, bias, call=call)


def linear(
    x: Tensor,
    weight: Weights | Tensor | tuple[Tensor, ...],
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
    if isinstance(weight, Weights):
        if not len(x) or weight.compiled(len(x)):
            out = _compiled(x, weight.packed, epilogue, residual, rope, turned, wide)
            return (out, None) if statistics else out
        weight = weight.library
    if rope is not None and len(x):
        out = _turned(cpu.product(x, weight, bias), turned, rope)
        return (out, None) if statistics else out
    if wide or not len(x) or epilogue not in ACTIVATIONS:
        how: dict[str, Any] = {"epilogue": epilogue, "gated": gated, "residual": residual, "rope": rope}
        return cpu.linear(x, weight, bias, **how, turned=turned, wide=wide, statistics=statistics)
    out = activate(cpu.product(x, weight, bias), epilogue, gated=gated)
    out = out if residual is None else residual + out
    return (out, None) if statistics else out


def _is_compiled(call: Call) -> bool:
    """Whether the product is that of `kernels/llvm`; AMX is faster."""
    if call.dtype != torch.bfloat16 or not call.hidden or not call.inner:
        return False
    whole = call.hidden % product.PANEL == 0 and call.inner % product.STEP == 0
    return whole and (call.deterministic or not has_tiles())


def _compiled(
    x: Tensor,
    weight: product.Packed,
    epilogue: str,
    residual: Tensor | None,
    rope: Rotation | None,
    turned: int,
    wide: bool,
) -> Tensor:
    if rope is not None:
        return _turned(product.multiply(x, weight), turned, rope)
    added = residual if not wide and residual is not None and residual.dtype == x.dtype else None
    out = product.multiply(x, weight, epilogue=epilogue, residual=added, wide=wide)
    return out if residual is None or residual is added else residual + out


def _turned(out: Tensor, turned: int, rope: Rotation) -> Tensor:
    rows, *tables = rope
    # The kernel reads these by address, whatever they are.
    rotate(out, turned, rows.to(torch.int64).contiguous(), *(one.to(torch.float32).contiguous() for one in tables))
    return out
