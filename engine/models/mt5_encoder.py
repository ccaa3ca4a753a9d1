"""mT5's encoder (Xue et al. 2021): T5 1.1 with a vocabulary for 101 languages.

A text's tokens know their distances, by a table of biases on the attention scores, and nothing of their places; texts
may be of any length. One table of word embeddings goes by the names `shared` and `encoder.embed_tokens`, and in a whole
model `decoder.embed_tokens`; a `lm_head` is never taken for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import ConfigError, OptionError
from ..ops.bind import BoundOp, Source
from ..outputs import BaseModelOutput
from ..weights import NameRules
from .bare import BareModel
from .blocks import Dense
from .checkpointing import LayerStack
from .mt5_blocks import MT5Block, MT5FeedForward, MT5Heads, ScaleNorm
from .mt5_config import MT5Config
from .parameters import Embedding
from .pretrained import PreTrainedModel
from .record import Record
from .resizing import Vocabulary
from .tasks import ForTokenClassification

__all__ = ["MT5EncoderModel", "MT5Family", "MT5ForTokenClassification", "MT5Stack", "NarrowDense"]


class MT5Stack(LayerStack):
    """The encoder's layers between the word embeddings and a last norm."""

    def __init__(self, config: MT5Config, embed_tokens: Embedding) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(MT5Block(config, index == 0) for index in range(config.num_layers))
        self.final_layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        self.dropout = config.dropout_rate
        self.embed = BoundOp("embed", Source(embed_tokens, "weight"), facts={"hidden": config.d_model})

    def forward(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, d_model]`."""
        x = self.embed(batch.input_ids, batch.position_ids, None) if inputs_embeds is None else inputs_embeds
        x = self._dropped(x)
        if x.dtype == torch.float16:
            x = x.float()
        for block in self.each(self.block):
            if record is not None:
                record.hidden_state(x)
            x = block(x, batch, self.position_bias, record)
        x = self._dropped(self.final_layer_norm(x))
        if record is not None:
            record.hidden_state(x)
        return x

    @property
    def position_bias(self) -> Tensor:
        """`[buckets, heads]`, of the first layer, for all."""
        first = self.block[0]
        assert isinstance(first, MT5Block)
        return first.position_bias

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class NarrowDense(Dense):
    """A linear layer whose values begin the narrower the wider it is."""


class MT5Family(PreTrainedModel):
    """What all mT5 classes share."""

    config_class = MT5Config
    base_model_prefix = "transformer"
    vocabulary = Vocabulary(tables=("shared", "encoder.embed_tokens"))
    name_rules = NameRules(
        prefixes=("transformer.",),
        ignored=(r"^decoder\.", r"^(lm_head|classifier|classification_head|qa_outputs)\."),
    )

    def tie_table(self) -> dict[str, str]:
        """The names that the word embeddings have in checkpoints of the encoder and of the whole model."""
        inside = "" if self.base_model is self else f"{self.base_model_prefix}."
        return {f"{inside}{side}.embed_tokens.weight": f"{inside}shared.weight" for side in ("encoder", "decoder")}

    def tie_weights(self) -> None:
        """Make the two tables one parameter. They stay two modules: torch swaps weights once for each name of one."""
        base = self.base_model
        base.encoder.embed_tokens.weight = base.shared.weight

    def initialise(self, part: nn.Module | None = None) -> None:
        """Fill the parameters of the model, or of one part of it: each by its width, times `initializer_factor`."""
        factor = self.config.initializer_factor
        for module in (self if part is None else part).modules():
            if isinstance(module, MT5EncoderModel):
                nn.init.normal_(module.shared.weight, std=factor)
            elif isinstance(module, Dense):
                # The layers of heads that are deeper than one begin by their width.
                spread = module.in_features**-0.5 if isinstance(module, NarrowDense) else 1.0
                nn.init.normal_(module.weight, std=factor * spread)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (MT5Heads, MT5FeedForward, ScaleNorm)):
                module.fill(factor)


class MT5EncoderModel(MT5Family, BareModel):
    """The encoder.

    Raises:
        ConfigError: the configuration is a decoder's.
    """

    def __init__(self, config: MT5Config) -> None:
        super().__init__(config)
        if config.is_decoder:
            raise ConfigError(f"{type(self).__name__}: is_decoder: the decoder is not built yet, expected false")
        self.shared = Embedding(config.vocab_size, config.d_model)
        table = Embedding(config.vocab_size, config.d_model, _weight=self.shared.weight.data)
        self.encoder = MT5Stack(config, table)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """`[vocab, d_model]`."""
        return self.shared

    @property
    def longest(self) -> None:
        """No table limits a text's length."""
        return None

    def _run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, d_model]`; `inputs_embeds` are `[tokens, d_model]`."""
        return self.encoder(batch, inputs_embeds, record)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a batch; arguments as of `BareModel.forward`, without those of types and positions.

        Returns:
            `last_hidden_state [batch, sequence, d_model]`, zeros at padding; for a PackedBatch `[tokens, d_model]`.

        Raises:
            InputError: shapes that do not fit, or ids outside the vocabulary.
        """
        encoded = self.encode_inputs(
            input_ids, attention_mask, None, None, inputs_embeds,
            output_attentions, output_hidden_states, return_dict, others,
        )  # fmt: skip
        return encoded.leave(BaseModelOutput(last_hidden_state=encoded.layout.unpack(encoded.hidden)))


class MT5ForTokenClassification(MT5Family, ForTokenClassification):
    """mT5's encoder with a classifier of tokens."""

    base_class = MT5EncoderModel

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Encode a batch and classify its tokens; as `TaskModel.forward`, without types and positions.

        Raises:
            OptionError: types or positions are given.
        """
        for name in ("token_type_ids", "position_ids"):
            if others.get(name) is not None:
                raise OptionError(f"{type(self).__name__}: unknown argument {name}")
        return super().forward(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, labels=labels,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            **others,
        )  # fmt: skip
