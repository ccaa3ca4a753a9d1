"""The systems that are measured against each other, each behind the same four names.

Everybody is given the same folder of weights, the same list of texts, the same number of threads and one process.
Tokenisation is inside everybody's time. Each runs in the arrangement that is best for it:

    padless                texts as they come; its own plan
    sentence-transformers  its own defaults: sorted by length, batches of 32
    transformers           AutoModel, sorted by tokens, batches of 32, mean pooling, normalised
    openvino               the torch model converted, pooling in the graph, sorted; the fastest of three arrangements
    onnxruntime            where installed: the exported `onnx/model.onnx` of the folder, sorted, batches of 32

All run in one process, in turns, so that a slow minute hits everybody. Their thread pools (OpenMP, TBB, rayon) live
side by side, and only one system is called at a time. What idle pools cost the others has not been measured apart.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..engine.errors import InputError, OptionError
from .machine import versions
from .timing import time_call

__all__ = [
    "SYSTEMS",
    "OnnxRuntime",
    "OpenVino",
    "Padless",
    "SentenceTransformers",
    "System",
    "Transformers",
    "make_system",
    "max_length",
]

_BATCH = 32


class System(Protocol):
    """One way to turn texts into vectors.

    Attributes:
        name: of the software, as in `SYSTEMS`.
        dtype: "float32" or "bfloat16", what it computes in.
        settings: what it chose for itself, for the report.
        computed_tokens: tokens of the last `encode`, padding included.
    """

    name: str
    dtype: str
    settings: dict[str, Any]
    computed_tokens: int

    def versions(self) -> dict[str, str]:
        """Distribution and version of what does the work."""
        ...

    def missing(self) -> str | None:
        """Why this system cannot run here, or None."""
        ...

    def prepare(self, model: Path, threads: int) -> None:
        """Load the weights; not timed."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[texts, dim]`, of unit length, in the order of `texts`."""
        ...


class _Base:
    name = ""
    distributions: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.settings: dict[str, Any] = {}
        self.computed_tokens = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def versions(self) -> dict[str, str]:
        return versions(*self.distributions)

    def missing(self) -> str | None:
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{', '.join(absent)} not installed" if absent else None


class Padless(_Base):
    """padless itself, as a user calls it."""

    name = "padless"
    distributions = ("torch",)

    def prepare(self, model: Path, threads: int) -> None:
        from ..engine.loading import load

        self._encoder = load(str(model), dtype=self.dtype, device="cpu")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        from ..engine.encoder import EncodeStats

        stats = EncodeStats()
        vectors = self._encoder.encode(texts, show_progress_bar=False, normalize_embeddings=True, stats=stats)
        self.computed_tokens = stats.tokens
        return np.asarray(vectors)


class SentenceTransformers(_Base):
    """sentence-transformers with its own defaults; in float32 it is the reference for everybody's vectors."""

    name = "sentence-transformers"
    distributions = ("sentence-transformers", "transformers", "torch")
    modules = ("sentence_transformers",)

    def prepare(self, model: Path, threads: int) -> None:
        from sentence_transformers import SentenceTransformer

        _quieten_transformers()
        options = {"dtype": self.torch_dtype, "local_files_only": True}
        self._model = SentenceTransformer(str(model), device="cpu", model_kwargs=options)
        self._model[0].register_forward_pre_hook(self._count)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        vectors = self._model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
        return np.asarray(vectors, dtype=np.float32)

    def _count(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.computed_tokens += arguments[0]["input_ids"].numel()


class Transformers(_Base):
    """transformers' AutoModel the way a careful user runs it: sorted by tokens, mean pooling, normalised."""

    name = "transformers"
    distributions = ("transformers", "torch")
    modules = ("transformers",)

    def prepare(self, model: Path, threads: int) -> None:
        self._batches = _SortedBatches(model, _BATCH)
        self._model = _MeanPooled(model, self.torch_dtype).eval()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        vectors: np.ndarray | None = None
        with torch.inference_mode():
            for rows, ids, mask in self._batches(texts):
                self.computed_tokens += ids.size
                batch = self._model(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()
                if vectors is None:
                    vectors = np.empty((len(texts), batch.shape[1]), dtype=np.float32)
                vectors[rows] = batch
        assert vectors is not None
        return vectors


class OpenVino(_Base):
    """OpenVINO on the same weights: converted from the torch model, every dimension dynamic.

    `prepare` times three arrangements on the spot and keeps the fastest: one request at a time on all threads
    (`LATENCY`, batches of 32), or one request a thread (`THROUGHPUT`, batches of 32 and of 16).
    """

    name = "openvino"
    distributions = ("openvino", "transformers")
    modules = ("openvino", "transformers")
    arrangements = (("LATENCY", 32), ("THROUGHPUT", 32), ("THROUGHPUT", 16))

    def prepare(self, model: Path, threads: int) -> None:
        import openvino

        torch_model = _MeanPooled(model, torch.float32).eval()
        example = {"ids": torch.ones(2, 8, dtype=torch.long), "mask": torch.ones(2, 8, dtype=torch.long)}
        dynamic = [(name, [-1, -1], openvino.Type.i64) for name in example]
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every Python branch in transformers' mask code; the vectors are checked instead.
            warnings.simplefilter("ignore")
            graph = openvino.convert_model(torch_model, example_input=example, input=dynamic)
        precision = {"float32": "f32", "bfloat16": "bf16"}[self.dtype]
        limits = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        core = openvino.Core()
        queues = {
            hint: openvino.AsyncInferQueue(core.compile_model(graph, "CPU", {**limits, "PERFORMANCE_HINT": hint}))
            for hint in dict.fromkeys(hint for hint, _ in self.arrangements)
        }
        probe = [" ".join(["word"] * words) for words in range(2, 250, 2)]
        seconds = {}
        for hint, batch in self.arrangements:
            self._queue, self._batches = queues[hint], _SortedBatches(model, batch)
            self.encode(probe)
            seconds[hint, batch] = time_call(lambda: self.encode(probe))
        hint, batch = min(seconds, key=lambda arrangement: seconds[arrangement])
        self._queue, self._batches = queues[hint], _SortedBatches(model, batch)
        self.settings = {"performance_hint": hint, "batch_size": batch, "requests": len(self._queue)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._queue.set_callback(lambda request, rows: parts.append((rows, request.get_output_tensor(0).data.copy())))
        for rows, ids, mask in self._batches(texts):
            self.computed_tokens += ids.size
            self._queue.start_async({0: ids, 1: mask}, rows)
        self._queue.wait_all()
        vectors = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for rows, part in parts:
            vectors[rows] = part
        return vectors


class OnnxRuntime(_Base):
    """ONNX Runtime, where it is installed and the folder carries an exported graph."""

    name = "onnxruntime"
    distributions = ("onnxruntime",)
    modules = ("onnxruntime",)

    def missing(self) -> str | None:
        return super().missing() or (None if self.dtype == "float32" else f"no {self.dtype} graph")

    def prepare(self, model: Path, threads: int) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]  # an optional peer

        graph = model / "onnx" / "model.onnx"
        if not graph.is_file():
            raise InputError(f"{graph}: not found; onnxruntime runs an exported graph")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = {found.name for found in self._session.get_inputs()}
        self._batches = _SortedBatches(model, _BATCH)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for rows, ids, mask in self._batches(texts):
            self.computed_tokens += ids.size
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = self._session.run(None, {name: given[name] for name in self._inputs})[0]
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            parts.append((rows, pooled / np.linalg.norm(pooled, axis=1, keepdims=True)))
        vectors = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for rows, part in parts:
            vectors[rows] = part
        return vectors


SYSTEMS: dict[str, type[_Base]] = {
    peer.name: peer for peer in (SentenceTransformers, Transformers, OpenVino, OnnxRuntime, Padless)
}


def make_system(name: str, dtype: str) -> System:
    """The system `name` computing in `dtype`, not yet prepared.

    Raises:
        OptionError: no system or dtype of that name.
    """
    if name not in SYSTEMS:
        raise OptionError(f"system {name!r}: unknown, expected one of {', '.join(SYSTEMS)}")
    if dtype not in ("float32", "bfloat16"):
        raise OptionError(f"dtype {dtype!r}: expected float32 or bfloat16")
    system: System = SYSTEMS[name](dtype)  # pyright: ignore[reportAssignmentType]  # every entry of SYSTEMS has the methods
    return system


def max_length(model: Path) -> int:
    """Tokens a text is cut to, as the folder's `sentence_bert_config.json` says; 512 where it says nothing."""
    file = model / "sentence_bert_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
    return int(found or 512)


class _SortedBatches:
    """Tokenise all texts, then padded batches of texts of like length, longest first."""

    def __init__(self, model: Path, batch_size: int) -> None:
        from tokenizers import Tokenizer

        self.batch_size = batch_size
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length(model))

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(ids) for ids in encodings], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            mask = (np.arange(int(lengths[rows[0]])) < lengths[rows, None]).astype(np.int64)
            ids = np.zeros_like(mask)
            ids[mask.astype(bool)] = np.concatenate([encodings[row] for row in rows])
            yield rows, ids, mask


class _MeanPooled(torch.nn.Module):
    """transformers' encoder, then the mean over a text's own tokens, of unit length."""

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModel

        super().__init__()
        _quieten_transformers()
        self.encoder = AutoModel.from_pretrained(str(model), dtype=dtype, local_files_only=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


def _quieten_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
