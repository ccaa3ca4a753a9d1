"""Are a system's vectors those of the model: held against padless' eager form in fp32.

Two measures for each text that is looked at. The cosine between the two vectors; and, since the mean over many tokens
is much the same for any text of some models, the cosine between what is left of them when the mean over the texts is
taken away. The second could not pass with the vectors of other texts, and the check sees to that by itself: it fails
where two texts are as like each other as a vector has to be like itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LEAST_APART", "Likeness", "compare", "tells_apart"]

LEAST_APART = 0.98
"""Least cosine of the second kind: without the mean, rounding is a larger part of what is left."""


@dataclass(frozen=True)
class Likeness:
    """The worst text's.

    Attributes:
        cosine: between the vectors.
        apart: the same without the mean over the texts.
    """

    cosine: float
    apart: float

    def wrong(self, least: float) -> str | None:
        """Why the vectors are not those of the reference, or None."""
        # NaN is not above anything.
        if not self.cosine >= least:
            return f"wrong vectors: cosine {self.cosine:.6f}, at least {least} expected"
        if not self.apart >= LEAST_APART:
            return f"wrong vectors: cosine {self.apart:.4f} without the texts' mean, at least {LEAST_APART} expected"
        return None


def compare(got: Tensor, reference: Tensor) -> Likeness:
    """The worst likeness of `[texts, hidden]`, two texts or more, each to its own reference."""
    if got.shape != reference.shape:
        return Likeness(float("nan"), float("nan"))
    mine, theirs = got.double(), reference.double()
    center = theirs.mean(0)
    cosine = F.cosine_similarity(mine, theirs, dim=1).min()
    apart = F.cosine_similarity(mine - center, theirs - center, dim=1).min()
    return Likeness(float(cosine), float(apart))


def tells_apart(reference: Tensor) -> str | None:
    """Why this reference could not tell its texts apart, or None."""
    left = F.normalize(reference.double() - reference.double().mean(0), dim=1)
    like = left @ left.T - 2 * torch.eye(len(left), dtype=left.dtype)
    highest = float(like.max())
    return None if highest < LEAST_APART else f"blind check: two texts are alike, cosine {highest:.4f}"
