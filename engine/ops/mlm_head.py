"""A masked language model's head on the rows that are asked for. The specification, the oracle and the last row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import ACTIVATIONS

__all__ = ["Predictions", "mlm_head", "top_logits"]

Predictions = tuple[Tensor, Tensor, Tensor]
"""Values fp32 `[rows, k]`, ids int64 `[rows, k]`, log-sum-exp fp32 `[rows]`."""


def mlm_head(
    hidden: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    own_weight: Tensor | None = None,
    *,
    epilogue: str = "gelu",
    eps: float = 1e-12,
    top_k: int | None = None,
) -> Tensor | Predictions:
    """`layer_norm(activation(hidden W_d)) W^T + b` (Devlin et al. 2019, section 3.1), and of it the highest.

    Args:
        hidden: `[rows, hidden]`, the rows that are asked for.
        dense_weight: `[hidden, hidden]`; dense_bias `[hidden]` or None.
        norm_weight: `[hidden]`; norm_bias `[hidden]` or None; eps as in `layer_norm`.
        decoder_weight: `[vocab, width]`, the word embeddings where they are tied.
        decoder_bias: `[vocab]` or None.
        own_weight: `[hidden - width, vocab]` where the word embeddings are narrower than the hidden states: it takes
            the channels from `width` on. None where `width == hidden`.
        epilogue: a key of `ACTIVATIONS`.
        top_k: only that many of the highest logits of each row are wanted, from 1 on; None for all.

    Returns:
        Logits `[rows, vocab]`. With `top_k` the highest, in fp32 and in falling order, of equal ones that with the
        lower id first; their ids; and the log-sum-exp of all logits: `exp(value - lse)` is a token's probability.
        Of a row that holds NaN nothing is promised.
    """
    rows = ACTIVATIONS[epilogue](F.linear(hidden, dense_weight, dense_bias))
    rows = F.layer_norm(rows, (rows.shape[-1],), norm_weight, norm_bias, eps)
    tied = decoder_weight.shape[1]
    logits = F.linear(rows[:, :tied], decoder_weight, decoder_bias)
    if own_weight is not None:
        logits = torch.addmm(logits, rows[:, tied:], own_weight)
    if top_k is None:
        return logits
    return top_logits(logits, top_k)


def top_logits(logits: Tensor, top_k: int) -> Predictions:
    """The `top_k` highest of each row of `[rows, vocab]`, or all where there are fewer; as `mlm_head` returns them."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top_k = min(top_k, wide.shape[1])
    if wide.dtype == torch.float32:
        # The order of fp32 numbers is that of integers made of their bits; with the id below them no two are equal, and
        # the highest few are found many times as fast as all are sorted.
        bits = (wide.detach() + 0.0).view(torch.int32)
        order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
        order |= torch.arange(wide.shape[1] - 1, -1, -1, device=wide.device)
        ids = order.topk(top_k, dim=1).indices
    else:
        ids = wide.sort(dim=1, descending=True, stable=True).indices[:, :top_k].contiguous()
    return wide.gather(1, ids), ids, wide.logsumexp(dim=1)
