"""The CPU row of `linear` for deterministic=True: tiles of fixed sizes through the CPU row, or through eager in dtypes
that it does not serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ...contract import Call
from ..linear import Rotation
from ..linear import linear as eager_linear
from . import linear as cpu
from .tiles import in_tiles, only_deterministic

__all__ = ["linear", "prepare", "unsupported"]


@dataclass(frozen=True)
class Prepared:
    """A weight as what computes a tile takes it.

    Attributes:
        weight: from the CPU row's `prepare`, or as it was.
        packed: whether the CPU row serves.
        out_features: rows of the weight.
    """

    weight: Any
    packed: bool
    out_features: int


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return only_deterministic(call)


def prepare(weight: Tensor, bias: Tensor | None, *, call: Call) -> tuple[Prepared, Tensor | None]:
    """The weight laid out for the CPU row, where that serves."""
    if cpu.unsupported(call):
        return Prepared(weight, False, len(weight)), bias
    packed, bias = cpu.prepare(weight, bias, call=call)
    return Prepared(packed, True, len(weight)), bias


def linear(
    x: Tensor,
    weight: Prepared,
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
    how = {"epilogue": epilogue, "gated": gated, "turned": turned, "wide": wide}
    function = partial(cpu.linear if weight.packed else eager_linear, **how)

    def of_a_tile(x: Tensor, *beside: Tensor) -> Tensor:
        if rope is not None:
            return function(x, weight.weight, bias, rope=(beside[0], *rope[1:]))
        return function(x, weight.weight, bias, residual=beside[0] if beside else None)

    beside = () if rope is None else (rope[0],)
    beside = beside if residual is None else (residual,)
    key = (*how.values(), rope is None, bias is None, weight.packed)
    out = in_tiles(of_a_tile, (x, *beside), width=weight.out_features, key=key)
    return (out, None) if statistics else out
