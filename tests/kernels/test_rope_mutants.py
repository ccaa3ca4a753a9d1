"""Errors of rope's kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operands import DTYPES, laid_out, normal, sparse

from padless.engine.ops.rope import rope as eager
from padless.kernels.rope import rope


def tables(rows: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = normal(rows, half, seed=3, dtype=torch.float64) * 3
    return angles.cos().float(), angles.sin().float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_eager(dtype: torch.dtype) -> None:
    """Every product and every sum is rounded once, as eager does, in every dtype."""
    q, k = normal(37, 3, 40, seed=1, dtype=dtype), normal(37, 2, 40, seed=2, dtype=dtype)
    rows = torch.arange(37).flip(0)
    for got, expected in zip(rope(q, k, rows, *tables(37, 20)), eager(q, k, rows, *tables(37, 20)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("layout_cos", "layout_sin"), [("dense", "every second"), ("columns", "dense")])
def test_cosines_and_sines_may_lie_differently(layout_cos: str, layout_sin: str) -> None:
    q, k, rows = normal(9, 2, 24, seed=1, dtype=torch.float32), normal(9, 1, 24, seed=2, dtype=torch.float32), 8
    cos, sin = tables(rows + 1, 12)
    places = torch.arange(rows, -1, -1)
    expected = rope(q, k, places, cos, sin)
    # Each in a buffer of its own, so that one's row distance is not the other's.
    cos, sin = laid_out(cos, layout_cos), laid_out(sin, layout_sin)
    assert cos.stride(0) != sin.stride(0)
    for got, same in zip(rope(q, k, places, cos, sin), expected, strict=True):
        assert torch.equal(got, same)


def test_heads_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    q, k = normal(3, 7, 16, seed=1, dtype=torch.float16), normal(3, 2, 16, seed=2, dtype=torch.float16)
    near = torch.cat([q, k], dim=1)
    far = sparse(tmp_path, 8 * 2**29 + 48, torch.float16).as_strided((3, 9, 16), (16, 2**29, 1)).copy_(near)
    rows, (cos, sin) = torch.arange(3), tables(3, 8)
    for got, expected in zip(rope(far[:, :7], far[:, 7:], rows, cos, sin), rope(q, k, rows, cos, sin), strict=True):
        assert torch.equal(got, expected)
