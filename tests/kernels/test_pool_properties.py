"""Pool's kernel for any texts: the 2x rule, flags, and bits that no neighbour changes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lengths import cumulated
from operands import DTYPES, LAYOUTS, alike, laid_out, normal, properties
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.pool import pool as eager
from padless.kernels.pool import pool


@dataclass(frozen=True)
class Example:
    mode: str
    dtype: torch.dtype
    width: int
    lengths: tuple[int, ...]
    skip: int
    normalize: bool
    layout: str
    magnitude: float
    offset: float
    struck: tuple[tuple[int, int, float], ...]
    seed: int


PLACES = st.tuples(st.integers(0, 999), st.integers(0, 999), st.sampled_from((torch.nan, torch.inf, -torch.inf)))
EXAMPLES = st.builds(
    Example,
    mode=st.sampled_from(("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")),
    dtype=st.sampled_from(DTYPES),
    width=st.integers(1, 400),
    lengths=st.lists(st.one_of(st.integers(1, 5), st.integers(1, 140)), min_size=1, max_size=6).map(tuple),
    skip=st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 150)),
    normalize=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((0.0, 1e-5, 1.0, 100.0, 1e4)),
    offset=st.sampled_from((0.0, 0.0, 1.0, -50.0)),
    struck=st.lists(PLACES, max_size=2).map(tuple),
    seed=st.integers(0, 2**20),
)


def check(example: Example) -> None:
    lengths, mode, skip, normalize = example.lengths, example.mode, example.skip, example.normalize
    values = normal(sum(lengths), example.width, seed=example.seed, dtype=torch.float64, magnitude=example.magnitude)
    hidden = laid_out((values + example.offset).to(example.dtype), example.layout)
    for token, channel, value in example.struck:
        hidden[token % len(hidden), channel % example.width] = value
    cu_seqlens = cumulated(lengths)
    rows, finite = pool(hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize, return_finite=True)
    same, flags = eager(hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize, return_finite=True)
    exact = eager(hidden.double(), cu_seqlens, mode=mode, skip=skip, normalize=normalize)
    assert isinstance(exact, Tensor)
    assert torch.equal(finite, flags)
    # A row that holds what is not finite would hide the errors of the others.
    whole = exact.isfinite().all(dim=1)
    assert_two_times_rule(rows[whole], same[whole], exact[whole])
    assert_two_times_rule(rows[~whole], same[~whole], exact[~whole])

    # The texts in reverse order, without the first one: not one bit of a row may change.
    kept = list(reversed(range(1, len(lengths))))
    texts = hidden.split(lengths)
    moved = pool(
        torch.cat([hidden[:0], *(texts[text] for text in kept)]), cumulated([lengths[text] for text in kept]),
        mode=mode, skip=skip, normalize=normalize,
    )  # fmt: skip
    assert isinstance(moved, Tensor)
    assert alike(moved, rows[kept])


@pytest.mark.grid
@properties(200)
@given(EXAMPLES)
def test_any_texts(example: Example) -> None:
    check(example)


@properties(20)
@given(EXAMPLES)
def test_some_texts(example: Example) -> None:
    check(example)
