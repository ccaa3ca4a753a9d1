"""Rope's kernel for any shapes: the 2x rule, and rules that turning must obey whatever the numbers are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operands import DTYPES, LAYOUTS, laid_out, normal, properties
from two_times_rule import assert_two_times_rule

from padless.engine.ops.rope import rope as eager
from padless.kernels.rope import rope


@dataclass(frozen=True)
class Example:
    dtype: torch.dtype
    half: int
    heads: int
    heads_k: int
    rows: tuple[int, ...]
    layout: str
    tables: str
    magnitude: float
    seed: int


EXAMPLES = st.builds(
    Example,
    dtype=st.sampled_from(DTYPES),
    half=st.integers(1, 70),
    heads=st.integers(1, 9),
    heads_k=st.integers(1, 9),
    rows=st.lists(st.integers(0, 40), max_size=70).map(tuple),
    layout=st.sampled_from(LAYOUTS),
    tables=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((1e-4, 1.0, 100.0, 5e3)),
    seed=st.integers(0, 2**20),
)


def check(example: Example) -> None:
    rows, dtype = torch.tensor(example.rows, dtype=torch.int64), example.dtype
    q, k = (
        normal(len(rows), heads, 2 * example.half, seed=seed, dtype=dtype, magnitude=example.magnitude)
        for heads, seed in ((example.heads, example.seed), (example.heads_k, example.seed + 1))
    )
    q, k = laid_out(q, example.layout), laid_out(k, example.layout)
    angles = normal(41, example.half, seed=example.seed + 2, dtype=torch.float64, magnitude=3.0)
    cos, sin = (laid_out(table.float(), example.tables) for table in (angles.cos(), angles.sin()))
    got = rope(q, k, rows, cos, sin)
    same, exact = eager(q, k, rows, cos, sin), eager(q.double(), k.double(), rows, cos.double(), sin.double())
    for turned, low, reference in zip(got, same, exact, strict=True):
        assert_two_times_rule(turned, low, reference)

    # A token's bits depend neither on the order of tokens nor on which others there are.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(example.seed))[: (len(rows) + 1) // 2]
    some = rope(q[order], k[order], rows[order], cos, sin)
    assert torch.equal(some[0], got[0][order])
    assert torch.equal(some[1], got[1][order])


@pytest.mark.grid
@properties(200)
@given(EXAMPLES)
def test_any_shape(example: Example) -> None:
    check(example)


@properties(20)
@given(EXAMPLES)
def test_some_shapes(example: Example) -> None:
    check(example)
