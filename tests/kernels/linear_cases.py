"""Operands of `linear` in hostile shapes and layouts, and the one way its kernel is called in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from operands import LAYOUTS, alike, laid_out, normal
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.ops.linear import Rotation, finish
from padless.engine.ops.linear import linear as eager
from padless.kernels.launch import Config
from padless.kernels.linear import linear, prepare

__all__ = [
    "RESIDUALS",
    "RESIDUAL_LAYOUTS",
    "ROWS",
    "X_LAYOUTS",
    "Case",
    "RopeCase",
    "assert_right",
    "facts",
    "in_fp64",
    "kernel",
    "operands",
    "placed",
    "quarter_turns",
    "residual_dtype",
    "rope_operands",
    "small_integers",
    "turns",
]

X_LAYOUTS = (*LAYOUTS, "aligned columns", "one row")
RESIDUALS = ("none", "none", "same", "fp32", "other")
RESIDUAL_LAYOUTS = (*LAYOUTS, "one row")
ROWS = ("positions", "permuted", "repeated", "second table")


@dataclass(frozen=True)
class Case:
    """A product with an epilogue; `outputs` are those of the result, half of the product's where `gated`."""

    dtype: torch.dtype
    tokens: int
    inputs: int
    outputs: int
    bias: bool
    epilogue: str
    gated: bool
    wide: bool
    residual: str
    residual_layout: str
    x: str
    weight: str
    magnitude: float


@dataclass(frozen=True)
class RopeCase:
    """A fused projection to queries, keys and values, of which queries and keys are turned."""

    dtype: torch.dtype
    tokens: int
    inputs: int
    head_dim: int
    heads: tuple[int, int, int]
    bias: bool
    rows: str
    tables: str
    x: str
    magnitude: float


def placed(x: Tensor, layout: str) -> Tensor:
    """`x` in a layout; "one row": the first row for all, without a stride; "aligned columns": a slice 32 bytes in."""
    if layout == "one row":
        return x[:1].expand_as(x)
    if layout == "aligned columns":
        unit = 32 // x.element_size()
        width = x.shape[1] + unit
        buffer = x.new_full((x.shape[0], width + -width % unit + unit), torch.nan)
        return buffer[:, unit : unit + x.shape[1]].copy_(x)
    return laid_out(x, layout)


def residual_dtype(kind: str, dtype: torch.dtype) -> torch.dtype:
    if kind == "other":
        return torch.bfloat16 if dtype == torch.float16 else torch.float16
    return torch.float32 if kind == "fp32" else dtype


def operands(case: Case, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor | None], dict[str, Any]]:
    """x, weight and bias, and the options; weights keep the size of their inputs, as those of models do."""
    dtype, rows = case.dtype, case.outputs * (2 if case.gated else 1)
    x = normal(case.tokens, case.inputs, seed=seed + 1, dtype=dtype, magnitude=case.magnitude)
    weight = normal(rows, case.inputs, seed=seed + 2, dtype=dtype, magnitude=max(case.inputs, 1) ** -0.5)
    bias = normal(rows, seed=seed + 3, dtype=dtype, magnitude=case.magnitude) if case.bias else None
    residual = None
    if case.residual != "none":
        stream = residual_dtype(case.residual, dtype)
        residual = normal(case.tokens, case.outputs, seed=seed + 4, dtype=stream, magnitude=case.magnitude)
        residual = placed(residual, case.residual_layout)
    options = {"epilogue": case.epilogue, "gated": case.gated, "wide": case.wide, "residual": residual}
    return (placed(x, case.x), laid_out(weight, case.weight), bias), options


def chosen_rows(kind: str, tokens: int, seed: int) -> Tensor:
    """int64 `[tokens]`, rows of tables that have `2 * tokens + 3` of them."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "permuted":
        return torch.randperm(2 * tokens + 3, generator=generator)[:tokens]
    if kind == "repeated":
        return torch.randint(3, (tokens,), generator=generator) * (tokens + 1)
    positions = torch.arange(tokens) % max(1, tokens * 2 // 3)
    return positions + (tokens + 3 if kind == "second table" else 0)


def turns(table_rows: int, half: int, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """fp32 cosines and sines of any angles, scaled; NaN in the rows that no token has."""
    angles = normal(table_rows, half, seed=seed, dtype=torch.float64, magnitude=3.0)
    unused = torch.ones(table_rows, 1, dtype=torch.bool)
    unused[rows] = False
    return (angles.cos() * 1.25).float().masked_fill(unused, torch.nan), (
        (angles.sin() * 1.25).float().masked_fill(unused, torch.nan)
    )


def quarter_turns(half: int, count: int) -> tuple[Tensor, Tensor]:
    """Exact cosines and sines of `count` rows, 0, 1 or -1: each pair of channels turns by its own multiple of 90."""
    quarters = (torch.arange(count)[:, None] * 3 + torch.arange(half)) % 4
    return torch.tensor([1.0, 0, -1, 0])[quarters], torch.tensor([0.0, 1, 0, -1])[quarters]


def rope_operands(case: RopeCase, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor | None], dict[str, Any]]:
    """x, weight and bias of a fused projection, and the options."""
    dtype, outputs = case.dtype, sum(case.heads) * case.head_dim
    x = normal(case.tokens, case.inputs, seed=seed + 1, dtype=dtype, magnitude=case.magnitude)
    weight = normal(outputs, case.inputs, seed=seed + 2, dtype=dtype, magnitude=case.inputs**-0.5)
    bias = normal(outputs, seed=seed + 3, dtype=dtype, magnitude=case.magnitude) if case.bias else None
    rows = chosen_rows(case.rows, case.tokens, seed + 4)
    cos, sin = turns(2 * case.tokens + 3, case.head_dim // 2, rows, seed + 5)
    rotation = rows, laid_out(cos, case.tables), laid_out(sin, case.tables)
    return (placed(x, case.x), weight, bias), {"rope": rotation, "turned": sum(case.heads[:2]) * case.head_dim}


def small_integers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """-2 to 2: whatever is summed of their products in whatever order is exact, and 60 of them fit in any dtype."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def facts(
    x: Tensor,
    weight: Tensor,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    rope: Rotation | None = None,
    **_: Any,
) -> Call:
    """What a block that owns these weights tells the dispatch table."""
    return Call(
        "linear",
        "cpu",
        x.dtype,
        hidden=weight.shape[0],
        inner=weight.shape[1],
        epilogue=epilogue,
        gated=gated,
        residual=residual is not None,
        rope=rope is not None,
        head_dim=None if rope is None else 2 * rope[1].shape[1],
    )


def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, *, config: Config | None = None, **options: Any) -> Tensor:
    """`linear` in Triton with weights that were prepared for this use of them."""
    return linear(x, *prepare(weight, bias, call=facts(x, weight, **options)), config=config, **options)


def in_fp64(value: Any) -> Any:
    """The same argument in fp64: a tensor, a tuple of them, or what is neither."""
    if isinstance(value, tuple):
        return tuple(map(in_fp64, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def size_of_terms(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, epilogue: str = "none", gated: bool = False, **_: Any
) -> float:
    """How large the terms are of which a result is a sum, times what the epilogue makes of an error in them.

    0 where there are so many results, all much alike, that neither the largest one nor eager's error is by chance.
    """
    tokens, outputs = x.shape[0], weight.shape[0] // (1 + gated)
    if tokens * outputs == 0 or (tokens * outputs >= 64 and not gated and epilogue != "relu2"):
        return 0.0
    wide, rows = x.detach().double(), weight.detach().double()
    shift = torch.zeros(len(rows), dtype=torch.float64) if bias is None else bias.detach().double()
    product = torch.addmm(shift, wide, rows.T).requires_grad_()
    terms = torch.maximum((wide.square() @ rows.square().T + shift.square()).sqrt(), product.detach().abs())
    finish(product, epilogue=epilogue, gated=gated).sum().backward()
    assert product.grad is not None
    sizes = (product.grad.abs() * terms).view(tokens, -1, outputs).sum(dim=1)
    sizes = sizes[sizes.isfinite()]
    return 2 * sizes.max().item() if sizes.numel() else 0.0


def assert_right(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, config: Config | None = None, **options: Any
) -> Tensor:
    """The kernel's result, by the 2x rule; what went in is as it was."""
    tensors = [x, weight, bias, options.get("residual"), *(options.get("rope") or ())]
    before = [None if value is None else value.clone() for value in tensors]
    got = kernel(x, weight, bias, config=config, **options)
    same = eager(x, weight, bias, **options)
    exact = eager(*map(in_fp64, (x, weight, bias)), **{name: in_fp64(value) for name, value in options.items()})
    # Its terms are added in fp32, whatever the result is rounded to.
    share = torch.finfo(torch.float32).eps / torch.finfo(got.dtype).eps
    assert_two_times_rule(got, same, exact, size=share * size_of_terms(x, weight, bias, **options))
    for value, old in zip(tensors, before, strict=True):
        assert value is None or old is None or alike(value, old), "an operand was overwritten"
    return got
