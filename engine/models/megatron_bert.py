"""MegatronBERT (Shoeybi et al. 2019, section 3 and figure 7): BERT with the norm in front of each block, not behind it.

What the embeddings and the layers add up is never normalised on its way; one norm at the end does that.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..batch import PackedBatch
from ..config import ModelConfig
from ..errors import ConfigError
from ..memo import Memo
from ..outputs import (
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from ..weights import NameRules
from .activations import ACTIVATIONS, check_activation
from .bert import BertEmbeddings
from .blocks import Block, FeedForward, ResidualProjection, SelfAttention, norm_op
from .causal import CausalModel
from .checkpointing import LayerStack
from .decoding import Decoding
from .folded_norm import FoldedNorm
from .generation import GeneratesFromPrompts
from .heads import Pooler
from .losses import next_token_loss
from .megatron_decoder import MegatronBertDecoder
from .parameters import LayerNorm
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
    "MegatronBertConfig",
    "MegatronBertForCausalLM",
    "MegatronBertForMaskedLM",
    "MegatronBertForMultipleChoice",
    "MegatronBertForNextSentencePrediction",
    "MegatronBertForPreTraining",
    "MegatronBertForQuestionAnswering",
    "MegatronBertForSequenceClassification",
    "MegatronBertForTokenClassification",
    "MegatronBertModel",
]


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MegatronBertConfig(ModelConfig):
    """Fields and defaults of a MegatronBERT `config.json`; sizes in channels, tokens or rows.

    With `is_decoder` no token sees those behind it; `add_cross_attention` and `use_cache` are of such models alone.
    """

    model_type: ClassVar[str] = "megatron-bert"

    vocab_size: int = 29056
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False

    def check(self, source: str) -> None:
        """Raise ConfigError where the heads do not divide the hidden size, or there is no token type."""
        check_activation(source, "hidden_act", self.hidden_act)
        if self.type_vocab_size < 1:
            raise ConfigError(f"{source}: type_vocab_size: expected at least 1, got {self.type_vocab_size}")
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError(f"{source}: add_cross_attention: expected is_decoder beside it, got false")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{source}: hidden_size: expected a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )


class MegatronBertAttention(Block):
    """Norm, attention, and its output added to what came in."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.ln = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)
        self.self = SelfAttention(hidden, config.num_attention_heads, config.attention_probs_dropout_prob)
        self.output = ResidualProjection(hidden, hidden, config.hidden_dropout_prob)
        self.into_attention = FoldedNorm(self.norm, self.self.qkv, self, ("ln", "self"))

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None, memo: Memo | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; memo as of `residual_added`."""
        if self.into_attention.folds(x):
            context = self.self(x, batch, record, qkv=self.into_attention.product(x, batch.memo))
        else:
            context = self.self(self.norm(x), batch, record)
        return self.output(context, x, memo)


class MegatronBertLayer(Block):
    """Attention, then norm and feed-forward, added to what came in."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention = MegatronBertAttention(config)
        self.ln = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)
        self.intermediate = FeedForward(hidden, inner, ACTIVATIONS[config.hidden_act])
        self.output = ResidualProjection(inner, hidden, config.hidden_dropout_prob)
        self.into_mlp = FoldedNorm(self.norm, self.intermediate.up, self, ("ln", "intermediate"))

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        memo = batch.memo
        x = self.attention(x, batch, record, self.into_mlp.asks(memo, self.attention.output, self.attention))
        inner = self.into_mlp.product(x, memo) if self.into_mlp.folds(x) else self.intermediate(self.norm(x))
        # The next layer begins as this one does.
        return self.output(inner, x, self.attention.into_attention.asks(memo, self.output, self))


class MegatronBertEncoder(LayerStack):
    """The layers, one after the other, and the norm of what they add up."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(MegatronBertLayer(config) for _ in range(config.num_hidden_layers))
        self.ln = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; of the hidden states only the last is normalised."""
        for layer in self.each(self.layer):
            if record is not None:
                record.hidden_state(x)
            x = layer(x, batch, record)
        x = self.norm(x)
        if record is not None:
            record.hidden_state(x)
        return x


class MegatronBertFamily(PreTrainedModel):
    """What all MegatronBERT classes share."""

    config_class = MegatronBertConfig
    base_model_prefix = "bert"
    vocabulary = CLS_VOCABULARY
    name_rules = NameRules(
        prefixes=("bert.", "model."),
        renames=((r"(LayerNorm|\bln)\.gamma$", r"\1.weight"), (r"(LayerNorm|\bln)\.beta$", r"\1.bias")),
        ignored=(r"embeddings\.position_ids$", r"^(pooler|cls|classifier|qa_outputs)\."),
    )
    unused_arguments = frozenset({"use_cache"})


class MegatronBertModel(MegatronBertFamily, CausalModel):
    """The encoder, or by its configuration a decoder, with the pooler of its pre-training if `add_pooling_layer`."""

    output_class = BaseModelOutputWithPoolingAndCrossAttentions

    def __init__(self, config: MegatronBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config, normalised=False)
        self.encoder = MegatronBertDecoder(config) if config.is_decoder else MegatronBertEncoder(config)
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
        if self.is_decoder:
            return self.decode(Decoding(batch, record=record), inputs_embeds)
        return self.encoder(self.embeddings(batch, inputs_embeds), batch, record)

    def decode(self, decoding: Decoding, inputs_embeds: Tensor | None = None) -> Tensor:
        """The last hidden state of the new tokens of a decoder, `[tokens, hidden]`."""
        return self.encoder(self.embeddings(decoding.batch, inputs_embeds), decoding)

    @property
    def decoder_layers(self) -> int:
        """Layers, each with keys and values of its own."""
        return len(self.encoder.layer)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a batch, or decode it; as `BareModel.forward`, with what only a decoder takes.

        Args:
            encoder_hidden_states: `[batch, sequence, hidden]`, to attend to across.
            encoder_attention_mask: of those, zero where there is no token.
            past_key_values: what an earlier call returned; the inputs are then those tokens that it has not seen.
            use_cache: return `past_key_values`; None is the configuration's, and no in training.

        Raises:
            OptionError: an encoder is given `encoder_hidden_states`, `encoder_attention_mask` or `past_key_values`.
        """
        if self.is_decoder:
            encoded = self.decode_inputs(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, encoder_hidden_states,
                encoder_attention_mask, past_key_values, use_cache, output_attentions, output_hidden_states,
                return_dict, others,
            )  # fmt: skip
            pooled = None if self.pooler is None else self.pooler(encoded.first_tokens())
            return encoded.leave(self.output_class(encoded.layout.unpack(encoded.hidden), pooled))
        decoders = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            **decoders, **others,
        )  # fmt: skip


class MegatronBertTask(MegatronBertFamily, TaskModel):
    """What all MegatronBERT classes with a head share."""

    base_class = MegatronBertModel

    @property
    def classifier_dropout(self) -> float:
        """In front of the classifier, as everywhere in this family."""
        return self.config.hidden_dropout_prob


class MegatronBertForPreTraining(MegatronBertTask, ClsForPreTraining):
    """MegatronBERT with both heads of its pre-training; `add_binary_head` is accepted, both are always there."""

    def __init__(self, config: MegatronBertConfig, add_binary_head: bool = True) -> None:
        super().__init__(config)


class MegatronBertForMaskedLM(MegatronBertTask, ClsForMaskedLM):
    """MegatronBERT that fills in masked tokens."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        positions: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Encode a batch and predict its tokens; as `TaskModel.forward`.

        Raises:
            OptionError: `encoder_hidden_states` or `encoder_attention_mask`, which belong to a decoder, is given.
        """
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, labels, positions=positions,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask, **others,
        )  # fmt: skip


class MegatronBertForCausalLM(MegatronBertTask, ClsForMaskedLM, GeneratesFromPrompts):
    """MegatronBERT that predicts the next token; a decoder where `is_decoder` is set, as it should be."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            logger.warning("MegatronBertForCausalLM: is_decoder is false: every token sees those behind it")

    def language_model_head(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to `[rows, vocab]`."""
        return self.masked_lm_logits(hidden)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor | None = 0,
        **others: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Predict what follows each token; as `MegatronBertModel.forward`.

        Args:
            labels: int64 `[batch, sequence]`, the inputs themselves: each is held against what the token before it
                predicts; -100 leaves one out.
            logits_to_keep: of so many last columns; 0 of all, or indices of columns.

        Returns:
            `logits [batch, sequence, vocab]`, zeros at padding.
        """
        model = self.base_model
        if model.is_decoder:
            use_cache = False if labels is not None else use_cache
            encoded = model.decode_inputs(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, encoder_hidden_states,
                encoder_attention_mask, past_key_values, use_cache, output_attentions, output_hidden_states,
                return_dict, others,
            )  # fmt: skip
        else:
            encoded = self.encode_inputs(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, output_attentions,
                output_hidden_states, return_dict,
                {**others, "encoder_hidden_states": encoder_hidden_states, "past_key_values": past_key_values},
            )  # fmt: skip
        logits = self.masked_lm_logits(encoded.hidden)
        loss = None if labels is None else next_token_loss(logits, encoded.layout.pack(labels, "labels"), encoded.batch)
        shown = encoded.layout.unpack(logits)
        whole = logits_to_keep is None or (isinstance(logits_to_keep, int) and logits_to_keep == 0)
        if encoded.layout.shape is not None and not whole:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            shown = shown[:, kept]
        return encoded.leave(CausalLMOutputWithCrossAttentions(loss, shown))


class MegatronBertForNextSentencePrediction(MegatronBertTask, ClsForNextSentencePrediction):
    """MegatronBERT that tells whether one text follows another."""


class MegatronBertForSequenceClassification(MegatronBertTask, ForSequenceClassification):
    """MegatronBERT with a classifier of texts."""


class MegatronBertForMultipleChoice(MegatronBertTask, ForMultipleChoice):
    """MegatronBERT that chooses between texts."""


class MegatronBertForTokenClassification(MegatronBertTask, ForTokenClassification):
    """MegatronBERT with a classifier of tokens."""


class MegatronBertForQuestionAnswering(MegatronBertTask, ForQuestionAnswering):
    """MegatronBERT that finds an answer's first and last token."""
