"""From token ids to the first hidden state. The specification, the oracle and the last row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["embed"]


def embed(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
) -> Tensor:
    """`layer_norm(word[ids] + type[types] + position[positions])` (BERT, Devlin et al. 2019, section 3, figure 2).

    Args:
        input_ids: int64 `[tokens]`.
        position_ids: int64 `[tokens]`, restarting with every text.
        token_type_ids: int64 `[tokens]`, or None where every token is of type 0.
        word: `[vocab, hidden]`; position: `[positions, hidden]`; token_type: `[types, hidden]`.
        norm_weight: `[hidden]`; norm_bias: `[hidden]`; eps: as in `layer_norm`.

    Returns:
        `[tokens, hidden]` in the tables' dtype.
    """
    types = token_type[0] if token_type_ids is None else F.embedding(token_type_ids, token_type)
    summed = F.embedding(input_ids, word) + types + F.embedding(position_ids, position)
    return F.layer_norm(summed, (word.shape[1],), norm_weight, norm_bias, eps)
