"""The norms' kernels for any rows: the 2x rule, and bits that depend on a row and the weights alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_cases import RESIDUAL_LAYOUTS, RESIDUALS, X_LAYOUTS
from norm_cases import OPS, Case, arguments, assert_right, results
from operands import DTYPES, properties

CASES = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from(("same", "same", "next", "last")),
    tokens=st.integers(0, 40),
    width=st.integers(1, 1200),
    bias=st.booleans(),
    eps=st.sampled_from((1e-12, 1e-7, 1e-5, 1e-2, 1.0)),
    residual=st.sampled_from(RESIDUALS),
    x=st.sampled_from(X_LAYOUTS),
    residual_layout=st.sampled_from(RESIDUAL_LAYOUTS),
    strided=st.booleans(),
    magnitude=st.sampled_from((1e-20, 1e-3, 1.0, 1000.0)),
    offset=st.sampled_from((0.0, 0.0, 5.0, -30.0)),
    wide=st.booleans(),
)
SEEDS = st.integers(0, 2**20)


def check(op: str, case: Case, seed: int) -> None:
    (x, *weights), options = arguments(op, case, seed)
    assert x is not None
    batch = assert_right(op, x, *weights, **options)
    # Some of the rows in another order.
    rows = torch.randperm(case.tokens, generator=torch.Generator().manual_seed(seed))[: (case.tokens + 1) // 2]
    residual = options.pop("residual")
    some = OPS[op][0](x[rows], *weights, residual=None if residual is None else residual[rows], **options)
    for one, all_rows in zip(results(some), batch, strict=True):
        assert torch.equal(one, all_rows[rows])


@pytest.mark.grid
@pytest.mark.parametrize("op", OPS)
@properties(200)
@given(case=CASES, seed=SEEDS)
def test_any_rows(op: str, case: Case, seed: int) -> None:
    check(op, case, seed)


@pytest.mark.parametrize("op", OPS)
@properties(20)
@given(case=CASES, seed=SEEDS)
def test_some_rows(op: str, case: Case, seed: int) -> None:
    check(op, case, seed)
