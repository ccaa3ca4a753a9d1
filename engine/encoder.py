"""The embedding model that `padless.load` returns: its arguments, its checks, and rows in the caller's order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .batch import PackedBatch
from .cuda_graphs import CudaGraphs, wanted
from .errors import InputError, OptionError
from .ops.bind import BoundOp, explain_ops
from .pooling import SentenceHead
from .prefetch import Workers
from .stream import EncodeStats, encode_stream
from .tokenizer import Tokenizer

__all__ = ["EncodeStats", "Encoder"]

ITER_WINDOW = 8192
"""Texts that `encode_iter` holds and sorts at a time."""


@dataclass
class Encoder:
    """A loaded embedding model. Safe to use from several threads.

    Attributes:
        model: the transformer: PackedBatch to `[tokens, hidden]`.
        head: pooling and what follows it.
        tokenizer: texts to ids.
        folder: where the model was loaded from.
        device: where it runs.
        dtype: what its activations are computed in.
        token_budget: most tokens in one batch; a longer text gets a batch of its own.
        prompts: name -> text put before each input.
        default_prompt_name: used when a call names none.
        cuda_graphs: record what is done for small batches, and replay it, see `cuda_graphs/`; "auto" on every GPU.
    """

    model: Any
    head: SentenceHead
    tokenizer: Tokenizer
    folder: Path
    device: torch.device
    dtype: torch.dtype
    token_budget: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    cuda_graphs: bool | str = "auto"
    _graphs: CudaGraphs = field(default_factory=CudaGraphs, init=False, repr=False, compare=False)
    _workers: Workers = field(default_factory=Workers, init=False, repr=False, compare=False)

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.head.dimension

    @property
    def max_seq_length(self) -> int | None:
        """Tokens kept per text, special tokens included; None where nothing limits them."""
        return self.tokenizer.max_length

    def explain(self) -> str:
        """The dispatch table as resolved for this model: op, implementation, dtype, and why not the rows above."""
        return explain_ops(self.bound_ops())

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What vectors are computed with."""
        return self.model, self.head

    def bound_ops(self) -> tuple[BoundOp, ...]:
        """The ops of the modules."""
        return *self.model.bound_ops(), *self.head.pooling.pools

    def compute(self, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        """Vectors of a batch on the device, fp32 `[texts, dimension]`.

        Args:
            batch: packed texts.
            prompt_tokens: leading tokens of each text that belong to a prompt.
        """
        return self.head(self.model.run(batch), batch, prompt_tokens)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        check_finite: bool = True,
        stats: EncodeStats | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Embed texts; argument names are those of sentence-transformers.

        Args:
            texts: one string or several. Lone surrogates count as U+FFFD; texts over `max_seq_length` are cut.
            prompt_name: a key of `prompts`, put before each text; None takes the folder's default prompt, if any.
            prompt: the prompt itself; wins over `prompt_name`.
            batch_size: most texts in a batch; None leaves that to `token_budget`, which always holds.
            show_progress_bar: show a bar on standard error; None is False.
            normalize_embeddings: scale each vector to unit length (the folder's own Normalize always applies).
            truncate_dim: keep only the first so many channels (Matryoshka models).
            precision: "float32".
            convert_to_numpy: false returns a torch tensor.
            convert_to_tensor: true returns a torch tensor, on the CPU.
            check_finite: refuse vectors that hold NaN or infinity.
            stats: counters to add to.
            on_batch: called with (texts, tokens) after each batch.

        Returns:
            float32 `[texts, dimension]` in the caller's order; `[dimension]` for a single string; `[0, dimension]`
            for an empty list.

        Raises:
            InputError: an item is not a string, or its vector is not finite; names the row.
            OptionError: an argument is out of range.
        """
        rows = _as_list(texts)
        _check_strings(rows)
        if precision != "float32":
            raise OptionError(f"precision: expected 'float32', got {precision!r}")
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"batch_size: expected at least 1, got {batch_size}")
        if self.token_budget < 1:
            raise OptionError(f"token_budget: expected at least 1, got {self.token_budget}")
        width = self._width(truncate_dim)
        prompt = self._prompt(prompt_name, prompt)
        stream = encode_stream(
            rows,
            self.tokenizer,
            self._runner(prompt),
            workers=self._workers,
            prompt=prompt,
            device=self.device,
            token_budget=self.token_budget,
            batch_size=batch_size,
            stats=EncodeStats() if stats is None else stats,
        )
        vectors = np.empty((len(rows), width), dtype=np.float32)
        with tqdm(total=len(rows), unit="text", disable=not show_progress_bar) as bar:
            for batch in stream:
                part = batch.vectors[:, :width]
                vectors[batch.rows] = (F.normalize(part, dim=-1) if normalize_embeddings else part).numpy()
                bar.update(len(batch.rows))
                if on_batch is not None:
                    on_batch(len(batch.rows), batch.tokens)
        if check_finite:
            _check_finite(vectors)
        result = torch.from_numpy(vectors) if convert_to_tensor or not convert_to_numpy else vectors
        return result[0] if isinstance(texts, str) else result

    def encode_iter(self, texts: Iterable[str], **options: Any) -> Iterator[np.ndarray]:
        """Embed a stream of texts in bounded memory, one vector at a time, in order.

        Args:
            texts: any iterable of strings; read `ITER_WINDOW` texts ahead.
            options: as for `encode`.

        Yields:
            float32 `[dimension]` for each text.

        Raises:
            InputError: as `encode`; the row is counted from the start of the stream.
        """
        texts = iter(texts)
        first = 0
        while window := list(itertools.islice(texts, ITER_WINDOW)):
            _check_strings(window, first)
            vectors = self.encode(window, **{**options, "check_finite": False})
            if options.get("check_finite", True):
                _check_finite(np.asarray(vectors), first)
            yield from vectors
            first += len(window)

    def _runner(self, prompt: str) -> Callable[[PackedBatch], Tensor]:
        leading = self.tokenizer.prompt_tokens(prompt) if prompt else 0
        graphs = self._graphs if wanted(self.cuda_graphs, self.device) else None

        def run(batch: PackedBatch) -> Tensor:
            if graphs is not None:
                vectors = graphs.run(batch, self, longest=self.max_seq_length, prompt_tokens=leading)
                if vectors is not None:
                    return vectors
            return self.compute(batch.to(self.device), leading)

        return run

    def _width(self, truncate_dim: int | None) -> int:
        if truncate_dim is None:
            return self.dimension
        if not 1 <= truncate_dim <= self.dimension:
            raise OptionError(f"truncate_dim: expected 1 to {self.dimension}, got {truncate_dim}")
        return truncate_dim

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise OptionError(f"prompt_name: expected one of the model's prompts ({known}), got {name!r}")
        return self.prompts[name]


def _as_list(texts: str | Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise InputError(f"texts: expected a string or several, got {type(texts).__name__} ({repr(texts)[:60]})")
    return list(texts)


def _check_strings(rows: Sequence[Any], first: int = 0) -> None:
    for row, text in enumerate(rows, first):
        if not isinstance(text, str):
            shown = repr(text)[:60]
            raise InputError(f"row {row}: expected a string, got {type(text).__name__} ({shown})")


def _check_finite(vectors: np.ndarray, first: int = 0) -> None:
    bad = first + np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        listed = ", ".join(map(str, bad[:10])) + (", …" if len(bad) > 10 else "")
        raise InputError(f"row {listed}: the model gave NaN or infinity; expected finite vectors")
