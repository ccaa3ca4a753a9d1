"""From token rows to one row a text. The specification, the oracle and the last row.

Modes and their edge cases are those of sentence-transformers' Pooling module, the format the folders come in.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

__all__ = ["MODES", "pool"]

MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@overload
def pool(
    hidden: Tensor, cu_seqlens: Tensor, *, mode: str, skip: int = 0, normalize: bool = False,
    return_finite: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def pool(
    hidden: Tensor, cu_seqlens: Tensor, *, mode: str, skip: int = 0, normalize: bool = False,
    return_finite: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: str,
    skip: int = 0,
    normalize: bool = False,
    return_finite: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Reduce each text's token rows to one vector, in fp32 (fp64 for fp64 input).

    Args:
        hidden: `[tokens, hidden]`, any floating dtype.
        cu_seqlens: int32 `[texts + 1]`; a text may have no token: then its row is zeros, and -inf for "max".
        mode: "cls" the first token; "lasttoken" the last; "max" by channel; "mean"; "mean_sqrt_len_tokens", the sum
            over the square root of the count; "weightedmean", weights 1, 2, 3 … by position (SGPT, Muennighoff 2022,
            section 3.2.1).
        skip: tokens left out at the start of each text (a prompt that does not count); positions keep their weight.
        normalize: divide each vector by its L2 norm, or by 1e-12 where that is larger: a zero vector stays zero.
        return_finite: tell as well which vectors can be used.

    Returns:
        `[texts, hidden]`, fp32 or fp64. Where `skip` leaves no token: zeros for the means, -inf for "max", the first
        token for "cls", the last token for "lasttoken". With `return_finite` a pair: the vectors, and bool `[texts]`,
        true where every channel was finite before it was normalised.

    Raises:
        InputError: no such mode, or `skip` below 0.
    """
    if mode not in MODES:
        raise InputError(f"pool: mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if skip < 0:
        raise InputError(f"pool: skip: expected an integer from 0 on, got {skip}")
    vectors = _reduced(hidden, cu_seqlens, mode, skip)
    unit = F.normalize(vectors, dim=-1) if normalize else vectors
    return (unit, vectors.isfinite().all(dim=-1)) if return_finite else unit


def _reduced(hidden: Tensor, cu_seqlens: Tensor, mode: str, skip: int) -> Tensor:
    starts, stops = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    firsts = starts + skip
    if mode in ("cls", "lasttoken"):
        chosen = stops - 1 if mode == "lasttoken" else torch.where(firsts < stops, firsts, starts)
        if not len(hidden):
            return hidden.new_zeros(len(starts), hidden.shape[1], dtype=accumulate)
        # Of an empty text a row is read that is there, and not taken.
        rows = hidden[chosen.clamp(0, len(hidden) - 1)].to(accumulate)
        return rows.masked_fill((starts == stops)[:, None], 0.0)
    counts = (stops - firsts).clamp(min=0)
    texts = torch.arange(len(counts), device=hidden.device)
    owner = texts.repeat_interleave(stops - starts)
    within = torch.arange(len(hidden), device=hidden.device) - starts[owner]
    if skip:
        hidden, owner, within = (values[within >= skip] for values in (hidden, owner, within))
    rows = hidden.to(accumulate)
    if mode == "max":
        lowest = rows.new_full((len(counts), rows.shape[1]), -torch.inf)
        return lowest.scatter_reduce_(0, owner[:, None].expand_as(rows), rows, "amax")
    weights = (within + 1).to(accumulate) if mode == "weightedmean" else torch.ones_like(within, dtype=accumulate)
    total = rows.new_zeros(len(counts))
    total = total.index_add_(0, owner, weights).clamp(min=1e-9)
    summed = rows.new_zeros(len(counts), rows.shape[1])
    summed = summed.index_add_(0, owner, rows * weights[:, None] if mode == "weightedmean" else rows)
    return summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)[:, None]
