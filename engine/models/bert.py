"""BERT (Devlin et al. 2019, section 3) and the many checkpoints of its shape: MiniLM, BGE, E5, GTE.

Post-norm encoder: embeddings, then per layer attention and feed-forward, each added to its input and normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..config import ModelConfig
from ..errors import ConfigError
from ..ops.bind import BoundOp, Source
from ..ops.embed import embed
from ..weights import NameRules
from .activations import ACTIVATIONS, check_activation
from .bare import BareModel
from .blocks import Block, FeedForward, Projection, SelfAttention
from .checkpointing import LayerStack
from .heads import Pooler
from .parameters import Embedding, LayerNorm
from .pretrained import PreTrainedModel
from .pretraining import CLS_VOCABULARY, ClsForMaskedLM, ClsForNextSentencePrediction, ClsForPreTraining
from .record import Record
from .tasks import (
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    TaskModel,
)

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
]


@dataclass(kw_only=True)
class BertConfig(ModelConfig):
    """Fields and defaults of a BERT `config.json`; sizes in channels, tokens or rows."""

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    pad_token_id: int | None = 0
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False

    def check(self, source: str) -> None:
        """Raise ConfigError where the heads do not divide the hidden size, or there is no token type."""
        check_activation(source, "hidden_act", self.hidden_act)
        if self.type_vocab_size < 1:
            raise ConfigError(f"{source}: type_vocab_size: expected at least 1, got {self.type_vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{source}: hidden_size: expected a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )


class BertEmbeddings(Block):
    """Word, position and type embeddings, summed and, unless `normalised` is false, normalised."""

    def __init__(self, config: Any, normalised: bool = True) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if normalised else None
        self.dropout = config.hidden_dropout_prob
        self.eps = config.layer_norm_eps if normalised else None
        self.embed = BoundOp(
            "embed",
            Source(self.word_embeddings, "weight"),
            Source(self.position_embeddings, "weight"),
            Source(self.token_type_embeddings, "weight"),
            *(() if self.LayerNorm is None else (Source(self.LayerNorm, "weight"), Source(self.LayerNorm, "bias"))),
            facts={"hidden": config.hidden_size},
            eps=self.eps,
        )

    def forward(self, batch: PackedBatch, inputs_embeds: Tensor | None = None) -> Tensor:
        """`[tokens, hidden]`, the input of the first layer."""
        if inputs_embeds is None:
            x = self.embed(batch.input_ids, batch.position_ids, batch.token_type_ids)
        else:
            x = embed(
                torch.arange(inputs_embeds.shape[0], device=inputs_embeds.device),
                batch.position_ids,
                batch.token_type_ids,
                inputs_embeds,
                self.position_embeddings.weight,
                self.token_type_embeddings.weight,
                None if self.LayerNorm is None else self.LayerNorm.weight,
                None if self.LayerNorm is None else self.LayerNorm.bias,
                eps=self.eps,
            )
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class BertLayer(nn.Module):
    """Attention, then feed-forward; the nesting is the checkpoint's."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        eps, dropout = config.layer_norm_eps, config.hidden_dropout_prob
        self.attention = nn.ModuleDict(
            {
                "self": SelfAttention(hidden, config.num_attention_heads, config.attention_probs_dropout_prob),
                "output": Projection(hidden, hidden, eps, dropout),
            }
        )
        self.intermediate = FeedForward(hidden, inner, ACTIVATIONS[config.hidden_act])
        self.output = Projection(inner, hidden, eps, dropout)

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        x = self.attention["output"](self.attention["self"](x, batch, record), x)
        return self.output(self.intermediate(x), x)


class BertEncoder(LayerStack):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        for layer in self.each(self.layer):
            if record is not None:
                record.hidden_state(x)
            x = layer(x, batch, record)
        if record is not None:
            record.hidden_state(x)
        return x


class BertFamily(PreTrainedModel):
    """What all BERT classes share."""

    config_class = BertConfig
    base_model_prefix = "bert"
    vocabulary = CLS_VOCABULARY
    name_rules = NameRules(
        prefixes=("bert.", "model."),
        renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        ignored=(r"embeddings\.position_ids$", r"^(pooler|cls|classifier|qa_outputs)\."),
    )


class BertModel(BertFamily, BareModel):
    """The encoder, with the pooler of BERT's pre-training unless `add_pooling_layer` is false."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = Pooler(config.hidden_size) if add_pooling_layer else None

    @classmethod
    def without_pooler(cls, config: Any) -> Self:
        """The encoder alone."""
        return cls(config, add_pooling_layer=False)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """`[vocab, hidden]`."""
        return self.embeddings.word_embeddings

    def _run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, hidden]`; `inputs_embeds` are `[tokens, hidden]`."""
        return self.encoder(self.embeddings(batch, inputs_embeds), batch, record)


class BertTask(BertFamily, TaskModel):
    """What all BERT classes with a head share."""

    base_class = BertModel


class BertForPreTraining(BertTask, ClsForPreTraining):
    """BERT with both heads of its pre-training."""


class BertForMaskedLM(BertTask, ClsForMaskedLM):
    """BERT that fills in masked tokens."""


class BertForNextSentencePrediction(BertTask, ClsForNextSentencePrediction):
    """BERT that tells whether one text follows another."""


class BertForSequenceClassification(BertTask, ForSequenceClassification):
    """BERT with a classifier of texts."""


class BertForMultipleChoice(BertTask, ForMultipleChoice):
    """BERT that chooses between texts."""


class BertForTokenClassification(BertTask, ForTokenClassification):
    """BERT with a classifier of tokens."""


class BertForQuestionAnswering(BertTask, ForQuestionAnswering):
    """BERT that finds an answer's first and last token."""

    def span_features(self, hidden: Tensor) -> Tensor:
        """No dropout in front of this layer."""
        return hidden
