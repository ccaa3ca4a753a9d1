"""The heads of BERT's pre-training, under the names that checkpoints have for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS
from .blocks import Block, Dense, linear_op, norm_op
from .parameters import LayerNorm, Linear

__all__ = ["Pooler", "PredictionTransform", "WordPredictions"]


class Pooler(Block):
    """The first token through a linear layer and tanh (BERT, Devlin et al. 2019, section 3.1)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, hidden_size)
        self.pool = linear_op(self.dense, epilogue="tanh")

    def forward(self, first_tokens: Tensor) -> Tensor:
        """`[texts, hidden]` to `[texts, hidden]`."""
        return self.pool(first_tokens)


class PredictionTransform(Block):
    """A linear layer, an activation and a layer norm in front of the vocabulary."""

    def __init__(self, hidden_size: int, activation: str, eps: float) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, hidden_size)
        self.LayerNorm = LayerNorm(hidden_size, eps=eps)
        self.project = linear_op(self.dense, epilogue=activation)
        self.norm = norm_op(self.LayerNorm)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        return self.norm(self.project(hidden))


class WordPredictions(nn.Module):
    """The masked language model's head (Devlin et al. 2019, section 3.1). The decoder's weight is the word embeddings',
    its bias is the head's own, where the configuration ties them.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config.hidden_size, ACTIVATIONS[config.hidden_act], config.layer_norm_eps)
        self.decoder = Dense(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        return self.decoder(self.transform(hidden))
