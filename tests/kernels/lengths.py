"""Lengths of texts that kernels trip over, and packed queries, keys and values for them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["HOSTILE", "Packed", "around", "cumulated", "packed"]


def around(*sizes: int) -> tuple[int, ...]:
    """One less, as many, one more than each size."""
    return tuple(n + step for n in sizes for step in (-1, 0, 1))


HOSTILE: dict[str, tuple[int, ...]] = {
    "no text": (),
    "one empty text": (0,),
    "all empty": (0, 0, 0),
    "leading zeros": (0, 0, 5, 3),
    "inner zeros": (4, 0, 0, 7, 0, 2),
    "trailing zeros": (6, 3, 0, 0),
    "one token": (1,),
    "single tokens": (1, 1, 1, 1, 1),
    "around 16 and 32": around(16, 32),
    "around 64": around(64),
    "around 128": around(128),
    "around a window of 64": (*around(65), *around(129)),
    "one long among many short": (2, 1, 3, 1, 210, 1, 2, 4, 1, 3),
}


def cumulated(lengths: Sequence[int]) -> Tensor:
    """int32 `cu_seqlens`."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@dataclass(frozen=True)
class Packed:
    """Queries, keys and values of a batch of texts, `[tokens, heads, head_dim]` each, and where its texts begin."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths: tuple[int, ...]
    lengths_k: tuple[int, ...] | None = None

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The positional arguments of an attention over it."""
        return self.q, self.k, self.v, cumulated(self.lengths), max(self.lengths, default=0)

    @property
    def options(self) -> dict[str, Any]:
        """The named arguments where keys come from other texts."""
        if self.lengths_k is None:
            return {}
        return {"cu_seqlens_k": cumulated(self.lengths_k), "max_seqlen_k": max(self.lengths_k, default=0)}

    def to(self, dtype: torch.dtype) -> Packed:
        """The same values in another dtype."""
        return Packed(self.q.to(dtype), self.k.to(dtype), self.v.to(dtype), self.lengths, self.lengths_k)


def packed(
    lengths: Sequence[int],
    heads: int = 2,
    heads_k: int | None = None,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    magnitude: float = 1.0,
    *,
    lengths_k: Sequence[int] | None = None,
    fused: bool = False,
) -> Packed:
    """Normally distributed q, k (both times `magnitude`) and v; `fused`: strided views of one buffer, as models have.

    The buffer is `[tokens, (heads + 2 * heads_k) * head_dim]`, for cross-attention one for q and one for k and v.
    """
    heads_k = heads if heads_k is None else heads_k
    tokens, tokens_k = sum(lengths), sum(lengths if lengths_k is None else lengths_k)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, heads, head_dim), *[(tokens_k, heads_k, head_dim)] * 2)
    q, k, v = (
        (torch.randn(shape, generator=generator) * factor).to(dtype)
        for shape, factor in zip(shapes, (magnitude, magnitude, 1.0), strict=True)
    )
    if fused:
        q, k, v = _as_views((q, k, v)) if lengths_k is None else (*_as_views((q,)), *_as_views((k, v)))
    return Packed(q, k, v, tuple(lengths), None if lengths_k is None else tuple(lengths_k))


def _as_views(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same values as views of one contiguous `[tokens, channels]` buffer."""
    buffer = torch.cat([part.flatten(1) for part in parts], dim=1)
    widths = [part.shape[1] * part.shape[2] for part in parts]
    return tuple(
        view.unflatten(1, part.shape[1:]) for view, part in zip(buffer.split(widths, dim=1), parts, strict=True)
    )
