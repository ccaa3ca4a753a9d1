"""The CPU row of `mlm_head` for deterministic=True: eager on tiles of fixed sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...contract import Call
from ..mlm_head import Predictions
from ..mlm_head import mlm_head as eager_mlm_head
from .tiles import in_tiles, only_deterministic

__all__ = ["mlm_head", "unsupported"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return only_deterministic(call)


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
    """As `engine/ops/mlm_head.py`."""
    weights = dense_weight, dense_bias, norm_weight, norm_bias, decoder_weight, decoder_bias, own_weight

    def of_a_tile(rows: Tensor) -> Any:
        return eager_mlm_head(rows, *weights, epilogue=epilogue, eps=eps, top_k=top_k)

    return in_tiles(of_a_tile, (hidden,), width=len(decoder_weight), key=("mlm_head", epilogue, top_k))
