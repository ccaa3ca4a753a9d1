"""Small batches on a GPU by CUDA graphs: what a batch of some size makes the host tell the GPU is recorded, and then
told by one call.

An encoder of 22 layers starts more than a hundred kernels a batch, at several microseconds of the host's time each; a
text or two keep a GPU busy for less than that. A batch is brought to a bucket (`buckets.py`). The first of a bucket is
computed as usual, in the bucket's memory; with the second, the launches are recorded; from the third on they are
replayed. All three give the same bits: the recording is used only if its replay gave those of the same batch computed
as usual.

A bucket that cannot be recorded is computed as usual, outside of any bucket, from then on, and so is everything small
once there is no memory for a recording.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..batch import PackedBatch
from ..errors import OptionError
from ..ops.bind import BoundOp
from .buckets import Bucket, StaticBatch
from .model_state import ModelState
from .recorder import Recorder, Recording

__all__ = ["MOST_BUCKETS", "CudaGraphs", "Recorded", "wanted"]

MOST_BUCKETS = 64
"""Buckets that are kept. Whatever would need another one is computed as usual."""


def wanted(option: bool | str, device: torch.device) -> bool:
    """Whether an option `cuda_graphs` asks for graphs on this device; "auto" does on every GPU.

    Raises:
        OptionError: not True, False or "auto"; or True where there can be none.
    """
    if option not in (True, False, "auto"):
        raise OptionError(f"cuda_graphs: expected True, False or 'auto', got {option!r}")
    possible = device.type == "cuda" and torch.version.hip is None
    if option is True and not possible:
        raise OptionError(f"cuda_graphs: expected False or 'auto' on {device}, which has no CUDA graphs, got True")
    return bool(option) and possible


class Recorded(Protocol):
    """What can be recorded: an encoder.

    Attributes:
        device: where it computes.
        modules: what it computes with.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def modules(self) -> tuple[nn.Module, ...]: ...

    def bound_ops(self) -> Iterable[BoundOp]:
        """The ops of its modules."""
        ...

    def compute(self, batch: PackedBatch, prompt_tokens: int) -> Tensor:
        """Vectors `[texts, dimension]` of a batch on the device."""
        ...


class CudaGraphs(Recorder):
    """The buckets of one encoder. Several threads may call it; one batch is computed at a time.

    A copy starts without buckets. Counted are, beside what `Recorder` says, batches replayed and buckets refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self._one_at_a_time = threading.Lock()
        self._slots: dict[Bucket, _Slot | None] = {}

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[()]]:
        return CudaGraphs, ()

    def run(
        self, batch: PackedBatch, encoder: Recorded, *, longest: int | None = None, prompt_tokens: int = 0
    ) -> Tensor | None:
        """The vectors of a small batch.

        Args:
            batch: on the host.
            encoder: what computes them; the same in every call.
            longest: most tokens of a text that it takes; None where nothing limits them.
            prompt_tokens: leading tokens of each text that belong to a prompt.

        Returns:
            fp32 `[texts, dimension]` on the CPU, or None where the batch is to be computed as usual.
        """
        bucket = Bucket.of(batch, longest, prompt_tokens)
        if bucket is None:
            return None
        # What is made in inference mode cannot be written to outside of it, where the next call may be.
        with self._one_at_a_time, torch.inference_mode(False), torch.no_grad():
            try:
                vectors = self._run(bucket, batch, encoder)
                return None if vectors is None else vectors[: len(batch)].to("cpu", torch.float32)
            except Exception as error:  # whatever it is, computing as usual has it again or has not
                self._slots[bucket] = None
                self._refuse(bucket, error)
                return None

    def _run(self, bucket: Bucket, batch: PackedBatch, encoder: Recorded) -> Tensor | None:
        if bucket not in self._slots:
            if self._full or len(self._slots) == MOST_BUCKETS:
                return None
            slot = self._slots[bucket] = _Slot(bucket, encoder.device)
            slot.fill(batch)
            return slot.launch(encoder)
        slot = self._slots[bucket]
        if slot is None or (slot.recording is None and self._full):
            return None
        if slot.recording is None:
            return self._first(slot, batch, encoder)
        slot.fill(batch)
        vectors = slot.recording.replay()
        # While the GPU computes the host has time to look whether that was still right.
        if self._state is not None and self._state.holds():
            self.replayed += 1
            return vectors
        self._forget(encoder.device)
        return self._run(bucket, batch, encoder)

    def _first(self, slot: _Slot, batch: PackedBatch, encoder: Recorded) -> Tensor:
        if self._state is not None and not self._state.holds():
            self._forget(encoder.device)
            self._slots[slot.bucket] = slot
        slot.recording, vectors = self._record(
            lambda: slot.fill(batch),
            lambda: slot.launch(encoder),
            len(batch),
            lambda: ModelState(encoder.modules, encoder.bound_ops()),
            encoder.device,
        )
        return vectors

    def _forget(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # what is recorded may be running
        self._slots = {}
        self._state = None


class _Slot:
    """Memory of one bucket, and the recording of what is done with it."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        self.recording: Recording | None = None
        self._static = StaticBatch(bucket, device)

    def fill(self, batch: PackedBatch) -> None:
        """Put a batch of the bucket in place."""
        self._static.fill(batch)

    def launch(self, encoder: Recorded) -> Tensor:
        """The vectors of the batch in place; with a recording, they hold until the next one."""
        return encoder.compute(self._static.batch, self.bucket.prompt_tokens)
