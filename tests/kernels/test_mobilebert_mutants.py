"""Errors of MobileBERT's kernels that `make mutants` showed, or would show, no other test to notice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from mobilebert_cases import Layer, assert_in, assert_out, enter, leave
from operands import DTYPES, alike, sparse

from padless.engine.contract import Call
from padless.kernels import mobilebert as kernels

LAYER = Layer(torch.float32, tokens=6)


@pytest.mark.parametrize("index", range(12))
def test_each_weight_of_the_way_in_matters(index: int) -> None:
    (x,), weights = LAYER.inputs("x"), list(LAYER.in_weights())
    before = enter(LAYER, x, tuple(weights))
    weights[index] = weights[index] + 0.25
    after = assert_in(LAYER, x, tuple(weights))
    assert not all(map(torch.allclose, after, before))


@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("index", range(14))
def test_each_weight_of_the_way_out_matters(index: int, norm: str) -> None:
    layer = dataclasses.replace(LAYER, norm=norm)
    inputs, weights = layer.inputs("context", "narrow", "x"), list(layer.out_weights())
    before = leave(layer, inputs, tuple(weights))
    # Not the same to every channel: a norm would take that away again.
    weights[index] = weights[index] * torch.linspace(0.5, 2, weights[index].shape[0]).view(
        -1, *[1] * (weights[index].ndim - 1)
    )
    assert not torch.allclose(assert_out(layer, inputs, tuple(weights)), before)


@pytest.mark.parametrize("part", range(3))
def test_one_network_alone_is_changed(part: int) -> None:
    # The weights of each network are found where they are, not where those of its neighbour lie.
    layer = dataclasses.replace(LAYER, networks=3, inner=33, width=24)
    inputs, weights = layer.inputs("context", "narrow", "x"), list(layer.out_weights())
    before = leave(layer, inputs, tuple(weights))
    for index in range(4, 10):
        weights[index] = weights[index].clone()
        weights[index].unflatten(0, (3, -1))[part].mul_(1.5)
    assert not torch.allclose(assert_out(layer, inputs, tuple(weights)), before)


def test_q_k_and_v_stand_in_this_order() -> None:
    (x,), weights = LAYER.inputs("x"), list(LAYER.in_weights())
    for index in (8, 10):
        weights[index] = torch.zeros_like(weights[index])
    weights[9] = torch.cat([torch.full((24,), 1.0), torch.full((24,), 2.0)])
    weights[11] = torch.full((24,), 3.0)
    _, qkv = enter(LAYER, x, tuple(weights))
    assert torch.equal(qkv, torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(24).expand(6, -1))


def test_values_come_from_x_and_not_from_a_bottleneck() -> None:
    (x,), weights = LAYER.inputs("x"), list(LAYER.in_weights())
    before = enter(LAYER, x, tuple(weights))[1]
    for index in range(8):
        weights[index] = weights[index] * 2
    after = enter(LAYER, x, tuple(weights))[1]
    assert alike(after[:, 48:], before[:, 48:])
    assert not torch.allclose(after[:, :48], before[:, :48])


@pytest.mark.parametrize("name", ["context", "narrow", "x"])
def test_strides_beyond_two_to_the_31_elements(name: str, tmp_path: Path) -> None:
    # Twelve rows, 2^28 elements apart.
    layer = dataclasses.replace(LAYER, dtype=torch.float16, stream="narrow", tokens=12)
    names = ("context", "narrow", "x")
    inputs = list(layer.inputs(*names))
    expected = leave(layer, tuple(inputs), layer.out_weights())
    expected_in = enter(layer, inputs[2], layer.in_weights())
    index, apart = names.index(name), 2**28
    width = inputs[index].shape[1]
    far = sparse(tmp_path, 11 * apart + width, torch.float16).as_strided((12, width), (apart, 1))
    inputs[index] = far.copy_(inputs[index])
    assert alike(leave(layer, tuple(inputs), layer.out_weights()), expected)
    if name == "x":
        assert all(map(alike, enter(layer, inputs[2], layer.in_weights()), expected_in))


@pytest.mark.parametrize("sm", [None, 80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("op", ["mobilebert_in", "mobilebert_out"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_schedules_sum_in_the_same_order(dtype: torch.dtype, op: str, sm: int | None) -> None:
    call = Call(op, device="cuda", dtype=dtype, sm=sm)
    few, many = kernels.few_tokens_config(call), kernels.default_config(call)
    assert few["BLOCK_K"] == many["BLOCK_K"]
    assert few["BLOCK_M"] <= many["BLOCK_M"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_number_stays_infinite_where_there_is_one_channel(dtype: torch.dtype) -> None:
    """What it makes of the zeros behind the channel is NaN, and must not come back by the next product."""
    layer = Layer(dtype, tokens=3, width=1, hidden=4, inner=1, networks=2)
    weights = tuple(torch.ones_like(weight) for weight in layer.in_weights())
    x = torch.ones(3, 4, dtype=layer.x_dtype)
    x[1] = torch.inf
    narrow, qkv = enter(layer, x, weights)
    assert torch.equal(narrow[:, 0].isinf(), torch.tensor([False, True, False]))
    assert torch.equal(qkv.isinf(), torch.tensor([False, True, False])[:, None].expand(3, 3))
    assert not qkv.isnan().any()
    weights = tuple(torch.ones_like(weight) for weight in layer.out_weights())
    context = torch.ones(3, 1, dtype=dtype)
    context[1] = torch.inf
    out = leave(layer, (context, torch.ones(3, 1, dtype=layer.narrow_dtype), torch.ones_like(x)), weights)
    assert torch.equal(out.isinf(), torch.tensor([False, True, False])[:, None].expand(3, 4))
    assert not out.isnan().any()
