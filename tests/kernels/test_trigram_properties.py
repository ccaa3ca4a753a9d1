"""Trigram's kernel for any texts, empty ones among them: the definition, token by token, exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lengths import cumulated
from operands import DTYPES, LAYOUTS, alike, laid_out, normal, properties

from padless.engine.ops.trigram import trigram as eager
from padless.kernels.trigram import trigram

TEXTS = st.lists(st.lists(st.integers(0, 12), max_size=20), max_size=8)
TABLES = st.tuples(st.integers(1, 300), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 2**20))
Table = tuple[int, torch.dtype, str, int]


def check(texts: list[list[int]], table: Table) -> None:
    width, dtype, layout, seed = table
    word = laid_out(normal(13, width, seed=seed, dtype=dtype), layout)
    # A row that is not finite: a zero at an edge is a zero, not a product with one.
    word[seed % 13] = torch.nan
    ids = torch.tensor([i for text in texts for i in text], dtype=torch.int64)
    got = trigram(ids, cumulated([len(text) for text in texts]), word)
    assert alike(got, eager(ids, cumulated([len(text) for text in texts]), word))
    first = 0
    for text in texts:
        own = got[first : first + len(text)]
        rows, zero = word[text], word.new_zeros(1, width)
        right, left = torch.cat([rows[1:], zero])[: len(text)], torch.cat([zero, rows[:-1]])[: len(text)]
        assert alike(own, torch.cat([right, rows, left], dim=1))
        first += len(text)


@pytest.mark.grid
@properties(200)
@given(TEXTS, TABLES)
def test_any_texts(texts: list[list[int]], table: Table) -> None:
    check(texts, table)


@properties(20)
@given(TEXTS, TABLES)
def test_some_texts(texts: list[list[int]], table: Table) -> None:
    check(texts, table)
