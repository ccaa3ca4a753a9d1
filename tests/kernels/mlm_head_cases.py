"""What the tests of the predicting head's kernel share: operands by number, a call as a bound op makes it, the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from operands import laid_out
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.ops.mlm_head import Predictions
from padless.engine.ops.mlm_head import mlm_head as eager
from padless.kernels import mlm_head as kernels
from padless.kernels.launch import Config

__all__ = ["Head", "Weights", "assert_right", "cut_in", "in_order", "predict", "prepared", "ranked"]

Weights = tuple[Tensor | None, ...]
"""The seven weights in the op's order."""


@dataclass(frozen=True)
class Head:
    """A head's sizes and parts, and how its operands lie in memory.

    Attributes:
        own: channels that the decoder does not take: `hidden - width`.
        parts: which of the biases are there: "all", "none", "decoder", "no decoder".
        layout: of the rows.
        weights: layout of the weights.
        magnitude: of the rows.
        spread: standard deviation of the logits, about.
        cut: into how many parts the vocabulary is cut, in tiles of 32 tokens, so that some parts have several, as a
            real vocabulary's have; 0 for the shipped tiling.
    """

    dtype: torch.dtype
    rows: int = 5
    hidden: int = 34
    own: int = 0
    vocab: int = 65
    top_k: int | None = 5
    parts: str = "all"
    epilogue: str = "gelu"
    eps: float = 1e-12
    layout: str = "dense"
    weights: str = "dense"
    magnitude: float = 1.0
    spread: float = 1.0
    cut: int = 0
    draw: int = 0

    @property
    def options(self) -> dict[str, Any]:
        tiling = {"config": cut_in(self.cut)} if self.cut else {}
        return {"epilogue": self.epilogue, "eps": self.eps, "top_k": self.top_k, **tiling}

    @property
    def highest(self) -> int:
        """How many logits of a row come back."""
        return self.vocab if self.top_k is None else min(self.top_k, self.vocab)

    def operands(self) -> tuple[Tensor, Weights]:
        """The rows and the weights."""
        generator = torch.Generator().manual_seed(self.draw)

        def drawn(*shape: int, size: float, around: float = 0.0) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * size + around
            return values.to(self.dtype)

        hidden, own, vocab = self.hidden, self.own, self.vocab
        rows = laid_out(drawn(self.rows, hidden, size=self.magnitude), self.layout)
        dense, decoder = drawn(hidden, hidden, size=hidden**-0.5), drawn(vocab, hidden - own, size=hidden**-0.5)
        own_weight = laid_out(drawn(own, vocab, size=hidden**-0.5) * self.spread, self.weights) if own else None
        dense_bias, norm_weight, norm_bias = (drawn(hidden, size=0.3, around=float(i == 1)) for i in range(3))
        decoder_bias = drawn(vocab, size=0.3) * self.spread
        return rows, (
            laid_out(dense, self.weights),
            dense_bias if self.parts in ("all", "no decoder") else None,
            norm_weight,
            norm_bias if self.parts in ("all", "no decoder") else None,
            laid_out(decoder * self.spread, self.weights),
            decoder_bias if self.parts in ("all", "decoder") else None,
            own_weight,
        )


def cut_in(parts: int) -> Config:
    """A tiling that cuts the vocabulary into that many parts at most."""
    return Config.of(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, PARTS=parts)


def prepared(weights: Weights, epilogue: str = "gelu") -> tuple[Any, ...]:
    """The weights as a bound op hands them to the kernel."""
    prepare = getattr(kernels, "prepare", None)
    if prepare is None:
        return weights
    dense = weights[0]
    assert dense is not None
    facts: dict[str, Any] = {"hidden": dense.shape[0], "inner": dense.shape[1], "epilogue": epilogue}
    return prepare(*weights, call=Call("mlm_head", device="cpu", dtype=dense.dtype, **facts))


def predict(rows: Tensor, weights: Weights, **options: Any) -> Any:
    """The kernel's logits or predictions."""
    return kernels.mlm_head(rows, *prepared(weights, options.get("epilogue", "gelu")), **options)


def ranked(rows: Tensor, weights: Weights, *, top_k: int, **options: Any) -> Predictions:
    """The kernel's predictions, whose order and kind are looked at."""
    values, ids, lse = predict(rows, weights, top_k=top_k, **options)
    decoder = weights[4]
    assert decoder is not None
    assert values.shape == ids.shape == (len(rows), min(top_k, len(decoder)))
    assert lse.shape == (len(rows),)
    assert (values.dtype, ids.dtype, lse.dtype) == (torch.float32, torch.int64, torch.float32)
    in_order(values, ids, len(decoder))
    return values, ids, lse


def in_order(values: Tensor, ids: Tensor, vocab: int) -> None:
    """Values fall, of equal ones ids rise, each id comes once and is one of the vocabulary."""
    assert (values[:, 1:] <= values[:, :-1]).all()
    assert ((values[:, 1:] < values[:, :-1]) | (ids[:, 1:] > ids[:, :-1])).all()
    assert ((ids >= 0) & (ids < vocab)).all()
    assert all(row.unique().numel() == row.numel() for row in ids)


def assert_right(head: Head, rows: Tensor, weights: Weights, **options: Any) -> Any:
    """Run the kernel; every number it returns obeys the rule, whatever ids half precision lets win.

    Returns:
        What the kernel returned.
    """
    wide = tuple(None if weight is None else weight.double() for weight in weights)
    every = {"epilogue": head.epilogue, "eps": head.eps}
    same = eager(rows, *weights, **every)  # pyright: ignore[reportArgumentType]
    exact = eager(rows.double(), *wide, **every)  # pyright: ignore[reportArgumentType]
    assert isinstance(same, Tensor)
    assert isinstance(exact, Tensor)
    if head.top_k is None:
        got = predict(rows, weights, **{**head.options, **options})
        _assert_rule(got, same, exact, head.dtype, "logits")
        return got
    values, ids, lse = ranked(rows, weights, **{**head.options, **options})
    k = values.shape[1]
    same = same.float()
    finite = exact[exact.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    _assert_rule(values, same.gather(1, ids), exact.gather(1, ids), head.dtype, "logits of the ids", largest)
    highest, true = (x.sort(dim=1, descending=True).values[:, :k] for x in (same, exact))
    _assert_rule(values, highest, true, head.dtype, "highest logits", largest)
    _assert_rule(lse, same.logsumexp(1), exact.logsumexp(1), head.dtype, "log-sum-exp", largest)
    return values, ids, lse


def _assert_rule(
    got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, what: str, largest: float | None = None
) -> None:
    """The 2x rule; its one rounding is that of what enters the products, in fp32 four: sums in one order and another.

    Args:
        got: what the kernel computed.
        same: what eager did, on the same inputs.
        exact: what eager did in fp64.
        dtype: of the weights.
        what: the name of the result.
        largest: of all logits, where only some are looked at.
    """
    finite = exact[exact.isfinite()].abs()
    largest = largest if largest is not None else finite.max().item() if finite.numel() else 0.0
    roundings = 4 if dtype == torch.float32 else 1
    size = roundings * largest * torch.finfo(dtype).eps / torch.finfo(got.dtype).eps
    assert not math.isnan(size)
    assert_two_times_rule(got, same, exact, what, size=size)
