"""What the tests of MobileBERT's two kernels share: operands by number, calls as a bound op makes them, the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from operands import laid_out
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.ops import mobilebert as eager
from padless.kernels import mobilebert as kernels

__all__ = ["Layer", "assert_in", "assert_out", "assert_rule", "enter", "in_fp64", "leave", "prepared"]


@dataclass(frozen=True)
class Layer:
    """A layer's sizes and kind, and how its operands lie in memory.

    Attributes:
        stream: "wide": the residual stream is fp32; "narrow": it has the weights' dtype; "mixed": `narrow` is fp32 and
            x is not, as behind an embedding in half precision.
        rows: layout of x, `narrow` and the context.
        weights: layout of the weights.
        magnitude: of x, `narrow` and the context.
    """

    dtype: torch.dtype
    stream: str = "wide"
    tokens: int = 5
    width: int = 24
    hidden: int = 40
    inner: int = 33
    networks: int = 2
    activation: str = "relu"
    norm: str = "no_norm"
    eps: float = 1e-12
    last_eps: float = 1e-5
    rows: str = "dense"
    weights: str = "dense"
    magnitude: float = 1.0
    draw: int = 0

    @property
    def x_dtype(self) -> torch.dtype:
        return torch.float32 if self.stream == "wide" else self.dtype

    @property
    def narrow_dtype(self) -> torch.dtype:
        return self.dtype if self.stream == "narrow" else torch.float32

    @property
    def in_options(self) -> dict[str, Any]:
        return {"norm": self.norm, "eps": self.eps}

    @property
    def out_options(self) -> dict[str, Any]:
        networks = {"networks": self.networks, "activation": self.activation, "last_eps": self.last_eps}
        return {**self.in_options, **networks}

    def inputs(self, *names: str) -> tuple[Tensor, ...]:
        """The rows of these names, of "x", "narrow" and "context"."""
        kinds = {
            "x": (self.hidden, self.x_dtype),
            "narrow": (self.width, self.narrow_dtype),
            "context": (self.width, self.dtype),
        }
        generator = torch.Generator().manual_seed(self.draw)
        found = []
        for name in names:
            width, dtype = kinds[name]
            rows = torch.randn((self.tokens, width), generator=generator, dtype=torch.float64) * self.magnitude
            found.append(laid_out(rows.to(dtype), self.rows))
        return tuple(found)

    def in_weights(self) -> tuple[Tensor, ...]:
        """The twelve weights of `mobilebert_in`, in its order."""
        shapes = [
            *_dense(self.width, self.hidden), *_scale_and_shift(self.width),
            *_dense(self.width, self.hidden), *_scale_and_shift(self.width),
            *_dense(2 * self.width, self.width), *_dense(self.width, self.hidden),
        ]  # fmt: skip
        return self._drawn(shapes, (2, 6))

    def out_weights(self) -> tuple[Tensor, ...]:
        """The fourteen weights of `mobilebert_out`, in its order."""
        stacked = self.networks * self.width
        shapes = [
            *_dense(self.width, self.width), *_scale_and_shift(self.width),
            *_dense(self.networks * self.inner, self.width),
            *_dense(stacked, self.inner), *_scale_and_shift(stacked),
            *_dense(self.hidden, self.width), *_scale_and_shift(self.hidden),
        ]  # fmt: skip
        return self._drawn(shapes, (2, 8, 12))

    def _drawn(self, shapes: Sequence[tuple[int, ...]], scales: Sequence[int]) -> tuple[Tensor, ...]:
        """Weights that keep magnitudes; those at the indices `scales` lie around 1."""
        generator = torch.Generator().manual_seed(self.draw + 1)
        found = []
        for index, shape in enumerate(shapes):
            size = 1 / math.sqrt(shape[1]) if len(shape) == 2 else 0.3
            weight = torch.randn(shape, generator=generator, dtype=torch.float64) * size + (index in scales)
            found.append(_in_memory(weight.to(self.dtype), self.weights))
        return tuple(found)


def _dense(outputs: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (outputs, inputs), (outputs,)


def _scale_and_shift(width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (width,), (width,)


def _in_memory(weight: Tensor, layout: str) -> Tensor:
    if weight.ndim == 2:
        return laid_out(weight, layout)
    return weight if layout == "dense" else laid_out(weight[:, None], "columns")[:, 0]


def prepared(op: str, weights: tuple[Tensor, ...], layer: Layer) -> tuple[Any, ...]:
    """The weights as a bound op hands them to the kernel."""
    prepare = getattr(kernels, "prepare", None)
    if prepare is None:
        return weights
    facts: dict[str, Any] = {"hidden": layer.hidden, "inner": layer.width}
    if op == "mobilebert_out":
        facts["epilogue"] = layer.activation
    return prepare(*weights, call=Call(op, device="cpu", dtype=layer.dtype, **facts))


def enter(layer: Layer, x: Tensor, weights: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, Tensor]:
    """`mobilebert_in`'s kernel."""
    return kernels.mobilebert_in(x, *prepared("mobilebert_in", weights, layer), **{**layer.in_options, **options})


def leave(layer: Layer, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], **options: Any) -> Tensor:
    """`mobilebert_out`'s kernel; inputs are context, `narrow` and x."""
    ready = prepared("mobilebert_out", weights, layer)
    return kernels.mobilebert_out(*inputs, *ready, **{**layer.out_options, **options})


def in_fp64(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in tensors)


def assert_rule(got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, what: str) -> None:
    """The 2x rule, whose one rounding is that of what enters the products: a result in fp32 is made of rounded factors.

    In fp32 it is four roundings: sums of a few dozen numbers, in one order and another, a handful of them in a row.
    Where the result is but a few numbers, eager's own error may be next to nothing by luck.
    """
    finite = exact[exact.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    roundings = 4 if dtype == torch.float32 else 1
    size = roundings * largest * torch.finfo(dtype).eps / torch.finfo(got.dtype).eps
    assert_two_times_rule(got, same, exact, what, size=size)


def assert_in(layer: Layer, x: Tensor, weights: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, Tensor]:
    """Run `mobilebert_in`'s kernel; each of its results, and of qkv each third, obeys the rule."""
    narrow, qkv = enter(layer, x, weights, **options)
    same = eager.mobilebert_in(x, *weights, **layer.in_options)
    exact = eager.mobilebert_in(x.double(), *in_fp64(weights), **layer.in_options)
    assert_rule(narrow, same[0], exact[0], layer.dtype, "narrow")
    assert qkv.shape == exact[1].shape
    if qkv.numel():
        for what, *parts in zip("qkv", *(part.chunk(3, dim=1) for part in (qkv, same[1], exact[1])), strict=True):
            assert_rule(parts[0], parts[1], parts[2], layer.dtype, what)
    return narrow, qkv


def assert_out(layer: Layer, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], **options: Any) -> Tensor:
    """Run `mobilebert_out`'s kernel; its result obeys the rule."""
    got = leave(layer, inputs, weights, **options)
    same = eager.mobilebert_out(*inputs, *weights, **layer.out_options)
    exact = eager.mobilebert_out(*in_fp64(inputs), *in_fp64(weights), **layer.out_options)
    assert_rule(got, same, exact, layer.dtype, "out")
    return got
