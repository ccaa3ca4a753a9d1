"""The steps of a decoder in memory that stays where it is; see `static_room.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .kv_cache import KeyValueCache
from .static_room import Room, RoomKind, RoomSize, row_bucket
from .steps import Steps

__all__ = ["Rooms", "StaticSteps"]

MOST_BYTES = 4 << 30
"""Of a room. What is larger is left to the cache that grows, whose steps a GPU takes long for anyway."""


class Rooms:
    """Where steps are computed: makes rooms, and keeps none."""

    def take(self, kind: RoomKind, size: RoomSize) -> Room | None:
        """A room that nobody else has; None where there can be none."""
        return Room(kind, size) if kind.bytes(size) <= MOST_BYTES else None

    def compute(self, room: Room, steps: Steps, tokens: Tensor) -> Tensor:
        """One token for each sequence in the room, to the logits of the next, fp32 `[bucket, vocab]`."""
        room.fill(tokens)
        return room.launch(steps.model, steps.head, row_bucket(len(tokens)))


class _Taking(Protocol):
    def take(self, kind: RoomKind, size: RoomSize) -> Room | None: ...

    def compute(self, room: Room, steps: Steps, tokens: Tensor) -> Tensor: ...


class StaticSteps:
    """What `Steps` computes, in a room: the prompts as usual, and then every step in memory of a few sizes.

    Attributes:
        room: None before `start`, and where there is none: then all is computed as usual.
    """

    def __init__(self, steps: Steps, rooms: _Taking) -> None:
        """Nothing runs before `start`.

        Args:
            steps: fresh; reads the prompts.
            rooms: where to go on.
        """
        self.room: Room | None = None
        self._steps, self._rooms = steps, rooms

    def start(self, prompts: Sequence[Tensor], *, steps: int, sequences: int) -> Tensor:
        """The logits behind each prompt, fp32 `[prompts, vocab]`."""
        capacity = max(map(len, prompts), default=0) + steps
        texts = None if self._steps.texts is None else self._steps.texts.batch.lengths
        size = RoomSize.of(max(sequences, len(prompts)), capacity, texts) if steps else None
        # What the prompts leave is taken over: it needs no space for more.
        logits = self._steps.start(prompts, steps=steps if size is None else 0, sequences=sequences)
        kind = None if size is None else RoomKind.of(self._steps.cache, logits)
        if size is not None and kind is not None:
            # What is made in inference mode cannot be written to outside of it, where the next call may be.
            with torch.inference_mode(False), torch.no_grad():
                self.room = self._rooms.take(kind, size)
                if self.room is not None:
                    self.room.enter(self._steps.cache)
                    self._steps.cache = KeyValueCache.empty(0)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each sequence, int64 `[sequences]`; the logits of the next, fp32 `[sequences, vocab]`.

        They hold until the next step.
        """
        if self.room is None:
            return self._steps.step(tokens)
        with torch.inference_mode(False), torch.no_grad():
            logits = self._rooms.compute(self.room, self._steps, tokens)
            self.room.advance()
        return logits[: len(tokens)]

    def reorder(self, rows: Tensor) -> None:
        """Sequence i goes on from what was sequence `rows[i]`."""
        if self.room is None:
            self._steps.reorder(rows)
            return
        with torch.inference_mode(False), torch.no_grad():
            self.room.reorder(rows)
