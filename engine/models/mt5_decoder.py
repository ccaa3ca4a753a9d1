"""mT5's decoder (Xue et al. 2021; Raffel et al. 2020, section 2.1): attention to the past, across, feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memo import Memo
from ..ops.bind import BoundOp, Source
from .blocks import Block, linear_op
from .checkpointing import LayerStack
from .decoding import AttendsAcross, AttendsPast, Decoding
from .folded_norm import FoldedNorm
from .mt5_blocks import MT5FeedForwardLayer, MT5Heads, MT5Layer, ScaleNorm, added
from .mt5_config import MT5Config
from .parameters import Embedding

__all__ = ["MT5DecoderBlock", "MT5DecoderStack"]


class MT5CausalAttention(MT5Heads, AttendsPast):
    """Of every token to itself and those before it, its scores not scaled."""

    def __init__(self, config: MT5Config, layer: int) -> None:
        super().__init__(config, has_relative_attention_bias=layer == 0)
        self.qkv = linear_op(self.q, self.k, self.v)
        bias = {"bias_max_distance": config.relative_attention_max_distance, "bias_bidirectional": False}
        self.declare_past(layer, self.head_dim, bias="t5", softmax_scale=1.0, **bias)
        self.project = linear_op(self.o, residual=True)

    def forward(
        self, x: Tensor | None, residual: Tensor, decoding: Decoding, position_bias: Tensor,
        qkv: Tensor | None = None, memo: Memo | None = None,
    ) -> Tensor:  # fmt: skip
        """x `[tokens, d_model]`, normalised, or qkv, what its product gives, to `[tokens, d_model]`."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.split(self.qkv(x) if qkv is None else qkv)
        context = self.attend_past(q, k, v, decoding, dropout, position_bias=position_bias)
        return added(residual, self.project, context, dropout, memo)


class MT5CrossAttention(MT5Heads, AttendsAcross):
    """Of every token to all of an encoder's text, without a bias, its scores not scaled."""

    def __init__(self, config: MT5Config, layer: int) -> None:
        super().__init__(config)
        self.layer = layer
        self.query = linear_op(self.q)
        self.kv = linear_op(self.k, self.v)
        self.declare_across(self.head_dim, softmax_scale=1.0)
        self.project = linear_op(self.o, residual=True)

    def forward(
        self, x: Tensor | None, residual: Tensor, decoding: Decoding, query: Tensor | None = None,
        memo: Memo | None = None,
    ) -> Tensor:  # fmt: skip
        """x `[tokens, d_model]`, normalised, or query, what its product gives, to `[tokens, d_model]`."""
        dropout = self.dropout if self.training else 0.0
        (q,) = self.split(self.query(x) if query is None else query)
        keys, values = decoding.cross(self.layer, self._keys_and_values)
        context = self.attend_across(q, keys, values, decoding, dropout)
        return added(residual, self.project, context, dropout, memo)

    def _keys_and_values(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.split(self.kv(texts))
        return keys, values

    def _together(self) -> tuple[nn.Linear, ...]:
        return self.k, self.v


class _PastLayer(MT5Layer):
    """Norm and attention to the past."""

    def __init__(self, config: MT5Config, layer: int) -> None:
        super().__init__()
        self.SelfAttention = MT5CausalAttention(config, layer)
        self.layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        names = ("layer_norm", "SelfAttention")
        self.folded = FoldedNorm(self.layer_norm.norm, self.SelfAttention.qkv, self, names)

    def forward(self, x: Tensor, decoding: Decoding, position_bias: Tensor, memo: Memo | None = None) -> Tensor:
        """`[tokens, d_model]` of the residual stream, to the same; position_bias `[buckets, heads]`."""
        if self.folded.folds(x):
            qkv = self.folded.product(x, decoding.batch.memo)
            return self.SelfAttention(None, x, decoding, position_bias, qkv, memo)
        return self.SelfAttention(self.layer_norm(x), x, decoding, position_bias, None, memo)


class _AcrossLayer(MT5Layer):
    """Norm and attention to the encoder's text."""

    def __init__(self, config: MT5Config, layer: int) -> None:
        super().__init__()
        self.EncDecAttention = MT5CrossAttention(config, layer)
        self.layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        names = ("layer_norm", "EncDecAttention")
        self.folded = FoldedNorm(self.layer_norm.norm, self.EncDecAttention.query, self, names)

    def forward(self, x: Tensor, decoding: Decoding, memo: Memo | None = None) -> Tensor:
        """`[tokens, d_model]` of the residual stream, to the same."""
        if self.folded.folds(x):
            return self.EncDecAttention(None, x, decoding, self.folded.product(x, decoding.batch.memo), memo)
        return self.EncDecAttention(self.layer_norm(x), x, decoding, None, memo)


class MT5DecoderBlock(Block):
    """The three layers of a block; the nesting is the checkpoint's."""

    def __init__(self, config: MT5Config, layer: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [_PastLayer(config, layer), _AcrossLayer(config, layer), MT5FeedForwardLayer(config)]
        )

    @property
    def position_bias(self) -> Tensor:
        """The table of relative positions, `[buckets, heads]`; the first block has it."""
        past = self.layer[0]
        assert isinstance(past, _PastLayer)
        return past.SelfAttention.relative_attention_bias.weight

    def forward(self, x: Tensor, decoding: Decoding, position_bias: Tensor) -> Tensor:
        """`[tokens, d_model]` to `[tokens, d_model]`, of the residual stream; position_bias `[buckets, heads]`."""
        past, across, feed_forward = self.layer
        batch = decoding.batch
        if not all(isinstance(part, MT5Layer) for part in self.layer):
            return feed_forward(across(past(x, decoding, position_bias), decoding), batch)
        assert isinstance(past, MT5Layer)
        assert isinstance(across, MT5Layer)
        assert isinstance(feed_forward, MT5Layer)
        x = past(x, decoding, position_bias, past.memo_for(across, batch))
        x = across(x, decoding, across.memo_for(feed_forward, batch))
        # The next block begins as this one does.
        return feed_forward(x, batch, feed_forward.memo_for(past, batch, self))


class MT5DecoderStack(LayerStack):
    """The decoder's blocks between the word embeddings and a last norm."""

    def __init__(self, config: MT5Config, embed_tokens: Embedding) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        count = config.num_decoder_layers
        assert count is not None
        self.block = nn.ModuleList(MT5DecoderBlock(config, layer) for layer in range(count))
        self.final_layer_norm = ScaleNorm(config.d_model, config.layer_norm_eps)
        self.dropout = config.dropout_rate
        self.embed = BoundOp("embed", Source(embed_tokens, "weight"), facts={"hidden": config.d_model})

    def forward(self, decoding: Decoding, inputs_embeds: Tensor | None = None) -> Tensor:
        """The last hidden state of the new tokens, `[tokens, d_model]`."""
        batch, record = decoding.batch, decoding.record
        x = self.embed(batch.input_ids, batch.position_ids, None) if inputs_embeds is None else inputs_embeds
        x = self._dropped(x)
        if x.dtype == torch.float16:
            x = x.float()
        for block in self.each(self.block):
            if record is not None:
                record.hidden_state(x)
            x = block(x, decoding, self.position_bias)
        x = self._dropped(self.final_layer_norm(x))
        if record is not None:
            record.hidden_state(x)
        return x

    @property
    def position_bias(self) -> Tensor:
        """`[buckets, heads]`, of the first block, for all."""
        first = self.block[0]
        assert isinstance(first, MT5DecoderBlock)
        return first.position_bias

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x
