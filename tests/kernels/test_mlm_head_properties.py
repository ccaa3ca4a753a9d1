"""The predicting head's kernel for any head: the 2x rule, order and ties, bits that depend on a row alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlm_head_cases import Head, assert_right, predict
from operands import DTYPES, LAYOUTS, alike, properties
from torch import Tensor

from padless.engine.ops.linear import ACTIVATIONS

HEADS = st.builds(
    Head,
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 20),
    hidden=st.integers(16, 100),
    own=st.one_of(st.just(0), st.integers(0, 15)),
    vocab=st.integers(1, 270),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
    parts=st.sampled_from(("all", "none", "decoder", "no decoder")),
    epilogue=st.sampled_from(tuple(ACTIVATIONS)),
    eps=st.sampled_from((1e-12, 1e-7, 1e-2)),
    layout=st.sampled_from(LAYOUTS),
    weights=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((0.1, 1.0, 5.0)),
    spread=st.sampled_from((0.01, 1.0, 100.0)),
    cut=st.sampled_from((0, 1, 2, 5)),
    draw=st.integers(0, 2**20),
)


def check(head: Head, repeated: int) -> None:
    """`repeated`: rows of the decoder that are written over with their neighbours, so that logits tie."""
    rows, weights = head.operands()
    decoder, bias = weights[4:6]
    assert decoder is not None
    generator = torch.Generator().manual_seed(head.draw)
    for source, copy in torch.randint(head.vocab, (repeated, 2), generator=generator).tolist():
        decoder[copy] = decoder[source]
        if bias is not None:
            bias[copy] = bias[source]
        if weights[6] is not None:
            weights[6][:, copy] = weights[6][:, source]
    whole = assert_right(head, rows, weights)

    # Some of the rows in another order.
    order = torch.randperm(head.rows, generator=generator)[: (head.rows + 1) // 2]
    part = predict(rows[order], weights, **head.options)
    whole, part = ((found,) if isinstance(found, Tensor) else found for found in (whole, part))
    assert all(alike(got, expected[order]) for got, expected in zip(part, whole, strict=True))


@pytest.mark.grid
@properties(200)
@given(HEADS, st.integers(0, 30))
def test_any_head(head: Head, repeated: int) -> None:
    check(head, repeated)


@properties(8)
@given(HEADS, st.integers(0, 30))
def test_some_heads(head: Head, repeated: int) -> None:
    check(head, repeated)


@pytest.mark.grid
@properties(40)
@given(HEADS, st.integers(1, 12))
def test_barring_an_id_lets_the_next_ones_up(head: Head, top_k: int) -> None:
    head = dataclasses.replace(head, dtype=torch.float32, top_k=top_k, parts="all", vocab=head.vocab + 12)
    rows, weights = head.operands()
    values, ids, _ = predict(rows, weights, **head.options)
    bias = weights[5]
    assert bias is not None
    barred = ids[0, 0].item() if head.rows else 0
    bias[barred] = -torch.inf
    after, found, _ = assert_right(head, rows, weights)
    for row in range(head.rows):
        kept = ids[row] != barred
        count = int(kept.sum())
        assert torch.equal(found[row, :count], ids[row, kept])
        assert torch.equal(after[row, :count], values[row, kept])
