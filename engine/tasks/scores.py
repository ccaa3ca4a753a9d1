"""From logits to scores."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sigmoid"]


def sigmoid(logits: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`, of any shape.

    torch's own computes what is left behind the last whole vector by other code, so that a score's last bit would
    depend on how many there are; its exponential does not.
    """
    return torch.exp(-logits).add_(1.0).reciprocal_()
