"""What part `fused` of the GPU report computes: inputs, the kernel's call, eager's, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...engine.contract import Call
from ...engine.ops import linear as eager_linear
from ...engine.ops import mlm_head as eager_head
from ...engine.ops import mobilebert as eager_mobilebert
from ...engine.ops import norm as eager_norm
from ...engine.ops import norm_linear as eager_norm_linear
from .case import Context

__all__ = [
    "ALL",
    "Make",
    "Problem",
    "Results",
    "head",
    "linear",
    "mobilebert_in",
    "mobilebert_out",
    "norm",
    "norm_linear",
]

Results = tuple[Tensor, ...]

ALL = slice(None)
"""Every row."""


@dataclass(frozen=True)
class Problem:
    """One call of one op.

    Attributes:
        tokens: rows that it is about.
        rows: the kernel on some of them, with a configuration or with that of its own choice.
        eager: the op by op form, in the dtype of the weights or in the given one, on all rows or on some.
        product: the matrix product alone, of an op that is one.
        flops: of the products, two a multiplication; None for what memory bounds.
        bytes: read and written once each.
    """

    tokens: int
    rows: Callable[..., Results]
    eager: Callable[..., Results]
    product: Callable[[], Tensor] | None
    flops: float | None
    bytes: float

    def ours(self) -> Results:
        """The kernel on all rows."""
        return self.rows(ALL)


Make = Callable[[Context, torch.dtype, int], Problem]


class _Draw:
    """Seeded tensors: rows as from a norm, weights that keep their size."""

    def __init__(self, context: Context, dtype: torch.dtype) -> None:
        self._generator = torch.Generator(context.device).manual_seed(11)
        self._device, self._dtype = context.device, dtype

    def rows(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self._device)
        return (drawn * scale).to(self._dtype)

    def weight(self, out_features: int, in_features: int) -> Tensor:
        return self.rows(out_features, in_features, scale=in_features**-0.5)


def _several(result: Tensor | Sequence[Tensor]) -> Results:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _cast(dtype: torch.dtype | None) -> Callable[[Any], Any]:
    return lambda x: x if dtype is None or x is None or not x.is_floating_point() else x.to(dtype)


def _turning(draw: _Draw, tokens: int, head_dim: int) -> tuple[Tensor, ...]:
    """Each token's row of the tables, cosines and sines."""
    angles = draw.rows(512, head_dim // 2).float()
    return torch.arange(tokens, device=angles.device) % 512, angles.cos(), angles.sin()


def linear(
    in_features: int, out_features: int, *, epilogue: str = "none", gated: bool = False, bias: bool = False,
    residual: bool = False, head_dim: int | None = None,
) -> Make:  # fmt: skip
    """A product, and what follows it; `head_dim` turns the first two thirds of its outputs."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import linear as kernels

        draw = _Draw(context, dtype)
        x, weight = draw.rows(tokens, in_features), draw.weight(out_features, in_features)
        added = draw.rows(out_features) if bias else None
        width = out_features // 2 if gated else out_features
        stream = draw.rows(tokens, width) if residual else None
        options: dict[str, Any] = {"epilogue": epilogue, "gated": gated}
        tables = _turning(draw, tokens, head_dim) if head_dim else ()
        if head_dim:
            options["turned"] = 2 * head_dim * (out_features // head_dim // 3)
        facts: dict[str, Any] = {"hidden": out_features, "inner": in_features, "epilogue": epilogue, "gated": gated}
        call = Call("linear", context.device.type, dtype, residual=residual, rope=bool(tables), head_dim=head_dim,
                    **facts)  # fmt: skip
        ours, ours_added = kernels.prepare(weight, added, call=call)

        def given(at: slice, to: Callable[[Any], Any]) -> dict[str, Any]:
            turn: dict[str, Any] = {"rope": (tables[0][at], *tables[1:])} if tables else {}
            return turn if stream is None else {**turn, "residual": to(stream[at])}

        def rows(at: slice, config: Any = None) -> Results:
            return (kernels.linear(x[at], ours, ours_added, **options, **given(at, _cast(None)), config=config),)

        def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
            to = _cast(wanted)
            return (eager_linear.linear(to(x[at]), to(weight), to(added), **options, **given(at, to)),)

        elements = tokens * in_features + weight.numel() + tokens * width * (2 if residual else 1)
        flops = 2.0 * tokens * in_features * out_features
        return Problem(tokens, rows, eager, lambda: F.linear(x, weight), flops, elements * x.element_size())

    return make


def norm_linear(
    in_features: int, out_features: int, *, norm: str, epilogue: str = "none", gated: bool = False,
    head_dim: int | None = None,
) -> Make:  # fmt: skip
    """A norm folded into the product behind it, of rows whose statistics another product left with them."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import linear as writers
        from ...kernels import norm_linear as kernels

        draw = _Draw(context, dtype)
        scale = 1 + draw.rows(in_features, scale=0.3)
        shift = draw.rows(in_features, scale=0.3) if norm == "layer_norm" else None
        weight, added = draw.weight(out_features, in_features), None
        written, before = draw.rows(tokens, in_features), draw.rows(tokens, 64)
        x, statistics = writers.linear(before, draw.weight(in_features, 64), None, residual=written, statistics=True)
        facts: dict[str, Any] = {"hidden": out_features, "inner": in_features, "epilogue": epilogue, "gated": gated}
        call = Call(
            "norm_linear", context.device.type, dtype, norm=norm, rope=bool(head_dim), head_dim=head_dim, **facts
        )
        ours = kernels.prepare(scale, shift, weight, added, call=call)
        options: dict[str, Any] = {"norm": norm, "eps": 1e-6, "epilogue": epilogue, "gated": gated}
        tables = _turning(draw, tokens, head_dim) if head_dim else ()
        if head_dim:
            options["turned"] = 2 * head_dim * (out_features // head_dim // 3)

        def given(at: slice) -> dict[str, Any]:
            return options | ({"rope": (tables[0][at], *tables[1:])} if tables else {})

        def rows(at: slice, config: Any = None) -> Results:
            return (kernels.norm_linear(x[at], *ours, statistics=statistics[at], config=config, **given(at)),)

        def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
            weights = map(_cast(wanted), (x[at], scale, shift, weight, added))
            return (eager_norm_linear.norm_linear(*weights, **given(at)),)

        width = out_features // 2 if gated else out_features
        moved = (tokens * (in_features + width) + weight.numel()) * x.element_size() + 4 * statistics.numel()
        flops = 2.0 * tokens * in_features * out_features
        return Problem(tokens, rows, eager, lambda: F.linear(x, weight), flops, moved)

    return make


def norm(hidden: int, kind: str) -> Make:
    """A norm of a sum: "layer" and "rms" give the sum as well, "none" is MobileBERT's."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import norm as kernels

        draw = _Draw(context, dtype)
        x, stream, weight, bias = draw.rows(tokens, hidden), draw.rows(tokens, hidden), draw.rows(hidden), None
        bias = None if kind == "rms" else draw.rows(hidden)

        def call(module: Any, at: slice, to: Callable[[Any], Any], **options: Any) -> Results:
            given = to(x[at]), to(weight), to(bias)
            options |= {"residual": to(stream[at])}
            if kind == "layer":
                return _several(module.layer_norm(*given, eps=1e-5, **options))
            if kind == "rms":
                return _several(module.rms_norm(*given[:2], eps=1e-6, **options))
            return _several(module.no_norm(*given, **options))

        moved = (3 if kind == "none" else 4) * x.numel() * x.element_size()
        return Problem(
            tokens,
            lambda at, config=None: call(kernels, at, _cast(None), config=config),
            lambda wanted, at=ALL: call(eager_norm, at, _cast(wanted)),
            None,
            None,
            moved,
        )

    return make


def _prepared(module: Any, weights: tuple[Tensor, ...], call: Call) -> tuple[Tensor, ...]:
    prepare = getattr(module, "prepare", None)
    return weights if prepare is None else prepare(*weights, call=call)


def mobilebert_in(hidden: int, width: int) -> Make:
    """MobileBERT's layer in front of its attention."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import mobilebert as kernels

        draw = _Draw(context, dtype)
        x = draw.rows(tokens, hidden).to(torch.promote_types(dtype, torch.float32))
        bottleneck = [part for _ in range(2) for part in
                      (draw.weight(width, hidden), draw.rows(width), draw.rows(width), draw.rows(width))]  # fmt: skip
        projections = (draw.weight(2 * width, width), draw.rows(2 * width), draw.weight(width, hidden))
        weights = (*bottleneck, *projections, draw.rows(width))
        call = Call("mobilebert_in", context.device.type, dtype, hidden=hidden, inner=width)
        ours = _prepared(kernels, weights, call)

        def rows(at: slice, config: Any = None) -> Results:
            return _several(kernels.mobilebert_in(x[at], *ours, config=config))

        def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
            to = _cast(wanted)
            return _several(eager_mobilebert.mobilebert_in(to(x[at]), *map(to, weights)))

        flops = 2.0 * tokens * (3 * hidden * width + 2 * width * width)
        moved = x.numel() * 4 + tokens * width * (4 + 3 * weights[0].element_size())
        return Problem(tokens, rows, eager, None, flops, moved)

    return make


def mobilebert_out(hidden: int, width: int, inner: int, networks: int) -> Make:
    """MobileBERT's layer behind its attention."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import mobilebert as kernels

        draw = _Draw(context, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        context_rows, narrow, x = (draw.rows(tokens, size) for size in (width, width, hidden))
        given = (context_rows, narrow.to(wide), x.to(wide))
        weights = (
            draw.weight(width, width), *(draw.rows(width) for _ in range(3)),
            draw.weight(networks * inner, width), draw.rows(networks * inner),
            draw.weight(networks * width, inner), *(draw.rows(networks * width) for _ in range(3)),
            draw.weight(hidden, width), *(draw.rows(hidden) for _ in range(3)),
        )  # fmt: skip
        call = Call("mobilebert_out", context.device.type, dtype, hidden=hidden, inner=width)
        ours = _prepared(kernels, weights, call)

        def rows(at: slice, config: Any = None) -> Results:
            some = (part[at] for part in given)
            return _several(kernels.mobilebert_out(*some, *ours, networks=networks, config=config))

        def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
            to = _cast(wanted)
            everything = (*(to(part[at]) for part in given), *map(to, weights))
            return _several(eager_mobilebert.mobilebert_out(*everything, networks=networks))

        flops = 2.0 * tokens * (width * width + 2 * networks * inner * width + width * hidden)
        moved = tokens * (width * (weights[0].element_size() + 4) + 8 * hidden)
        return Problem(tokens, rows, eager, None, flops, moved)

    return make


def head(hidden: int, vocabulary: int, count: int) -> Make:
    """The highest logits of a masked language model; eager writes them all."""

    def make(context: Context, dtype: torch.dtype, tokens: int) -> Problem:
        from ...kernels import mlm_head as kernels

        draw = _Draw(context, dtype)
        x = draw.rows(tokens, hidden)
        weights = (draw.weight(hidden, hidden), draw.rows(hidden), draw.rows(hidden), draw.rows(hidden),
                   draw.weight(vocabulary, hidden), draw.rows(vocabulary))  # fmt: skip

        def rows(at: slice, config: Any = None) -> Results:
            return _several(kernels.mlm_head(x[at], *weights, top_k=count, config=config))

        def eager(wanted: torch.dtype | None, at: slice = ALL) -> Results:
            to = _cast(wanted)
            return _several(eager_head.mlm_head(to(x[at]), *map(to, weights), top_k=count))

        flops = 2.0 * tokens * hidden * (hidden + vocabulary)
        moved = math.fsum(part.numel() for part in (x, *weights)) * x.element_size()
        return Problem(tokens, rows, eager, lambda: F.linear(x, weights[4]), flops, moved)

    return make
