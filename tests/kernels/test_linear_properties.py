"""Linear's kernel for any shapes: the 2x rule, and bits that depend on a row and the weights alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_cases import (
    RESIDUAL_LAYOUTS,
    RESIDUALS,
    ROWS,
    X_LAYOUTS,
    Case,
    RopeCase,
    assert_right,
    kernel,
    rope_operands,
)
from linear_cases import operands as operands_of
from operands import DTYPES, LAYOUTS, properties

from padless.engine.ops.linear import ACTIVATIONS

CASES = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(0, 140),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    bias=st.booleans(),
    epilogue=st.sampled_from(tuple(ACTIVATIONS)),
    gated=st.booleans(),
    wide=st.booleans(),
    residual=st.sampled_from(RESIDUALS),
    residual_layout=st.sampled_from(RESIDUAL_LAYOUTS),
    x=st.sampled_from(X_LAYOUTS),
    weight=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((1e-4, 1.0, 300.0)),
)
ROTATIONS = st.builds(
    RopeCase,
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(0, 100),
    inputs=st.integers(1, 100),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    heads=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)),
    bias=st.booleans(),
    rows=st.sampled_from(ROWS),
    tables=st.sampled_from(LAYOUTS),
    x=st.sampled_from(X_LAYOUTS),
    magnitude=st.sampled_from((1e-4, 1.0, 300.0)),
)
SEEDS = st.integers(0, 2**20)


def some_rows(tokens: int, seed: int) -> torch.Tensor:
    """Half of the rows, in another order."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: (tokens + 1) // 2]


def check(case: Case, seed: int) -> None:
    (x, weight, bias), options = operands_of(case, seed)
    batch, rows = assert_right(x, weight, bias, **options), some_rows(case.tokens, seed)
    residual = options.pop("residual")
    residual = None if residual is None else residual[rows]
    assert torch.equal(kernel(x[rows], weight, bias, residual=residual, **options), batch[rows])


def check_rotation(case: RopeCase, seed: int) -> None:
    (x, weight, bias), options = rope_operands(case, seed)
    batch, order = assert_right(x, weight, bias, **options), some_rows(case.tokens, seed)
    rows, *tables = options.pop("rope")
    assert torch.equal(kernel(x[order], weight, bias, rope=(rows[order], *tables), **options), batch[order])


@pytest.mark.grid
@properties(200)
@given(CASES, SEEDS)
def test_any_product(case: Case, seed: int) -> None:
    check(case, seed)


@properties(20)
@given(CASES, SEEDS)
def test_some_products(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.grid
@properties(100)
@given(ROTATIONS, SEEDS)
def test_any_rotation(case: RopeCase, seed: int) -> None:
    check_rotation(case, seed)


@properties(10)
@given(ROTATIONS, SEEDS)
def test_some_rotations(case: RopeCase, seed: int) -> None:
    check_rotation(case, seed)
