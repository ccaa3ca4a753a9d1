"""From token ids to the embeddings of each token and its two neighbours. Specification, oracle, last row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["trigram"]


def trigram(input_ids: Tensor, cu_seqlens: Tensor, word: Tensor) -> Tensor:
    """`[word[next], word[this], word[previous]]` of every token (MobileBERT, Sun et al. 2020, section 3.4).

    A text ends where `cu_seqlens` says: what stands beside it in the batch is no neighbour.

    Args:
        input_ids: int64 `[tokens]`.
        cu_seqlens: int32 `[texts + 1]`; texts may be empty.
        word: `[vocab, width]`, any dtype.

    Returns:
        `[tokens, 3 * width]` in the table's dtype: the embedding to the right, the token's own, the one to the left;
        zeros in place of a neighbour beyond the text's edge.
    """
    own = F.embedding(input_ids, word)
    # Where a text starts, and so where the one before it has stopped.
    edge = torch.zeros(own.shape[0] + 1, dtype=torch.bool, device=own.device)
    edge[cu_seqlens.long()] = True
    right = own.roll(-1, 0).masked_fill(edge[1:, None], 0.0)
    left = own.roll(1, 0).masked_fill(edge[:-1, None], 0.0)
    return torch.cat([right, own, left], dim=1)
