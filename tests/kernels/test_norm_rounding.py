"""Where the norms round, which the 2x rule leaves open: errors that `make mutants` showed no other test to notice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from padless.engine.ops import norm as eager
from padless.kernels import norm as kernels

HALVES = (torch.float16, torch.bfloat16)
ALIKE = 0.995
"""Of the results; a sum in another order moves the last bit of very few, a rounding more or less that of many."""


def operands(dtype: torch.dtype, residual: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    x, added = (torch.randn(9, 500, generator=generator) * 3 + 1 for _ in range(2))
    weight, bias = torch.rand(500, generator=generator) + 0.5, torch.randn(500, generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), None if residual is None else added.to(residual)


def share_alike(found: Tensor | tuple[Tensor, Tensor], expected: Tensor | tuple[Tensor, Tensor]) -> float:
    """How many results have the bits of eager; sums must have them all."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return (found == expected).double().mean().item()
    assert torch.equal(found[1], expected[1])
    return (found[0] == expected[0]).double().mean().item()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("residual", [None, *HALVES, torch.float32], ids=str)
def test_rms_norm_rounds_where_eager_does(dtype: torch.dtype, residual: torch.dtype | None) -> None:
    x, weight, _, added = operands(dtype, residual)
    found = kernels.rms_norm(x, weight, eps=1e-6, residual=added)
    assert share_alike(found, eager.rms_norm(x, weight, eps=1e-6, residual=added)) > ALIKE


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("residual", [None, *HALVES, torch.float32], ids=str)
def test_layer_norm_rounds_where_eager_does(dtype: torch.dtype, residual: torch.dtype | None) -> None:
    x, weight, bias, added = operands(dtype, residual)
    found = kernels.layer_norm(x, weight, bias, eps=1e-6, residual=added)
    assert share_alike(found, eager.layer_norm(x, weight, bias, eps=1e-6, residual=added)) > ALIKE


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_norm_is_that_of_the_sum_that_comes_back(dtype: torch.dtype, op: str) -> None:
    x, weight, bias, added = operands(dtype, dtype)
    parts = (weight, bias) if op == "layer_norm" else (weight,)
    out, total = getattr(kernels, op)(x, *parts, eps=1e-6, residual=added)
    assert torch.equal(out, getattr(kernels, op)(total, *parts, eps=1e-6))
