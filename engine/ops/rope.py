"""Rotary position embedding of packed queries and keys. The specification, the oracle and the last row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["rope", "rotated"]


def rope(q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each pair of channels by the angle of its token's position (RoFormer, Su et al. 2021, section 3.4.2).

    Channel `j` of a head's first half is paired with channel `j` of its second half:
    `first * cos - second * sin` and `second * cos + first * sin`.

    Args:
        q: `[tokens, heads, head_dim]`, any floating dtype, `head_dim` even; may be strided.
        k: `[tokens, heads_k, head_dim]`.
        rows: int64 `[tokens]`, each token's row of the tables: its position, or where that lies in stacked tables.
        cos: fp32 `[table rows, head_dim / 2]`, cosine of the angles times the attention scaling.
        sin: the same for the sine.

    Returns:
        The turned q and k in their shapes and dtypes; computed in fp32, in fp64 for fp64 inputs.
    """
    return rotated(q, rows, cos, sin), rotated(k, rows, cos, sin)


def rotated(x: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope` of one tensor, `[tokens, heads, head_dim]`."""
    cosine, sine = F.embedding(rows, cos)[:, None], F.embedding(rows, sin)[:, None]
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)
