"""`config.json` of mT5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import ModelConfig
from ..errors import ConfigError
from .activations import check_activation

__all__ = ["MT5Config"]


@dataclass(kw_only=True)
class MT5Config(ModelConfig):
    """Fields and defaults of an mT5 `config.json`; sizes in channels, tokens or rows.

    `feed_forward_proj` names an activation, with "gated-" in front where the feed-forward is gated; "gated-gelu" is the
    tanh form of gelu. The word embeddings of both halves are tied whatever `tie_word_embeddings` says: it is about the
    head of the language model.
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
