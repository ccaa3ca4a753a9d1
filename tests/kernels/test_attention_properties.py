"""The attention kernel for any shapes: the 2x rule, and rules that attention must obey whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CONFIGS, Case, attend, check, operands_of, options_of
from hypothesis import given
from hypothesis import strategies as st
from lengths import Packed
from operands import DTYPES, LAYOUTS, properties

SIDES = st.one_of(st.just(-1), st.integers(0, 40), st.sampled_from((15, 16, 17, 31, 32, 33)))
TEXTS = st.one_of(st.integers(0, 40), st.sampled_from((0, 1, 15, 16, 17, 31, 32, 33)))
# The largest distance lies beyond the buckets of single distances, which are half of them at most.
BIASES = st.tuples(st.sampled_from((4, 8, 12, 32)), st.sampled_from((17, 20, 128)), st.booleans())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A call; only its shape is drawn, its numbers follow from the seed."""
    lengths = tuple(draw(st.lists(TEXTS, max_size=5)))
    lengths_k = None
    if draw(st.booleans()):
        lengths_k = tuple(draw(st.lists(TEXTS, min_size=len(lengths), max_size=len(lengths))))
    heads_k = draw(st.sampled_from((1, 2)))
    return Case(
        lengths,
        lengths_k,
        head_dim=draw(st.sampled_from((16, 24, 32, 40, 48, 60, 64, 80, 96, 128, 256))),
        dtype=draw(st.sampled_from(DTYPES)),
        window=(draw(SIDES), draw(SIDES)),
        causal=draw(st.booleans()),
        scale=draw(st.sampled_from((None, 1.0, 0.25))),
        bias=draw(st.one_of(st.none(), BIASES)),
        heads=heads_k * draw(st.sampled_from((1, 2, 3))),
        heads_k=heads_k,
        # At 256 channels and a scale of 1, raw scores reach 5e4, which fp16 still holds.
        magnitude=draw(st.sampled_from((1e-3, 1.0, 5.0))),
        layout=draw(st.sampled_from(("fused", *LAYOUTS))),
        config=draw(st.sampled_from(CONFIGS)),
        seed=draw(st.integers(0, 2**20)),
    )


def check_rules(case: Case) -> None:
    output, lse = check(case, few_numbers=True)
    data, options = operands_of(case), options_of(case, case.dtype)

    # A query that sees no key gives zeros and -inf, and only such a query.
    blind = lse.isneginf()
    assert not output.transpose(0, 1)[blind].any()
    assert lse[~blind].isfinite().all()

    # Each output lies between the lowest and the highest value of its channel, up to rounding.
    if data.v.numel() and output.numel():
        highest = data.v.abs().amax().item()
        assert output.abs().amax().item() <= highest * (1 + 2 * torch.finfo(case.dtype).eps)

    # Texts in reverse order give the same bits in reverse order.
    backwards = reversed_texts(data)
    other, other_lse = attend(backwards, case.config, **options)
    assert torch.equal(other, torch.cat([output[:0], *output.split(list(case.lengths))[::-1]]))
    assert torch.equal(other_lse, torch.cat([lse[:, :0], *lse.split(list(case.lengths), dim=1)[::-1]], dim=1))


def reversed_texts(data: Packed) -> Packed:
    lengths_k = data.lengths if data.lengths_k is None else data.lengths_k
    q, k, v = (
        torch.cat([x[:0], *x.split(list(lengths))[::-1]])
        for x, lengths in ((data.q, data.lengths), (data.k, lengths_k), (data.v, lengths_k))
    )
    return Packed(q, k, v, data.lengths[::-1], None if data.lengths_k is None else lengths_k[::-1])


@pytest.mark.grid
@properties(200)
@given(cases())
def test_any_call(case: Case) -> None:
    check_rules(case)


@properties(25)
@given(cases())
def test_some_calls(case: Case) -> None:
    check_rules(case)
