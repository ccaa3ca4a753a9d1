"""`trigram` and `no_norm`, the ops of MobileBERT, against loops and numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from padless.engine.ops.norm import no_norm
from padless.engine.ops.trigram import trigram

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def cumulated(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths, dtype=np.int64).tolist()], dtype=torch.int32)


def by_loop(ids: list[int], lengths: list[int], table: np.ndarray) -> np.ndarray:
    """Text by text, token by token: the row to the right, the own row, the row to the left."""
    nothing = np.zeros(table.shape[1])
    rows, start = [], 0
    for length in lengths:
        text = ids[start : start + length]
        for place, token in enumerate(text):
            right = table[text[place + 1]] if place + 1 < length else nothing
            left = table[text[place - 1]] if place else nothing
            rows.append(np.concatenate([right, table[token], left]))
        start += length
    return np.array(rows).reshape(len(ids), 3 * table.shape[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=7), st.integers(1, 5), st.integers(0, 2**31))
def test_texts_of_any_length_have_the_neighbours_a_loop_finds(lengths: list[int], width: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    table = draw.standard_normal((9, width))
    ids = draw.integers(0, 9, sum(lengths)).tolist()
    out = trigram(torch.tensor(ids, dtype=torch.int64), cumulated(lengths), torch.from_numpy(table))
    np.testing.assert_array_equal(out.numpy(), by_loop(ids, lengths, table))


def test_the_right_neighbour_comes_first() -> None:
    out = trigram(torch.tensor([0, 1, 2, 3]), cumulated([3, 1]), torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert out.tolist() == [[2, 1, 0], [3, 2, 1], [0, 3, 2], [0, 4, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_moved_not_computed(dtype: torch.dtype) -> None:
    table = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    ids = [4, 0, 3, 3, 1, 2]
    out = trigram(torch.tensor(ids), cumulated([2, 0, 4]), table)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.double().numpy(), by_loop(ids, [2, 0, 4], table.double().numpy()))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_stands_beside_a_text_is_not_even_multiplied(poison: float) -> None:
    table = torch.tensor([[1.0, 2.0], [poison, poison]])
    out = trigram(torch.tensor([1, 0, 1, 0, 0, 1]), cumulated([1, 1, 1, 2, 1]), table)
    assert out[[1, 3, 4]].tolist() == [[0, 0, 1, 2, 0, 0], [1, 2, 1, 2, 0, 0], [0, 0, 1, 2, 1, 2]]


def test_the_gradient_of_trigrams() -> None:
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ids, edges = torch.tensor([3, 3, 0, 1, 0]), cumulated([2, 3])
    assert torch.autograd.gradcheck(lambda word: trigram(ids, edges, word), (table,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual_dtype", [None, torch.float32, "same"])
@pytest.mark.parametrize("wide", [False, True])
def test_no_norm_rounds_once_or_not_at_all(
    dtype: torch.dtype, residual_dtype: torch.dtype | str | None, wide: bool
) -> None:
    draw = torch.Generator().manual_seed(11)
    x, weight, bias, residual = (
        torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((5, 33), (33,), (33,), (5, 33))
    )
    if residual_dtype is not None and residual_dtype != "same":
        assert isinstance(residual_dtype, torch.dtype)
        residual = residual.to(residual_dtype) + 2.0**-12  # what a half does not hold
    given_residual = None if residual_dtype is None else residual
    out = no_norm(x, weight, bias, residual=given_residual, wide=wide)
    total = x.double().numpy() + (0.0 if given_residual is None else given_residual.double().numpy())
    expected = torch.from_numpy(total * weight.double().numpy() + bias.double().numpy())
    computed = torch.promote_types(dtype, torch.float32)
    assert out.dtype == (computed if wide else dtype)
    if wide or dtype == computed:
        torch.testing.assert_close(out.double(), expected, rtol=1e-6 if computed == torch.float32 else 1e-14, atol=1e-6)
    else:
        # Half of the last bit, and what fp32 makes of the sum.
        assert ((out.double() - expected).abs() <= expected.abs() * torch.finfo(dtype).eps * 0.501 + 1e-6).all()


def test_no_norm_keeps_what_half_precision_cannot_hold() -> None:
    x = torch.full((1, 2), 3.0, dtype=torch.float16)
    residual = torch.tensor([[24_736_526.0, 1.0]])
    ones, zeros = torch.ones(2, dtype=torch.float16), torch.zeros(2, dtype=torch.float16)
    # At 2.5e7 fp32 counts in twos.
    assert no_norm(x, ones, zeros, residual=residual, wide=True)[0, 0].item() in (24_736_528.0, 24_736_530.0)
    assert no_norm(x, ones * 1000, zeros, wide=True).tolist() == [[3000.0, 3000.0]]
    assert no_norm(torch.full((1, 2), 60_000.0).half(), ones * 1000, zeros, wide=True).isfinite().all()


def test_the_gradient_of_no_norm() -> None:
    x, residual = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *t: no_norm(t[0], t[1], t[2], residual=t[3]), (x, weight, bias, residual))


def test_no_norm_of_no_tokens() -> None:
    assert no_norm(torch.empty(0, 4), torch.ones(4), torch.zeros(4)).shape == (0, 4)
