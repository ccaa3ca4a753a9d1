"""Errors of the attention kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import attend
from lengths import packed
from operands import laid_out


@pytest.mark.parametrize(
    "layouts", [("columns", "dense", "columns"), ("dense", "every second", "columns")], ids="-".join
)
def test_queries_keys_and_values_may_lie_differently(layouts: tuple[str, str, str]) -> None:
    near = packed((5, 0, 18), 2, 2, 24, dtype=torch.float16)
    q, k, v = (laid_out(x, layout) for x, layout in zip((near.q, near.k, near.v), layouts, strict=True))
    for got, expected in zip(attend(replace(near, q=q, k=k, v=v)), attend(near), strict=True):
        assert torch.equal(got, expected)
