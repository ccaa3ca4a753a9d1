"""Operands of `norm_linear` in hostile shapes and layouts, and the one way its kernel is called in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from linear_cases import RopeCase, chosen_rows, in_fp64, placed, size_of_terms, turns
from operands import alike, laid_out, normal
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.ops.linear import Rotation
from padless.engine.ops.norm import layer_norm, rms_norm
from padless.engine.ops.norm_linear import norm_linear as eager
from padless.kernels import linear as product
from padless.kernels.launch import Config
from padless.kernels.norm_linear import norm_linear, prepare

__all__ = [
    "HALVES",
    "NORMS",
    "STATISTICS",
    "Case",
    "TurnedCase",
    "assert_right",
    "facts",
    "handed_on",
    "kernel",
    "operands",
    "tiles_of",
    "turned_operands",
    "weights_of",
]

HALVES = (torch.float16, torch.bfloat16)
NORMS = ("layer_norm", "rms_norm")
STATISTICS = ("own", "handed on", "short runs")
"""None are given; those that `linear` leaves; the same in runs of 16 columns."""

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""Of the norm and of the product: scale, shift, weight, bias."""


@dataclass(frozen=True)
class Case:
    """A product of normalised rows; `outputs` are those of the result, half of the product's where `gated`.

    `offset` is the mean of the rows in units of their deviation, `magnitude` that deviation.
    """

    dtype: torch.dtype
    norm: str
    tokens: int
    inputs: int
    outputs: int
    shift: bool
    bias: bool
    wide_norm: bool
    epilogue: str
    gated: bool
    statistics: str
    x: str
    eps: float
    magnitude: float
    offset: float


@dataclass(frozen=True)
class TurnedCase:
    """A fused projection of normalised rows, of which queries and keys are turned."""

    norm: str
    statistics: str
    offset: float
    of: RopeCase


def tiles_of(rows: int, columns: int, features: int = 16, parts: int = 1, group: int = 8) -> Config:
    """Small tiles, of which there are many where operands are small."""
    return Config.of(
        4, 2, 255, BLOCK_M=rows, BLOCK_N=columns, BLOCK_K=features, GROUP_M=group, PARTS=parts, TMA=0, FLATTEN=0,
        WARP_SPECIALIZE=0,
    )  # fmt: skip


def handed_on(x: Tensor, kind: str) -> Tensor | None:
    """Statistics of these rows as they come from `linear`: of a product that is 0, and to which the rows are added."""
    if kind == "own":
        return None
    nothing = x.new_zeros(x.shape[0], 1), x.new_zeros(x.shape[1], 1), None
    config = tiles_of(16, 32, parts=2) if kind == "short runs" else None
    out, statistics = product.linear(*nothing, residual=x, statistics=True, config=config)
    assert alike(out, x.contiguous())
    return statistics


def stream(
    tokens: int, inputs: int, dtype: torch.dtype, norm: str, magnitude: float, offset: float, seed: int
) -> Tensor:
    """Rows of this deviation and mean; those of a layer norm are not of one value throughout, unless they have one."""
    x = ((normal(tokens, inputs, seed=seed, dtype=torch.float64) + offset) * magnitude).to(dtype)
    if norm == "layer_norm" and inputs > 1:
        alone = (x == x[:, :1]).all(dim=1)
        x[alone, 0] = x[alone, 0] * 2 + magnitude
    return x


def weights_of(
    rows: int, inputs: int, dtype: torch.dtype, norm: str, shift: bool, bias: bool, wide: bool, seed: int
) -> Weights:
    """Weights that keep the size of what goes through them, as those of models do."""
    norms = torch.float32 if wide else dtype
    scale = (1 + normal(inputs, seed=seed + 2, dtype=torch.float64, magnitude=0.5)).to(norms)
    moved = normal(inputs, seed=seed + 3, dtype=norms, magnitude=0.5) if shift and norm == "layer_norm" else None
    weight = normal(rows, inputs, seed=seed + 4, dtype=dtype, magnitude=max(inputs, 1) ** -0.5)
    return scale, moved, weight, normal(rows, seed=seed + 5, dtype=dtype) if bias else None


def operands(case: Case, seed: int = 0) -> tuple[Tensor, Weights, dict[str, Any]]:
    """x, the weights and the options, among them the statistics."""
    rows = case.outputs * (2 if case.gated else 1)
    x = stream(case.tokens, case.inputs, case.dtype, case.norm, case.magnitude, case.offset, seed + 1)
    weights = weights_of(rows, case.inputs, case.dtype, case.norm, case.shift, case.bias, case.wide_norm, seed)
    options = {"norm": case.norm, "eps": case.eps, "epilogue": case.epilogue, "gated": case.gated}
    # The layout may change the values (one row for all), and the statistics are of what is read.
    x = placed(x, case.x)
    return x, weights, {**options, "statistics": handed_on(x, case.statistics)}


def turned_operands(turned: TurnedCase, seed: int = 0) -> tuple[Tensor, Weights, dict[str, Any]]:
    """x, the weights of a fused projection, and the options."""
    case = turned.of
    outputs = sum(case.heads) * case.head_dim
    x = stream(case.tokens, case.inputs, case.dtype, turned.norm, case.magnitude, turned.offset, seed + 1)
    weights = weights_of(outputs, case.inputs, case.dtype, turned.norm, case.bias, case.bias, False, seed)
    rows = chosen_rows(case.rows, case.tokens, seed + 6)
    cos, sin = turns(2 * case.tokens + 3, case.head_dim // 2, rows, seed + 7)
    rotation = rows, laid_out(cos, case.tables), laid_out(sin, case.tables)
    x = placed(x, case.x)
    options = {"norm": turned.norm, "eps": 1e-5, "statistics": handed_on(x, turned.statistics)}
    return x, weights, {**options, "rope": rotation, "turned": sum(case.heads[:2]) * case.head_dim}


def facts(
    x: Tensor, weight: Tensor, *, norm: str, epilogue: str = "none", gated: bool = False, rope: Rotation | None = None,
    **_: Any,
) -> Call:  # fmt: skip
    """What a block that owns these weights tells the dispatch table."""
    return Call(
        "norm_linear",
        "cpu",
        x.dtype,
        hidden=weight.shape[0],
        inner=weight.shape[1],
        norm=norm,
        epilogue=epilogue,
        gated=gated,
        rope=rope is not None,
        head_dim=None if rope is None else 2 * rope[1].shape[1],
    )


def kernel(x: Tensor, weights: Weights, *, config: Config | None = None, **options: Any) -> Tensor:
    """`norm_linear` in Triton with weights that were prepared for this use of them."""
    return norm_linear(x, *prepare(*weights, call=facts(x, weights[2], **options)), config=config, **options)


def terms(x: Tensor, weights: Weights, *, norm: str, eps: float, **options: Any) -> float:
    """How large the terms are of which a result is a sum: of `linear`'s, behind the norm in fp64.

    Where there are so few results that eager's error may be small by chance, a term is right to half precision, as
    one of its factors was rounded to that; otherwise to what its sum in fp32 is.
    """
    scale, shift, weight, bias = in_fp64(weights)
    x = x[:1] if x.stride(0) == 0 else x  # of one row for all there are so many results as of one
    wide = x.double()
    rows = layer_norm(wide, scale, shift, eps=eps) if norm == "layer_norm" else rms_norm(wide, scale, eps=eps)
    assert isinstance(rows, Tensor)
    outputs = len(weight) // (1 + options.get("gated", False))
    share = torch.finfo(torch.float32).eps / torch.finfo(x.dtype).eps
    return (1.0 if len(x) * outputs < 64 else share) * size_of_terms(rows, weight, bias, **options)


def assert_right(x: Tensor, weights: Weights, *, config: Config | None = None, **options: Any) -> Tensor:
    """The kernel's result, by the 2x rule; what went in is as it was."""
    tensors = [x, *weights, options.get("statistics"), *(options.get("rope") or ())]
    before = [None if value is None else value.clone() for value in tensors]
    got = kernel(x, weights, config=config, **options)
    same = eager(x, *weights, **options)
    exact = eager(x.double(), *in_fp64(weights), **{name: in_fp64(value) for name, value in options.items()})
    assert got.is_contiguous()
    assert_two_times_rule(got, same, exact, size=terms(x, weights, **options))
    for value, old in zip(tensors, before, strict=True):
        assert value is None or old is None or alike(value, old), "an operand was overwritten"
    return got
