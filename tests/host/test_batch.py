"""Planning and packing: every row exactly once, within the budget, and the packed batch equal to slicing row by row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padless.engine.batch import TokenizedTexts, pack, padded_tokens, plan_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def tokenized(lengths: list[int], *, with_types: bool = False) -> TokenizedTexts:
    """Texts whose every token has an id of its own, so that a misplaced one shows."""
    total = sum(lengths)
    return TokenizedTexts(
        input_ids=np.arange(1, total + 1, dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        token_type_ids=np.arange(total, dtype=np.int32) % 3 if with_types else None,
        truncated=np.zeros(len(lengths), dtype=bool),
        repaired=np.zeros(len(lengths), dtype=bool),
    )


@given(LENGTHS, st.integers(1, 100))
def test_each_row_is_planned_exactly_once(lengths: list[int], budget: int) -> None:
    planned = np.concatenate([[], *plan_batches(lengths, budget)]).astype(int)
    assert sorted(planned.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 100))
def test_a_batch_keeps_the_budget_or_is_one_text(lengths: list[int], budget: int) -> None:
    for rows in plan_batches(lengths, budget):
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= budget


@given(LENGTHS, st.integers(1, 100))
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    batches = list(plan_batches(lengths, budget))
    for rows, following in pairwise(batches):
        assert sum(lengths[row] for row in rows) + lengths[following[0]] > budget


@given(LENGTHS, st.integers(1, 100))
def test_longest_first_and_equal_lengths_in_the_callers_order(lengths: list[int], budget: int) -> None:
    planned = [int(row) for rows in plan_batches(lengths, budget) for row in rows]
    assert planned == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 100))
def test_the_plan_is_a_function_of_the_lengths_alone(lengths: list[int], budget: int) -> None:
    as_list = [rows.tolist() for rows in plan_batches(lengths, budget)]
    as_array = [rows.tolist() for rows in plan_batches(np.array(lengths, dtype=np.int32), budget)]
    assert as_list == as_array


def test_no_rows_no_batches() -> None:
    assert list(plan_batches([], 10)) == []


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_token_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"token_budget must be at least 1, got {budget}"):
        list(plan_batches([3], budget))


def test_a_billion_tokens_do_not_overflow() -> None:
    lengths = np.full(5_000, 2**20, dtype=np.int32)
    batches = list(plan_batches(lengths, 2**31))
    assert [len(rows) for rows in batches] == [2048, 2048, 904]


@given(LENGTHS, st.integers(1, 100), st.booleans())
def test_packing_equals_slicing_row_by_row(lengths: list[int], budget: int, with_types: bool) -> None:
    texts = tokenized(lengths, with_types=with_types)
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    for rows in plan_batches(lengths, budget):
        batch = pack(texts, rows)
        ids = [texts.input_ids[starts[row] : starts[row] + lengths[row]] for row in rows]
        assert batch.input_ids.tolist() == [int(token) for one in ids for token in one]
        assert batch.position_ids.tolist() == [place for row in rows for place in range(lengths[row])]
        assert batch.cu_seqlens.tolist() == [sum(len(one) for one in ids[:end]) for end in range(len(ids) + 1)]
        assert batch.lengths.tolist() == [lengths[row] for row in rows]
        assert batch.max_seqlen == max(lengths[row] for row in rows)
        assert batch.tokens == sum(lengths[row] for row in rows)
        assert len(batch) == len(rows)
        if texts.token_type_ids is None:
            assert batch.token_type_ids is None
        else:
            types = [texts.token_type_ids[starts[row] : starts[row] + lengths[row]] for row in rows]
            assert batch.token_type_ids is not None
            assert batch.token_type_ids.tolist() == [int(kind) for one in types for kind in one]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_packing_follows_the_order_of_the_rows_given(lengths: list[int], random) -> None:
    rows = list(range(len(lengths)))
    random.shuffle(rows)
    batch = pack(tokenized(lengths), np.array(rows))
    starts = np.cumsum([0, *lengths])
    assert batch.input_ids.tolist() == [1 + place for row in rows for place in range(starts[row], starts[row + 1])]


def test_dtypes_of_a_packed_batch() -> None:
    batch = pack(tokenized([2, 0, 5], with_types=True), np.array([2, 1, 0]))
    assert batch.token_type_ids is not None
    found = [batch.input_ids.dtype, batch.position_ids.dtype, batch.token_type_ids.dtype, batch.cu_seqlens.dtype]
    assert found == [torch.int64, torch.int64, torch.int64, torch.int32]
    assert batch.lengths.dtype == torch.int32


def test_a_batch_of_no_rows() -> None:
    batch = pack(tokenized([3, 4]), np.array([], dtype=np.int64))
    assert (batch.tokens, len(batch), batch.max_seqlen, batch.cu_seqlens.tolist()) == (0, 0, 0, [0])


@given(LENGTHS)
def test_offsets_are_where_each_text_begins(lengths: list[int]) -> None:
    assert tokenized(lengths).offsets.tolist() == [sum(lengths[:row]) for row in range(len(lengths) + 1)]


@given(LENGTHS, st.integers(1, 40))
def test_padded_tokens_counts_rectangles(lengths: list[int], batch_size: int) -> None:
    expected, rest = 0, list(lengths)
    while rest:
        batch, rest = rest[:batch_size], rest[batch_size:]
        expected += max(batch) * len(batch)
    assert padded_tokens(lengths, batch_size) == expected
