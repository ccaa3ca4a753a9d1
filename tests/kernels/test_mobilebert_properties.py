"""MobileBERT's two kernels for any layer: the 2x rule, and bits that depend on a token's own rows alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mobilebert_cases import Layer, assert_in, assert_out, enter, leave
from operands import DTYPES, LAYOUTS, alike, properties

from padless.engine.ops.linear import ACTIVATIONS
from padless.engine.ops.mobilebert import NORMS

LAYERS = st.builds(
    Layer,
    dtype=st.sampled_from(DTYPES),
    stream=st.sampled_from(("wide", "narrow", "mixed")),
    tokens=st.one_of(st.integers(0, 20), st.integers(30, 36)),
    width=st.one_of(st.integers(8, 40), st.integers(60, 128)),
    hidden=st.integers(8, 90),
    inner=st.integers(8, 80),
    networks=st.integers(1, 4),
    activation=st.sampled_from(tuple(ACTIVATIONS)),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from((1e-12, 1e-7, 1e-3)),
    last_eps=st.sampled_from((1e-12, 1e-5, 0.1)),
    rows=st.sampled_from(LAYOUTS),
    weights=st.sampled_from(LAYOUTS),
    magnitude=st.sampled_from((1e-3, 0.1, 1.0)),
    draw=st.integers(0, 2**20),
)


def some_of(layer: Layer) -> torch.Tensor:
    """Half of the tokens, in another order."""
    generator = torch.Generator().manual_seed(layer.draw)
    return torch.randperm(layer.tokens, generator=generator)[: (layer.tokens + 1) // 2]


def check_in(layer: Layer) -> None:
    (x,), weights = layer.inputs("x"), layer.in_weights()
    whole, order = assert_in(layer, x, weights), some_of(layer)
    part = enter(layer, x[order], weights)
    assert all(alike(got, expected[order]) for got, expected in zip(part, whole, strict=True))


def check_out(layer: Layer) -> None:
    if layer.activation == "relu2":  # squares of squares leave fp16
        layer = dataclasses.replace(layer, networks=min(layer.networks, 2))
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    whole, order = assert_out(layer, inputs, weights), some_of(layer)
    assert alike(leave(layer, tuple(x[order] for x in inputs), weights), whole[order])


@pytest.mark.grid
@properties(200)
@given(LAYERS)
def test_in_for_any_layer(layer: Layer) -> None:
    check_in(layer)


@pytest.mark.grid
@properties(200)
@given(LAYERS)
def test_out_for_any_layer(layer: Layer) -> None:
    check_out(layer)


@properties(10)
@given(LAYERS)
def test_in_for_some_layers(layer: Layer) -> None:
    check_in(layer)


@properties(10)
@given(LAYERS)
def test_out_for_some_layers(layer: Layer) -> None:
    check_out(layer)
