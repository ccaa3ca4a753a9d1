"""Pool's kernel in the interpreter: against the eager op in fp64 by the 2x rule; what is not finite, and where."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lengths import cumulated
from operands import DTYPES, LAYOUTS, alike, distinct, grid, laid_out, normal, sampled, sparse
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.pool import pool as eager
from padless.kernels import pool as kernel_file
from padless.kernels.pool import pool

MODES = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True)
class Case:
    mode: str
    dtype: torch.dtype
    width: int
    lengths: tuple[int, ...]
    skip: int
    normalize: bool
    layout: str
    magnitude: float


CASES = sampled(
    Case, 444, seed=2, mode=MODES, dtype=DTYPES,
    width=(1, 16, 24, 100, 127, 128, 129, 384, 768, 1023),
    lengths=(
        (1,), (1,) * 9, (5, 1, 3), (2, 1, 61, 1, 4, 2), (3, 1, 200, 1), (15, 16, 17), (31, 32, 33), (64,), (63, 1, 65),
        (127, 128), (129, 2), (7, 255), (256, 1), (257,),
    ),
    skip=(0, 0, 0, 1, 2, 5, 16, 40, 1000), normalize=(False, True), layout=LAYOUTS, magnitude=(1e-4, 1.0, 1.0, 1e4),
)  # fmt: skip


def assert_right(hidden: Tensor, cu_seqlens: Tensor, mode: str, skip: int = 0, normalize: bool = False) -> Tensor:
    """The pooled rows, after the rule has held for them and their flags are those of the eager op."""
    rows, finite = pool(hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize, return_finite=True)
    same, same_finite = eager(hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize, return_finite=True)
    exact = eager(hidden.double(), cu_seqlens, mode=mode, skip=skip, normalize=normalize)
    assert isinstance(exact, Tensor)
    assert_two_times_rule(rows, same, exact)
    assert finite.dtype == torch.bool
    assert torch.equal(finite, same_finite)
    alone = pool(hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize)
    assert isinstance(alone, Tensor)
    assert alike(alone, rows), "the rows changed with return_finite"
    return rows


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    hidden = normal(sum(case.lengths), case.width, seed=case.width, dtype=case.dtype, magnitude=case.magnitude)
    hidden = laid_out(hidden, case.layout)
    before = hidden.clone()
    assert_right(hidden, cumulated(case.lengths), case.mode, case.skip, case.normalize)
    assert torch.equal(hidden, before), "the hidden states were overwritten"


@pytest.mark.parametrize("mode", MODES)
def test_a_wide_row(mode: str) -> None:
    hidden = normal(12, 8192, seed=1, dtype=torch.bfloat16)
    assert_right(hidden, cumulated([3, 1, 8]), mode, normalize=True)


@pytest.mark.parametrize("mode", MODES)
def test_one_text_of_thousands_of_tokens_among_texts_of_one(mode: str) -> None:
    # A mean of its own beside values that do not cancel: a sum in half precision would stand still.
    hidden = normal(4205, 24, seed=3, dtype=torch.float16) + 3
    assert_right(hidden, cumulated([1, 1, 4200, 1, 1, 1]), mode)


@pytest.mark.parametrize("mode", grid(MODES, unmarked=1))
def test_a_hundred_texts(mode: str) -> None:
    lengths = [1 + i * i % 5 for i in range(100)]
    assert_right(normal(sum(lengths), 40, seed=4, dtype=torch.float32), cumulated(lengths), mode, normalize=True)


@pytest.mark.parametrize("mode", MODES)
def test_no_texts(mode: str) -> None:
    hidden, cu_seqlens = torch.empty(0, 48, dtype=torch.bfloat16), cumulated([])
    rows, finite = pool(hidden, cu_seqlens, mode=mode, normalize=True, return_finite=True)
    assert (rows.shape, rows.dtype) == ((0, 48), torch.float32)
    assert (finite.shape, finite.dtype) == ((0,), torch.bool)


@pytest.mark.parametrize("lengths", [(0, 5, 0, 0, 9, 0), (5, 9, 0, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_texts_without_a_token(mode: str, lengths: tuple[int, ...]) -> None:
    """CUDA graphs end their batches with such texts."""
    hidden = normal(sum(lengths), 33, seed=6, dtype=torch.float32)
    rows = pool(hidden, cumulated(lengths), mode=mode)
    empty = torch.tensor([length == 0 for length in lengths])
    assert torch.equal(rows[empty], torch.full((int(empty.sum()), 33), -torch.inf if mode == "max" else 0.0))
    there = [length for length in lengths if length]
    if there:
        assert torch.equal(rows[~empty], pool(hidden, cumulated(there), mode=mode))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_skip_of_a_whole_text(mode: str, normalize: bool) -> None:
    hidden = normal(14, 33, seed=5, dtype=torch.float32)
    rows, finite = pool(hidden, cumulated([4, 5, 3, 2]), mode=mode, skip=4, return_finite=True)
    expected = {"cls": hidden[[0, 8, 9, 12]], "lasttoken": hidden[[3, 8, 11, 13]]}.get(mode)
    if expected is not None:
        assert torch.equal(rows, expected)
    else:
        gone = -torch.inf if mode == "max" else 0.0
        assert torch.equal(rows[[0, 2, 3]], torch.full((3, 33), gone))
    assert finite.tolist() == ([False, True, False, False] if mode == "max" else [True] * 4)
    assert_right(hidden, cumulated([4, 5, 3, 2]), mode, skip=4, normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_flagged_where_it_is_and_nowhere_else(mode: str, value: float, normalize: bool) -> None:
    lengths = [3, 40, 1, 35, 2]
    hidden, cu_seqlens = normal(81, 100, seed=6, dtype=torch.float16), cumulated(lengths)
    clean, all_finite = pool(hidden, cu_seqlens, mode=mode, normalize=normalize, return_finite=True)
    assert all_finite.all()
    # In the fourth text: all of one channel, so that the maximum of -inf is -inf; and one place in the text of one.
    hidden[44:79, 77], hidden[43, 99] = value, value
    rows = assert_right(hidden, cu_seqlens, mode, normalize=normalize)
    struck, finite = pool(hidden, cu_seqlens, mode=mode, normalize=normalize, return_finite=True)
    assert finite.tolist() == [True, True, False, False, True]
    assert torch.equal(struck[[0, 1, 4]], clean[[0, 1, 4]])
    assert alike(rows, struck)


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("cls", (2,)),
        ("lasttoken", (6,)),
        *((mode, (2, 3, 4, 5, 6)) for mode in MODES if mode not in ("cls", "lasttoken")),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_counts_only_in_a_token_that_is_pooled(mode: str, seen: tuple[int, ...], dtype: torch.dtype) -> None:
    for token in range(8):
        hidden = normal(8, 17, seed=7, dtype=dtype)
        hidden[token, 16] = torch.nan
        # One text of seven tokens, of which the first two do not count, and a text of one.
        _, finite = pool(hidden, cumulated([7, 1]), mode=mode, skip=2, return_finite=True)
        skipped_whole = mode in ("cls", "lasttoken")
        assert finite.tolist() == [token not in seen, mode != "max" and not (skipped_whole and token == 7)]
        assert_right(hidden, cumulated([7, 1]), mode, skip=2, normalize=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_zeros_and_nearly_zeros_are_normalised(mode: str, dtype: torch.dtype) -> None:
    hidden = torch.zeros(9, 100, dtype=dtype)
    hidden[3:5] = 1e-7 if dtype == torch.float16 else 1e-14
    hidden[5:7], hidden[7, 3] = -1e-5, 1.0
    rows = assert_right(hidden, cumulated([3, 2, 2, 1, 1]), mode, normalize=True)
    assert rows.isfinite().all()
    assert torch.equal(rows[[0, 4]], torch.zeros(2, 100))
    assert torch.equal(rows[3], torch.eye(100)[3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_text_has_the_same_bits_alone_and_in_a_batch(mode: str, normalize: bool, dtype: torch.dtype) -> None:
    lengths = [1, 70, 129, 2, 33]
    hidden = normal(sum(lengths), 100, seed=8, dtype=dtype)
    batch = pool(hidden, cumulated(lengths), mode=mode, skip=1, normalize=normalize)
    for text, (start, stop) in enumerate(itertools.pairwise([0, *itertools.accumulate(lengths)])):
        alone = pool(hidden[start:stop], cumulated([stop - start]), mode=mode, skip=1, normalize=normalize)
        assert isinstance(alone, Tensor)
        assert alike(alone[0], batch[text])


@pytest.mark.parametrize("mode", MODES)
def test_every_candidate_obeys_the_rule(mode: str) -> None:
    hidden, cu_seqlens = normal(110, 300, seed=9, dtype=torch.bfloat16), cumulated([1, 70, 39])
    same = eager(hidden, cu_seqlens, mode=mode, normalize=True)
    exact = eager(hidden.double(), cu_seqlens, mode=mode, normalize=True)
    assert isinstance(same, Tensor)
    assert isinstance(exact, Tensor)
    for config in distinct(kernel_file.CANDIDATES):
        rows, finite = pool(hidden, cu_seqlens, mode=mode, normalize=True, return_finite=True, config=config)
        assert_two_times_rule(rows, same, exact)
        assert finite.all()


@pytest.mark.parametrize("mode", MODES)
def test_tokens_beyond_two_to_the_31_elements(mode: str, tmp_path: Path) -> None:
    # 20 tokens, 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around.
    apart, lengths = 2**28, [1, 8, 2, 9]
    near = normal(20, 24, seed=10, dtype=torch.float16)
    far = sparse(tmp_path, 19 * apart + 24, torch.float16).as_strided((20, 24), (apart, 1)).copy_(near)
    got, expected = (pool(hidden, cumulated(lengths), mode=mode, normalize=True) for hidden in (far, near))
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    assert torch.equal(got, expected)
