"""The steps of `generate` on a GPU by CUDA graphs: what a step makes the host tell the GPU is recorded, and then told
by one call.

A step of one token a sequence keeps a GPU busy for less time than the host needs to start its kernels. The first step
of a bucket of rows is computed as usual, in the memory of a room (`static_room.py`); with the second, the launches are
recorded, the head among them; from then on they are replayed. Sequences that leave bring a smaller bucket, with a
recording of its own in the same room. Rooms stay, with what was recorded, for the calls that follow.

What cannot be recorded is computed as usual from then on, until the model is another one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..cuda_graphs import ModelState, Recorder, Recording
from ..generate.decoder import Decoder
from .pretrained import PreTrainedModel
from .static_room import Room, RoomKind, RoomSize, row_bucket
from .static_steps import Rooms, StaticSteps
from .steps import Steps

__all__ = ["KEPT_BYTES", "MOST_ROOMS", "StepGraphs"]

MOST_ROOMS = 4
"""Rooms that are kept from one call for the next."""

KEPT_BYTES = 1 << 30
"""Memory of all that are kept. A larger one is given back when its call ends."""


class StepGraphs(Recorder, Rooms):
    """The rooms of one model, and the recordings in them. Several threads may ask; one call of `generate` at a time has
    them, and others do without.

    A copy starts without rooms. Counted are, beside what `Recorder` says, steps replayed and buckets refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[Room] = []
        """Free ones, the one used last at the end."""
        self._one_at_a_time = threading.Lock()
        self._model: PreTrainedModel | None = None
        self._lent: Room | None = None
        self._off = False

    def __reduce__(self) -> tuple[type[StepGraphs], tuple[()]]:
        return StepGraphs, ()

    @contextmanager
    def lent(self, model: PreTrainedModel, steps: Steps) -> Iterator[Decoder]:
        """A decoder that computes what `steps` does, for one call of `generate`.

        That the model is what it was is looked at here, once: nobody may change it while it writes.

        Args:
            model: has everything that `steps` computes with; the same in every call.
            steps: fresh.
        """
        # What is recorded in one precision may not stand for another.
        if torch.is_autocast_enabled(model.device.type) or not self._one_at_a_time.acquire(blocking=False):
            yield steps
            return
        try:
            if self._state is not None and not self._state.holds():
                self._forget(model.device)
            if self._off:
                yield steps
                return
            self._model = model
            yield StaticSteps(steps, self)
        finally:
            self._model = None
            self._give_back(model.device)
            self._one_at_a_time.release()

    def take(self, kind: RoomKind, size: RoomSize) -> Room | None:
        """The smallest free room that is large enough, or a new one."""
        fitting = [room for room in self.rooms if room.kind == kind and room.size.holds(size)]
        try:
            if fitting:
                self._lent = min(fitting, key=lambda room: kind.bytes(room.size))
                self.rooms.remove(self._lent)
            else:
                self._lent = super().take(kind, size)
        except torch.OutOfMemoryError as error:
            self._refuse(size, error)
        return self._lent

    def compute(self, room: Room, steps: Steps, tokens: Tensor) -> Tensor:
        """As `Rooms.compute`, by a recording where there is one."""
        try:
            found = self._recorded(room, steps, tokens)
        except Exception as error:  # whatever it is, computing as usual has it again or has not
            self._refuse(f"a step of {row_bucket(len(tokens))} rows", error)
            found = None
        return super().compute(room, steps, tokens) if found is None else found

    def _recorded(self, room: Room, steps: Steps, tokens: Tensor) -> Tensor | None:
        rows = row_bucket(len(tokens))
        if self._off or rows not in room.recordings:
            room.recordings.setdefault(rows, None)
            return None
        recording: Recording | None = room.recordings[rows]
        if recording is not None:
            room.fill(tokens)
            self.replayed += 1
            return recording.replay()
        model = self._model
        assert model is not None
        if self._state is not None and not self._state.holds():
            self._outdated(room)
            room.recordings[rows] = None
        room.recordings[rows], logits = self._record(
            lambda: room.fill(tokens),
            lambda: room.launch(steps.model, steps.head, rows),
            len(tokens),
            lambda: ModelState((model,), model.bound_ops()),
            room.kind.device,
        )
        return logits

    def _outdated(self, room: Room) -> None:
        """Another model would make the state hold again, and what was recorded of the old one seem right."""
        _wait(room.kind.device)
        for each in (*self.rooms, room):
            each.recordings.clear()
        self._state = None

    def _refuse(self, what: object, error: Exception) -> None:
        self._off = True
        if self._state is None and self._model is not None:
            self._state = ModelState((self._model,), self._model.bound_ops())
        super()._refuse(what, error)

    def _give_back(self, device: torch.device) -> None:
        """Keep the room that was lent, and as many others as there is space for."""
        room, self._lent = self._lent, None
        if self._off:
            _wait(device)
            self.rooms = []
        if room is None or self._off:
            return
        self.rooms.append(room)
        kept = [room.kind.bytes(room.size) for room in self.rooms]
        gone = 0
        while len(kept) - gone > MOST_ROOMS or sum(kept[gone:]) > KEPT_BYTES:
            gone += 1
        if gone:
            _wait(device)
            del self.rooms[:gone]

    def _forget(self, device: torch.device) -> None:
        _wait(device)
        self.rooms = []
        self._state, self._off = None, False


def _wait(device: torch.device) -> None:
    """What is recorded may be running."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
