"""norm_linear's kernel for any shapes: the 2x rule, and bits that depend on a row and the weights alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_cases import ROWS, X_LAYOUTS, RopeCase
from norm_linear_cases import (
    HALVES,
    NORMS,
    STATISTICS,
    Case,
    TurnedCase,
    assert_right,
    handed_on,
    kernel,
    operands,
    turned_operands,
)
from operands import LAYOUTS, properties

from padless.engine.ops.linear import ACTIVATIONS

MAGNITUDES = st.sampled_from((1e-2, 1.0, 300.0))
OFFSETS = st.sampled_from((0.0, 1.0, -30.0))
CASES = st.builds(
    Case,
    dtype=st.sampled_from(HALVES),
    norm=st.sampled_from(NORMS),
    tokens=st.integers(0, 140),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 150),
    shift=st.booleans(),
    bias=st.booleans(),
    wide_norm=st.booleans(),
    epilogue=st.sampled_from(tuple(ACTIVATIONS)),
    gated=st.booleans(),
    statistics=st.sampled_from(STATISTICS),
    x=st.sampled_from(X_LAYOUTS),
    eps=st.sampled_from((1e-12, 1e-6, 1e-5)),
    magnitude=MAGNITUDES,
    offset=OFFSETS,
)
ROTATIONS = st.builds(
    TurnedCase,
    norm=st.sampled_from(NORMS),
    statistics=st.sampled_from(STATISTICS),
    offset=OFFSETS,
    of=st.builds(
        RopeCase,
        dtype=st.sampled_from(HALVES),
        tokens=st.integers(0, 100),
        inputs=st.integers(1, 150),
        head_dim=st.integers(1, 40).map(lambda half: 2 * half),
        heads=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)),
        bias=st.booleans(),
        rows=st.sampled_from(ROWS),
        tables=st.sampled_from(LAYOUTS),
        x=st.sampled_from(X_LAYOUTS),
        magnitude=MAGNITUDES,
    ),
)
SEEDS = st.integers(0, 2**20)


def some_rows(tokens: int, seed: int) -> torch.Tensor:
    """Half of the rows, in another order."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: (tokens + 1) // 2]


def check(case: Case, seed: int) -> None:
    x, weights, options = operands(case, seed)
    batch, rows = assert_right(x, weights, **options), some_rows(case.tokens, seed)
    options["statistics"] = handed_on(x[rows], case.statistics)
    assert torch.equal(kernel(x[rows], weights, **options), batch[rows])


def check_rotation(case: TurnedCase, seed: int) -> None:
    x, weights, options = turned_operands(case, seed)
    batch, order = assert_right(x, weights, **options), some_rows(case.of.tokens, seed)
    rows, *tables = options.pop("rope")
    options |= {"rope": (rows[order], *tables), "statistics": handed_on(x[order], case.statistics)}
    assert torch.equal(kernel(x[order], weights, **options), batch[order])


@pytest.mark.grid
@properties(200)
@given(CASES, SEEDS)
def test_any_product_of_normalised_rows(case: Case, seed: int) -> None:
    check(case, seed)


@properties(20)
@given(CASES, SEEDS)
def test_some_products_of_normalised_rows(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.grid
@properties(100)
@given(ROTATIONS, SEEDS)
def test_any_rotation_of_normalised_rows(case: TurnedCase, seed: int) -> None:
    check_rotation(case, seed)


@properties(10)
@given(ROTATIONS, SEEDS)
def test_some_rotations_of_normalised_rows(case: TurnedCase, seed: int) -> None:
    check_rotation(case, seed)
