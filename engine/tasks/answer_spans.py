"""The best spans of texts whose every token has a chance of being the first and the last of an answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Spans", "best_spans"]


MOST_SPANS = 2**24
"""Spans that are looked at together: bounds the memory, not the result."""


class Spans(NamedTuple):
    """Of one text, on the host.

    Attributes:
        scores: float64 `[spans]`, most likely first; as many as were asked for, or as there are.
        starts, ends: int64 `[spans]`, first and last token, counted from the first that may be one.
        null: probability that there is no answer: that of the first token of the piece as start and as end; 0.0 where
            the model has no such token.
    """

    scores: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    null: float


def best_spans(
    start: Tensor,
    end: Tensor,
    cu_seqlens: Tensor,
    allowed: np.ndarray,
    *,
    null: bool,
    top_k: int,
    longest: int,
) -> list[Spans]:
    """The spans with the highest products of probabilities, those that are too long or backward left out.

    The probabilities are softmaxes over the tokens that may be in an answer, and the first of the text where it stands
    for none. Logarithms are added in fp64, so that spans are told apart whose products are no fp32 number. Waits for
    the device once.

    Args:
        start, end: logits `[tokens]` of a packed batch.
        cu_seqlens: int32 `[texts + 1]`, where each text begins.
        allowed: int64 `[texts, 2]` on the host, the tokens of each text that may be in an answer: from the first
            number up to, but without, the second.
        null: whether the first token of a text stands for "no answer".
        top_k: spans of each text.
        longest: most tokens of a span.

    Returns:
        One for each text. Scores are NaN where logits are.
    """
    most = max(int((allowed[:, 1] - allowed[:, 0]).max()), 1)
    longest = min(longest, most)
    top_k = min(top_k, most * longest)
    at_once = max(1, MOST_SPANS // (most * longest))
    begins = cu_seqlens[:-1].long()
    logits = torch.stack((start, end)).double()
    tables = []
    for first in range(0, len(allowed), at_once):
        rows = slice(first, first + at_once)
        tables.append(_table(logits, begins[rows], allowed[rows], null=null, top_k=top_k, longest=longest))
    return [_spans(row) for row in torch.cat(tables, dim=1).permute(1, 2, 0).cpu().numpy()]


def _table(logits: Tensor, begins: Tensor, allowed: np.ndarray, *, null: bool, top_k: int, longest: int) -> Tensor:
    """fp64 `[3, texts, top_k + 1]`: logarithms of scores, first tokens and last tokens; in the last column, of null."""
    widths = allowed[:, 1] - allowed[:, 0]
    most = max(int(widths.max()), 1)
    inside = np.arange(most) < widths[:, None]
    host = torch.from_numpy(np.stack((np.where(inside, allowed[:, :1] + np.arange(most), 0), inside)))
    places, inside = (host.pin_memory().to(logits.device, non_blocking=True) if logits.is_cuda else host).unbind()
    lowest = torch.finfo(logits.dtype).min
    own = logits[:, begins[:, None] + places].masked_fill(inside == 0, lowest)
    none = logits[:, begins] if null else torch.full_like(logits[:, begins], lowest)
    likely = torch.log_softmax(torch.cat((own, none[:, :, None]), dim=2), dim=2)
    starts, ends = likely[:, :, :-1].masked_fill(inside == 0, -torch.inf)
    # Of every first token the `longest` last ones: [texts, most, longest] in place of [texts, most, most].
    reach = min(longest, most)
    spans = starts[:, :, None] + F.pad(ends, (0, reach - 1), value=-torch.inf).unfold(1, reach, 1)
    scores, chosen = spans.flatten(1).topk(min(top_k, most * reach), dim=1)
    found = torch.stack((scores, (chosen // reach).double(), (chosen // reach + chosen % reach).double()))
    nulls = likely[:, :, -1:].sum(dim=0) if null else torch.full_like(none[0, :, None], -torch.inf)
    short = top_k - scores.shape[1]
    return torch.cat((F.pad(found, (0, short), value=-torch.inf), nulls.expand(3, -1, -1)), dim=2)


def _spans(row: np.ndarray) -> Spans:
    """Of `[top_k + 1, 3]`."""
    there = row[:-1][~np.isneginf(row[:-1, 0])]
    return Spans(
        np.exp(there[:, 0]), there[:, 1].astype(np.int64), there[:, 2].astype(np.int64), float(np.exp(row[-1, 0]))
    )
