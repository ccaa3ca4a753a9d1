"""Rope's kernel in the interpreter: against the eager op in fp64 by the 2x rule, in hostile shapes and layouts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from operands import DTYPES, LAYOUTS, alike, distinct, grid, laid_out, normal, sampled, sparse
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.rope import rope as eager
from padless.kernels import rope as kernel_file
from padless.kernels.rope import rope


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    head_dim: int
    heads: tuple[int, int]
    tokens: int
    layout: str
    rows: str
    tables: str
    magnitude: float


CASES = sampled(
    Case, 444, seed=1, dtype=DTYPES,
    head_dim=(2, 16, 24, 34, 40, 60, 64, 80, 96, 100, 128, 256),
    heads=((1, 1), (2, 2), (3, 1), (4, 2), (5, 5), (8, 1), (12, 12), (1, 3)),
    tokens=(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129),
    layout=("fused", *LAYOUTS), rows=("positions", "permuted", "repeated", "second table"),
    tables=LAYOUTS, magnitude=(1e-3, 1.0, 1.0, 5e3),
)  # fmt: skip


def chosen_rows(kind: str, tokens: int, seed: int) -> Tensor:
    """int64 `[tokens]`, rows of tables that have `2 * tokens + 3` of them."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "permuted":
        return torch.randperm(2 * tokens + 3, generator=generator)[:tokens]
    if kind == "repeated":
        return torch.randint(3, (tokens,), generator=generator) * (tokens + 1)
    positions = torch.arange(tokens) % max(1, tokens * 2 // 3)
    return positions + (tokens + 3 if kind == "second table" else 0)


def turns(table_rows: int, half: int, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """fp32 cosines and sines of any angles, scaled; NaN in the rows that no token has."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(table_rows, half, generator=generator, dtype=torch.float64) * 6.3
    unused = torch.ones(table_rows, 1, dtype=torch.bool)
    unused[rows] = False
    cos, sin = ((table * 1.25).float().masked_fill(unused, torch.nan) for table in (angles.cos(), angles.sin()))
    return cos, sin


def queries_and_keys(
    tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, layout: str, seed: int, magnitude: float
) -> tuple[Tensor, Tensor]:
    """q and k in a layout; "fused": views of one projection's output that holds queries, keys and values."""
    heads_q, heads_k = heads
    if layout == "fused":
        fused = normal(tokens, heads_q + 2 * heads_k, head_dim, seed=seed, dtype=dtype, magnitude=magnitude)
        return fused[:, :heads_q], fused[:, heads_q : heads_q + heads_k]
    q, k = (normal(tokens, h, head_dim, seed=seed + h, dtype=dtype, magnitude=magnitude) for h in heads)
    return laid_out(q, layout), laid_out(k, layout)


def assert_right(q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> None:
    before = q.clone(), k.clone()
    got = rope(q, k, rows, cos, sin)
    same, exact = eager(q, k, rows, cos, sin), eager(q.double(), k.double(), rows, cos.double(), sin.double())
    for turned, low, reference in zip(got, same, exact, strict=True):
        assert_two_times_rule(turned, low, reference)
    assert alike(q, before[0]), "q was overwritten"
    assert alike(k, before[1]), "k was overwritten"


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    rows = chosen_rows(case.rows, case.tokens, seed=case.tokens)
    cos, sin = turns(2 * case.tokens + 3, case.head_dim // 2, rows, seed=case.head_dim)
    q, k = queries_and_keys(case.tokens, case.heads, case.head_dim, case.dtype, case.layout, 7, case.magnitude)
    assert_right(q, k, rows, laid_out(cos, case.tables), laid_out(sin, case.tables))


def test_thousands_of_tokens() -> None:
    rows = torch.cat([torch.arange(2051), torch.arange(950)])
    cos, sin = turns(2051, 8, rows, seed=0)
    assert_right(*queries_and_keys(3001, (1, 1), 16, torch.float32, "fused", 1, 1.0), rows, cos, sin)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens(dtype: torch.dtype) -> None:
    table = torch.ones(4, 8)
    q, k = rope(torch.empty(0, 3, 16, dtype=dtype), torch.empty(0, 1, 16, dtype=dtype), torch.arange(0), table, table)
    assert (q.shape, k.shape, q.dtype, k.dtype) == ((0, 3, 16), (0, 1, 16), dtype, dtype)


def test_rows_that_are_a_column_of_a_larger_tensor() -> None:
    rows = torch.tensor([[3, 0], [1, 9], [3, 9], [0, 9]])[:, 0]
    cos, sin = turns(4, 12, rows, seed=2)
    assert_right(*queries_and_keys(4, (2, 1), 24, torch.float16, "dense", 3, 1.0), rows, cos, sin)


@pytest.mark.parametrize(("layout_q", "layout_k"), list(itertools.permutations(LAYOUTS, 2)))
def test_q_and_k_may_lie_differently(layout_q: str, layout_k: str) -> None:
    rows = chosen_rows("permuted", 5, seed=0)
    cos, sin = turns(13, 20, rows, seed=1)
    q, k = (normal(5, heads, 40, seed=heads, dtype=torch.bfloat16) for heads in (6, 2))
    assert_right(laid_out(q, layout_q), laid_out(k, layout_k), rows, cos, sin)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    lengths = [1, 17, 64, 2, 33]
    rows = torch.cat([torch.arange(length) for length in lengths])
    cos, sin = turns(64, 24, rows, seed=5)
    q, k = queries_and_keys(len(rows), (3, 1), 48, dtype, "fused", 6, 1.0)
    batch = rope(q, k, rows, cos, sin)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        alone = rope(q[start:stop], k[start:stop], rows[start:stop], cos, sin)
        assert torch.equal(alone[0], batch[0][start:stop])
        assert torch.equal(alone[1], batch[1][start:stop])


def test_what_is_not_finite_stays_in_its_pair() -> None:
    rows = torch.arange(40)
    cos, sin = turns(40, 16, rows, seed=1)
    q, k = queries_and_keys(40, (2, 2), 32, torch.float32, "dense", 1, 1.0)
    expected = rope(q, k, rows, cos, sin)
    q[7, 1, 3], k[39, 0, 31] = torch.nan, torch.inf
    got = rope(q, k, rows, cos, sin)
    for turned, before, token, head, channel in ((got[0], expected[0], 7, 1, 3), (got[1], expected[1], 39, 0, 15)):
        struck = torch.zeros_like(turned, dtype=torch.bool)
        struck[token, head, [channel, channel + 16]] = True
        assert torch.equal(~turned.isfinite(), struck)
        assert torch.equal(turned[~struck], before[~struck])


def test_every_candidate_turns_alike() -> None:
    rows = chosen_rows("positions", 70, seed=0)
    cos, sin = turns(143, 20, rows, seed=1)
    q, k = queries_and_keys(70, (3, 1), 40, torch.float16, "fused", 2, 1.0)
    expected = rope(q, k, rows, cos, sin)
    for config in distinct(kernel_file.CANDIDATES):
        got = rope(q, k, rows, cos, sin, config=config)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_tokens_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    # 20 tokens, 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around.
    apart, rows = 2**28, torch.arange(20)
    cos, sin = turns(20, 8, rows, seed=1)
    q, k = queries_and_keys(20, (2, 1), 16, torch.float16, "dense", 2, 1.0)
    memory = sparse(tmp_path, 19 * apart + 48, torch.float16)
    far = memory.as_strided((20, 3, 16), (apart, 16, 1)).copy_(torch.cat([q, k], dim=1))
    got, expected = rope(far[:, :2], far[:, 2:], rows, cos, sin), rope(q, k, rows, cos, sin)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_table_rows_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    rows = torch.tensor([0, 2**28 - 1, 2**27 + 5, 1, 2**28 - 2])
    near = torch.arange(5)
    cos, sin = turns(5, 10, near, seed=1)
    memory = sparse(tmp_path, 2**28 * 20, torch.float32).view(-1, 20)
    memory[rows] = torch.cat([cos, sin], dim=1)
    q, k = queries_and_keys(5, (2, 1), 20, torch.float32, "dense", 2, 1.0)
    got, expected = rope(q, k, rows, memory[:, :10], memory[:, 10:]), rope(q, k, near, cos, sin)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
