"""The blocks of mT5 (Xue et al. 2021, section 3.1; T5 1.1 of Raffel et al. 2020): pre-norm, without biases.

In fp16 the residual stream and the layer that feeds it, `wo`, are fp32: trained models have activations there beyond
65,504, the largest fp16 number. bf16 has the range of fp32 and stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..memo import Memo
from ..ops.bind import BoundOp
from .activations import ACTIVATIONS
from .blocks import Block, JoinedLayers, attend, attention_op, linear_op, residual_added, rms_norm_op
from .folded_norm import FoldedNorm
from .parameters import Embedding, Linear
from .record import Record

__all__ = [
    "MT5Attention",
    "MT5Block",
    "MT5FeedForward",
    "MT5FeedForwardLayer",
    "MT5Heads",
    "MT5Layer",
    "ScaleNorm",
    "added",
]


class ScaleNorm(Block):
    """Division by the root mean square, and a weight: T5's norm, which subtracts no mean."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.norm = rms_norm_op(self, hidden_size, eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]` in the weight's dtype."""
        return self.norm(x)

    def fill(self, factor: float) -> None:
        """Values to begin training with."""
        nn.init.constant_(self.weight, factor)


class FullPrecisionLinear(Linear):
    """A layer whose weight is fp32 where the model is fp16: what converts the model stops here."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def without_half(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            return tensor.to(converted.device, torch.float32) if converted.dtype == torch.float16 else converted

        return super()._apply(without_half, recurse)


class MT5Heads(JoinedLayers):
    """The projections of an attention: onto queries, keys and values, and back onto the residual stream.

    The first layer's has the table of the relative positions, which all layers add to their scores.
    """

    def __init__(self, config: Any, has_relative_attention_bias: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = config.num_heads, config.d_kv, config.dropout_rate
        inner = self.heads * self.head_dim
        self.q = Linear(config.d_model, inner, bias=False)
        self.k = Linear(config.d_model, inner, bias=False)
        self.v = Linear(config.d_model, inner, bias=False)
        self.o = Linear(inner, config.d_model, bias=False)
        if has_relative_attention_bias:
            self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, self.heads)
        self._share()

    def split(self, product: Tensor) -> tuple[Tensor, ...]:
        """`[tokens, n * heads * head_dim]` to n times `[tokens, heads, head_dim]`."""
        tokens, width = product.shape
        return product.view(tokens, width // (self.heads * self.head_dim), self.heads, self.head_dim).unbind(1)

    def fill(self, factor: float) -> None:
        """Values to begin training with: the scores are not scaled, so the queries' weights are."""
        width = self.q.in_features
        nn.init.normal_(self.q.weight, std=factor * (width * self.head_dim) ** -0.5)
        nn.init.normal_(self.k.weight, std=factor * width**-0.5)
        nn.init.normal_(self.v.weight, std=factor * width**-0.5)
        nn.init.normal_(self.o.weight, std=factor * self.o.in_features**-0.5)
        if hasattr(self, "relative_attention_bias"):
            nn.init.normal_(self.relative_attention_bias.weight, std=factor * width**-0.5)

    def _together(self) -> tuple[nn.Linear, ...]:
        return self.q, self.k, self.v


class MT5Attention(MT5Heads):
    """Full self-attention, its scores not scaled, and the projection of its output onto the residual stream."""

    def __init__(self, config: Any, has_relative_attention_bias: bool) -> None:
        super().__init__(config, has_relative_attention_bias)
        self.qkv = linear_op(self.q, self.k, self.v)
        distance = config.relative_attention_max_distance
        self.attention = attention_op(self.head_dim, bias="t5", softmax_scale=1.0, bias_max_distance=distance)
        self.project = linear_op(self.o, residual=True)

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        batch: PackedBatch,
        position_bias: Tensor,
        record: Record | None = None,
        qkv: Tensor | None = None,
        memo: Memo | None = None,
    ) -> Tensor:
        """x `[tokens, d_model]`, normalised, to `[tokens, d_model]`; position_bias `[buckets, heads]`.

        `qkv` is what the product of x gives, if the caller has it; memo as of `residual_added`.
        """
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.split(self.qkv(x) if qkv is None else qkv)
        context = attend(self.attention, q, k, v, batch, record, dropout=dropout, position_bias=position_bias)
        return added(residual, self.project, context, dropout, memo)


class MT5FeedForward(JoinedLayers):
    """Widening layer with its activation, gated or not, and the layer back onto the residual stream."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gated = config.is_gated_act
        self.dropout = config.dropout_rate
        if self.gated:
            self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = FullPrecisionLinear(config.d_ff, config.d_model, bias=False)
        self._share()
        self.up = linear_op(*self._together(), epilogue=ACTIVATIONS[config.dense_act_fn], gated=self.gated)
        self.down = linear_op(self.wo, residual=True)
        self.inner_dtype = self.wo.weight.dtype

    def forward(self, x: Tensor, residual: Tensor, inner: Tensor | None = None, memo: Memo | None = None) -> Tensor:
        """x `[tokens, d_model]`, normalised, to `[tokens, d_model]`; memo as of `residual_added`.

        `inner` is what the first product of x gives, if the caller has it.
        """
        dropout = self.dropout if self.training else 0.0
        # Each half fits in fp16, their product need not.
        options = {"wide": True} if x.dtype == torch.float16 else {}
        product = (self.up(x, **options) if inner is None else inner).to(self.inner_dtype)
        if dropout:
            product = F.dropout(product, dropout)
        return added(residual, self.down, product, dropout, memo)

    def _bind_own(self) -> None:
        super()._bind_own()
        for weight in itertools.islice(self.wo.parameters(), 1):  # what stands there may have none
            self.inner_dtype = weight.dtype
            self.down.bind(weight.device, weight.dtype, backend=self.backend, deterministic=self.deterministic)

    def fill(self, factor: float) -> None:
        """Values to begin training with."""
        for layer in (*self._together(), self.wo):
            nn.init.normal_(layer.weight, std=factor * layer.in_features**-0.5)

    def _together(self) -> tuple[nn.Linear, ...]:
        return (self.wi_0, self.wi_1) if self.gated else (self.wi,)


class MT5Layer(Block):
    """A norm, and what it stands in front of.

    Attributes:
        folded: the norm and the first product behind it.
    """

    folded: FoldedNorm

    def memo_for(self, reader: MT5Layer, batch: PackedBatch, *around: nn.Module) -> Memo | None:
        """Where to leave the statistics of what this layer returns, for the layer that is called with it next.

        Args:
            reader: that layer.
            batch: has the memo.
            around: further modules that return the same.
        """
        return reader.folded.asks(batch.memo, *self.children(), self, *around)


class _AttentionLayer(MT5Layer):
    """Norm and attention."""

    def __init__(self, config: Any, has_relative_attention_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = MT5Attention(config, has_relative_attention_bias)
        self.layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        product = self.SelfAttention.qkv
        self.folded = FoldedNorm(self.layer_norm.norm, product, self, ("layer_norm", "SelfAttention"))

    def forward(
        self,
        x: Tensor,
        batch: PackedBatch,
        position_bias: Tensor,
        record: Record | None = None,
        memo: Memo | None = None,
    ) -> Tensor:
        if self.folded.folds(x):
            return self.SelfAttention(x, x, batch, position_bias, record, self.folded.product(x, batch.memo), memo)
        return self.SelfAttention(self.layer_norm(x), x, batch, position_bias, record, None, memo)


class MT5FeedForwardLayer(MT5Layer):
    """Norm and feed-forward."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.DenseReluDense = MT5FeedForward(config)
        self.layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        self.folded = FoldedNorm(self.layer_norm.norm, self.DenseReluDense.up, self, ("layer_norm", "DenseReluDense"))

    def forward(self, x: Tensor, batch: PackedBatch, memo: Memo | None = None) -> Tensor:
        if self.folded.folds(x):
            return self.DenseReluDense(x, x, self.folded.product(x, batch.memo), memo)
        return self.DenseReluDense(self.layer_norm(x), x, None, memo)


class MT5Block(Block):
    """Attention, then feed-forward; the nesting is the checkpoint's."""

    def __init__(self, config: Any, has_relative_attention_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(config, has_relative_attention_bias), MT5FeedForwardLayer(config)])

    @property
    def position_bias(self) -> Tensor:
        """The table of relative positions, `[buckets, heads]`; the first layer has it."""
        attention = self.layer[0]
        assert isinstance(attention, _AttentionLayer)
        return attention.SelfAttention.relative_attention_bias.weight

    def forward(self, x: Tensor, batch: PackedBatch, position_bias: Tensor, record: Record | None = None) -> Tensor:
        """`[tokens, d_model]` to `[tokens, d_model]`, of the residual stream; position_bias `[buckets, heads]`."""
        attention, feed_forward = self.layer
        if not (isinstance(attention, MT5Layer) and isinstance(feed_forward, MT5Layer)):
            return feed_forward(attention(x, batch, position_bias, record), batch)
        x = attention(x, batch, position_bias, record, attention.memo_for(feed_forward, batch))
        # The next block begins as this one does.
        return feed_forward(x, batch, feed_forward.memo_for(attention, batch, self))


def added(residual: Tensor, project: BoundOp, x: Tensor, dropout: float, memo: Memo | None) -> Tensor:
    """`residual + project(x)`, in the residual's dtype; memo as of `residual_added`."""
    if dropout:
        return residual + F.dropout(project(x), dropout)
    return residual_added(project, x, residual, memo)
