"""Embed's kernel for any tables and ids: the 2x rule, and bits that depend on a token's own rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operands import DTYPES, LAYOUTS, laid_out, normal, properties
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.embed import embed as eager
from padless.kernels.embed import embed


@dataclass(frozen=True)
class Example:
    dtype: torch.dtype
    width: int
    ids: tuple[tuple[int, int, int], ...]
    position: bool
    token_type: bool
    type_ids: bool
    norm: str
    eps: float
    tables: str
    magnitude: float
    offset: float
    seed: int


EXAMPLES = st.builds(
    Example,
    dtype=st.sampled_from(DTYPES),
    width=st.integers(16, 700),
    ids=st.lists(st.tuples(st.integers(0, 18), st.integers(0, 8), st.integers(0, 1)), max_size=40).map(tuple),
    position=st.booleans(),
    token_type=st.booleans(),
    type_ids=st.booleans(),
    norm=st.sampled_from(("none", "weight", "weight and bias")),
    eps=st.sampled_from((1e-12, 1e-7, 1e-5, 1e-2)),
    tables=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((1e-3, 1.0, 1000.0)),
    offset=st.sampled_from((0.0, 0.0, 5.0, -30.0)),
    seed=st.integers(0, 2**20),
)


def check(example: Example) -> None:
    dtype, width, seed = example.dtype, example.width, example.seed
    # Columns of one tensor: ids of stride 3.
    ids, positions, types = torch.tensor(example.ids, dtype=torch.int64).view(-1, 3).unbind(1)
    word, position, token_type = (
        laid_out(
            normal(rows, width, seed=seed + rows, dtype=dtype, magnitude=example.magnitude) + example.offset,
            example.tables,
        )
        for rows in (19, 9, 2)
    )
    tables: tuple[Any, ...] = (
        word,
        position if example.position else None,
        token_type if example.token_type else None,
        None if example.norm == "none" else normal(width, seed=seed + 3, dtype=dtype),
        normal(width, seed=seed + 4, dtype=dtype) if example.norm == "weight and bias" else None,
    )
    type_ids = types if example.type_ids else None
    eps = None if example.norm == "none" else example.eps
    got, same = (op(ids, positions, type_ids, *tables, eps=eps) for op in (embed, eager))
    wide = (x.double() if isinstance(x, Tensor) else None for x in tables)
    assert_two_times_rule(got, same, eager(ids, positions, type_ids, *wide, eps=eps))  # pyright: ignore[reportArgumentType]

    # Some of the tokens in another order.
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[: (len(ids) + 1) // 2]
    some = embed(ids[order], positions[order], None if type_ids is None else type_ids[order], *tables, eps=eps)
    assert torch.equal(some, got[order])


@pytest.mark.grid
@properties(200)
@given(EXAMPLES)
def test_any_tables(example: Example) -> None:
    check(example)


@properties(20)
@given(EXAMPLES)
def test_some_tables(example: Example) -> None:
    check(example)
