"""OpenVINO on the same weights: converted from the torch model, pooling in the graph, every dimension dynamic."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.errors import InputError
from ..timing import time_call
from .batches import PaddedBatches, restored
from .system import Job, System, first_line

__all__ = ["OpenVino"]


class OpenVino(System):
    """OpenVINO in the fastest of three arrangements, which `prepare` times on the spot.

    One request at a time on all threads (`LATENCY`), or one request a thread (`THROUGHPUT`) in batches of the usual
    size and of half of it.
    """

    name = "openvino"
    distributions = ("openvino", "transformers")
    modules = ("openvino", "transformers")

    def prepare(self, job: Job) -> None:
        import openvino

        graph = openvino.Core().read_model(_converted(job))
        limits = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.dtype],
            "INFERENCE_NUM_THREADS": job.threads,
        }
        best: tuple[float, Any, int] | None = None
        for hint, batch in _arrangements(job):
            model = openvino.Core().compile_model(graph, "CPU", {**limits, "PERFORMANCE_HINT": hint})
            self._queue, self._batches = openvino.AsyncInferQueue(model), PaddedBatches(job.model, batch)
            self.encode(job.probe)
            seconds = time_call(lambda: self.encode(job.probe))
            if best is None or seconds < best[0]:
                best = seconds, self._queue, batch
                self.settings = {"performance_hint": hint, "batch_size": batch, "requests": len(self._queue)}
        assert best is not None
        self._queue, self._batches = best[1], PaddedBatches(job.model, best[2])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._queue.set_callback(lambda request, rows: parts.append((rows, request.get_output_tensor(0).data.copy())))
        for rows, ids, mask in self._batches(texts):
            self.computed_tokens += ids.size
            self._queue.start_async({0: ids, 1: mask}, rows)
        self._queue.wait_all()
        return restored(len(texts), parts)


def _arrangements(job: Job) -> list[tuple[str, int]]:
    if job.one_by_one:
        return [("LATENCY", 1)]
    halved = max(1, job.batch_size // 2)
    return [("LATENCY", job.batch_size), ("THROUGHPUT", job.batch_size), ("THROUGHPUT", halved)]


def _converted(job: Job) -> Path:
    """The graph's file, made once for all dtypes."""
    import openvino

    file = job.scratch / "openvino.xml"
    if not file.exists():
        example = {"ids": torch.ones(2, 8, dtype=torch.long), "mask": torch.ones(2, 8, dtype=torch.long)}
        dynamic = [(name, [-1, -1], openvino.Type.i64) for name in example]
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every Python branch in transformers' mask code; the vectors are checked instead.
            warnings.simplefilter("ignore")
            try:
                graph = openvino.convert_model(job.mean_pooled, example_input=example, input=dynamic)
            except Exception as error:
                raise InputError(f"conversion failed: {first_line(error)}") from error
        openvino.save_model(graph, file, compress_to_fp16=False)
    return file
