"""The configuration of ModernBERT, of either vintage."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import ModelConfig
from ..errors import ConfigError
from .activations import check_activation
from .rope import Rope

__all__ = ["FULL", "SLIDING", "ModernBertConfig"]

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers."""


@dataclass(kw_only=True)
class ModernBertConfig(ModelConfig):
    """Fields and defaults of a ModernBERT `config.json`; sizes in channels, tokens or rows.

    `global_attn_every_n_layers`, `global_rope_theta`, `local_rope_theta` and `rope_scaling` are the older vintage of
    `layer_types` and `rope_parameters`: they fill these where these are not given, and are not written again.
    """

    model_type: ClassVar[str] = "modernbert"

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    initializer_cutoff_factor: float | None = 2.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    eos_token_id: int | list[int] | None = 50282
    bos_token_id: int | None = 50281
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    attention_bias: bool = False
    attention_dropout: float = 0.0
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    rope_parameters: dict[str, Any] | None = None
    local_attention: int = 128
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    deterministic_flash_attn: bool = False
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    reference_compile: bool | None = None
    repad_logits_with_grad: bool = False
    global_attn_every_n_layers: int = 3
    global_rope_theta: float = 160_000.0
    local_rope_theta: float | None = 10_000.0
    rope_scaling: dict[str, Any] | None = None

    def check(self, source: str) -> None:
        """Bring the older vintage into the newer one.

        Raises:
            ConfigError: naming the field.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{source}: hidden_size: expected a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )
        for name in ("hidden_activation", "classifier_activation"):
            check_activation(source, name, getattr(self, name))
        limits = {"local_attention": (0, math.inf), "global_attn_every_n_layers": (1, math.inf)}
        for name in ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"):
            limits[name] = (0, 1)
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{source}: {name}: expected {low} to {high}, got {getattr(self, name)}")
        if self.layer_types is None:
            every = self.global_attn_every_n_layers
            self.layer_types = [SLIDING if index % every else FULL for index in range(self.num_hidden_layers)]
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"{source}: layer_types: expected num_hidden_layers ({self.num_hidden_layers}) of them, "
                f"got {len(self.layer_types)}"
            )
        self.rope_parameters = self._rope_parameters(source)
        for kind in self.layer_types:
            self.rope(kind, source)

    @property
    def sliding_window(self) -> int:
        """Keys seen to either side in a sliding layer."""
        return self.local_attention // 2

    def rope(self, kind: str, source: str = "ModernBertConfig") -> Rope:
        """The rotation of one kind of layer.

        Raises:
            ConfigError: naming the parameter.
        """
        return Rope.from_parameters(
            (self.rope_parameters or {})[kind],
            head_dim=self.hidden_size // self.num_attention_heads,
            max_positions=self.max_position_embeddings,
            source=f"{source}: rope_parameters: {kind}",
        )

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` has them, the older vintage left out."""
        older = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "rope_scaling")
        return {name: value for name, value in super().to_dict().items() if name not in older}

    def _rope_parameters(self, source: str) -> dict[str, Any]:
        local = self.global_rope_theta if self.local_rope_theta is None else self.local_rope_theta
        thetas = {FULL: self.global_rope_theta, SLIDING: local}
        given = self.rope_parameters or {}
        for name in given:
            if name not in thetas:
                raise ConfigError(f"{source}: rope_parameters: expected {FULL!r} and {SLIDING!r}, got {name!r}")
        scaling = self.rope_scaling or {}
        if "type" in scaling and "rope_type" not in scaling:
            raise ConfigError(f"{source}: rope_scaling: expected rope_type, got type, which transformers ignores here")
        found = {}
        for kind, theta in thetas.items():
            entry = given.get(kind)
            if not isinstance(entry, Mapping | None):
                raise ConfigError(f"{source}: rope_parameters: {kind}: expected an object, got {entry!r}")
            entry = {**copy.deepcopy(dict(entry or {})), **copy.deepcopy(scaling)}
            for name, value in (("rope_type", entry.get("type") or "default"), ("rope_theta", theta)):
                if entry.get(name) is None:
                    entry[name] = value
            found[kind] = entry
        return found
