"""How far two results are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

ABSOLUTE = 1e-5
"""fp32: of the largest value of an output, or of 1 where that is less."""

RATIO = 1e-4
"""fp32, MobileBERT, whose values span eight orders of magnitude: of the largest value of each token or text."""

LOSS = 1e-6
"""fp32: of the loss."""

COSINE = 0.999
"""bf16: of every token or text with transformers' fp32, where transformers' own bf16 reaches it."""

NARROW = 8
"""An output of fewer channels is one vector as a whole: the cosine of two or three values means little."""


def difference(actual: Tensor, expected: Tensor, family: str) -> tuple[float, float]:
    """(largest difference, its bound) of one output; of MobileBERT as a ratio."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not expected.numel():
        return 0.0, 0.0
    gap, size = (actual.double() - expected.double()).abs(), expected.double().abs()
    if not bool(torch.isfinite(gap).all()):
        return float("inf"), 0.0
    if family == "mobilebert":
        return (as_rows(gap).amax(1) / as_rows(size).amax(1).clamp(min=1e-30)).max().item(), RATIO
    return gap.max().item(), ABSOLUTE * max(1.0, size.max().item())


def worst(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], family: str) -> tuple[float, float, str]:
    """(difference, bound, name) of the output that is nearest to its bound or furthest beyond."""
    assert list(actual) == list(expected), (list(actual), list(expected))
    rows = [(*difference(actual[name], expected[name], family), name) for name in expected]
    return max(rows, key=lambda row: row[0] / row[1] if row[1] else row[0])


def lowest_cosine(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The lowest cosine of any token or text in any output."""
    assert list(actual) == list(expected), (list(actual), list(expected))
    found = [
        F.cosine_similarity(as_rows(actual[name].double()), as_rows(expected[name].double()), dim=1).min().item()
        for name in expected
    ]
    return min(found)


def as_rows(x: Tensor) -> Tensor:
    """`[rows, channels]`: one row a token or text, or one for all where there are few channels."""
    return x.reshape(-1, x.shape[-1]) if x.dim() > 1 and x.shape[-1] >= NARROW else x.reshape(1, -1)


def relative(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| of expected, both one value."""
    return ((actual.double() - expected.double()).abs() / expected.double().abs()).item()
