"""BERT (Devlin et al. 2019, section 3) and the many checkpoints of its shape: MiniLM, BGE, E5, GTE.

Post-norm encoder: embeddings, then per layer attention and feed-forward, each added to its input and normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..config import ModelConfig
from ..errors import ConfigError
from ..ops.bind import BoundOp, Source
from ..weights import NameRules
from .blocks import Block, FeedForward, Projection, SelfAttention
from .parameters import Embedding, LayerNorm

__all__ = ["BertConfig", "BertModel"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclass(kw_only=True)
class BertConfig(ModelConfig):
    """Fields and defaults of a BERT `config.json`; sizes in channels, tokens or rows."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False

    def check(self, source: str) -> None:
        """Raise ConfigError where the heads do not divide the hidden size, or there is no token type."""
        if self.type_vocab_size < 1:
            raise ConfigError(f"{source}: type_vocab_size: expected at least 1, got {self.type_vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{source}: hidden_size: expected a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )


class BertEmbeddings(Block):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob
        self.embed = BoundOp(
            "embed",
            Source(self.word_embeddings, "weight"),
            Source(self.position_embeddings, "weight"),
            Source(self.token_type_embeddings, "weight"),
            Source(self.LayerNorm, "weight"),
            Source(self.LayerNorm, "bias"),
            facts={"hidden": config.hidden_size},
            eps=config.layer_norm_eps,
        )

    def forward(self, batch: PackedBatch) -> Tensor:
        """`[tokens, hidden]`, the input of the first layer."""
        x = self.embed(batch.input_ids, batch.position_ids, batch.token_type_ids)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class BertLayer(nn.Module):
    """Attention, then feed-forward; the nesting is the checkpoint's."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        eps, dropout = config.layer_norm_eps, config.hidden_dropout_prob
        self.attention = nn.ModuleDict(
            {
                "self": SelfAttention(hidden, config.num_attention_heads),
                "output": Projection(hidden, hidden, eps, dropout),
            }
        )
        self.intermediate = FeedForward(hidden, inner, ACTIVATIONS[config.hidden_act])
        self.output = Projection(inner, hidden, eps, dropout)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        x = self.attention["output"](self.attention["self"](x, batch), x)
        return self.output(self.intermediate(x), x)


class BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        for layer in self.layer:
            x = layer(x, batch)
        return x


class BertModel(Block):
    """The encoder without pooler or heads.

    Args:
        config: a BertConfig; parameters are uninitialised until a checkpoint or `initialise` fills them.
    """

    config_class: ClassVar[type[BertConfig]] = BertConfig
    name_rules: ClassVar[NameRules] = NameRules(
        prefixes=("bert.", "model."),
        renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        ignored=(r"embeddings\.position_ids$", r"pooler\.", r"cls\."),
    )

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last hidden state, `[tokens, hidden_size]`, in the parameters' dtype.

        Args:
            batch: token ids below `vocab_size`, texts of at most `max_position_embeddings` tokens.
        """
        return self.encoder(self.embeddings(batch), batch)
