"""Trigram's kernel in the interpreter: it copies, so it must be the eager op exactly; at every edge of every text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lengths import cumulated
from operands import DTYPES, LAYOUTS, alike, distinct, grid, laid_out, normal, sampled, sparse
from torch import Tensor

from padless.engine.ops.trigram import trigram as eager
from padless.kernels import trigram as kernel_file
from padless.kernels.trigram import trigram


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    width: int
    lengths: tuple[int, ...]
    ids: str
    table: str


CASES = sampled(
    Case, 444, seed=4, dtype=DTYPES,
    width=(1, 16, 24, 100, 127, 128, 129, 384, 512, 768, 1023),
    lengths=(
        (1,), (2,), (3,), (1,) * 9, (2,) * 8, (0, 0, 5), (5, 0, 0), (3, 0, 0, 4), (0, 1, 0, 1, 0),
        (0, 0, 2, 0, 7, 1, 0), (7, 8, 9), (15, 16, 17), (16, 16), (31, 1, 32), (33, 2), (1, 1, 60, 1, 1), (63,),
        (64, 1), (65, 0, 1), (127, 2),
    ),
    ids=("any", "repeated", "first and last", "column"), table=LAYOUTS,
)  # fmt: skip


def chosen(kind: str, tokens: int, rows: int, seed: int = 0) -> Tensor:
    """int64 `[tokens]`, each below `rows`."""
    ids = torch.randint(rows, (tokens,), generator=torch.Generator().manual_seed(seed))
    if kind == "repeated":
        ids = ids[:1].repeat(tokens)
    elif kind == "first and last":
        ids = (ids % 2) * (rows - 1)
    return torch.stack([ids, ids.new_full((tokens,), rows)], dim=1)[:, 0] if kind == "column" else ids


def by_hand(ids: Sequence[int], lengths: Sequence[int], word: Tensor) -> Tensor:
    """The definition, token by token."""
    rows, zeros, first = [word.new_zeros(0, 3 * word.shape[1])], word.new_zeros(word.shape[1]), 0
    for length in lengths:
        text = [zeros, *(word[i] for i in ids[first : first + length]), zeros]
        rows += [torch.cat([text[i + 1], text[i], text[i - 1]])[None] for i in range(1, length + 1)]
        first += length
    return torch.cat(rows)


@pytest.mark.parametrize("case", grid(CASES))
def test_is_the_eager_op(case: Case) -> None:
    ids = chosen(case.ids, sum(case.lengths), 31)
    word = normal(31, case.width, seed=1, dtype=case.dtype)
    word[~torch.isin(torch.arange(31), ids)] = torch.nan
    word = laid_out(word, case.table)
    got = trigram(ids, cumulated(case.lengths), word)
    assert alike(got, eager(ids, cumulated(case.lengths), word))
    assert alike(got, by_hand(ids.tolist(), case.lengths, word))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
def test_no_tokens(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    out = trigram(torch.arange(0), cumulated(lengths), torch.ones(5, 40, dtype=dtype))
    assert (out.shape, out.dtype) == ((0, 120), dtype)


def test_wide_rows() -> None:
    word, ids = normal(9, 8192, seed=1, dtype=torch.bfloat16), chosen("any", 6, 9)
    assert alike(trigram(ids, cumulated([2, 0, 4]), word), eager(ids, cumulated([2, 0, 4]), word))


def test_thousands_of_tokens_in_hundreds_of_texts() -> None:
    lengths = [i * i % 17 for i in range(300)] + [601]
    ids, word = chosen("any", sum(lengths), 97), normal(97, 20, seed=1, dtype=torch.float16)
    assert sum(lengths) > 2500
    assert alike(trigram(ids, cumulated(lengths), word), eager(ids, cumulated(lengths), word))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_stands_beyond_an_edge_is_not_seen_even_when_not_finite(dtype: torch.dtype, value: float) -> None:
    # Tokens of row 0 are not finite; each text of others stands between two of them.
    word = normal(6, 50, seed=1, dtype=dtype)
    word[0] = value
    lengths, ids = [1, 3, 2, 1, 1, 1], torch.tensor([0, 3, 4, 5, 0, 0, 2, 0, 1])
    got = trigram(ids, cumulated(lengths), word)
    assert alike(got, eager(ids, cumulated(lengths), word))
    assert got[[1, 2, 3, 6, 8]].isfinite().all()
    assert not got[6, :50].any()
    assert not got[6, 100:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_is_the_same_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    lengths = [1, 17, 0, 64, 2, 33]
    ids, word = chosen("any", sum(lengths), 29), normal(29, 100, seed=2, dtype=dtype)
    batch = trigram(ids, cumulated(lengths), word)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        assert torch.equal(trigram(ids[start:stop], cumulated([stop - start]), word), batch[start:stop])


def test_every_candidate_is_the_eager_op() -> None:
    lengths = [3, 0, 40, 1, 33]
    ids, word = chosen("any", 77, 29), normal(29, 100, seed=2, dtype=torch.bfloat16)
    for config in distinct(kernel_file.CANDIDATES):
        got = trigram(ids, cumulated(lengths), word, config=config)
        assert alike(got, eager(ids, cumulated(lengths), word))


def test_table_rows_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    ids, near = torch.tensor([2**27 - 1, 0, 2**26 + 3, 1, 2**27 - 2]), torch.arange(5)
    rows = normal(5, 40, seed=1, dtype=torch.float16)
    far = sparse(tmp_path, 2**27 * 40, torch.float16).view(-1, 40)
    far[ids] = rows
    assert torch.equal(trigram(ids, cumulated([3, 2]), far), eager(near, cumulated([3, 2]), rows))


def test_strides_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    # Twelve rows of the table, 2^28 elements apart.
    rows, apart = normal(12, 24, seed=1, dtype=torch.float16), 2**28
    far = sparse(tmp_path, 11 * apart + 24, torch.float16).as_strided((12, 24), (apart, 1)).copy_(rows)
    ids = torch.tensor([11, 0, 9, 3, 8, 11])
    assert torch.equal(trigram(ids, cumulated([4, 2]), far), eager(ids, cumulated([4, 2]), rows))
