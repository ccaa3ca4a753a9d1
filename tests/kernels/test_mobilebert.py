"""MobileBERT's two kernels in the interpreter: the eager ops in fp64 by the 2x rule, refusals, bits of a row."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from mobilebert_cases import Layer, assert_in, assert_out, enter, leave, prepared
from operands import DTYPES, LAYOUTS, alike, distinct, grid, sampled
from torch import Tensor

from padless.engine.errors import InputError
from padless.engine.ops.linear import ACTIVATIONS
from padless.engine.ops.mobilebert import NORMS
from padless.kernels import mobilebert as kernels

STREAMS = ("wide", "narrow", "mixed")
TOKENS = (0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65)
AXES: dict[str, Any] = {
    "dtype": DTYPES,
    "stream": STREAMS,
    "tokens": TOKENS,
    "width": (8, 16, 24, 96, 128),
    "hidden": (17, 31, 40, 64, 65, 129, 160),
    "norm": NORMS,
    "eps": (1e-12, 1e-5, 0.1),
    "rows": LAYOUTS,
    "weights": LAYOUTS,
    "magnitude": (0.02, 1.0, 1.0, 20.0),
    "draw": range(100),
}
IN_CASES = sampled(Layer, 420, seed=3, **AXES)
OUT_CASES = sampled(
    Layer, 420, seed=4, **AXES, inner=(9, 16, 33, 63, 64, 65, 130), networks=(1, 2, 3, 4),
    activation=tuple(ACTIVATIONS), last_eps=(1e-12, 1e-5, 0.1),
)  # fmt: skip


def bounded(layer: Layer) -> Layer:
    """Smaller rows, and fewer squares of squares, where they would leave fp16, which holds what enters a product."""
    squares = layer.activation == "relu2"
    magnitude = min(layer.magnitude, 1.0 if squares or layer.dtype == torch.float16 else 100.0)
    return dataclasses.replace(layer, magnitude=magnitude, networks=min(layer.networks, 2 if squares else 4))


@pytest.mark.parametrize("layer", grid(IN_CASES, unmarked=28))
def test_two_times_rule_in(layer: Layer) -> None:
    (x,) = layer.inputs("x")
    assert_in(layer, x, layer.in_weights())


@pytest.mark.parametrize("layer", grid([bounded(layer) for layer in OUT_CASES], unmarked=28))
def test_two_times_rule_out(layer: Layer) -> None:
    assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_stream_and_dtype(norm: str, stream: str, dtype: torch.dtype) -> None:
    layer = Layer(dtype, stream, norm=norm, eps=1e-5, last_eps=1e-3)
    (x,) = layer.inputs("x")
    narrow, qkv = assert_in(layer, x, layer.in_weights())
    out = assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())
    stream_dtype = torch.float32 if norm == "no_norm" else dtype
    assert (narrow.dtype, qkv.dtype, out.dtype) == (stream_dtype, dtype, stream_dtype)
    assert (narrow.shape, qkv.shape, out.shape) == ((5, 24), (5, 72), (5, 40))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    layer = Layer(dtype, tokens=7, activation=activation)
    assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())


@pytest.mark.parametrize("networks", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_networks(norm: str, networks: int) -> None:
    layer = Layer(torch.float32, tokens=3, width=16, inner=40, networks=networks, norm=norm, eps=0.5, last_eps=1e-7)
    assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_published_shape(dtype: torch.dtype) -> None:
    layer = Layer(dtype, tokens=3, width=128, hidden=512, inner=512, networks=4)
    (x,) = layer.inputs("x")
    assert_in(layer, x, layer.in_weights())
    assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())


@pytest.mark.parametrize("dtype", DTYPES)
def test_hundreds_of_tokens(dtype: torch.dtype) -> None:
    layer = Layer(dtype, tokens=517, width=16, hidden=20, inner=20, rows="columns")
    (x,) = layer.inputs("x")
    assert_in(layer, x, layer.in_weights())
    assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens(dtype: torch.dtype, norm: str) -> None:
    layer = Layer(dtype, tokens=0, norm=norm)
    (x,) = layer.inputs("x")
    narrow, qkv = assert_in(layer, x, layer.in_weights())
    out = assert_out(layer, layer.inputs("context", "narrow", "x"), layer.out_weights())
    assert (narrow.shape, qkv.shape, out.shape) == ((0, 24), (0, 72), (0, 40))


def test_what_the_first_kernel_returns_enters_the_second() -> None:
    layer = Layer(torch.bfloat16, "mixed", tokens=9)
    x, context = layer.inputs("x", "context")
    narrow, _ = enter(layer, x, layer.in_weights())
    assert_out(layer, (context, narrow, x), layer.out_weights())


def test_each_network_has_its_own_weights() -> None:
    # The same networks in another order are another function.
    layer = Layer(torch.float32, networks=3)
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    got = assert_out(layer, inputs, weights)
    turned = [
        weight.unflatten(0, (3, -1)).roll(1, 0).flatten(0, 1) if 4 <= index < 10 else weight
        for index, weight in enumerate(weights)
    ]
    assert not torch.allclose(assert_out(layer, inputs, tuple(turned)), got)


def test_the_last_network_has_its_own_eps() -> None:
    layer = Layer(torch.float32, norm="layer_norm", networks=2, eps=1e-12, last_eps=1e-12)
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    plain = assert_out(layer, inputs, weights)
    for changed in ({"last_eps": 3.0}, {"eps": 3.0}):
        assert not torch.allclose(assert_out(dataclasses.replace(layer, **changed), inputs, weights), plain)


@pytest.mark.parametrize("width", [8, 24, 96])
def test_what_is_masked_takes_no_part_in_the_statistics(width: int) -> None:
    # Rows far from zero: channels beyond the width, read as zeros, would be seen in mean and variance.
    layer = Layer(torch.float32, width=width, hidden=41, norm="layer_norm", eps=1e-5)
    (x,) = layer.inputs("x")
    weights = list(layer.in_weights())
    for index in (1, 5):
        weights[index] = weights[index] + 1000
    for index, value in ((2, 1.0), (3, 0.0)):
        weights[index] = torch.full((width,), value)
    narrow, _ = assert_in(layer, x, tuple(weights))
    torch.testing.assert_close(narrow.mean(dim=1), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(narrow.std(dim=1, correction=0), torch.ones(5), rtol=0, atol=1e-3)
    leaving = layer.out_weights()
    far = tuple(weight + 1000 if index in (1, 7, 11) else weight for index, weight in enumerate(leaving))
    assert_out(layer, layer.inputs("context", "narrow", "x"), far)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tokens", [3, 33, pytest.param(150, marks=pytest.mark.grid)])
def test_what_is_not_finite_stays_in_its_token(tokens: int, norm: str, value: float) -> None:
    layer = Layer(torch.float32, tokens=tokens, width=24, hidden=33, inner=20, norm=norm, eps=1e-5)
    inputs = layer.inputs("context", "narrow", "x")
    entering, leaving, row = layer.in_weights(), layer.out_weights(), tokens // 2
    others = torch.arange(tokens) != row
    before = (*enter(layer, inputs[2], entering), leave(layer, inputs, leaving))
    for index in range(3):
        broken = [x.clone() for x in inputs]
        broken[index][row, 7] = value
        after = [leave(layer, tuple(broken), leaving)]
        expected = [before[2]]
        if index == 2:
            after += enter(layer, broken[2], entering)
            expected += before[:2]
        for found, same in zip(after, expected, strict=True):
            assert torch.equal(found[others], same[others])
            assert not found[row].isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "relu6", "tanh"])
def test_nan_is_not_lost(activation: str, norm: str) -> None:
    # A maximum that prefers numbers would end NaN at the first activation: nothing else carries it where the residual
    # does not.
    layer = Layer(torch.float32, tokens=4, activation=activation, norm=norm, eps=1e-5)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    weights = list(layer.out_weights())
    narrow[2, 3] = torch.nan
    out = assert_out(layer, (context, narrow, x), tuple(weights))
    assert torch.equal(out.isnan().any(dim=1), torch.arange(4) == 2)
    assert out[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_token_has_the_same_bits_alone_and_in_any_batch(norm: str, dtype: torch.dtype) -> None:
    # Numbers of tokens on both sides of where a schedule for few of them would end.
    layer = Layer(dtype, tokens=140, width=24, hidden=50, inner=40, norm=norm, eps=1e-5, rows="columns")
    inputs = layer.inputs("context", "narrow", "x")
    entering, leaving = layer.in_weights(), layer.out_weights()
    whole = (*enter(layer, inputs[2], entering), leave(layer, inputs, leaving))
    for start, stop in ((139, 140), (7, 9), (100, 117), (3, 67), (1, 130)):
        part = tuple(x[start:stop] for x in inputs)
        found = (*enter(layer, part[2], entering), leave(layer, part, leaving))
        assert all(alike(got, expected[start:stop]) for got, expected in zip(found, whole, strict=True)), (start, stop)


@pytest.mark.parametrize("tokens", [5, 80])
def test_a_second_call_gives_the_same_bits_and_changes_no_input(tokens: int) -> None:
    layer = Layer(torch.bfloat16, tokens=tokens)
    inputs, entering, leaving = layer.inputs("context", "narrow", "x"), layer.in_weights(), layer.out_weights()
    copies = [x.clone() for x in (*inputs, *entering, *leaving)]
    first = (*enter(layer, inputs[2], entering), leave(layer, inputs, leaving))
    second = (*enter(layer, inputs[2], entering), leave(layer, inputs, leaving))
    assert all(map(alike, first, second))
    assert all(map(alike, copies, (*inputs, *entering, *leaving)))


def test_every_candidate_obeys_the_rule() -> None:
    layer = Layer(torch.bfloat16, tokens=33, width=24, hidden=70, inner=40)
    inputs = layer.inputs("context", "narrow", "x")
    for config in distinct(kernels.CANDIDATES):
        assert_in(layer, inputs[2], layer.in_weights(), config=config)
        assert_out(layer, inputs, layer.out_weights(), config=config)


def test_operands_may_lie_differently() -> None:
    layer = Layer(torch.float32, tokens=6)
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    expected = leave(layer, inputs, weights)
    for layouts in itertools.permutations(LAYOUTS[:3]):
        views = [
            dataclasses.replace(layer, rows=layout).inputs("context", "narrow", "x")[i]
            for i, layout in enumerate(layouts)
        ]
        assert alike(leave(layer, tuple(views), weights), expected)


def test_a_context_by_heads_is_flattened_in_place() -> None:
    layer = Layer(torch.float16, tokens=6)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    buffer = torch.full((6, 3, 24), torch.nan, dtype=torch.float16)
    buffer[:, 1] = context
    expected = leave(layer, (context, narrow, x), layer.out_weights())
    assert alike(leave(layer, (buffer[:, 1], narrow, x), layer.out_weights()), expected)


REFUSED_IN: dict[str, tuple[int, Any]] = {
    "x of another width": (0, torch.zeros(5, 41)),
    "x with three dimensions": (0, torch.zeros(5, 1, 40)),
    "x with one dimension": (0, torch.zeros(40)),
    "x in fp64": (0, torch.zeros(5, 40, dtype=torch.float64)),
    "x of integers": (0, torch.zeros(5, 40, dtype=torch.int64)),
    "x in another half precision": (0, torch.zeros(5, 40, dtype=torch.float16)),
    "x elsewhere": (0, torch.zeros(5, 40, device="meta")),
}
REFUSED_OUT: dict[str, tuple[int, Any]] = {
    "context of another width": (0, torch.zeros(5, 23, dtype=torch.bfloat16)),
    "context with three dimensions": (0, torch.zeros(5, 2, 12, dtype=torch.bfloat16)),
    "context in another half precision": (0, torch.zeros(5, 24, dtype=torch.float16)),
    "context elsewhere": (0, torch.zeros(5, 24, dtype=torch.bfloat16, device="meta")),
    "fewer rows of context": (0, torch.zeros(4, 24, dtype=torch.bfloat16)),
    "narrow of another width": (1, torch.zeros(5, 25)),
    "more rows of narrow": (1, torch.zeros(6, 24)),
    "narrow in fp64": (1, torch.zeros(5, 24, dtype=torch.float64)),
    "narrow elsewhere": (1, torch.zeros(5, 24, device="meta")),
    "x of another width": (2, torch.zeros(5, 39)),
    "fewer rows of x": (2, torch.zeros(4, 40)),
    "x with one dimension": (2, torch.zeros(40)),
    "x in another half precision": (2, torch.zeros(5, 40, dtype=torch.float16)),
    "x elsewhere": (2, torch.zeros(5, 40, device="meta")),
}
LAYER = Layer(torch.bfloat16)


def assert_one_line(refusal: pytest.ExceptionInfo[InputError], op: str) -> None:
    message = str(refusal.value)
    assert message.startswith(op), message
    assert "\n" not in message


@pytest.mark.parametrize("what", REFUSED_IN)
def test_refused_in(what: str) -> None:
    weights = prepared("mobilebert_in", LAYER.in_weights(), LAYER)
    with pytest.raises(InputError) as refusal:
        kernels.mobilebert_in(REFUSED_IN[what][1], *weights, **LAYER.in_options)
    assert_one_line(refusal, "mobilebert_in")


@pytest.mark.parametrize("what", REFUSED_OUT)
def test_refused_out(what: str) -> None:
    weights = prepared("mobilebert_out", LAYER.out_weights(), LAYER)
    index, wrong = REFUSED_OUT[what]
    inputs = list(LAYER.inputs("context", "narrow", "x"))
    inputs[index] = wrong
    with pytest.raises(InputError) as refusal:
        kernels.mobilebert_out(*inputs, *weights, **LAYER.out_options)
    assert_one_line(refusal, "mobilebert_out")


@pytest.mark.parametrize("changed", [{"norm": "rms_norm"}, {"norm": None}])
def test_refused_options_in(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refusal:
        enter(LAYER, LAYER.inputs("x")[0], LAYER.in_weights(), **changed)
    assert_one_line(refusal, "mobilebert_in")


@pytest.mark.parametrize(
    "changed",
    [{"norm": "none"}, {"activation": "swish"}, {"networks": 0}, {"networks": 3}, {"networks": -2}],
    ids=lambda changed: str(changed),
)
def test_refused_options_out(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refusal:
        leave(LAYER, LAYER.inputs("context", "narrow", "x"), LAYER.out_weights(), **changed)
    assert_one_line(refusal, "mobilebert_out")


def test_refused_gradients() -> None:
    entering, leaving = LAYER.in_weights(), LAYER.out_weights()
    context, narrow, x = LAYER.inputs("context", "narrow", "x")
    wanted: Tensor = x.clone().requires_grad_()
    with pytest.raises(InputError) as refusal:
        enter(LAYER, wanted, entering)
    assert_one_line(refusal, "mobilebert_in")
    with pytest.raises(InputError) as refusal:
        leave(LAYER, (context, narrow, wanted), leaving)
    assert_one_line(refusal, "mobilebert_out")
    with torch.no_grad():
        enter(LAYER, wanted, entering)
        leave(LAYER, (context, narrow, wanted), leaving)
