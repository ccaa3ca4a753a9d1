"""ONNX Runtime on the same weights: exported from the torch model by tracing, pooling in the graph; and its int8."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...engine.errors import InputError
from .batches import PaddedBatches, restored
from .system import Job, System, first_line

__all__ = ["OnnxRuntime"]

_OPSET = 17
"""The first with layer norm as one operator."""


class OnnxRuntime(System):
    """ONNX Runtime in float32, or with weights and activations quantised to int8, the latter at each call."""

    name = "onnxruntime"
    dtypes = ("float32", "int8")
    distributions = ("onnxruntime", "onnx", "transformers")
    modules = ("onnxruntime", "transformers")

    def missing(self) -> str | None:
        # Only the quantiser reads the graph with it.
        absent = self.dtype == "int8" and importlib.util.find_spec("onnx") is None
        return super().missing() or ("onnx not installed" if absent else None)

    def prepare(self, job: Job) -> None:
        import onnxruntime

        graph = _exported(job) if self.dtype == "float32" else _quantised(job)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        # Errors only: it reports the shapes that tracing has noted for one example and that are others here.
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._batches = PaddedBatches(job.model, job.batch_size)
        self.settings = {"batch_size": job.batch_size}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for rows, ids, mask in self._batches(texts):
            self.computed_tokens += ids.size
            (vectors,) = self._session.run(None, {"ids": ids, "mask": mask})
            parts.append((rows, np.asarray(vectors)))
        return restored(len(texts), parts)


def _exported(job: Job) -> Path:
    file = job.scratch / "model.onnx"
    if not file.exists():
        example = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
        axes = {0: "texts", 1: "tokens"}
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every Python branch in transformers' mask code; the vectors are checked instead.
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(
                    job.mean_pooled,
                    example,
                    str(file),
                    input_names=["ids", "mask"],
                    output_names=["vectors"],
                    dynamic_axes={"ids": axes, "mask": axes},
                    opset_version=_OPSET,
                    # The newer exporter needs another package, and this one serves every family here.
                    dynamo=False,
                )
            except Exception as error:
                raise InputError(f"export failed: {first_line(error)}") from error
    return file


def _quantised(job: Job) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, file = _exported(job), job.scratch / "model.int8.onnx"
    if not file.exists():
        level = logging.root.level
        # It recommends a step that makes no difference for these graphs, on the root logger.
        logging.root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(source, file, weight_type=QuantType.QInt8)
        except Exception as error:
            raise InputError(f"quantising failed: {first_line(error)}") from error
        finally:
            logging.root.setLevel(level)
    return file
