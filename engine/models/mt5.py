"""mT5's encoder (Xue et al. 2021): T5 1.1 with a vocabulary for 101 languages.

A text's tokens know their distances, by a table of biases on the attention scores, and nothing of their places; texts
may be of any length. One table of word embeddings goes by the names `shared` and `encoder.embed_tokens`, and in a whole
model `decoder.embed_tokens`; a `lm_head` is never taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..config import ModelConfig
from ..errors import ConfigError, OptionError
from ..ops.bind import BoundOp, Source
from ..outputs import BaseModelOutput
from ..weights import NameRules
from .activations import check_activation
from .bare import BareModel
from .blocks import Dense
from .checkpointing import LayerStack
from .mt5_blocks import MT5Attention, MT5Block, MT5FeedForward, ScaleNorm
from .parameters import Embedding
from .pretrained import PreTrainedModel
from .record import Record
from .resizing import Vocabulary
from .tasks import ForTokenClassification

__all__ = ["MT5Config", "MT5EncoderModel", "MT5ForTokenClassification"]


@dataclass(kw_only=True)
class MT5Config(ModelConfig):
    """Fields and defaults of an mT5 `config.json`; sizes in channels, tokens or rows.

    `feed_forward_proj` names an activation, with "gated-" in front where the feed-forward is gated; "gated-gelu" is the
    tanh form of gelu. The word embeddings of the classes here are tied whatever `tie_word_embeddings` says.
    """

    model_type: ClassVar[str] = "mt5"
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "layer_norm_epsilon": "layer_norm_eps",
    }

    vocab_size: int = 250112
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_decoder_layers: int | None = None
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    classifier_dropout: float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "gated-gelu"
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    @property
    def is_gated_act(self) -> bool:
        """Whether one half of the feed-forward gates the other."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        """Name of the feed-forward's activation."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    def check(self, source: str) -> None:
        """Raise ConfigError for an activation that is unknown or named twice, or buckets that hold no distances."""
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        check_activation(source, "feed_forward_proj", self.dense_act_fn)
        for name, found in self.extra.items():
            if name in ("dense_act_fn", "is_gated_act") and found != getattr(self, name):
                raise ConfigError(
                    f"{source}: {name}: expected {getattr(self, name)!r}, as feed_forward_proj "
                    f"{self.feed_forward_proj!r} says, got {found!r}"
                )
        exact = self.relative_attention_num_buckets // 4
        if self.relative_attention_max_distance <= exact:
            raise ConfigError(
                f"{source}: relative_attention_max_distance: expected more than {exact}, a quarter of "
                f"relative_attention_num_buckets, got {self.relative_attention_max_distance}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields, and beside them what transformers writes: its spelling of `layer_norm_eps`, the activation."""
        beside = {name: getattr(self, name) for name in ("dense_act_fn", "is_gated_act", "layer_norm_epsilon")}
        return {**super().to_dict(), **beside}


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
                nn.init.normal_(module.weight, std=factor)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (MT5Attention, MT5FeedForward, ScaleNorm)):
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
