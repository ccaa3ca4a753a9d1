"""Errors of embed's kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

import itertools

import pytest
import torch
from operands import DTYPES, LAYOUTS, laid_out, normal
from two_times_rule import assert_two_times_rule

from padless.engine.ops.embed import embed as eager
from padless.kernels.embed import embed

IDS = torch.tensor([3, 0, 4, 4, 1])
PLACES = torch.tensor([0, 1, 2, 0, 1])
TYPES = torch.tensor([1, 0, 2, 1, 2])


@pytest.mark.parametrize("layouts", list(itertools.permutations(LAYOUTS[:3])), ids="-".join)
def test_tables_may_lie_differently(layouts: tuple[str, ...]) -> None:
    tables = [normal(rows, 24, seed=rows, dtype=torch.float32) for rows in (5, 3, 4)]
    word, position, token_type = (laid_out(x, layout) for x, layout in zip(tables, layouts, strict=True))
    assert len({x.stride(0) for x in (word, position, token_type)}) == 3
    assert torch.equal(embed(IDS, PLACES, TYPES, word, position, token_type), embed(IDS, PLACES, TYPES, *tables))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (False, True), (True, False)])
def test_a_norm_without_a_weight_or_a_bias(weight: bool, bias: bool, dtype: torch.dtype) -> None:
    def parts(table_dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
        word, scale, shift = (normal(*shape, seed=9, dtype=dtype).to(table_dtype) for shape in ((5, 40), (40,), (40,)))
        return word, None, None, scale if weight else None, shift if bias else None

    got, same, exact = (
        op(IDS, PLACES, None, *parts(table_dtype), eps=1e-5)  # pyright: ignore[reportArgumentType]
        for op, table_dtype in ((embed, dtype), (eager, dtype), (eager, torch.float64))
    )
    assert_two_times_rule(got, same, exact)
