"""Embed's kernel in the interpreter: the eager op in fp64 by the 2x rule, with and without each optional part."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from operands import DTYPES, LAYOUTS, alike, distinct, grid, laid_out, normal, sampled, sparse
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.embed import embed as eager
from padless.kernels import embed as kernel_file
from padless.kernels.embed import embed

TYPES = ("no table", "ids", "table without ids", "ids without table")
NORMS = ("none", "weight", "weight and bias")


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    width: int
    tokens: int
    position: bool
    types: str
    norm: str
    eps: float
    ids: str
    tables: str
    magnitude: float
    offset: float


CASES = sampled(
    Case, 444, seed=3, dtype=DTYPES,
    width=(16, 24, 64, 100, 127, 128, 129, 384, 768, 1023, 1024),
    tokens=(1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65), position=(True, False), types=TYPES,
    norm=("none", "weight", "weight and bias", "weight and bias"), eps=(1e-12, 1e-5, 0.1),
    ids=("any", "repeated", "first and last", "column"), tables=LAYOUTS, magnitude=(0.02, 1.0, 300.0),
    offset=(0.0, 0.0, 4.0),
)  # fmt: skip


def chosen(kind: str, tokens: int, rows: int, seed: int) -> Tensor:
    """int64 `[tokens]`, each below `rows`."""
    ids = torch.randint(rows, (tokens,), generator=torch.Generator().manual_seed(seed))
    if kind == "repeated":
        ids = ids[:1].repeat(tokens)
    elif kind == "first and last":
        ids = (ids % 2) * (rows - 1)
    return torch.stack([ids, ids.new_full((tokens,), rows)], dim=1)[:, 0] if kind == "column" else ids


def table(rows: int, width: int, ids: Tensor, seed: int, dtype: torch.dtype, magnitude: float = 1.0) -> Tensor:
    """Normal values in the rows that are asked for, NaN in all others."""
    unused = torch.ones(rows, 1, dtype=torch.bool)
    unused[ids] = False
    return normal(rows, width, seed=seed, dtype=dtype, magnitude=magnitude).masked_fill(unused, torch.nan)


def in_fp64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)


def assert_right(*arguments: Tensor | None, eps: float | None) -> Tensor:
    got = embed(*arguments, eps=eps)  # pyright: ignore[reportArgumentType]
    same, exact = eager(*arguments, eps=eps), eager(*in_fp64(arguments), eps=eps)  # pyright: ignore[reportArgumentType]
    assert_two_times_rule(got, same, exact)
    return got


def operands(case: Case) -> tuple[Tensor | None, ...]:
    """The eight tensors of a call, in its order."""
    ids = chosen(case.ids, case.tokens, 37, seed=1)
    positions = chosen(case.ids, case.tokens, 23, seed=2)
    types = chosen(case.ids, case.tokens, 3, seed=3)
    width, dtype = case.width, case.dtype
    word, position = (
        laid_out(table(rows, width, used, seed, dtype, case.magnitude) + case.offset, case.tables)
        for rows, used, seed in ((37, ids, 4), (23, positions, 5))
    )
    type_table = table(3, width, types if case.types == "ids" else torch.tensor([0]), 6, dtype, case.magnitude)
    weight, bias = normal(width, seed=7, dtype=dtype), normal(width, seed=8, dtype=dtype)
    return (
        ids,
        positions,
        types if case.types.startswith("ids") else None,
        word,
        position if case.position else None,
        laid_out(type_table, case.tables) if case.types in ("ids", "table without ids") else None,
        weight if case.norm != "none" else None,
        bias if case.norm == "weight and bias" else None,
    )


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    assert_right(*operands(case), eps=None if case.norm == "none" else case.eps)


@pytest.mark.parametrize(
    ("position", "types", "norm"), list(itertools.product((True, False), TYPES, NORMS)), ids=lambda value: str(value)
)
def test_every_combination_of_optional_parts(position: bool, types: str, norm: str) -> None:
    case = Case(torch.float16, 40, 6, position, types, norm, 1e-5, "any", "dense", 1.0, 0.0)
    assert_right(*operands(case), eps=None if norm == "none" else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8191, 8192])
def test_wide_rows(width: int, dtype: torch.dtype) -> None:
    case = Case(dtype, width, 3, True, "ids", "weight and bias", 1e-12, "any", "dense", 1.0, 0.0)
    assert_right(*operands(case), eps=1e-12)


def test_thousands_of_tokens() -> None:
    case = Case(torch.bfloat16, 24, 3001, True, "ids", "weight and bias", 1e-5, "any", "dense", 1.0, 0.0)
    assert_right(*operands(case), eps=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_no_tokens(norm: str, dtype: torch.dtype) -> None:
    case = Case(dtype, 32, 0, True, "ids", norm, 1e-5, "any", "dense", 1.0, 0.0)
    out = embed(*operands(case), eps=None if norm == "none" else 1e-5)  # pyright: ignore[reportArgumentType]
    assert (out.shape, out.dtype) == ((0, 32), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_of_rows_is_exact(dtype: torch.dtype) -> None:
    word, ids = normal(11, 127, seed=1, dtype=dtype), torch.tensor([10, 0, 0, 3, 9])
    assert torch.equal(embed(ids, ids, None, word), word[ids])


def test_rows_far_from_zero_keep_their_variance() -> None:
    # E[x^2] - E[x]^2 has no digit left here.
    word = normal(9, 384, seed=1, dtype=torch.float32, magnitude=0.05) + 500
    weight, bias = torch.ones(384), torch.zeros(384)
    assert_right(torch.arange(9), torch.arange(9), None, word, None, None, weight, bias, eps=1e-12)


@pytest.mark.parametrize("width", [24, 127, 1023])
def test_what_is_masked_takes_no_part_in_the_statistics(width: int) -> None:
    # All of a row far from zero: channels beyond the width, read as zeros, would be seen in mean and variance.
    word = normal(5, width, seed=1, dtype=torch.float32) + 1000
    out = assert_right(torch.arange(5), torch.arange(5), None, word, None, None, torch.ones(width), None, eps=1e-5)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.std(dim=1, correction=0), torch.ones(5), rtol=0, atol=1e-3)


def test_what_is_not_finite_stays_in_its_token() -> None:
    case = Case(torch.float32, 100, 33, True, "ids", "weight and bias", 1e-5, "any", "dense", 1.0, 0.0)
    arguments = operands(case)
    ids, word = arguments[0], arguments[3]
    assert ids is not None
    assert word is not None
    before = assert_right(*arguments, eps=1e-5)
    word[ids[7], 99] = torch.nan
    after = assert_right(*arguments, eps=1e-5)
    assert torch.equal(after.isnan().any(dim=1), ids == ids[7])
    assert torch.equal(after[ids != ids[7]], before[ids != ids[7]])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype, norm: str) -> None:
    case = Case(dtype, 100, 37, True, "ids", norm, 1e-5, "any", "dense", 1.0, 0.0)
    ids, positions, types, *tables = operands(case)
    assert ids is not None
    assert positions is not None
    assert types is not None
    eps = None if norm == "none" else 1e-5
    batch = embed(ids, positions, types, *tables, eps=eps)  # pyright: ignore[reportArgumentType]
    for start, stop in ((0, 1), (36, 37), (5, 22)):
        part = ids[start:stop], positions[start:stop], types[start:stop]
        assert torch.equal(embed(*part, *tables, eps=eps), batch[start:stop])  # pyright: ignore[reportArgumentType]


def test_every_candidate_obeys_the_rule() -> None:
    case = Case(torch.bfloat16, 100, 33, True, "ids", "weight and bias", 1e-5, "any", "dense", 1.0, 0.0)
    arguments = operands(case)
    same, exact = eager(*arguments, eps=1e-5), eager(*in_fp64(arguments), eps=1e-5)  # pyright: ignore[reportArgumentType]
    for config in distinct(kernel_file.CANDIDATES):
        got = embed(*arguments, eps=1e-5, config=config)  # pyright: ignore[reportArgumentType]
        assert_two_times_rule(got, same, exact)


@pytest.mark.parametrize("part", ["word", "position", "token_type"])
def test_table_rows_beyond_two_to_the_31_elements(part: str, tmp_path: Path) -> None:
    ids = torch.tensor([2**27 - 1, 0, 2**26 + 3, 1])
    rows, near = normal(4, 20, seed=1, dtype=torch.float16), torch.arange(4)
    far = sparse(tmp_path, 2**27 * 20, torch.float16).view(-1, 20)
    far[ids] = rows
    word, weight = normal(4, 20, seed=2, dtype=torch.float16), normal(20, seed=3, dtype=torch.float16)
    expected = embed(near, near, near, word, rows, rows, weight, None, eps=1e-5)
    if part == "word":
        got = embed(ids, near, near, far, word, rows, weight, None, eps=1e-5)
        expected = embed(near, near, near, rows, word, rows, weight, None, eps=1e-5)
    elif part == "position":
        got = embed(near, ids, near, word, far, rows, weight, None, eps=1e-5)
    else:
        got = embed(near, near, ids, word, rows, far, weight, None, eps=1e-5)
    assert alike(got, expected)
    assert not alike(got[:1], got[1:2])


def test_strides_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    # Twelve rows of the table, 2^28 elements apart.
    rows, apart = normal(12, 24, seed=1, dtype=torch.float16), 2**28
    far = sparse(tmp_path, 11 * apart + 24, torch.float16).as_strided((12, 24), (apart, 1)).copy_(rows)
    ids = torch.tensor([11, 0, 9, 3, 8, 11])
    assert torch.equal(embed(ids, ids, None, far, far), embed(ids, ids, None, rows, rows))
