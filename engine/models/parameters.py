"""Stock torch layers that only hold parameters: their memory is not filled at construction.

A checkpoint overwrites every value a moment later, so torch's default initialisation would be time lost; a model built
from a configuration alone calls `initialise`.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Embedding", "LayerNorm", "Linear", "NoNorm", "initialise"]


class Linear(nn.Linear):
    """`weight [out_features, in_features]`, `bias [out_features]`."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Embedding(nn.Embedding):
    """`weight [rows, width]`."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class LayerNorm(nn.LayerNorm):
    """`weight [width]`, `bias [width]`; starts as the identity, which costs nothing."""


class NoNorm(nn.Module):
    """`weight [width]`, `bias [width]`: a scale and a shift of each channel; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))


def initialise(model: nn.Module, standard_deviation: float) -> None:
    """Fill the parameters as BERT's authors do: normal weights, zero biases, identity norms.

    Args:
        model: built from the classes above.
        standard_deviation: `initializer_range` of the configuration.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=standard_deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, (nn.LayerNorm, NoNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
