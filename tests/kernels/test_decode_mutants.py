"""Errors of the decoding kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operands import laid_out, normal, sparse

from padless.engine.ops.decode import decode_attention as eager
from padless.kernels.decode import decode_attention
from padless.kernels.launch import Config


@pytest.mark.parametrize("length", [5, 70, 300])
def test_a_bias_of_minus_infinity_hides_keys(length: int) -> None:
    """Blocks and whole splits have no key that counts, the first ones among them; or there is none at all."""
    q, k, v = (normal(rows, 2, 16, seed=rows, dtype=torch.float32) for rows in (2, length, length))
    table = normal(8, 2, seed=3, dtype=torch.float32)
    table[-1, 0] = -torch.inf
    table[:, 1] = -torch.inf
    arguments = q, k, v, torch.tensor([0, 0]), torch.tensor([length, 3], dtype=torch.int32), length
    options = {"position_bias": table, "bias_max_distance": 20, "return_lse": True}
    expected = eager(*arguments, **options)
    got = decode_attention(*arguments, **options, config=Config.of(SPLIT=64, BLOCK_M=16, BLOCK_N=16))
    for found, right in zip(got, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert got[0][:, 0].any()
    assert not got[0][:, 1].any()


def test_queries_keys_and_values_may_lie_differently() -> None:
    near = [normal(rows, 2, 24, seed=rows, dtype=torch.float16) for rows in (4, 40, 41)]
    q, k, v = near[0], near[1], near[2][:40]
    where = torch.tensor([0, 3, 20, 39]), torch.tensor([40, 5, 17, 1], dtype=torch.int32), 40
    expected = decode_attention(q, k, v, *where)
    for layouts in (("dense", "columns", "dense"), ("columns", "dense", "every second")):
        other_q, other_k, other_v = (laid_out(x, layout) for x, layout in zip((q, k, v), layouts, strict=True))
        torch.testing.assert_close(decode_attention(other_q, other_k, other_v, *where), expected, rtol=0, atol=0)


# Not aligned, so that offsets are computed in elements and not in units of several.
@pytest.mark.parametrize("strides", [(2**29 + 1, 16, 1), (16, 2**29 + 1, 1)])
def test_queries_and_heads_beyond_two_to_the_31_elements(strides: tuple[int, ...], tmp_path: Path) -> None:
    near = normal(7, 6, 16, seed=1, dtype=torch.float16)
    far = sparse(tmp_path, 6 * max(strides) + 112, torch.float16).as_strided(near.shape, strides).copy_(near)
    where = torch.arange(7) // 2, torch.tensor([7, 1, 2, 0, 5, 2, 3], dtype=torch.int32), 7
    expected = decode_attention(near, near, near, *where)
    for arguments in ((far, near, near), (near, far, near), (near, near, far)):
        torch.testing.assert_close(decode_attention(*arguments, *where), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scores", ["falling", "rising", "falling from afar"])
def test_more_splits_than_are_summed_at_once(scores: str) -> None:
    """What the first splits left is scaled down where scores rise, and never up to infinity where they fall."""
    q, v = torch.ones(1, 1, 16), normal(300, 1, 16, seed=1, dtype=torch.float32)
    k = torch.linspace(0.0, 0.3, 300)[:, None, None].repeat(1, 1, 16)
    if scores != "rising":
        k = -k
    if scores == "falling from afar":
        k[2:] -= 20.0
    where = torch.tensor([0]), torch.tensor([300], dtype=torch.int32), 300
    config = Config.of(SPLIT=16, BLOCK_M=16, BLOCK_N=16)
    found = decode_attention(q, k, v, *where, softmax_scale=1.0, return_lse=True, config=config)
    expected = eager(q, k, v, *where, softmax_scale=1.0, return_lse=True)
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)
