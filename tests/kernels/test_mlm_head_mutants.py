"""Errors of the predicting head's kernel that `make mutants` showed, or would show, no other test to notice."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from mlm_head_cases import Head, assert_right, cut_in, predict, ranked
from operands import alike, sparse
from torch import Tensor

from padless.kernels.launch import Config

HEAD = Head(torch.float32, own=6, vocab=70)


@pytest.mark.parametrize("index", range(7))
def test_each_weight_matters(index: int) -> None:
    head = dataclasses.replace(HEAD, top_k=None)
    rows, weights = head.operands()
    before = predict(rows, weights, **head.options)
    part = weights[index]
    assert part is not None
    changed = part * torch.linspace(0.5, 2, len(part)).view(-1, *[1] * (part.ndim - 1))
    weights = tuple(changed if i == index else weight for i, weight in enumerate(weights))
    after = assert_right(head, rows, weights)
    assert not torch.allclose(after, before)


def at(places: list[int], vocab: int, cut: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of a head whose logits are 0 but for those at `places`: as many as there are, falling."""
    bias = torch.zeros(vocab)
    bias[places] = torch.arange(len(places), 0, -1.0)
    eye, ones = torch.eye(16), torch.ones(16)
    hidden = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    weights = (eye, None, ones, None, torch.zeros(vocab, 16), bias, None)
    config = cut_in(cut) if cut else None
    return ranked(hidden, weights, top_k=len(places), epilogue="none", config=config)


@pytest.mark.parametrize("vocab", [63, 64, 65, 129, 256, 513])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_the_highest_may_be_anywhere(cut: int, vocab: int) -> None:
    edges = [i for block in (16, 32, 64, 128, 256, 512) for i in (block - 1, block) if i < vocab]
    places = sorted({0, 1, vocab - 2, vocab - 1, *edges})
    for order in (places, places[::-1]):
        values, ids, lse = at(order, vocab, cut)
        assert torch.equal(ids, torch.tensor(order).expand(2, -1))
        assert torch.equal(values, torch.arange(len(order), 0, -1.0).expand(2, -1))
        exact = torch.zeros(vocab, dtype=torch.float64)
        exact[order] = torch.arange(len(order), 0, -1.0, dtype=torch.float64)
        torch.testing.assert_close(lse, exact.logsumexp(0).float().expand(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("top_k", [2, 5])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_all_of_the_highest_may_lie_in_one_block(cut: int, top_k: int) -> None:
    for start in (0, 64, 130, 200 - top_k):
        places = list(range(start, start + top_k))
        assert torch.equal(at(places, 200, cut)[1], torch.tensor(places).expand(2, -1))


@pytest.mark.parametrize("places", list(itertools.permutations((3, 70, 140, 199))), ids=str)
def test_each_block_may_hold_one(places: tuple[int, ...]) -> None:
    for cut in (0, 1, 2):
        assert torch.equal(at(list(places), 200, cut)[1], torch.tensor(places).expand(2, -1))


def test_negative_logits_are_above_what_is_masked() -> None:
    # Columns beyond the vocabulary, read as zeros, would be the highest.
    head = Head(torch.float32, rows=3, vocab=67, top_k=10)
    rows, weights = head.operands()
    bias = weights[5]
    assert bias is not None
    bias -= 1000
    values, _, lse = assert_right(head, rows, weights)
    assert (values < -900).all()
    assert (lse < -900).all()


@pytest.mark.parametrize("width", [16, 24, 33])
def test_what_is_masked_takes_no_part_in_the_statistics(width: int) -> None:
    # Rows far from zero: channels beyond the width, read as zeros, would be seen in mean and variance.
    head = Head(torch.float32, hidden=width, top_k=None, epilogue="none", eps=1e-5)
    rows, weights = head.operands()
    far = tuple(weight + 1000 if i == 1 and weight is not None else weight for i, weight in enumerate(weights))
    assert_right(head, rows, far)


@pytest.mark.parametrize("eps", [1e-12, 0.5, 10.0])
@pytest.mark.parametrize("top_k", [None, 4])
def test_eps_matters(top_k: int | None, eps: float) -> None:
    head = dataclasses.replace(HEAD, eps=eps, top_k=top_k, magnitude=0.1)
    assert_right(head, *head.operands())


@pytest.mark.parametrize("top_k", [None, 5])
def test_strides_beyond_two_to_the_31_elements(top_k: int | None, tmp_path: Path) -> None:
    # Twelve rows, 2^28 elements apart.
    head = Head(torch.float16, rows=12, hidden=20, vocab=30, top_k=top_k)
    rows, weights = head.operands()
    expected = predict(rows, weights, **head.options)
    far = sparse(tmp_path, 11 * 2**28 + 20, torch.float16).as_strided((12, 20), (2**28, 1)).copy_(rows)
    found = predict(far, weights, **head.options)
    if isinstance(expected, Tensor):
        assert alike(found, expected)
    else:
        assert all(map(alike, found, expected))


@pytest.mark.parametrize("top_k", [None, 5])
def test_rows_of_the_decoder_beyond_two_to_the_31_elements(top_k: int | None, tmp_path: Path) -> None:
    # Where preparation does not copy it, the kernel has to find it.
    head = Head(torch.float16, rows=2, hidden=20, vocab=12, top_k=top_k)
    rows, weights = head.operands()
    expected = predict(rows, weights, **head.options)
    decoder = weights[4]
    assert decoder is not None
    far = sparse(tmp_path, 11 * 2**28 + 20, torch.float16).as_strided((12, 20), (2**28, 1)).copy_(decoder)
    found = predict(rows, (*weights[:4], far, *weights[5:]), **head.options)
    if isinstance(expected, Tensor):
        assert alike(found, expected)
    else:
        assert all(map(alike, found, expected))


@pytest.mark.parametrize("rise", [1, -1])
@pytest.mark.parametrize("step", [1.0, 40.0, 1e4])
def test_the_sum_is_kept_while_the_highest_rises(step: float, rise: int) -> None:
    # From tile to tile of a part, and from part to part.
    bias = (torch.arange(130) // 10 * step * rise).float()
    eye, ones = torch.eye(16), torch.ones(16)
    weights = (eye, None, ones, None, torch.zeros(130, 16), bias, None)
    for cut in (1, 2, 5):
        _, _, lse = ranked(torch.zeros(2, 16), weights, top_k=3, epilogue="none", config=cut_in(cut))
        expected = bias.double().logsumexp(0).float().expand(2)
        torch.testing.assert_close(lse, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parts", [3, 5])
def test_parts_that_are_none_have_no_logit(parts: int) -> None:
    """All logits are so low that exponentials of them, unshifted, would be 0."""
    bias = torch.linspace(-300, -200, 32 * parts)
    weights = (torch.eye(16), None, torch.ones(16), None, torch.zeros(len(bias), 16), bias, None)
    _, _, lse = ranked(torch.ones(2, 16), weights, top_k=2, epilogue="none", config=cut_in(parts))
    torch.testing.assert_close(lse, bias.double().logsumexp(0).float().expand(2), rtol=1e-6, atol=0)


def test_all_steps_of_the_join_count() -> None:
    """More pairs than one step takes: 40 parts of 30."""
    config = Config.of(BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, PARTS=40)
    bias = torch.arange(640.0)[torch.randperm(640, generator=torch.Generator().manual_seed(3))]
    weights = (torch.eye(16), None, torch.ones(16), None, torch.zeros(len(bias), 16), bias, None)
    values, ids, _ = ranked(torch.ones(2, 16), weights, top_k=30, epilogue="none", config=config)
    assert torch.equal(values, torch.arange(639.0, 609.0, -1.0).expand(2, -1))
    assert torch.equal(ids, bias.argsort(descending=True)[:30].expand(2, -1))
