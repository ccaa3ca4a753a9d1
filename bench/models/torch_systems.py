"""The systems that run torch modules: padless, sentence-transformers, transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .batches import PaddedBatches, restored
from .system import Job, MeanPooled, System, quieten_transformers

__all__ = ["Padless", "PadlessDeterministic", "SentenceTransformers", "Transformers", "TransformersUnsorted"]

USUAL_BATCH = 32
"""Texts in a batch where nobody thinks about it: the default of sentence-transformers."""


class Padless(System):
    """padless itself, as a user calls it."""

    name = "padless"
    distributions = ("torch",)
    deterministic = False

    def prepare(self, job: Job) -> None:
        from ...engine.loading import load

        self._encoder = load(str(job.model), dtype=self.dtype, device="cpu", deterministic=self.deterministic)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        from ...engine.embedding.encoder import EncodeStats

        stats = EncodeStats()
        vectors = self._encoder.encode(texts, show_progress_bar=False, normalize_embeddings=True, stats=stats)
        self.computed_tokens = stats.tokens
        return np.asarray(vectors)


class PadlessDeterministic(Padless):
    """padless with the promise that a text's bits are its own."""

    name = "padless-deterministic"
    deterministic = True


class SentenceTransformers(System):
    """sentence-transformers, which sorts by length; in float32 it is the reference for everybody's vectors."""

    name = "sentence-transformers"
    distributions = ("sentence-transformers", "transformers", "torch")
    modules = ("sentence_transformers",)

    def prepare(self, job: Job) -> None:
        from sentence_transformers import SentenceTransformer

        quieten_transformers()
        options = {"dtype": self.torch_dtype, "local_files_only": True}
        self._model = SentenceTransformer(str(job.model), device="cpu", model_kwargs=options)
        self._model[0].register_forward_pre_hook(self._count)
        self._batch_size = job.batch_size
        self.settings = {"batch_size": job.batch_size}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, show_progress_bar=False, normalize_embeddings=True
        )
        return np.asarray(vectors, dtype=np.float32)

    def _count(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.computed_tokens += arguments[0]["input_ids"].numel()


class Transformers(System):
    """transformers' AutoModel the way a careful user runs it: sorted by tokens, mean pooling, normalised."""

    name = "transformers"
    distributions = ("transformers", "torch")
    modules = ("transformers",)

    def prepare(self, job: Job) -> None:
        self._batches = self._batched(job)
        self._model = job.mean_pooled if self.dtype == "float32" else MeanPooled(job.model, self.torch_dtype).eval()
        self.settings = {"batch_size": self._batches.batch_size}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.computed_tokens = 0
        parts = []
        with torch.inference_mode():
            for rows, ids, mask in self._batches(texts):
                self.computed_tokens += ids.size
                parts.append((rows, self._model(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()))
        return restored(len(texts), parts)

    def _batched(self, job: Job) -> PaddedBatches:
        return PaddedBatches(job.model, job.batch_size)


class TransformersUnsorted(Transformers):
    """transformers as it is run without a thought: batches of 32 in the order the texts come in."""

    name = "transformers-unsorted"
    dtypes = ("float32",)

    def _batched(self, job: Job) -> PaddedBatches:
        return PaddedBatches(job.model, USUAL_BATCH, by_length=False)
