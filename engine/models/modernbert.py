"""ModernBERT (Warner et al. 2024): rotary positions, GeGLU, pre-norm, and most layers looking at a window only.

Layers are of two kinds, `full_attention` and `sliding_attention`, each with its own rotation. A window of
`local_attention` tokens is half of them to either side and the token itself: 64 + 1 + 64 of 128, both ends included.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..config import ModelConfig
from ..errors import ConfigError
from ..ops.bind import BoundOp, Source
from ..weights import NameRules
from .activations import ACTIVATIONS, check_activation
from .bare import BareModel, Encoded
from .blocks import Block, Dense, attend, attention_op, linear_op, norm_op
from .parameters import Embedding, LayerNorm, Linear
from .pretrained import PreTrainedModel
from .record import Record
from .rope import Rope, RotaryTables
from .tasks import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    TaskModel,
)

__all__ = [
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForMultipleChoice",
    "ModernBertForQuestionAnswering",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
]

FULL, SLIDING = "full_attention", "sliding_attention"

Turn = tuple[Tensor, Tensor, Tensor]
"""Table rows of the tokens, cosines and sines: see `engine/ops/rope.py`."""


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


class ModernBertEmbeddings(Block):
    """Word embeddings, normalised; positions come later, as rotations."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.dropout = config.embedding_dropout
        weight, bias = Source(self.norm, "weight"), Source(self.norm, "bias")
        facts = {"hidden": config.hidden_size}
        word = Source(self.tok_embeddings, "weight")
        self.embed = BoundOp("embed", word, None, None, weight, bias, facts=facts, eps=config.norm_eps)
        self.normalise = norm_op(self.norm)

    def forward(self, batch: PackedBatch, inputs_embeds: Tensor | None = None) -> Tensor:
        """`[tokens, hidden]`, the input of the first layer."""
        if inputs_embeds is None:
            x = self.embed(batch.input_ids, batch.position_ids, None)
        else:
            x = self.normalise(inputs_embeds)
        return F.dropout(x, self.dropout, self.training)


class ModernBertAttention(Block):
    """Self-attention of turned queries and keys, over the whole text or a window of it."""

    def __init__(self, config: ModernBertConfig, kind: str) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.attention_bias
        self.heads = config.num_attention_heads
        self.head_dim = hidden // self.heads
        self.dropout = config.attention_dropout
        self.Wqkv = Linear(hidden, 3 * hidden, bias=bias)
        self.Wo = Linear(hidden, hidden, bias=bias)
        side = config.sliding_window if kind == SLIDING else -1
        self.qkv = linear_op(self.Wqkv)
        self.turn = BoundOp("rope", facts={"head_dim": self.head_dim})
        self.attention = attention_op(self.head_dim, window=(side, side))
        self.project = linear_op(self.Wo)

    def forward(self, x: Tensor, residual: Tensor, batch: PackedBatch, turn: Turn, record: Record | None) -> Tensor:
        """`residual + attention(x)`, `[tokens, hidden]`."""
        q, k, v = self.qkv(x).view(-1, 3, self.heads, self.head_dim).unbind(1)
        q, k = self.turn(q, k, *turn)
        dropout = self.dropout if self.training else 0.0
        x = attend(self.attention, q, k, v, batch, record, dropout=dropout)
        return residual + F.dropout(self.project(x), dropout) if dropout else self.project(x, residual=residual)


class ModernBertMLP(Block):
    """The gated feed-forward: the activated half of `Wi`'s outputs times the other half."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.dropout = config.mlp_dropout
        self.Wi = Linear(hidden, 2 * inner, bias=bias)
        self.Wo = Linear(inner, hidden, bias=bias)
        self.up = linear_op(self.Wi, epilogue=ACTIVATIONS[config.hidden_activation], gated=True)
        self.down = linear_op(self.Wo)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual + mlp(x)`, `[tokens, hidden]`."""
        return self.down(F.dropout(self.up(x), self.dropout, self.training), residual=residual)


class ModernBertLayer(Block):
    """Attention, then feed-forward, each on the normalised stream; the first layer's input is normalised already."""

    def __init__(self, config: ModernBertConfig, kind: str, first: bool) -> None:
        super().__init__()
        if not first:
            self.attn_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.attn = ModernBertAttention(config, kind)
        self.mlp_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.mlp = ModernBertMLP(config)
        self.before_attention = None if first else norm_op(self.attn_norm)
        self.before_mlp = norm_op(self.mlp_norm)

    def forward(self, x: Tensor, batch: PackedBatch, turn: Turn, record: Record | None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        x = self.attn(x if self.before_attention is None else self.before_attention(x), x, batch, turn, record)
        return self.mlp(self.before_mlp(x), x)


class ModernBertHead(Block):
    """What stands in front of every task's last layer: linear, activation, norm."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.classifier_activation]
        self.dense = Dense(config.hidden_size, config.hidden_size, config.classifier_bias, activation=activation)
        self.norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.normalise = norm_op(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, hidden]` to `[rows, hidden]`."""
        return self.normalise(self.dense(x))


class ModernBertPreTrainedModel(PreTrainedModel):
    """What all classes of the family share."""

    config_class = ModernBertConfig
    base_model_prefix = "model"
    name_rules = NameRules(prefixes=("model.",), ignored=(r"rotary_emb\.", r"^head\.", r"^decoder\.", r"^classifier\."))

    def initialise(self, part: nn.Module | None = None) -> None:
        """Normal weights cut off at a few standard deviations; what writes to the residual stream starts smaller."""
        config = self.config
        cutoff = 3.0 if config.initializer_cutoff_factor is None else config.initializer_cutoff_factor
        wide, final = config.initializer_range, config.hidden_size**-0.5
        narrow = wide / math.sqrt(2.0 * max(config.num_hidden_layers, 1))
        deviations = {"Wo": narrow, "dense": narrow, "decoder": narrow, "classifier": final}
        chosen = set((self if part is None else part).modules())
        tied = {name.rpartition(".")[0] for name in self.tie_table()}
        for name, module in self.named_modules():
            if module not in chosen:
                continue
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, (nn.Linear, nn.Embedding)) and name not in tied:
                deviation = deviations.get(name.rpartition(".")[2], wide)
                nn.init.trunc_normal_(module.weight, std=deviation, a=-cutoff * deviation, b=cutoff * deviation)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)


class ModernBertModel(ModernBertPreTrainedModel, BareModel):
    """The encoder without head."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        # Fields may have been assigned since the configuration was made.
        config.check(type(config).__name__)
        self.kinds: list[str] = [*(config.layer_types or [])]
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertLayer(config, kind, index == 0) for index, kind in enumerate(self.kinds))
        self.final_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.normalise = norm_op(self.final_norm)
        self.tables = {kind: RotaryTables(config.rope(kind)) for kind in dict.fromkeys(self.kinds)}

    @property
    def word_embeddings(self) -> nn.Embedding:
        """`[vocab, hidden]`."""
        return self.embeddings.tok_embeddings

    @property
    def longest(self) -> None:
        """Rotations reach as far as the text does."""
        return None

    def run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, hidden_size]`; recorded last, it is the normalised one."""
        turns = {kind: tables.lookup(batch) for kind, tables in self.tables.items()}
        x = self.embeddings(batch, inputs_embeds)
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            if record is not None:
                record.hidden_state(x)
            x = layer(x, batch, turns[kind], record)
        x = self.normalise(x)
        if record is not None:
            record.hidden_state(x)
        return x


class ModernBertTask(ModernBertPreTrainedModel, TaskModel):
    """A bare model and the family's head."""

    base_class = ModernBertModel

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.head = ModernBertHead(config)

    def token_features(self, hidden: Tensor) -> Tensor:
        """The head on every token."""
        return self.head(hidden)

    def text_features(self, encoded: Encoded) -> Tensor:
        """The head on the first token or the mean of every text."""
        pooled = encoded.first_tokens() if self.config.classifier_pooling == "cls" else encoded.mean_tokens()
        return self.head(pooled)


class ModernBertForMaskedLM(ModernBertTask, ForMaskedLM):
    """Which token belongs where one is masked; under `sparse_prediction`, logits of labelled tokens only."""

    tied = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.decoder = Dense(config.hidden_size, config.vocab_size, config.decoder_bias)

    def masked_lm_logits(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        return self.decoder(self.head(hidden))


class ModernBertForSequenceClassification(ModernBertTask, ForSequenceClassification):
    """One class, several, or a number for every text."""


class ModernBertForTokenClassification(ModernBertTask, ForTokenClassification):
    """A class for every token."""


class ModernBertForMultipleChoice(ModernBertTask, ForMultipleChoice):
    """Which of several texts."""


class ModernBertForQuestionAnswering(ModernBertTask, ForQuestionAnswering):
    """Where the answer begins and where it ends."""

    span_layer = "classifier"
