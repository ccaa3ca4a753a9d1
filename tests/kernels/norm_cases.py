"""Operands of the three norms in hostile shapes and layouts, and the one way their kernels are called in tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from linear_cases import in_fp64, placed, residual_dtype
from operands import DTYPES, alike, normal
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops import norm as eager
from padless.kernels import norm as kernels

__all__ = ["OPS", "Case", "arguments", "assert_right", "results"]

OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "layer_norm": (kernels.layer_norm, eager.layer_norm),
    "rms_norm": (kernels.rms_norm, eager.rms_norm),
    "no_norm": (kernels.no_norm, eager.no_norm),
}
"""Each op's kernel and its eager function."""


@dataclass(frozen=True)
class Case:
    """Rows, what is added to them, and the weights; what an op does not have (bias, eps, wide) it does not see."""

    dtype: torch.dtype
    weights: str
    tokens: int
    width: int
    bias: bool
    eps: float
    residual: str
    x: str
    residual_layout: str
    strided: bool
    magnitude: float
    offset: float
    wide: bool


def weights_dtype(kind: str, dtype: torch.dtype) -> torch.dtype:
    """Of "same", "next" and "last": each dtype's two others."""
    return DTYPES[(DTYPES.index(dtype) + ("same", "next", "last").index(kind)) % 3]


def arguments(op: str, case: Case, seed: int = 0) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
    """The tensors of a call without the residual, and its options."""
    shape, dtype, magnitude = (case.tokens, case.width), case.dtype, case.magnitude
    # The offset in units of the deviation, so that it is the same trouble at every magnitude.
    rows = (normal(*shape, seed=seed + 1, dtype=torch.float64) + case.offset) * magnitude
    weights = weights_dtype(case.weights, dtype)
    weight, bias = (normal(case.width, seed=seed + more, dtype=weights) for more in (2, 3))
    if case.strided:
        weight, bias = (
            torch.stack([value, torch.full_like(value, torch.nan)], dim=1)[:, 0] for value in (weight, bias)
        )
    options: dict[str, Any] = {"residual": None}
    if case.residual != "none":
        stream = residual_dtype(case.residual, dtype)
        residual = normal(*shape, seed=seed + 4, dtype=stream, magnitude=magnitude)
        options["residual"] = placed(residual, case.residual_layout)
    if op == "no_norm":
        options["wide"] = case.wide
    else:
        options["eps"] = case.eps
    tensors: tuple[Tensor | None, ...] = placed(rows.to(dtype), case.x), weight
    return tensors if op == "rms_norm" else (*tensors, bias if case.bias or op == "no_norm" else None), options


def results(out: Any) -> tuple[Tensor, ...]:
    """The norm, and behind it the sum where there is one."""
    return out if isinstance(out, tuple) else (out,)


def size_of_terms(op: str, tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> float:
    """How large the terms are of which a result is the sum: x and the mean, each divided and scaled; or x and bias."""
    x, weight, *rest = (None if value is None else value.double() for value in tensors)
    assert x is not None
    assert weight is not None
    total = x if options["residual"] is None else options["residual"].double() + x
    if total.numel() == 0:
        return 0.0
    if op == "layer_norm":
        deviation = (total.var(dim=1, correction=0, keepdim=True) + options["eps"]).sqrt()
        terms = total.mean(dim=1, keepdim=True) / deviation * weight
    elif op == "no_norm" and total.numel() < 64 and rest[0] is not None:
        terms = torch.stack([total * weight, rest[0].expand_as(total)])
    else:
        return 0.0
    terms = terms[terms.isfinite()].abs()
    return terms.max().item() if terms.numel() else 0.0


def assert_right(op: str, *tensors: Tensor | None, config: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """The kernel's results, the norm by the 2x rule, the sum exact; what went in is as it was."""
    kernel, function = OPS[op]
    operands = [*tensors, options.setdefault("residual", None)]
    before = [None if value is None else value.clone() for value in operands]
    got = results(kernel(*tensors, config=config, **options))
    same = results(function(*tensors, **options))
    exact = results(function(*map(in_fp64, tensors), **{name: in_fp64(value) for name, value in options.items()}))
    assert len(got) == len(same) == 1 + (options["residual"] is not None and op != "no_norm")
    assert_two_times_rule(got[0], same[0], exact[0], size=size_of_terms(op, tensors, options))
    for total, expected in zip(got[1:], same[1:], strict=True):
        assert alike(total, expected), "the sum is not that of eager to the bit"
    for value, old in zip(operands, before, strict=True):
        assert value is None or old is None or alike(value, old), "an operand was overwritten"
    return got
