"""mT5's classes with an encoder and a decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..batch import PackedBatch
from ..errors import ConfigError, InputError, OptionError
from ..outputs import (
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
)
from .blocks import Block, Dense
from .decoding import Decoding
from .generation import GeneratesFromTexts
from .losses import class_loss, sequence_loss, span_loss
from .mt5_config import MT5Config
from .mt5_decoder import MT5DecoderStack
from .mt5_encoder import MT5EncoderModel, MT5Family, NarrowDense
from .padding import rows_of
from .parameters import Embedding
from .resizing import Vocabulary
from .seq2seq import EncoderDecoder

__all__ = ["MT5ForConditionalGeneration", "MT5ForQuestionAnswering", "MT5ForSequenceClassification", "MT5Model"]


class MT5Model(MT5EncoderModel, EncoderDecoder):
    """The encoder and the decoder, which attends to it."""

    vocabulary = Vocabulary(tables=("shared", "encoder.embed_tokens", "decoder.embed_tokens"), decoder="lm_head")

    def __init__(self, config: MT5Config) -> None:
        super().__init__(config)
        table = Embedding(config.vocab_size, config.d_model, _weight=self.shared.weight.data)
        self.decoder = MT5DecoderStack(config, table)

    def tie_weights(self) -> None:
        """Make the three tables one parameter, and the head, where the configuration says so."""
        super().tie_weights()
        self.decoder.embed_tokens.weight = self.shared.weight

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return len(self.decoder.block)

    def decode(self, decoding: Decoding, inputs_embeds: Tensor | None = None) -> Tensor:
        """The decoder's last hidden state of the new tokens, `[tokens, d_model]`."""
        return self.decoder(decoding, inputs_embeds)

    def get_encoder(self) -> nn.Module:
        """The encoder's stack."""
        return self.encoder

    def get_decoder(self) -> nn.Module:
        """The decoder's stack."""
        return self.decoder

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | PackedBatch | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        **others: Any,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Encode a batch and decode as many sequences.

        Args:
            input_ids: int64 `[batch, sequence]`, or a PackedBatch.
            attention_mask: `[batch, sequence]`, zero where there is no token, on whichever side.
            decoder_input_ids: int64 `[batch, target sequence]`, or a PackedBatch; with `past_key_values` those tokens
                alone that it has not seen.
            decoder_attention_mask: `[batch, target sequence]`, zero where there is no token; with `past_key_values` the
                last columns count.
            encoder_outputs: in place of `input_ids`: what the encoder returned, or a tuple with its last hidden state.
            past_key_values: what an earlier call returned; it grows by the new tokens.
            inputs_embeds: `[batch, sequence, d_model]` in place of `input_ids`.
            decoder_inputs_embeds: `[batch, target sequence, d_model]` in place of `decoder_input_ids`.
            use_cache: return `past_key_values`; None is the configuration's, and no in training.
            output_attentions: keep the softmax weights; eager then serves the attention.
            output_hidden_states: keep the hidden states.
            return_dict: False returns a tuple.
            cache_position: not needed; the cache knows.
            others: arguments of older versions, accepted where they are None.

        Returns:
            `last_hidden_state [batch, target sequence, d_model]`, zeros at padding.

        Raises:
            InputError: shapes that do not fit, or ids outside the vocabulary.
        """
        decoded = self.pass_through(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, past_key_values,
            inputs_embeds, decoder_inputs_embeds, use_cache, output_attentions, output_hidden_states, return_dict,
            others,
        )  # fmt: skip
        return decoded.leave(Seq2SeqModelOutput(decoded.inputs.layout.unpack(decoded.hidden)))


class MT5ForConditionalGeneration(MT5Model, GeneratesFromTexts):
    """mT5 that writes: the decoder with a language model's head."""

    def __init__(self, config: MT5Config) -> None:
        super().__init__(config)
        self.lm_head = Dense(config.d_model, config.vocab_size, bias=False)

    def tie_table(self) -> dict[str, str]:
        """With the head, where the configuration ties it."""
        tied = {"lm_head.weight": "shared.weight"} if self.config.tie_word_embeddings else {}
        return {**super().tie_table(), **tied}

    def tie_weights(self) -> None:
        """Make the tables one parameter, and the head with them where the configuration says so."""
        super().tie_weights()
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    def optional_parts(self) -> tuple[str, ...]:
        """The head, where it may have weights of its own."""
        return () if self.config.tie_word_embeddings else ("lm_head",)

    def fill_missing(self, name: str) -> bool:
        """A head that the checkpoint lacks is the word embeddings, whatever the configuration says of it."""
        self.lm_head.weight = self.shared.weight
        return True

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | PackedBatch | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Encode a batch and predict what follows each of the decoder's tokens; as `MT5Model.forward`.

        Args:
            labels: int64 `[batch, target sequence]`, -100 leaves one out. Without decoder inputs these are the labels
                behind the start token.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        decoded = self.pass_through(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, past_key_values,
            inputs_embeds, decoder_inputs_embeds, use_cache, output_attentions, output_hidden_states, return_dict,
            others,
        )  # fmt: skip
        logits = self.lm_head(decoded.hidden)
        layout = decoded.inputs.layout
        loss = None if labels is None else class_loss(logits, layout.pack(labels, "labels"))
        return decoded.leave(Seq2SeqLMOutput(loss, layout.unpack(logits)))

    def language_model_head(self, hidden: Tensor) -> Tensor:
        """`[rows, d_model]` to `[rows, vocab]`."""
        return self.lm_head(hidden)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels behind the start token, as the decoder takes them."""
        return self._shift_right(labels)


class MT5ClassificationHead(Block):
    """A hidden layer and the labels."""

    def __init__(self, config: MT5Config) -> None:
        super().__init__()
        self.dense = NarrowDense(config.d_model, config.d_model, activation="tanh")
        self.out_proj = NarrowDense(config.d_model, config.num_labels)
        self.dropout = config.classifier_dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[texts, d_model]` to `[texts, labels]`."""
        dropout = nn.functional.dropout
        x = self.dense(dropout(x, self.dropout, self.training))
        return self.out_proj(dropout(x, self.dropout, self.training))


class MT5ForSequenceClassification(MT5Family):
    """mT5 with a classifier of texts, on what the decoder makes of the end of each."""

    vocabulary = Vocabulary(tables=MT5Model.vocabulary.tables)

    def __init__(self, config: MT5Config) -> None:
        super().__init__(config)
        self.transformer = MT5Model(config)
        self.classification_head = MT5ClassificationHead(config)

    def tie_weights(self) -> None:
        """Make the three tables one parameter."""
        self.transformer.tie_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | PackedBatch | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Seq2SeqSequenceClassifierOutput | tuple[Any, ...]:
        """Classify a batch of texts, each with the same number of end tokens; inputs as of `MT5Model.forward`.

        Args:
            decoder_input_ids: None takes the texts themselves, each behind the start token.
            labels: `[batch]`, or `[batch, labels]`.

        Raises:
            InputError: embeddings in place of ids, or a text without an end token or with another number of them.
        """
        if input_ids is None:
            raise InputError(f"{type(self).__name__}: expected input_ids, whose end tokens say where to look")
        use_cache = False if labels is not None else use_cache
        model = self.transformer
        common = (output_attentions, output_hidden_states, return_dict, others)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoded = model.pass_shifted(input_ids, attention_mask, encoder_outputs, use_cache, *common)
        else:
            decoded = model.pass_through(
                input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, None,
                inputs_embeds, decoder_inputs_embeds, use_cache, *common,
            )  # fmt: skip
        logits = self.classification_head(self._ends(input_ids, decoded))
        loss = None if labels is None else sequence_loss(logits, labels, self.config.problem_type)
        return decoded.leave(Seq2SeqSequenceClassifierOutput(loss, logits))

    def _ends(self, input_ids: Any, decoded: Any) -> Tensor:
        """`[texts, d_model]`: the decoder's state at the last end token of every text."""
        inputs = decoded.inputs
        ends = self.config.eos_token_id
        wanted = torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), device=decoded.hidden.device)
        batch = inputs.batch
        if isinstance(input_ids, PackedBatch):
            found = torch.isin(input_ids.input_ids, wanted)
            rows = rows_of(input_ids).unpack(found, False)
        else:
            rows = torch.isin(input_ids, wanted)
        counts = rows.sum(dim=1)
        if not len(counts):
            return decoded.hidden[:0]
        lowest, highest = (int(value) for value in torch.aminmax(counts))
        if lowest < 1 or lowest != highest:
            raise InputError(
                f"input_ids: expected as many end tokens in each text, at least 1, got {lowest} to {highest}"
            )
        layout = rows_of(batch) if inputs.layout.shape is None else inputs.layout
        padded = layout.unpack(decoded.hidden)
        if padded.shape[:2] != rows.shape:
            raise InputError(f"decoder_input_ids: expected shape {list(rows.shape)}, got {list(padded.shape[:2])}")
        last = rows.shape[1] - 1 - rows.flip(1).int().argmax(dim=1)
        return padded[torch.arange(len(last), device=last.device), last]


class MT5ForQuestionAnswering(MT5Model):
    """mT5 that finds an answer's first and last token, among the decoder's."""

    def __init__(self, config: MT5Config) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(f"{type(self).__name__}: num_labels: expected 2, first and last, got {config.num_labels}")
        self.num_labels = config.num_labels
        self.qa_outputs = NarrowDense(config.d_model, config.num_labels)

    def optional_parts(self) -> tuple[str, ...]:
        """The layer of the answers."""
        return ("qa_outputs",)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | PackedBatch | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Seq2SeqQuestionAnsweringModelOutput | tuple[Any, ...]:
        """Find answers in a batch of texts; inputs as of `MT5Model.forward`.

        Args:
            decoder_input_ids: None takes the texts themselves, each behind the start token.
            start_positions: int64 `[batch]`, index of an answer's first token; `end_positions` of its last.
        """
        use_cache = False if start_positions is not None and end_positions is not None else use_cache
        common = (output_attentions, output_hidden_states, return_dict, others)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise OptionError(f"{type(self).__name__}: expected input_ids, or decoder_input_ids beside embeddings")
            decoded = self.pass_shifted(input_ids, attention_mask, encoder_outputs, use_cache, *common)
        else:
            decoded = self.pass_through(
                input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, None,
                inputs_embeds, decoder_inputs_embeds, use_cache, *common,
            )  # fmt: skip
        logits, inputs = self.qa_outputs(decoded.hidden), decoded.inputs
        lowest = torch.finfo(logits.dtype).min
        start, end = (inputs.layout.unpack(column, lowest) for column in logits.unbind(dim=1))
        loss = None
        if start_positions is not None and end_positions is not None:
            rows = rows_of(inputs.batch) if inputs.layout.shape is None else inputs.layout
            present = rows.unpack(torch.ones_like(logits[:, 0], dtype=torch.bool), False)
            starts, ends = (rows.unpack(column, lowest) for column in logits.unbind(dim=1))
            loss = span_loss(starts, ends, start_positions, end_positions, present)
        return decoded.leave(Seq2SeqQuestionAnsweringModelOutput(loss, start, end))
