"""MobileBERT's kernels in half precision: rows of 1e7, and against the best there is with tensor cores.

`no_norm` bounds nothing, and the published weights let 2.5e7 through: the residual stream is fp32, what enters a
product is rounded, and nothing else is. The 2x rule alone would forgive a kernel that rounds as often as eager does.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mobilebert_cases import Layer, assert_in, assert_out, assert_rule, enter, in_fp64, leave
from torch import Tensor
from torch.nn import functional as F

from padless.engine.ops import mobilebert as eager
from padless.engine.ops.linear import ACTIVATIONS

OUTLIER = 1e7
RATIO = {torch.bfloat16: 4e-3, torch.float32: 1e-3}
CHANNEL = 5
LAYER = Layer(torch.bfloat16, tokens=9, width=32, hidden=72, inner=48, networks=4)
HALVES = [(torch.bfloat16, 1.0), (torch.bfloat16, 1e4), (torch.float16, 1.0)]


def others(x: Tensor, channel: int = CHANNEL) -> Tensor:
    """All channels but one."""
    return torch.cat([x[:, :channel], x[:, channel + 1 :]], dim=1)


def assert_outlier_holds(layer: Layer, got: Tensor, same: Tensor, exact: Tensor, channel: int = CHANNEL) -> None:
    """The outlier's ratio, and the rule for the channels around it on their own: beside 1e7 any error is small."""
    assert got.isfinite().all()
    assert (exact[:, channel].abs() > OUTLIER / 4).all()
    ratio = got[:, channel].double() / exact[:, channel]
    assert (ratio - 1).abs().max() <= RATIO[layer.dtype]
    beside = [others(x, channel) for x in (got, same, exact)]
    assert_rule(beside[0], beside[1], beside[2], layer.dtype, "channels beside the outlier")


@pytest.mark.parametrize("dtype", RATIO)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_outlier_of_the_stream_passes_the_layer(dtype: torch.dtype, sign: int) -> None:
    # As in the published weights, it grows in the last residual, past all networks.
    layer = dataclasses.replace(LAYER, dtype=dtype)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    x[:, CHANNEL] = sign * OUTLIER + torch.arange(9) * 1001
    weights = layer.out_weights()
    got = leave(layer, (context, narrow, x), weights)
    same = eager.mobilebert_out(context, narrow, x, *weights, **layer.out_options)
    exact = eager.mobilebert_out(*in_fp64((context, narrow, x)), *in_fp64(weights), **layer.out_options)
    assert_outlier_holds(layer, got, same, exact)
    # Nothing but sums in fp32 happens to it: its last digits are there.
    assert ((got[:, CHANNEL].double() / exact[:, CHANNEL]) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", RATIO)
def test_an_outlier_passes_the_stack_of_networks(dtype: torch.dtype) -> None:
    # In every residual of the narrow stream; its columns in the products are small, or all channels were outliers.
    layer = dataclasses.replace(LAYER, dtype=dtype)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    narrow[:, CHANNEL] = OUTLIER
    weights = list(layer.out_weights())
    for index in (4, 10):
        weights[index][:, CHANNEL] *= 1e-7
    weights[10][CHANNEL] = 0
    weights[10][CHANNEL, CHANNEL] = 1
    for index in (2, 8, 12):
        weights[index][CHANNEL :: layer.width] = 1
    got = leave(layer, (context, narrow, x), tuple(weights))
    same = eager.mobilebert_out(context, narrow, x, *weights, **layer.out_options)
    exact = eager.mobilebert_out(*in_fp64((context, narrow, x)), *in_fp64(tuple(weights)), **layer.out_options)
    assert_outlier_holds(layer, got, same, exact)


@pytest.mark.parametrize("dtype", RATIO)
def test_an_outlier_is_made_by_a_scale(dtype: torch.dtype) -> None:
    layer = dataclasses.replace(LAYER, dtype=dtype)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    x[:, CHANNEL] = 100 + torch.arange(9)
    weights = list(layer.out_weights())
    weights[12][CHANNEL] = 1e5
    got = leave(layer, (context, narrow, x), tuple(weights))
    same = eager.mobilebert_out(context, narrow, x, *weights, **layer.out_options)
    exact = eager.mobilebert_out(*in_fp64((context, narrow, x)), *in_fp64(tuple(weights)), **layer.out_options)
    assert_outlier_holds(layer, got, same, exact)


@pytest.mark.parametrize("dtype", RATIO)
def test_an_outlier_enters_the_bottlenecks(dtype: torch.dtype) -> None:
    layer = dataclasses.replace(LAYER, dtype=dtype)
    (x,) = layer.inputs("x")
    x[:, CHANNEL] = OUTLIER
    weights = list(layer.in_weights())
    # One channel of the narrow stream takes it over; to the others it is as large as the rest of x together.
    for index in (0, 4, 10):
        weights[index][:, CHANNEL] *= 1e-7
    weights[0][CHANNEL] *= 1e-3
    weights[0][CHANNEL, CHANNEL] = 1
    narrow, qkv = assert_in(layer, x, tuple(weights))
    same = eager.mobilebert_in(x, *weights, **layer.in_options)
    exact = eager.mobilebert_in(x.double(), *in_fp64(tuple(weights)), **layer.in_options)
    assert_outlier_holds(layer, narrow, same[0], exact[0])
    assert qkv.isfinite().all()


@pytest.mark.parametrize("dtype", RATIO)
@pytest.mark.parametrize("index", range(3))
def test_everything_may_be_large(index: int, dtype: torch.dtype) -> None:
    # One channel of 1e7 in front of products with full columns: all that follows is that large.
    layer = dataclasses.replace(LAYER, dtype=dtype)
    inputs = layer.inputs("context", "narrow", "x")
    inputs[index][:, CHANNEL] = OUTLIER
    assert assert_out(layer, inputs, layer.out_weights()).isfinite().all()
    if index == 2:
        narrow, qkv = assert_in(layer, inputs[2], layer.in_weights())
        assert narrow.isfinite().all()
        assert qkv.isfinite().all()


def test_fp16_keeps_a_stream_that_fp16_cannot_hold() -> None:
    # The products stay small: only the stream between them is large.
    layer = dataclasses.replace(LAYER, dtype=torch.float16)
    context, narrow, x = layer.inputs("context", "narrow", "x")
    x[:, CHANNEL] = OUTLIER
    assert assert_out(layer, (context, narrow, x), layer.out_weights()).isfinite().all()


def careful_norm(out: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    total = out if residual is None else residual.double() + out
    return total * scale.double() + shift.double()


def careful_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product whose rows are rounded to the weight's dtype, not rounded itself."""
    return F.linear(x.to(weight.dtype).double(), weight.double(), bias.double())


def careful_in(x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """`mobilebert_in` under `no_norm`, of which only what enters a product is rounded, and q, k and v at the end."""
    narrow = careful_norm(careful_linear(x, *weights[0:2]), None, *weights[2:4])
    shared = careful_norm(careful_linear(x, *weights[4:6]), None, *weights[6:8])
    qkv = torch.cat([careful_linear(shared, *weights[8:10]), careful_linear(x, *weights[10:12])], dim=1)
    return narrow.float(), qkv.to(weights[0].dtype)


def careful_out(layer: Layer, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mobilebert_out` under `no_norm`, of which only what enters a product is rounded."""
    context, narrow, x = inputs
    stream = careful_norm(careful_linear(context, *weights[0:2]), narrow, *weights[2:4])
    each = zip(*(weight.unflatten(0, (layer.networks, -1)) for weight in weights[4:10]), strict=True)
    for up, up_shift, down, down_shift, scale, shift in each:
        inner = ACTIVATIONS[layer.activation](careful_linear(stream, up, up_shift))
        stream = careful_norm(careful_linear(inner, down, down_shift), stream, scale, shift)
    return careful_norm(careful_linear(stream, *weights[10:12]), x, *weights[12:14]).float()


def share_of_rounding(got: Tensor, careful: Tensor, dtype: torch.dtype) -> float:
    """The median difference as a share of one rounding to `dtype` of a typical value."""
    gap = (got.double() - careful.double()).abs().median().item()
    return gap / (torch.finfo(dtype).eps / 2 * careful.double().abs().median().item())


@pytest.mark.parametrize(("dtype", "magnitude"), HALVES)
def test_only_what_enters_a_product_is_rounded(dtype: torch.dtype, magnitude: float) -> None:
    # A sum that comes out in another order flips a rounding now and then, hence the median.
    layer = dataclasses.replace(LAYER, dtype=dtype, tokens=17, magnitude=magnitude)
    inputs = layer.inputs("context", "narrow", "x")
    out = leave(layer, inputs, layer.out_weights())
    assert share_of_rounding(out, careful_out(layer, inputs, layer.out_weights()), dtype) < 0.05
    narrow, qkv = enter(layer, inputs[2], layer.in_weights())
    careful, careful_qkv = careful_in(inputs[2], layer.in_weights())
    assert share_of_rounding(narrow, careful, dtype) < 0.01
    assert (qkv == careful_qkv).float().mean() > 0.95


@pytest.mark.parametrize(("dtype", "magnitude"), HALVES)
def test_eager_rounds_more_often(dtype: torch.dtype, magnitude: float) -> None:
    # What the test above measures is seen where products are rounded too.
    layer = dataclasses.replace(LAYER, dtype=dtype, tokens=17, magnitude=magnitude)
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    same = eager.mobilebert_out(*inputs, *weights, **layer.out_options)
    assert share_of_rounding(same, careful_out(layer, inputs, weights), dtype) > 0.1
    narrow, _ = eager.mobilebert_in(inputs[2], *layer.in_weights(), **layer.in_options)
    assert share_of_rounding(narrow, careful_in(inputs[2], layer.in_weights())[0], dtype) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norms_of_half_precision_against_a_tight_bound(dtype: torch.dtype) -> None:
    layer = dataclasses.replace(LAYER, dtype=dtype, tokens=33, norm="layer_norm", eps=1e-5, stream="narrow")
    inputs, weights = layer.inputs("context", "narrow", "x"), layer.out_weights()
    exact = eager.mobilebert_out(*in_fp64(inputs), *in_fp64(weights), **layer.out_options)
    same = eager.mobilebert_out(*inputs, *weights, **layer.out_options)
    error = (leave(layer, inputs, weights).double() - exact).square().mean().sqrt()
    assert error <= 1.1 * (same.double() - exact).square().mean().sqrt()
