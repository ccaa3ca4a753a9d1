"""How a recording is made, and when it may be used: what an encoder's (`recording.py`) and those of `generate`
(`engine/models/step_graphs.py`) have in common.

What is recorded is a function of nothing but memory that stays where it is. It is computed as usual first, since code
is compiled, weights are prepared and tables are made there, which a recording cannot do. The recording is used only if
its replay gives the bits of what was computed as usual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .model_state import ModelState

__all__ = ["NotRecordable", "Recorder", "Recording"]

log = logging.getLogger("padless")


class NotRecordable(Exception):
    """Why a recording may not be used."""


class Recording:
    """What a call told the GPU, to be told again.

    Attributes:
        result: what the call returned: memory that every replay writes to.
    """

    def __init__(self, launch: Callable[[], Tensor], device: torch.device, pool: Any) -> None:
        """Record `launch`; nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the GPU.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self.result = launch()
        self._graph = graph

    def replay(self) -> Tensor:
        """Compute it once more, on what the memory holds now."""
        self._graph.replay()
        return self.result


class Recorder:
    """The recordings of one model. They never run at the same time, and share a pool of memory: what one of them gives
    is read before the next one begins.

    Attributes:
        recorded: recordings made.
        replayed: calls that were computed by a recording.
        refused: what could not be recorded.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = self.refused = 0
        self._state: ModelState | None = None
        self._pool: Any = None
        self._full = False

    def _record(
        self,
        fill: Callable[[], None],
        launch: Callable[[], Tensor],
        rows: int,
        look: Callable[[], ModelState],
        device: torch.device,
    ) -> tuple[Recording, Tensor]:
        """Record `launch`, and use the recording once.

        Args:
            fill: puts the call's input in place; what `launch` did to it since is undone.
            launch: what is recorded; returns `[rows or more, …]`, and its own memory each time.
            rows: those that are the call's own, fillers aside.
            look: at the model as it is now.
            device: where it computes.

        Returns:
            The recording, and what it gave.

        Raises:
            NotRecordable: it may not be used. What `launch` raises passes through.
        """
        fill()
        expected = launch()[:rows].clone()
        if self._state is None or not self._state.holds():
            self._state = look()
        if not self._state.recordable:
            raise NotRecordable("a layer was replaced or has hooks, or is in training")
        recording = self._capture(launch, device)
        # The memory may hold what was expected already.
        recording.result.fill_(float("nan"))
        fill()
        got = recording.replay()
        if not torch.equal(got[:rows].view(torch.int32), expected.view(torch.int32)):
            raise NotRecordable("its replay gave other bits than the batch computed as usual")
        if not self._state.holds():
            raise NotRecordable("weights were prepared while it was recorded")
        self.recorded += 1
        return recording, got

    def _capture(self, launch: Callable[[], Tensor], device: torch.device) -> Recording:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return Recording(launch, device, self._pool)

    def _refuse(self, what: object, error: Exception) -> None:
        """Take down that `what` is not recorded; the first time, say so."""
        self._full = self._full or isinstance(error, torch.OutOfMemoryError)
        self.refused += 1
        if self.refused == 1:
            reason = " ".join(str(error).split())[:200]
            log.warning("CUDA graphs: no recording of %s: %s: %s", what, type(error).__name__, reason)
