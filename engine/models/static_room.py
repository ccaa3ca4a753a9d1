"""Memory for the steps of a decoder that stays where it is, so that what a GPU is told for one step can be told again.

    running sequences, one a row     rows     0  1  2  |  3 … 7: fillers, up to a bucket
    tables, on the device            slots    4  0  1  |  2  3  5  6  7
    keys and values                  slot 0 | slot 1 | slot 2 | …, `capacity` tokens each

Nothing of a step depends on numbers of the host but the bucket and the sizes of the room. Where a row's sequence lies,
how long it is and which text it attends to stands in tables on the device. A step counts there by itself; the tables
are written from the host only where sequences leave, change places or repeat. Sequences that leave and change places
move no keys. Of several that go on from one, all but the first are given a free slot, and a copy of what it holds.

A filler has a slot that nobody uses, one token in it, and no text: it costs time and changes nothing, for no op lets a
row see another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..batch import PackedBatch
from .decoding import Decoding
from .kv_cache import CrossKeys, KeyValueCache, LayerCache, Placement
from .static_seats import Seats

__all__ = ["MOST_ROWS", "Room", "RoomKind", "RoomSize", "row_bucket"]

MOST_ROWS = 256
"""Rows of the largest bucket. Beyond, a GPU computes for longer than the host takes to tell it what."""

_FEWEST_ROWS = 8
"""Weights are read once for all rows of a product's tile, which has at least 16."""

_SMALLEST = 64
"""Tokens of the smallest capacity."""


def row_bucket(rows: int) -> int:
    """The power of two that rows are brought to."""
    return max(1 << (rows - 1).bit_length(), _FEWEST_ROWS)


def _rounded(tokens: int) -> int:
    """Up to a power of two, or to three quarters of one."""
    power = max(1 << (tokens - 1).bit_length(), _SMALLEST)
    between = 3 * power // 4
    return between if tokens <= between and between >= _SMALLEST else power


@dataclass(frozen=True)
class RoomSize:
    """What a room has space for.

    Attributes:
        slots: sequences.
        capacity: tokens of each.
        text_tokens: tokens of all texts together; 0 where there are none.
        longest_text: tokens of the longest text.
    """

    slots: int
    capacity: int
    text_tokens: int = 0
    longest_text: int = 0

    @classmethod
    def of(cls, sequences: int, capacity: int, texts: Tensor | None = None) -> Self | None:
        """The size for so many, rounded up; None where a GPU has enough to do without.

        Args:
            sequences: most at once.
            capacity: tokens of a sequence at most.
            texts: tokens of each text, on the host.
        """
        if not 0 < sequences <= MOST_ROWS:
            return None
        slots = row_bucket(sequences)
        if texts is None:
            return cls(slots, _rounded(capacity))
        return cls(slots, _rounded(capacity), _rounded(int(texts.sum())), _rounded(int(texts.max())))

    def holds(self, other: RoomSize) -> bool:
        """Whether there is space for all that fits into another."""
        return (
            self.slots >= other.slots
            and self.capacity >= other.capacity
            and self.text_tokens >= other.text_tokens
            and self.longest_text >= other.longest_text
        )


@dataclass(frozen=True)
class RoomKind:
    """What lies in a room.

    Attributes:
        device: where.
        dtype: of keys and values.
        layers: of the decoder.
        own: heads and channels of the keys and values of the past.
        across: those of the texts'; None without.
        vocabulary: columns of the logits.
    """

    device: torch.device
    dtype: torch.dtype
    layers: int
    own: tuple[int, ...]
    across: tuple[int, ...] | None
    vocabulary: int

    @classmethod
    def of(cls, cache: KeyValueCache, logits: Tensor) -> Self | None:
        """Of what a first pass has left; None where the layers are not all alike."""
        first = cache.layers[0] if cache.layers else LayerCache()
        if first.keys is None:
            return None
        own, cross = first.keys, None if first.cross is None else first.cross[0]
        kind = cls(
            own.device, own.dtype, len(cache.layers), tuple(own.shape[1:]),
            None if cross is None else tuple(cross.shape[1:]), logits.shape[1],
        )  # fmt: skip
        alike = all(
            kept.dtype == kind.dtype and tuple(kept.shape[1:]) == shape
            for layer in cache.layers
            for kept, shape in ((layer.keys, kind.own), *((x, kind.across) for x in layer.cross or ()))
            if kept is not None
        )
        return kind if alike and (cross is None) == (cache.texts is None) else None

    def bytes(self, size: RoomSize) -> int:
        """That a room of this kind and size takes, with the head's product, the largest of what a recording keeps."""
        kept = size.slots * size.capacity * prod(self.own) + size.text_tokens * prod(self.across or (0,))
        logits = size.slots * self.vocabulary
        return 2 * self.layers * kept * self.dtype.itemsize + logits * (4 + self.dtype.itemsize)


class Room:
    """Memory of one kind and size, and the recordings of what is done in it.

    Attributes:
        kind: what lies in it.
        size: how much of it.
        seats: which sequence is where.
        recordings: of a step, by the rows it is for; None of those that were computed once.
    """

    def __init__(self, kind: RoomKind, size: RoomSize) -> None:
        """Take the memory.

        Raises:
            torch.OutOfMemoryError: there is not enough.
        """
        self.kind, self.size = kind, size
        self.seats = Seats(size.slots)
        self.recordings: dict[int, Any] = {}
        device = kind.device
        # [keys and values of all layers, slots, capacity, heads, head_dim]
        shape = (2 * kind.layers, size.slots, size.capacity)
        self._own = torch.zeros(*shape, *kind.own, dtype=kind.dtype, device=device)
        self._across: Tensor | None = None
        if kind.across is not None:
            shape = (2 * kind.layers, size.text_tokens)
            self._across = torch.zeros(*shape, *kind.across, dtype=kind.dtype, device=device)
        self._tokens = torch.zeros(size.slots, dtype=torch.int64, device=device)
        self._tables = torch.zeros(Seats.TABLES, size.slots, dtype=torch.int64, device=device)
        self._edges = torch.arange(size.slots + 1, dtype=torch.int32, device=device)
        self._logits = torch.zeros(size.slots, kind.vocabulary, dtype=torch.float32, device=device)
        self._fresh = False
        flat = self._own.flatten(1, 2)
        self._layers = [
            LayerCache(flat[2 * layer], flat[2 * layer + 1], self._of_texts(layer)) for layer in range(kind.layers)
        ]

    def _of_texts(self, layer: int) -> tuple[Tensor, Tensor] | None:
        return None if self._across is None else (self._across[2 * layer], self._across[2 * layer + 1])

    def enter(self, cache: KeyValueCache) -> None:
        """Take over what a first pass has left; its sequences are the first."""
        sequences, used = len(cache.lengths), cache.get_seq_length()
        for number, layer in enumerate(cache.layers):
            assert layer.keys is not None
            assert layer.values is not None
            for place, rows in ((2 * number, layer.keys), (2 * number + 1, layer.values)):
                kept = rows.view(sequences, cache.capacity, *rows.shape[1:])
                self._own[place, :sequences, :used].copy_(kept[:, :used])
            for own, rows in zip(self._of_texts(number) or (), layer.cross or (), strict=True):
                own[: len(rows)].copy_(rows)
        texts = None if cache.texts is None else (cache.texts.lengths.numpy(), cache.texts.owners.cpu().numpy())
        self.seats.enter(cache.lengths.numpy(), texts)
        self._fresh = False

    def reorder(self, rows: Tensor) -> None:
        """Sequence i goes on from what was sequence `rows[i]`; int64, at most as many as there are slots."""
        host = rows.cpu().numpy()
        if np.array_equal(host, np.arange(len(self.seats.slots))):
            return
        sources, targets = self.seats.reorder(host)
        self._fresh = False
        if not len(sources):
            return
        used = int(self.seats.lengths.max())
        there = self._sent(np.stack((sources, targets)))
        kept = self._own[:, :, :used]
        kept.index_copy_(1, there[1], kept.index_select(1, there[0]))

    def fill(self, tokens: Tensor) -> None:
        """Put one token for each sequence in place, int64 `[sequences]`, and the tables, unless they are right.

        To be called before each `launch`, and before each replay of one, which counts in the tables.
        """
        self._tokens[: len(tokens)].copy_(tokens)
        if not self._fresh:
            rows = row_bucket(len(tokens))
            self._tables.copy_(self._sent(self.seats.tables(rows, self.size.capacity)))
        self._fresh = False

    def advance(self) -> None:
        """Every sequence is one token longer, on the device by what was computed since `fill`."""
        self.seats.lengths += 1
        self._fresh = True

    def launch(self, model: Any, head: Any, rows: int) -> Tensor:
        """Compute a step of so many rows on what is in place: fp32 `[rows, vocab]`, in the same memory each time.

        Args:
            model: an `EncoderDecoder` or a `CausalModel`.
            head: from `[rows, hidden]` to `[rows, vocab]`.
            rows: a bucket.
        """
        starts, positions, counts, text_starts, text_sizes = self._tables[:, :rows]
        # Whoever asks the host for these gets an error: they could not be kept.
        nowhere = torch.empty(rows, dtype=torch.int32, device="meta")
        batch = PackedBatch(self._tokens[:rows], positions, None, self._edges[: rows + 1], nowhere, 1)
        lengths = (positions + 1).int()
        place = Placement(starts + positions, starts, lengths, self.size.capacity, True, False, nowhere, nowhere)
        cache = KeyValueCache(self._layers, nowhere, self.size.capacity)
        if self._across is not None:
            cache.texts = _StaticTexts(text_starts, text_sizes.int(), self.size.longest_text)
        logits = self._logits[:rows].copy_(head(model.decode(Decoding(batch, None, cache, place))))
        positions.add_(counts)
        return logits

    def _sent(self, numbers: np.ndarray) -> Tensor:
        host = torch.from_numpy(numbers)
        # The copy is not waited for: it has memory of its own, which is kept until then.
        return host if self.kind.device.type == "cpu" else host.pin_memory().to(self.kind.device, non_blocking=True)


class _StaticTexts(CrossKeys):
    """Where each row's text lies, found out beforehand and on the device."""

    _found: tuple[Tensor, Tensor, int]

    def __init__(self, starts: Tensor, sizes: Tensor, longest: int) -> None:
        nowhere = torch.empty(len(starts), dtype=torch.int64, device="meta")
        super().__init__(nowhere, nowhere, nowhere)
        object.__setattr__(self, "_found", (starts, sizes, longest))

    @property
    def starts(self) -> Tensor:
        """As of `CrossKeys`."""
        return self._found[0]

    @property
    def sizes(self) -> Tensor:
        """As of `CrossKeys`."""
        return self._found[1]

    @property
    def longest(self) -> int:
        """No text of the room is longer."""
        return self._found[2]
