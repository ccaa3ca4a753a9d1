"""What a decoder's layers are handed beside their rows, and the two ways they attend: to the past, and across."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batch import PackedBatch
from ..ops.attention import attention_with_weights
from ..ops.bind import BoundOp
from .blocks import Block, attention_op
from .kv_cache import KeyValueCache, Placement
from .record import Record

__all__ = ["AttendsAcross", "AttendsPast", "Decoding", "Texts"]


@dataclass(frozen=True)
class Texts:
    """An encoder's output.

    Attributes:
        hidden: `[tokens, hidden]`.
        batch: where the texts begin and end.
    """

    hidden: Tensor
    batch: PackedBatch


@dataclass(frozen=True)
class Decoding:
    """One pass through a decoder.

    Attributes:
        batch: the new tokens of each sequence.
        texts: what is attended to across, one text a sequence; None where there is no encoder, or all of it is kept.
        cache: what was kept of the tokens before, and keeps the new ones; None keeps nothing.
        place: of the new tokens in the cache.
        record: what else to keep.
    """

    batch: PackedBatch
    texts: Texts | None = None
    cache: KeyValueCache | None = None
    place: Placement | None = None
    record: Record | None = None

    @property
    def across(self) -> bool:
        """Whether there is anything to attend to across."""
        return self.texts is not None or (self.cache is not None and self.cache.texts is not None)

    def cross(self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the texts for one layer, `[tokens, heads, head_dim]` each; kept where there is a cache."""
        kept = None if self.cache is None else self.cache.layers[layer]
        if kept is not None and kept.cross is not None:
            return kept.cross
        assert self.texts is not None
        found = project(self.texts.hidden)
        if kept is not None:
            kept.cross = found
        return found

    @property
    def wants_attentions(self) -> bool:
        """Whether softmax weights are to be kept, which only eager has."""
        return self.record is not None and self.record.wants_attentions


class AttendsPast(Block):
    """A block whose tokens attend to themselves and the tokens before them, those in a cache among them."""

    def declare_past(self, layer: int, head_dim: int, **options: Any) -> None:
        """Declare the ops, once the block is constructed.

        Args:
            layer: which of the decoder's layers this is, from 0.
            head_dim: channels of a head.
            options: of the ops, such as `softmax_scale` and, with `bias="t5"`, those of the bias.
        """
        self.layer_index = layer
        facts = {"head_dim": head_dim, "bias": options.get("bias", "none")}
        self.past = attention_op(head_dim, causal=True, **options)
        self.past_onward = attention_op(head_dim, causal=True, cross=True, **options)
        of_a_step = {name: value for name, value in options.items() if name != "bias"}
        self.past_step = BoundOp("decode_attention", facts=facts, **of_a_step)

    def attend_past(
        self, q: Tensor, k: Tensor, v: Tensor, decoding: Decoding, dropout: float = 0.0, **options: Any
    ) -> Tensor:
        """`[tokens, heads, head_dim]` each, to `[tokens, heads * head_dim]`; options such as `position_bias`."""
        batch, cache, place = decoding.batch, decoding.cache, decoding.place
        edges = longest = None
        eager = dropout or decoding.wants_attentions
        if cache is not None and place is not None:
            keys, values = cache.layers[self.layer_index].write(place, k, v, cache.rows)
            if place.single and not eager:
                found = self.past_step(q, keys, values, place.starts, place.lengths, place.max_length, **options)
                return found.flatten(1)
            if not place.fresh:
                rows = place.keys
                k, v = keys[rows], values[rows]
                edges, longest = place.cu_seqlens, place.max_length
        if eager:
            return _eagerly(self.past, q, k, v, decoding, edges, dropout, "attentions", options)
        if edges is None:
            return self.past(q, k, v, batch.cu_seqlens, batch.max_seqlen, memo=batch.memo, **options).flatten(1)
        lengths = {"cu_seqlens_k": edges, "max_seqlen_k": longest}
        return self.past_onward(q, k, v, batch.cu_seqlens, batch.max_seqlen, **lengths, **options).flatten(1)


class AttendsAcross(Block):
    """A block whose tokens attend to all tokens of an encoder's text."""

    def declare_across(self, head_dim: int, **options: Any) -> None:
        """Declare the ops, once the block is constructed."""
        self.across = attention_op(head_dim, cross=True, **options)
        self.across_step = BoundOp("decode_attention", facts={"head_dim": head_dim, "bias": "none"}, **options)

    def attend_across(self, q: Tensor, k: Tensor, v: Tensor, decoding: Decoding, dropout: float = 0.0) -> Tensor:
        """q `[tokens, heads, head_dim]`, k and v `[tokens of the texts, …]`, to `[tokens, heads * head_dim]`."""
        batch, cache, place = decoding.batch, decoding.cache, decoding.place
        kept = None if cache is None else cache.texts
        eager = dropout or decoding.wants_attentions
        if kept is not None and place is not None and place.single and not eager:
            return self.across_step(q, k, v, kept.starts, kept.sizes, kept.longest).flatten(1)
        if kept is not None:
            edges, longest = kept.cu_seqlens, kept.longest
            if kept.shared:
                k, v, edges = kept.apart(k, v)
        else:
            assert decoding.texts is not None
            edges, longest = decoding.texts.batch.cu_seqlens, decoding.texts.batch.max_seqlen
        if eager:
            return _eagerly(self.across, q, k, v, decoding, edges, dropout, "cross_attentions", {})
        lengths = {"cu_seqlens_k": edges, "max_seqlen_k": longest}
        return self.across(q, k, v, batch.cu_seqlens, batch.max_seqlen, **lengths).flatten(1)


def _eagerly(
    op: BoundOp, q: Tensor, k: Tensor, v: Tensor, decoding: Decoding, edges: Tensor | None, dropout: float, kind: str,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Attention whose weights are kept, under `kind` of the record, or dropped out."""
    batch, record = decoding.batch, decoding.record
    out, weights = attention_with_weights(
        q, k, v, batch.cu_seqlens, batch.max_seqlen, cu_seqlens_k=edges, dropout=dropout, **op.options, **options
    )
    if record is not None and record.wants_attentions:
        getattr(record, kind).append(weights)
    return out.flatten(1)
