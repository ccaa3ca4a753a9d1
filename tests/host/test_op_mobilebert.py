"""MobileBERT's two halves of a layer: the eager ops against transformers' own modules, with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MobileBertConfig
from transformers.models.mobilebert.modeling_mobilebert import MobileBertLayer

from padless.engine.ops.mobilebert import NORMS, mobilebert_in, mobilebert_out


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden: int
    width: int
    inner: int
    heads: int
    networks: int


PUBLISHED = Shape(512, 128, 512, 4, 4)
TINY = Shape(26, 12, 21, 3, 2)
NAMES = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "tanh": "tanh"}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def layer_of(shape: Shape, norm: str, dtype: torch.dtype, *, activation: str = "relu", eps: float = 1e-3) -> Any:
    """transformers' layer with weights, biases and norms at random."""
    config = MobileBertConfig(
        hidden_size=shape.hidden,
        intra_bottleneck_size=shape.width,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_feedforward_networks=shape.networks,
        normalization_type=norm,
        hidden_act=NAMES[activation],
        layer_norm_eps=eps,
    )
    config._attn_implementation = "eager"
    assert config.true_hidden_size == shape.width
    layer = MobileBertLayer(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(shape.hidden)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = name.endswith("LayerNorm.weight")
            size = drawn.shape[1] ** -0.5 if drawn.ndim == 2 else 0.3
            parameter.copy_(size * drawn + scale)
    return layer


def of(*modules: Any) -> list[Tensor]:
    """Weight and bias of each."""
    return [part for module in modules for part in (module.weight, module.bias)]


def in_weights(layer: Any) -> list[Tensor]:
    narrow, shared, heads = layer.bottleneck.input, layer.bottleneck.attention, layer.attention.self
    qk = [torch.cat(parts) for parts in zip(of(heads.query), of(heads.key), strict=True)]
    return [*of(narrow.dense, narrow.LayerNorm, shared.dense, shared.LayerNorm), *qk, *of(heads.value)]


def out_weights(layer: Any) -> list[Tensor]:
    attended, last = layer.attention.output, layer.output
    earlier = layer.ffn if hasattr(layer, "ffn") else []
    networks = [
        *(of(one.intermediate.dense, one.output.dense, one.output.LayerNorm) for one in earlier),
        of(layer.intermediate.dense, last.dense, last.LayerNorm),
    ]
    stack = [torch.cat(parts) for parts in zip(*networks, strict=True)]
    out = of(last.bottleneck.dense, last.bottleneck.LayerNorm)
    return [*of(attended.dense, attended.LayerNorm), *stack, *out]


def rows(tokens: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def attended(qkv: Tensor, heads: int) -> Tensor:
    """The attention of one text, `[tokens, width]`."""
    q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in qkv.chunk(3, dim=1))
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
    return (scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [PUBLISHED, TINY])
def test_in_is_bottlenecks_and_projections(shape: Shape, norm: str, dtype: torch.dtype) -> None:
    layer, x = layer_of(shape, norm, dtype), rows(11, shape.hidden, dtype, 1)
    narrow, qkv = mobilebert_in(x, *in_weights(layer), norm=norm, eps=1e-3)
    query, key, value, residual = layer.bottleneck(x)
    heads = layer.attention.self
    close(narrow, residual)
    close(qkv, torch.cat([heads.query(query), heads.key(key), heads.value(value)], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [PUBLISHED, TINY])
def test_out_is_the_rest_of_the_layer(shape: Shape, norm: str, dtype: torch.dtype) -> None:
    layer = layer_of(shape, norm, dtype)
    context, narrow = (rows(11, shape.width, dtype, seed) for seed in (2, 3))
    x = rows(11, shape.hidden, dtype, 4)
    expected = layer.attention.output(context, narrow)
    for network in layer.ffn:
        expected = network(expected)
    expected = layer.output(layer.intermediate(expected), expected, x)
    out = mobilebert_out(context, narrow, x, *out_weights(layer), networks=shape.networks, norm=norm, eps=1e-3)
    close(out, expected)


def whole(layer: Any, shape: Shape, x: Tensor, **options: Any) -> Tensor:
    """A layer of both ops and an attention between them."""
    shared = {name: options[name] for name in ("norm", "eps")}
    narrow, qkv = mobilebert_in(x, *in_weights(layer), **shared)
    return mobilebert_out(
        attended(qkv, shape.heads), narrow, x, *out_weights(layer), networks=shape.networks, **options
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("networks", [1, 2, 3, 4])
def test_a_whole_layer(networks: int, norm: str, dtype: torch.dtype) -> None:
    shape = dataclasses.replace(TINY, networks=networks)
    layer, x = layer_of(shape, norm, dtype), rows(9, shape.hidden, dtype, 5)
    close(whole(layer, shape, x, norm=norm, eps=1e-3), layer(x[None])[0])


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_a_whole_layer_of_the_published_shape(norm: str) -> None:
    layer, x = layer_of(PUBLISHED, norm, torch.float32), rows(33, 512, torch.float32, 6)
    close(whole(layer, PUBLISHED, x, norm=norm, eps=1e-3), layer(x[None])[0])


@torch.no_grad()
@pytest.mark.parametrize("activation", NAMES)
def test_every_activation_of_a_layer(activation: str) -> None:
    layer, x = layer_of(TINY, "no_norm", torch.float64, activation=activation), rows(9, 26, torch.float64, 7)
    close(whole(layer, TINY, x, norm="no_norm", eps=1e-3, activation=activation), layer(x[None])[0])


@torch.no_grad()
@pytest.mark.parametrize("last_eps", [1e-5, 0.5])
@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_the_norm_behind_the_last_network_has_an_eps_of_its_own(eps: float, last_eps: float) -> None:
    # transformers leaves it at the default of `nn.LayerNorm`, whatever the configuration says.
    layer, x = layer_of(TINY, "layer_norm", torch.float64, eps=eps), rows(9, 26, torch.float64, 8)
    last: nn.LayerNorm = layer.output.LayerNorm
    assert last.eps == 1e-5
    close(whole(layer, TINY, x, norm="layer_norm", eps=eps), layer(x[None])[0])
    last.eps = last_eps
    close(whole(layer, TINY, x, norm="layer_norm", eps=eps, last_eps=last_eps), layer(x[None])[0])


HALVES = (torch.bfloat16, torch.float16)


def halves(dtype: torch.dtype, stream: torch.dtype, norm: str, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    layer = layer_of(TINY, norm, torch.float64)
    entering, leaving = ([part.to(dtype) for part in parts(layer)] for parts in (in_weights, out_weights))
    x = rows(tokens, 26, torch.float64, 9).to(stream)
    narrow, qkv = mobilebert_in(x, *entering, norm=norm, eps=1e-3)
    context = rows(tokens, 12, torch.float64, 10).to(dtype)
    out = mobilebert_out(context, narrow, x, *leaving, networks=2, norm=norm, eps=1e-3)
    return narrow, qkv, out


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_dtypes_of_half_precision(dtype: torch.dtype, wide: bool, norm: str) -> None:
    narrow, qkv, out = halves(dtype, torch.float32 if wide else dtype, norm)
    stream = torch.float32 if norm == "no_norm" else dtype
    assert (narrow.dtype, qkv.dtype, out.dtype) == (stream, dtype, stream)
    exact = halves(torch.float64, torch.float64, norm)
    for got, expected in zip((narrow, qkv, out), exact, strict=True):
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert error < 8 * torch.finfo(dtype).eps


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_no_tokens(norm: str) -> None:
    narrow, qkv, out = halves(torch.float32, torch.float32, norm, tokens=0)
    assert (narrow.shape, qkv.shape, out.shape) == ((0, 12), (0, 36), (0, 26))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_stream_of_1e7_keeps_its_digits(dtype: torch.dtype) -> None:
    layer = layer_of(TINY, "no_norm", torch.float64)
    leaving = [part.to(dtype) for part in out_weights(layer)]
    x = rows(5, 26, torch.float64, 9).float()
    x[:, 3] = 1e7 + torch.arange(5)
    context, narrow = rows(5, 12, torch.float64, 10).to(dtype), rows(5, 12, torch.float64, 11).float()

    def out(to: Callable[[Tensor], Tensor]) -> Tensor:
        return mobilebert_out(to(context), to(narrow), to(x), *map(to, leaving), networks=2)

    got, exact = out(lambda part: part), out(Tensor.double)
    assert got.isfinite().all()
    assert (got[:, 3] / exact[:, 3] - 1).abs().max() < 2e-7


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_the_eager_ops(norm: str) -> None:
    shape = Shape(6, 4, 5, 2, 2)
    layer = layer_of(shape, norm, torch.float64)
    x, context, narrow = (rows(3, width, torch.float64, width).requires_grad_() for width in (6, 4, 4))

    def chain(x: Tensor, context: Tensor, narrow: Tensor) -> tuple[Tensor, ...]:
        out = mobilebert_out(context, narrow, x, *out_weights(layer), networks=2, activation="tanh", norm=norm, eps=0.1)
        return *mobilebert_in(x, *in_weights(layer), norm=norm, eps=0.1), out

    assert torch.autograd.gradcheck(chain, (x, context, narrow))
