"""Which rows of a padded batch a packed model computes as transformers does, and what it must be told for that.

padless takes a text as if it stood alone; transformers takes the columns of a batch. The two are one as long as the
texts are whole and somebody says where they stand: positions are columns, and MobileBERT's trigrams see beyond a text's
edge what stands in the next column.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...batch import PackedBatch
from ...models.mobilebert import MobileBertEmbeddings
from ...models.padding import PackedInputs

__all__ = ["Edges", "Mask", "see_beyond_edges", "with_edges"]


@dataclass(frozen=True)
class Mask:
    """What is asked of an attention mask, `[texts, sequence]`, non-zero where there is a token.

    Attributes:
        present: bool `[texts, sequence]`.
        first: the first column of each text.
        last: its last column.
        count: its tokens.
    """

    present: Tensor
    first: list[int]
    last: list[int]
    count: list[int]

    @classmethod
    def read(cls, mask: Tensor) -> Mask:
        """Look at a mask `[texts, sequence]`; waits for the device once."""
        present = mask != 0
        first = present.int().argmax(dim=1)
        last = present.shape[1] - 1 - present.flip(1).int().argmax(dim=1)
        return cls(present, *torch.stack([first, last, present.sum(dim=1)]).tolist())

    @property
    def whole(self) -> bool:
        """There is no padding."""
        return all(count == self.present.shape[1] for count in self.count)

    @property
    def empty(self) -> bool:
        """A text has no token."""
        return not all(self.count)

    @property
    def holes(self) -> bool:
        """The tokens of a text do not stand side by side."""
        spans = zip(self.first, self.last, self.count, strict=True)
        return any(last - first + 1 != count for first, last, count in spans)

    @property
    def left(self) -> bool:
        """A text does not begin in the first column."""
        return any(self.first)


@dataclass(frozen=True)
class Edges(PackedBatch):
    """A packed batch that knows what stood beside its texts in the rows they came from.

    Attributes:
        after: int64 `[texts]`, the id in the column behind each text; -1 where the row ends.
        before: the same of the column in front.
    """

    after: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), kw_only=True)
    before: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), kw_only=True)


def with_edges(inputs: PackedInputs, rows: Tensor) -> PackedInputs:
    """The packed inputs as `Edges`; rows are the ids they were packed from, `[texts, sequence]`, no text empty."""
    batch, slots, width = inputs.batch, inputs.layout.slots, rows.shape[1]
    if slots is None:
        return inputs
    ids, starts = rows.flatten().long(), batch.cu_seqlens.long()
    first, last = slots[starts[:-1]], slots[starts[1:] - 1]
    after = ids[(last + 1).clamp(max=len(ids) - 1)].masked_fill(last % width == width - 1, -1)
    before = ids[(first - 1).clamp(min=0)].masked_fill(first % width == 0, -1)
    known = {item.name: getattr(batch, item.name) for item in fields(batch) if item.init}
    return replace(inputs, batch=Edges(**known, after=after, before=before))


def see_beyond_edges(model: Any) -> None:
    """Have our MobileBERT take the trigrams of `Edges` as transformers does."""
    embeddings = model.base_model.embeddings
    if embeddings.has_neighbours:
        embeddings.__class__ = _RowEmbeddings
        model.__class__ = type(type(model).__name__, (_PacksEdges, type(model)), {})


class _RowEmbeddings(MobileBertEmbeddings):
    def _words(self, batch: PackedBatch, inputs_embeds: Tensor | None) -> Tensor:
        x = super()._words(batch, inputs_embeds)
        if not isinstance(batch, Edges):
            return x
        width, starts = self.word_embeddings.embedding_dim, batch.cu_seqlens.long()
        after, before = (
            F.embedding(ids.clamp(min=0), self.word_embeddings.weight).masked_fill((ids < 0)[:, None], 0.0)
            for ids in (batch.after, batch.before)
        )
        # [next, this, previous], as the op `trigram` has it.
        x = torch.cat([x[:, :width].index_copy(0, starts[1:] - 1, after), x[:, width:]], dim=1)
        return torch.cat([x[:, : 2 * width], x[:, 2 * width :].index_copy(0, starts[:-1], before)], dim=1)


class _PacksEdges:
    def _pack(self, input_ids: Any, *others: Any) -> PackedInputs:
        inputs = super()._pack(input_ids, *others)  # pyright: ignore[reportAttributeAccessIssue]
        return with_edges(inputs, input_ids.flatten(0, -2)) if isinstance(input_ids, Tensor) else inputs
