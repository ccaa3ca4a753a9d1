"""The keys and values that a decoder keeps of the tokens it has seen, so that a step computes one token alone.

Every sequence has a slot of `capacity` rows in each layer's buffers. A pass over new tokens says once where they stand
(`KeyValueCache.extend` -> `Placement`); each layer then writes its rows and reads those of the whole sequence. What a
decoder attends to across, an encoder's output, is projected once and kept packed: sequences that stem from one text, as
beams do, read the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import InputError

__all__ = ["CrossKeys", "KeyValueCache", "LayerCache", "Placement", "texts_of"]

SMALLEST_CAPACITY = 16


@dataclass(frozen=True)
class Placement:
    """Where the tokens of one pass, and of the sequences they belong to, stand in a cache.

    Attributes:
        rows: int64 `[tokens]`, the row of each new token.
        starts: int64 `[sequences]`, the first row of each sequence.
        lengths: int32 `[sequences]` on the device, tokens of each sequence, the new ones among them.
        max_length: the longest of them.
        single: every sequence has exactly one new token.
        fresh: no sequence had a token before.
        slots: int64 `[sequences]` on the host, as `starts`.
        totals: int32 `[sequences]` on the host, as `lengths`.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    max_length: int
    single: bool
    fresh: bool
    slots: Tensor
    totals: Tensor

    @property
    def keys(self) -> Tensor:
        """int64 `[keys]`, the rows of all sequences one after the other."""
        return _ranges(self.slots, self.totals).to(self.rows.device)

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 `[sequences + 1]`, where each sequence begins among `keys`."""
        return F.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class CrossKeys:
    """What the sequences of a decoder attend to across: texts of an encoder.

    Attributes:
        cu_seqlens: int32 `[texts + 1]`.
        lengths: int32 `[texts]` on the host.
        owners: int64 `[sequences]`, the text of each sequence.
    """

    cu_seqlens: Tensor
    lengths: Tensor
    owners: Tensor

    @property
    def starts(self) -> Tensor:
        """int64 `[sequences]`, the first row of each sequence's text."""
        return self.cu_seqlens[:-1].long()[self.owners]

    @property
    def sizes(self) -> Tensor:
        """int32 `[sequences]` on the device, tokens of each sequence's text."""
        return self.cu_seqlens.diff()[self.owners]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max()) if len(self.lengths) else 0

    @property
    def shared(self) -> bool:
        """Whether the texts of the sequences are not simply the texts, in their order."""
        count = len(self.lengths)
        return len(self.owners) != count or bool((self.owners.cpu() != torch.arange(count)).any())

    def apart(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values with the rows of every sequence's text one after the other, and where each begins."""
        sizes = self.lengths[self.owners.cpu()]
        rows = _ranges(self.starts.cpu(), sizes).to(keys.device)
        edges = F.pad(self.sizes.cumsum(0, dtype=torch.int32), (1, 0))
        return keys[rows], values[rows], edges


@dataclass
class LayerCache:
    """Of one layer.

    Attributes:
        keys: `[sequences * capacity, heads, head_dim]`, as are the values; None before the first pass.
        cross: keys and values `[tokens of the texts, heads, head_dim]` each; None before the first pass.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    cross: tuple[Tensor, Tensor] | None = None

    def write(self, place: Placement, keys: Tensor, values: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Keep the new tokens' `[tokens, heads, head_dim]`; all of the layer's, of so many rows."""
        if self.keys is None or self.values is None:
            self.keys, self.values = (x.new_zeros(rows, *x.shape[1:]) for x in (keys, values))
        self.keys.index_copy_(0, place.rows, keys)
        self.values.index_copy_(0, place.rows, values)
        return self.keys, self.values


@dataclass
class KeyValueCache:
    """Of all layers; made empty, grown as passes need it.

    Attributes:
        layers: one for each layer of the decoder.
        lengths: int32 `[sequences]` on the host, tokens that each sequence has so far.
        capacity: rows of a sequence's slot.
        texts: what is attended to across; None where there is no encoder.
    """

    layers: list[LayerCache]
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    capacity: int = 0
    texts: CrossKeys | None = None

    @classmethod
    def empty(cls, layers: int, capacity: int = 0) -> KeyValueCache:
        """Nothing kept yet; room for `capacity` tokens a sequence from the first pass on."""
        return cls([LayerCache() for _ in range(layers)], capacity=capacity)

    def get_seq_length(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max()) if len(self.lengths) else 0

    def extend(self, batch: PackedBatch) -> Placement:
        """Make room for the new tokens of every sequence, and say where they go.

        Raises:
            InputError: another number of sequences than before.
        """
        fresh = not len(self.lengths)
        if fresh:
            self.lengths = torch.zeros(len(batch), dtype=torch.int32)
        if len(batch) != len(self.lengths):
            raise InputError(f"past_key_values: of {len(self.lengths)} sequences, got inputs of {len(batch)}")
        before, self.lengths = self.lengths, self.lengths + batch.lengths
        longest = self.get_seq_length()
        if longest > self.capacity:
            self._grow(max(longest, 2 * self.capacity, SMALLEST_CAPACITY))
        device = batch.input_ids.device
        slots = torch.arange(len(batch), dtype=torch.int64) * self.capacity
        single = bool((batch.lengths == 1).all())
        rows = slots + before if single else _ranges(slots + before, batch.lengths)
        return Placement(
            rows.to(device),
            slots.to(device),
            self.lengths.to(device),
            longest,
            single,
            fresh or not bool(before.any()),
            slots,
            self.lengths,
        )

    def reorder(self, rows: Tensor) -> None:
        """From now on sequence i goes on from what sequence `rows[i]` was; rows int64, any number of them."""
        host = rows.cpu()
        used = int(self.lengths[host].max()) if len(host) else 0
        old = len(self.lengths)
        self.lengths = self.lengths[host]
        for layer in self.layers:
            for name in ("keys", "values"):
                buffer = getattr(layer, name)
                if buffer is None:
                    continue
                slots = buffer.view(old, self.capacity, *buffer.shape[1:])
                kept = slots.new_zeros(len(host), *slots.shape[1:])
                # What lies behind the last token is never read.
                kept[:, :used] = slots[:, :used].index_select(0, rows.to(slots.device))
                setattr(layer, name, kept.flatten(0, 1))
        if self.texts is not None:
            texts = self.texts
            self.texts = CrossKeys(texts.cu_seqlens, texts.lengths, texts.owners[rows.to(texts.owners.device)])

    @property
    def rows(self) -> int:
        """Of each layer's buffers."""
        return len(self.lengths) * self.capacity

    def _grow(self, capacity: int) -> None:
        old, self.capacity = self.capacity, capacity
        for layer in self.layers:
            for name in ("keys", "values"):
                buffer = getattr(layer, name)
                if buffer is not None:
                    slots = buffer.view(-1, old, *buffer.shape[1:])
                    larger = slots.new_zeros(slots.shape[0], capacity, *slots.shape[2:])
                    larger[:, :old] = slots
                    setattr(layer, name, larger.flatten(0, 1))


def texts_of(batch: PackedBatch) -> CrossKeys:
    """One sequence for each text of a batch."""
    return CrossKeys(batch.cu_seqlens, batch.lengths, torch.arange(len(batch), device=batch.cu_seqlens.device))


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """`starts[i], starts[i] + 1, …` for each i, `lengths[i]` of them, one after the other."""
    within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(starts, lengths) + within
