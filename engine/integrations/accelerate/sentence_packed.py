"""Texts of one call to the library's vectors, token vectors or scores, packed end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...batch import PackedBatch
from ...cuda_graphs import CudaGraphs, wanted
from ...embedding.pooling import Pooling
from ...embedding.token_vectors import token_vectors
from ...loading import TOKEN_BUDGET
from ...ops.bind import BoundOp
from ...streaming.prefetch import Workers
from ...streaming.stream import EncodeStats, encode_stream
from ...tasks.task import Loaded
from ...tokenizer import Tokenizer
from .fast_tokenizer import FollowedTokenizer, RowTokenizer, as_rows, limit_of, limited
from .sentence_modules import SentenceModules

__all__ = ["PackedCall", "PackedModel"]


class PackedModel:
    """Our model and what follows it, as they are now; what is recorded of them on a GPU is kept here.

    Attributes:
        model: ours, on the parameters of transformers' model or on a copy of them.
        modules: of the library.
        dtype: what the library's modules behind the model compute in.
        device: where the model is.
        graphs: recordings of small batches.
    """

    def __init__(self, model: Any, modules: SentenceModules, *, backend: str, deterministic: bool) -> None:
        """Bind the pooling for where the model is now."""
        self.model = model
        self.library = modules
        self.device: torch.device = model.device
        self.dtype: torch.dtype = modules.hf_model.dtype
        self.graphs = CudaGraphs()
        self.spec = None if modules.pooling is None else modules.pooling_spec()
        self.pooling: Pooling | None = None
        if self.spec is not None:
            self.pooling = Pooling(self.spec, model.config.hidden_size)
            for pool in self.pooling.pools:
                pool.bind(self.device, model.dtype, backend=backend, deterministic=deterministic)

    def serves(self, model: Any, modules: SentenceModules) -> bool:
        """Whether this is still what would be made of these; where they are and in which dtype, `model` stands for."""
        spec = None if modules.pooling is None else modules.pooling_spec()
        return self.model is model and self.library == modules and self.spec == spec

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What vectors are computed with."""
        return self.model, *self.library.rest

    def bound_ops(self) -> tuple[BoundOp, ...]:
        """The ops of our model and of the pooling."""
        return *self.model.bound_ops(), *(() if self.pooling is None else self.pooling.pools)

    def compute(self, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        """fp32 `[texts, width]` of a batch on the device.

        Args:
            batch: packed texts.
            prompt_tokens: leading tokens of each text that belong to a prompt.
        """
        if self.pooling is None:
            return self.model(batch).logits.to(self.dtype).float()
        pooled = self.pooling(self.model.run(batch), batch, prompt_tokens).to(self.dtype)
        # The bits of the library's own products depend on how many rows they have.
        parts = pooled.split(1) if self.model.deterministic else (pooled,)
        return torch.cat([self.library.after_pooling(part).float() for part in parts])


class PackedCall:
    """Stands in for the library's model inside its own loop, whose only batch then holds all texts.

    What the loop asks for beyond that is the model's own, so that names of its attributes are not ours to have.
    """

    def __init__(
        self,
        model: Any,
        current: Callable[[], PackedModel],
        tokenizer: FollowedTokenizer,
        workers: Workers,
        *,
        batch_size: int | None,
        token_embeddings: bool,
        stats: EncodeStats,
        on_begin: Callable[[int], None],
        on_batch: Callable[[int, int], None],
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: of the library.
            current: our side of the model as it is when the texts come: the loop may move it first.
            tokenizer: of all calls of the model.
            workers: threads for the batches on a CPU.
            batch_size: most texts in a batch, or None.
            token_embeddings: vectors of tokens are asked for, not of texts.
            stats: counters to add to.
            on_begin: called with the number of texts.
            on_batch: called with (texts, tokens) after each batch.
        """
        self._model, self._current, self._tokenizer, self._workers = model, current, tokenizer, workers
        self._batch_size, self._token_embeddings, self._stats = batch_size, token_embeddings, stats
        self._on_begin, self._on_batch = on_begin, on_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """The texts as they are: they are tokenised while others are computed."""
        return {"rows": as_rows(inputs), "prompt": prompt or ""}

    def __call__(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What the library's modules would have given for all texts at once."""
        packed = self._current()
        tokenizer = self._row_tokenizer(packed)
        self._on_begin(len(features["rows"]))
        if self._token_embeddings:
            return self._of_tokens(packed, tokenizer, **features)
        return {packed.library.output: self._of_texts(packed, tokenizer, **features)}

    def _of_texts(self, packed: PackedModel, tokenizer: RowTokenizer, rows: list[Any], prompt: str) -> Tensor:
        """`[texts, width]` on the device, in the dtype of the library's modules."""
        graphs = packed.graphs if wanted("auto", packed.device) else None
        leading = tokenizer.loaded.tokenizer.prompt_tokens(prompt) if prompt else 0

        def run(batch: PackedBatch) -> Tensor:
            if graphs is not None:
                vectors = graphs.run(batch, packed, longest=tokenizer.most_tokens, prompt_tokens=leading)
                if vectors is not None:
                    return vectors
            return packed.compute(batch.to(packed.device), leading)

        vectors = torch.empty(0, 0)
        for batch in encode_stream(
            rows,
            cast(Tokenizer, tokenizer),
            run,
            workers=self._workers,
            prompt=prompt,
            device=packed.device,
            token_budget=tokenizer.loaded.token_budget,
            batch_size=self._batch_size,
            stats=self._stats,
            alike=packed.model.deterministic,
        ):
            if not len(vectors):
                vectors = torch.empty(len(rows), batch.vectors.shape[1])
            vectors[torch.from_numpy(batch.rows)] = batch.vectors
            self._on_batch(len(batch.rows), batch.tokens)
        return vectors.to(packed.device, packed.dtype)

    def _of_tokens(self, packed: PackedModel, tokenizer: RowTokenizer, rows: list[Any], prompt: str) -> dict[str, Any]:
        """A tensor `[tokens, hidden]` for each text, in the two entries that the loop reads: without padding."""
        found = token_vectors(
            rows,
            cast(Tokenizer, tokenizer),
            lambda batch: packed.model.run(batch.to(packed.device)),
            prompt=prompt,
            token_budget=tokenizer.loaded.token_budget,
            batch_size=self._batch_size,
            stats=self._stats,
            on_batch=self._on_batch,
        )
        return {
            "token_embeddings": [vectors.to(packed.device, packed.dtype) for vectors in found],
            "attention_mask": [torch.ones(len(vectors), dtype=torch.int64) for vectors in found],
            # Read where a truncate_dim is set, and not used.
            "sentence_embedding": torch.empty(0, 0),
        }

    def _row_tokenizer(self, packed: PackedModel) -> RowTokenizer:
        spelling = packed.library.tokenizer
        loaded = Loaded(
            model=packed.model,
            tokenizer=limited(self._tokenizer.of(spelling), limit_of(spelling)),
            spelling=spelling,
            folder=Path(getattr(spelling, "name_or_path", "")),
            device=packed.device,
            dtype=packed.model.dtype,
            token_budget=TOKEN_BUDGET[packed.device.type],
        )
        base = packed.model.base_model
        return RowTokenizer(loaded, base.longest, base.word_embeddings.weight.shape[0])
