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
    position: Tensor | None = None,
    token_type: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float | None = None,
) -> Tensor:
    """`layer_norm(word[ids] + type[types] + position[positions])` (BERT, Devlin et al. 2019, section 3, figure 2).

    Args:
        input_ids: int64 `[tokens]`.
        position_ids: int64 `[tokens]`, restarting with every text.
        token_type_ids: int64 `[tokens]`, or None where every token is of type 0.
        word: `[vocab, hidden]`.
        position: `[positions, hidden]`; None for models without learned positions.
        token_type: `[types, hidden]`; None for models without types.
        norm_weight: `[hidden]`; norm_bias: `[hidden]` or None; eps: as in `layer_norm`. An eps of None is no norm.

    Returns:
        `[tokens, hidden]` in the tables' dtype.
    """
    summed = F.embedding(input_ids, word)
    if token_type is not None:
        summed = summed + (token_type[0] if token_type_ids is None else F.embedding(token_type_ids, token_type))
    if position is not None:
        summed = summed + F.embedding(position_ids, position)
    return summed if eps is None else F.layer_norm(summed, (word.shape[1],), norm_weight, norm_bias, eps)
