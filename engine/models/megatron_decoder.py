"""MegatronBERT as a decoder: attention to the past, across where there is an encoder, then feed-forward, pre-norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..memo import Memo
from .activations import ACTIVATIONS
from .blocks import Block, FeedForward, JoinedLayers, ResidualProjection, linear_op, norm_op
from .checkpointing import LayerStack
from .decoding import AttendsAcross, AttendsPast, Decoding
from .folded_norm import FoldedNorm
from .parameters import LayerNorm, Linear

__all__ = ["MegatronBertDecoder"]


class _Heads(JoinedLayers):
    """The projections onto queries, keys and values, under the checkpoint's names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, hidden // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = (Linear(hidden, hidden) for _ in range(3))
        self._share()

    def split(self, product: Tensor) -> tuple[Tensor, ...]:
        """`[tokens, n * hidden]` to n times `[tokens, heads, head_dim]`."""
        tokens, width = product.shape
        return product.view(tokens, width // (self.heads * self.head_dim), self.heads, self.head_dim).unbind(1)

    def _together(self) -> tuple[nn.Linear, ...]:
        return self.query, self.key, self.value


class MegatronBertPast(_Heads, AttendsPast):
    """Of every token to itself and those before it."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config)
        self.product = linear_op(self.query, self.key, self.value)
        self.declare_past(layer, self.head_dim)

    def forward(self, x: Tensor | None, decoding: Decoding, product: Tensor | None = None) -> Tensor:
        """x `[tokens, hidden]`, or what its product gives, to `[tokens, hidden]`."""
        q, k, v = self.split(self.product(x) if product is None else product)
        return self.attend_past(q, k, v, decoding, self.dropout if self.training else 0.0)


class MegatronBertAcross(_Heads, AttendsAcross):
    """Of every token to all of an encoder's text."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config)
        self.layer = layer
        self.product = linear_op(self.query)
        self.kv = linear_op(self.key, self.value)
        self.declare_across(self.head_dim)

    def forward(self, x: Tensor | None, decoding: Decoding, product: Tensor | None = None) -> Tensor:
        """x `[tokens, hidden]`, or what its product gives, to `[tokens, hidden]`."""
        (q,) = self.split(self.product(x) if product is None else product)
        keys, values = decoding.cross(self.layer, self._keys_and_values)
        return self.attend_across(q, keys, values, decoding, self.dropout if self.training else 0.0)

    def _keys_and_values(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.split(self.kv(texts))
        return keys, values

    def _together(self) -> tuple[nn.Linear, ...]:
        return self.key, self.value


class MegatronBertDecoderAttention(Block):
    """Norm, attention, and its output added to what came in."""

    def __init__(self, config: Any, attention: MegatronBertPast | MegatronBertAcross) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.ln = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)
        self.self = attention
        self.output = ResidualProjection(hidden, hidden, config.hidden_dropout_prob)
        self.into_attention = FoldedNorm(self.norm, attention.product, self, ("ln", "self"))

    def forward(self, x: Tensor, decoding: Decoding, memo: Memo | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; memo as of `residual_added`."""
        if self.into_attention.folds(x):
            context = self.self(None, decoding, self.into_attention.product(x, decoding.batch.memo))
        else:
            context = self.self(self.norm(x), decoding)
        return self.output(context, x, memo)


class MegatronBertDecoderLayer(Block):
    """Attention to the past, across where there are texts, then feed-forward; the nesting is the checkpoint's."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention = MegatronBertDecoderAttention(config, MegatronBertPast(config, layer))
        self.crossattention = None
        if config.add_cross_attention:
            self.crossattention = MegatronBertDecoderAttention(config, MegatronBertAcross(config, layer))
        self.ln = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)
        self.intermediate = FeedForward(hidden, inner, ACTIVATIONS[config.hidden_act])
        self.output = ResidualProjection(inner, hidden, config.hidden_dropout_prob)
        self.into_mlp = FoldedNorm(self.norm, self.intermediate.up, self, ("ln", "intermediate"))

    def forward(self, x: Tensor, decoding: Decoding) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`."""
        memo, past, across = decoding.batch.memo, self.attention, self.crossattention
        if across is not None and decoding.across:
            x = past(x, decoding, across.into_attention.asks(memo, past.output, past))
            x = across(x, decoding, self.into_mlp.asks(memo, across.output, across))
        else:
            x = past(x, decoding, self.into_mlp.asks(memo, past.output, past))
        inner = self.into_mlp.product(x, memo) if self.into_mlp.folds(x) else self.intermediate(self.norm(x))
        # The next layer begins as this one does.
        return self.output(inner, x, past.into_attention.asks(memo, self.output, self))


class MegatronBertDecoder(LayerStack):
    """The layers, one after the other, and the norm of what they add up."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(MegatronBertDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.ln = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = norm_op(self.ln)

    def forward(self, x: Tensor, decoding: Decoding) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; of the hidden states only the last is normalised."""
        record = decoding.record
        for layer in self.each(self.layer):
            if record is not None:
                record.hidden_state(x)
            x = layer(x, decoding)
        x = self.norm(x)
        if record is not None:
            record.hidden_state(x)
        return x
