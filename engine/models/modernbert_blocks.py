"""The blocks of ModernBERT (Warner et al. 2024): rotary positions, GeGLU, pre-norm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..memo import Memo
from ..ops.bind import BoundOp, Source
from ..ops.linear import Rotation
from .activations import ACTIVATIONS
from .blocks import Block, attend, attention_op, linear_op, norm_op, residual_added
from .folded_norm import FoldedNorm
from .modernbert_config import SLIDING, ModernBertConfig
from .parameters import Embedding, LayerNorm, Linear
from .record import Record

__all__ = ["ModernBertEmbeddings", "ModernBertHead", "ModernBertLayer"]


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
        self.qkv = linear_op(self.Wqkv, turned=2 * hidden, head_dim=self.head_dim)
        self.attention = attention_op(self.head_dim, window=(side, side))
        self.project = linear_op(self.Wo, residual=True)

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        batch: PackedBatch,
        turn: Rotation,
        record: Record | None,
        qkv: Tensor | None = None,
        memo: Memo | None = None,
    ) -> Tensor:
        """`residual + attention(x)`, `[tokens, hidden]`; memo as of `residual_added`.

        `qkv` is what the product of x gives, if the caller has it.
        """
        product = self.qkv(x, rope=turn) if qkv is None else qkv
        q, k, v = product.view(-1, 3, self.heads, self.head_dim).unbind(1)
        dropout = self.dropout if self.training else 0.0
        x = attend(self.attention, q, k, v, batch, record, dropout=dropout)
        if dropout:
            return residual + F.dropout(self.project(x), dropout)
        return residual_added(self.project, x, residual, memo)


class ModernBertMLP(Block):
    """The gated feed-forward: the activated half of `Wi`'s outputs times the other half."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.dropout = config.mlp_dropout
        self.Wi = Linear(hidden, 2 * inner, bias=bias)
        self.Wo = Linear(inner, hidden, bias=bias)
        self.up = linear_op(self.Wi, epilogue=ACTIVATIONS[config.hidden_activation], gated=True)
        self.down = linear_op(self.Wo, residual=True)

    def forward(self, x: Tensor, residual: Tensor, inner: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        """`residual + mlp(x)`, `[tokens, hidden]`; memo as of `residual_added`.

        `inner` is what the product of x gives, if the caller has it.
        """
        inner = F.dropout(self.up(x) if inner is None else inner, self.dropout, self.training)
        return residual_added(self.down, inner, residual, memo)


class ModernBertLayer(Block):
    """Attention, then feed-forward, each on the normalised stream; the first layer's input is normalised already."""

    def __init__(self, config: ModernBertConfig, kind: str, first: bool) -> None:
        super().__init__()
        self.attention_type = kind
        if not first:
            self.attn_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.attn = ModernBertAttention(config, kind)
        self.mlp_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.mlp = ModernBertMLP(config)
        self.before_attention = None if first else norm_op(self.attn_norm)
        self.before_mlp = norm_op(self.mlp_norm)
        attention = self.before_attention
        self.into_attention = attention and FoldedNorm(attention, self.attn.qkv, self, ("attn_norm", "attn"))
        self.into_mlp = FoldedNorm(self.before_mlp, self.mlp.up, self, ("mlp_norm", "mlp"))

    def forward(self, x: Tensor, batch: PackedBatch, turns: Mapping[str, Rotation], record: Record | None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; of the turns, by kind, the layer takes that of its own."""
        x = self._attended(x, batch, turns[self.attention_type], record)
        # The next layer begins as this one does, or would if it were not the first.
        memo = (self.into_attention or self.into_mlp).asks(batch.memo, self.mlp, self)
        if self.into_mlp.folds(x):
            return self.mlp(x, x, self.into_mlp.product(x, batch.memo), memo)
        return self.mlp(self.before_mlp(x), x, None, memo)

    def _attended(self, x: Tensor, batch: PackedBatch, turn: Rotation, record: Record | None) -> Tensor:
        memo = self.into_mlp.asks(batch.memo, self.attn)
        if self.before_attention is None or self.into_attention is None:
            return self.attn(x, x, batch, turn, record, None, memo)
        if self.into_attention.folds(x):
            return self.attn(x, x, batch, turn, record, self.into_attention.product(x, batch.memo, rope=turn), memo)
        return self.attn(self.before_attention(x), x, batch, turn, record, None, memo)


class ModernBertHead(Block):
    """What stands in front of every task's last layer: linear, activation, norm."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, config.classifier_bias)
        self.norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.project = linear_op(self.dense, epilogue=ACTIVATIONS[config.classifier_activation])
        self.normalise = norm_op(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, hidden]` to `[rows, hidden]`."""
        return self.normalise(self.project(x))
