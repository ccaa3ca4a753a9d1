"""The configuration of MobileBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import ModelConfig
from ..errors import ConfigError
from .activations import check_activation

__all__ = ["MobileBertConfig"]


@dataclass(kw_only=True)
class MobileBertConfig(ModelConfig):
    """Fields and defaults of a MobileBERT `config.json`; sizes in channels, tokens or rows."""

    model_type: ClassVar[str] = "mobilebert"

    vocab_size: int = 30522
    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    embedding_size: int = 128
    trigram_input: bool = True
    use_bottleneck: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4
    normalization_type: Literal["no_norm", "layer_norm"] = "no_norm"
    classifier_activation: bool = True
    classifier_dropout: float | None = None

    @property
    def true_hidden_size(self) -> int:
        """Channels inside a layer."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size

    @property
    def inner_dropout(self) -> float:
        """Probability of dropout inside a layer, which is all at full width where there are no bottlenecks."""
        return 0.0 if self.use_bottleneck else self.hidden_dropout_prob

    def to_dict(self) -> dict[str, Any]:
        """The fields as `config.json` has them, with `true_hidden_size` as it is now."""
        return {**super().to_dict(), "true_hidden_size": self.true_hidden_size}

    def check(self, source: str) -> None:
        """Raise ConfigError where the widths do not fit each other, or there is no token type."""
        check_activation(source, "hidden_act", self.hidden_act)
        if self.type_vocab_size < 1:
            raise ConfigError(f"{source}: type_vocab_size: expected at least 1, got {self.type_vocab_size}")
        if self.true_hidden_size % self.num_attention_heads:
            field = "intra_bottleneck_size" if self.use_bottleneck else "hidden_size"
            raise ConfigError(
                f"{source}: {field}: expected a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.true_hidden_size}"
            )
        if self.hidden_size != self.true_hidden_size and not (
            self.use_bottleneck_attention or self.key_query_shared_bottleneck
        ):
            raise ConfigError(
                f"{source}: key_query_shared_bottleneck: expected true, or use_bottleneck_attention, or "
                f"intra_bottleneck_size equal to hidden_size; queries would have {self.hidden_size} channels where "
                f"their layer takes {self.true_hidden_size}"
            )
