"""MobileBERT (Sun et al. 2020): BERT, thin and deep, with bottlenecks around every layer and trigrams at its input.

float16 is refused: `no_norm` bounds nothing, and the hidden states of the published weights reach 2.5e7. In bfloat16
the residual stream is fp32. A text's first and last token have no neighbour on that side, whatever stands beside the
text in the batch; in a padded batch of transformers the last one's neighbour is [PAD].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import ConfigError
from ..ops.bind import BoundOp, Source
from ..ops.trigram import trigram
from ..weights import NameRules
from .activations import ACTIVATIONS
from .bare import BareModel
from .blocks import Block, Dense, linear_op
from .heads import Pooler, Predictions, PredictionTransform, top_op
from .mobilebert_blocks import DEFAULT_EPS, NORMS, MobileBertEncoder
from .mobilebert_config import MobileBertConfig
from .parameters import Embedding, Linear
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
    "MobileBertConfig",
    "MobileBertForMaskedLM",
    "MobileBertForMultipleChoice",
    "MobileBertForNextSentencePrediction",
    "MobileBertForPreTraining",
    "MobileBertForQuestionAnswering",
    "MobileBertForSequenceClassification",
    "MobileBertForTokenClassification",
    "MobileBertModel",
]


class MobileBertEmbeddings(Block):
    """Word embeddings of each token and its neighbours, widened; position and type embeddings are added."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        width = config.embedding_size * (3 if config.trigram_input else 1)
        self.word_embeddings = Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_transformation = Linear(width, config.hidden_size)
        self.LayerNorm = NORMS[config.normalization_type](config.hidden_size, DEFAULT_EPS)
        self.dropout = config.hidden_dropout_prob
        self.transforms = width != config.hidden_size or config.trigram_input
        self.has_neighbours = config.trigram_input
        words = Source(self.word_embeddings, "weight")
        self.words = BoundOp("embed", words, facts={"hidden": config.embedding_size})
        self.trigrams = BoundOp("trigram", words, facts={"hidden": width})
        self.transformation = linear_op(self.embedding_transformation)
        self.places = BoundOp(
            "embed",
            Source(self.position_embeddings, "weight"),
            None,
            Source(self.token_type_embeddings, "weight"),
            facts={"hidden": config.hidden_size},
        )

    def forward(self, batch: PackedBatch, inputs_embeds: Tensor | None = None) -> Tensor:
        """`[tokens, hidden]`, the residual stream as it enters the first layer."""
        x = self._words(batch, inputs_embeds)
        x = self.transformation(x) if self.transforms else x
        places = self.places(batch.position_ids, batch.position_ids, batch.token_type_ids)
        x = self.LayerNorm(x, places)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def _words(self, batch: PackedBatch, inputs_embeds: Tensor | None) -> Tensor:
        if not self.has_neighbours:
            return self.words(batch.input_ids, batch.position_ids, None) if inputs_embeds is None else inputs_embeds
        if inputs_embeds is None:
            return self.trigrams(batch.input_ids, batch.cu_seqlens)
        return trigram(
            torch.arange(inputs_embeds.shape[0], device=inputs_embeds.device), batch.cu_seqlens, inputs_embeds
        )


class MobileBertPredictions(Predictions):
    """The masked language model's head. The embeddings are narrower than the hidden states, so the vocabulary's matrix
    is the word embeddings, tied where the configuration ties them, beside columns of its own (`dense`, transposed).
    """

    taken_over = ("transform", "decoder", "dense")

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        own = config.hidden_size - config.embedding_size
        if own < 0:
            raise ConfigError(
                f"MobileBertConfig: embedding_size: expected at most hidden_size ({config.hidden_size}) under a head "
                f"that predicts words, got {config.embedding_size}"
            )
        self.activation = ACTIVATIONS[config.hidden_act]
        self.transform = PredictionTransform(config.hidden_size, self.activation, config.layer_norm_eps)
        self.dense = Linear(config.vocab_size, own, bias=False)
        self.decoder = Dense(config.embedding_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._take_over()

    def forward(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        if self.deterministic and self.top is not None and self.intact and not self.top.wants_gradient(hidden):
            return self.top(hidden)  # a bare product promises nothing
        own_channels = self.dense.out_features
        tied, own = self.transform(hidden).split([hidden.shape[1] - own_channels, own_channels], dim=1)
        return torch.addmm(self.decoder(tied), own, self.dense.weight)

    def _stand_in(self) -> dict[str, BoundOp]:
        own = [Source(self.dense, "weight")] if self.dense.out_features else []
        transform = self.transform
        return {"top": top_op(transform.dense, transform.LayerNorm, self.decoder, self.activation, *own)}


class MobileBertFamily(PreTrainedModel):
    """What all MobileBERT classes share."""

    config_class = MobileBertConfig
    base_model_prefix = "mobilebert"
    vocabulary = replace(CLS_VOCABULARY, columns=("cls.predictions.dense.weight",))
    name_rules = NameRules(
        prefixes=("mobilebert.", "model."),
        renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        ignored=(r"embeddings\.position_ids$", r"^(pooler|cls|classifier|qa_outputs)\."),
    )
    refused_dtypes: ClassVar = {
        torch.float16: "MobileBERT's activations reach 2.5e7, float16 ends at 65504: use bfloat16 or float32"
    }


class MobileBertModel(MobileBertFamily, BareModel):
    """The encoder, and a pooler unless `add_pooling_layer` is false: the first token, through a linear layer and tanh
    where `classifier_activation` is set.
    """

    def __init__(self, config: MobileBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = MobileBertEmbeddings(config)
        self.encoder = MobileBertEncoder(config)
        self.pooler = None
        if add_pooling_layer:
            self.pooler = Pooler(config.hidden_size) if config.classifier_activation else nn.Identity()

    @classmethod
    def without_pooler(cls, config: Any) -> Self:
        """The encoder alone."""
        return cls(config, add_pooling_layer=False)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """`[vocab, embedding_size]`."""
        return self.embeddings.word_embeddings

    def _run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, hidden]`; `inputs_embeds` are `[tokens, embedding_size]`."""
        return self.encoder(self.embeddings(batch, inputs_embeds), batch, record, self.dtype)


class MobileBertTask(MobileBertFamily, TaskModel):
    """What all MobileBERT classes with a head share."""

    base_class = MobileBertModel


class MobileBertForPreTraining(MobileBertTask, ClsForPreTraining):
    """MobileBERT with both heads of its pre-training."""

    predictions_class = MobileBertPredictions


class MobileBertForMaskedLM(MobileBertTask, ClsForMaskedLM):
    """MobileBERT that fills in masked tokens."""

    predictions_class = MobileBertPredictions


class MobileBertForNextSentencePrediction(MobileBertTask, ClsForNextSentencePrediction):
    """MobileBERT that tells whether one text follows another."""


class MobileBertForSequenceClassification(MobileBertTask, ForSequenceClassification):
    """MobileBERT with a classifier of texts."""


class MobileBertForMultipleChoice(MobileBertTask, ForMultipleChoice):
    """MobileBERT that chooses between texts."""


class MobileBertForTokenClassification(MobileBertTask, ForTokenClassification):
    """MobileBERT with a classifier of tokens."""


class MobileBertForQuestionAnswering(MobileBertTask, ForQuestionAnswering):
    """MobileBERT that finds an answer's first and last token."""
