"""The heads of BERT's pre-training, under the names that checkpoints have for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.bind import BoundOp, Source
from ..ops.mlm_head import top_logits
from .activations import ACTIVATIONS
from .blocks import Block, Dense, linear_op, norm_op
from .intact import TakingOver, WholeOp
from .parameters import LayerNorm, Linear

__all__ = [
    "Pooler",
    "PredictionTransform",
    "Predictions",
    "TopPredictions",
    "WordPredictions",
    "highest",
    "top_op",
]


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


class TopPredictions(NamedTuple):
    """Of each row that was asked for, the most likely tokens.

    Attributes:
        values: their logits, fp32 `[rows, k]`, in falling order.
        ids: int64 `[rows, k]`; of equal logits the lower id is first.
        lse: log-sum-exp of all logits of the row, fp32 `[rows]`.
    """

    values: Tensor
    ids: Tensor
    lse: Tensor

    @property
    def probabilities(self) -> Tensor:
        """fp32 `[rows, k]`: the softmax over the whole vocabulary."""
        return (self.values - self.lse[:, None]).exp()


def highest(logits: Tensor, k: int) -> TopPredictions:
    """The `k` highest of each row of `[rows, vocab]`, or all where there are fewer."""
    return TopPredictions(*top_logits(logits, k))


def top_op(dense: nn.Linear, norm: nn.LayerNorm, decoder: nn.Linear, activation: str, *own: Source) -> BoundOp:
    """The `mlm_head` op of a dense layer, an activation, a norm and a decoder; `own`: its `own_weight`."""
    weights = (Source(module, name) for module in (dense, norm, decoder) for name in ("weight", "bias"))
    facts = {"hidden": dense.out_features, "inner": dense.in_features, "epilogue": activation}
    return WholeOp("mlm_head", *weights, *own, facts=facts, epilogue=activation, eps=norm.eps)


class Predictions(TakingOver):
    """A masked language model's head: a transform and a decoder, or all at once where only the highest are wanted."""

    taken_over = ("transform", "decoder")
    itself_called = False
    may_resize = True
    top: BoundOp | None = None

    def predict_top(self, hidden: Tensor, k: int) -> TopPredictions:
        """The `k` most likely tokens of each row of `[asked, hidden]`."""
        if self.top is not None and self.intact:
            return TopPredictions(*self.top(hidden, top_k=k))
        return highest(self(hidden), k)


class WordPredictions(Predictions):
    """The masked language model's head (Devlin et al. 2019, section 3.1). The decoder's weight is the word embeddings',
    its bias is the head's own, where the configuration ties them.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.transform = PredictionTransform(config.hidden_size, self.activation, config.layer_norm_eps)
        self.decoder = Dense(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._take_over()

    def forward(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        return self.decoder(self.transform(hidden))

    def _stand_in(self) -> dict[str, BoundOp]:
        transform = self.transform
        return {"top": top_op(transform.dense, transform.LayerNorm, self.decoder, self.activation)}
