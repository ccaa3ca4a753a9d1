"""The embedding model that `padless.load` returns: its arguments, its checks, and rows in the caller's order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..batch import PackedBatch
from ..cuda_graphs import CudaGraphs, wanted
from ..errors import InputError, NotFiniteError, OptionError
from ..ops.bind import BoundOp, explain_ops, failed_kernels
from ..streaming.prefetch import Workers
from ..streaming.stream import EncodedBatch, EncodeStats, encode_stream
from ..tokenizer import Tokenizer
from .long_documents import Documents, PieceTokenizer, RefusingTokenizer, cut_documents
from .options import EncodeOptions, chosen_texts, refuse_others
from .pooling import SentenceHead
from .quantisation import Quantiser
from .token_vectors import token_vectors

__all__ = ["EncodeStats", "Encoder"]

ITER_WINDOW = 8192
"""Texts that `encode_iter` holds and sorts at a time."""

Done: TypeAlias = Callable[[int, int], None]
"""Called with (texts, tokens) after each batch."""


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

    def failed_kernels(self) -> list[str]:
        """Kernels that could not be compiled or started here, and how: other implementations serve in their place."""
        return failed_kernels(self.bound_ops())

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What vectors are computed with."""
        return self.model, self.head

    def bound_ops(self) -> tuple[BoundOp, ...]:
        """The ops of the modules."""
        return *self.model.bound_ops(), *self.head.bound_ops()

    def compute(self, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        """Vectors of a batch on the device, fp32 `[texts, dimension]`.

        Args:
            batch: packed texts.
            prompt_tokens: leading tokens of each text that belong to a prompt.
        """
        return self.head(self.model.run(batch), batch, prompt_tokens)

    def encode(
        self,
        texts: str | Iterable[str] | None = None,
        *,
        sentences: str | Iterable[str] | None = None,
        inputs: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        ranges: np.ndarray | None = None,
        calibration_embeddings: np.ndarray | None = None,
        long_texts: str = "truncate",
        overlap: int = 0,
        aggregate: str = "mean",
        check_finite: bool = True,
        stats: EncodeStats | None = None,
        on_batch: Callable[[int, int], None] | None = None,
        on_truncated: Callable[[int], None] | None = None,
        first_row: int = 0,
        **others: Any,
    ) -> Any:
        """Embed texts; argument names are those of sentence-transformers.

        Args:
            texts: one string or several. Lone surrogates count as U+FFFD.
            sentences, inputs: other names of `texts`.
            prompt_name: a key of `prompts`, put before each text; None takes the folder's default prompt, if any.
            prompt: the prompt itself; wins over `prompt_name`.
            batch_size: most texts in a batch; None leaves that to `token_budget`, which always holds.
            show_progress_bar: show a bar on standard error; None is False.
            output_value: "token_embeddings" returns the last hidden states, fp32 `[tokens, hidden]` tensors, special
                tokens included, a list of them for several texts.
            precision: "float32", "float16", "int8", "uint8", or "binary" and "ubinary" of one bit a channel.
            convert_to_numpy: false returns a torch tensor.
            convert_to_tensor: true returns a torch tensor, on the CPU.
            normalize_embeddings: scale each vector to unit length (the folder's own Normalize always applies).
            truncate_dim: keep only the first so many channels (Matryoshka models).
            ranges: of int8 and uint8, the lowest and highest value of each channel, `[2, dimension]`.
            calibration_embeddings: float `[some, dimension]` that ranges are taken from where there are none; without
                either they are those of this call's vectors.
            long_texts: what is done with texts over `max_seq_length`: "truncate", "error", or "chunk", which sees all
                of them in pieces, the prompt before each.
            overlap: of "chunk", tokens that a piece repeats of the one before.
            aggregate: of "chunk", the vector of a text of several pieces: "mean", in which a piece counts by its
                tokens, or "max" of each channel, both of unit length where the folder's vectors are; or "each" for a
                list of arrays, `[pieces, dimension]` for each text.
            check_finite: refuse vectors that hold NaN or infinity.
            stats: counters to add to.
            on_batch: called with (texts or pieces of them, tokens) after each batch.
            on_truncated: called with the place of each text that was cut.
            first_row: the number of the first text, for messages.
            others: `device`, `pool`, `chunk_size`, `task`: accepted where they ask for nothing.

        Returns:
            float32, or of `precision`, `[texts, dimension]` in the caller's order; `[dimension]` for a single string;
            `[0, dimension]` for an empty list.

        Raises:
            InputError: an item is not a string or too long, or its vector is not finite; names the row.
            OptionError: an argument is out of range.
        """
        refuse_others(others, self.device)
        given = chosen_texts(texts, sentences, inputs)
        rows = _as_list(given)
        _check_strings(rows, first_row)
        options = EncodeOptions(
            dimension=self.dimension,
            batch_size=batch_size,
            token_budget=self.token_budget,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            output_value=output_value,
            precision=precision,
            ranges=ranges,
            calibration_embeddings=calibration_embeddings,
            long_texts=long_texts,
            overlap=overlap,
            aggregate=aggregate,
        )
        chosen = self._prompt(prompt_name, prompt)
        stats = EncodeStats() if stats is None else stats
        documents = cut_documents(self.tokenizer, rows, chosen, overlap) if long_texts == "chunk" else None
        count = len(rows) if documents is None else len(documents.pieces)
        with tqdm(total=count, unit="text", disable=not show_progress_bar) as bar:

            def done(texts: int, tokens: int) -> None:
                bar.update(texts)
                if on_batch is not None:
                    on_batch(texts, tokens)

            if output_value == "token_embeddings":
                found: Any = self._token_vectors(rows, chosen, options, stats, done)
                finite = np.array([bool(vectors.isfinite().all()) for vectors in found], dtype=bool)
            elif documents is not None:
                found, finite = self._of_documents(documents, chosen, options, stats, done)
            else:
                refusing = cast(Tokenizer, RefusingTokenizer(self.tokenizer, rows, first_row))
                tokenizer = refusing if long_texts == "error" else self.tokenizer
                found, finite = self._of_texts(rows, tokenizer, chosen, options, stats, done, on_truncated)
        if check_finite:
            _check_finite(finite, first_row)
        if output_value != "token_embeddings" and (convert_to_tensor or not convert_to_numpy):
            found = [*map(torch.from_numpy, found)] if isinstance(found, list) else torch.from_numpy(found)
        return found[0] if isinstance(given, str) else found

    def encode_query(self, texts: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Embed queries: `encode` with the prompt "query", which is empty where the folder has none, unless the call
        names one.
        """
        return self.encode(texts, **self._with_prompt(options, ("query",)))

    def encode_document(self, texts: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Embed documents: `encode` with the first of the prompts "document", "passage" and "corpus" that there is,
        unless the call names one.
        """
        return self.encode(texts, **self._with_prompt(options, ("document", "passage", "corpus")))

    def encode_iter(self, texts: Iterable[str], **options: Any) -> Iterator[np.ndarray]:
        """Embed a stream of texts in bounded memory, one vector at a time, in order.

        Args:
            texts: any iterable of strings; read `ITER_WINDOW` texts ahead.
            options: as for `encode`; int8 and uint8 need ranges or calibration, or each window would have its own.

        Yields:
            float32 `[dimension]` for each text, or what the options ask for.

        Raises:
            InputError: as `encode`; the row is counted from the start of the stream.
            OptionError: as `encode`.
        """
        ranged = any(options.get(name) is not None for name in ("ranges", "calibration_embeddings"))
        if options.get("precision") in ("int8", "uint8") and not ranged:
            raise OptionError(f"precision: {options['precision']} of a stream needs ranges or calibration_embeddings")
        texts = iter(texts)
        first = 0
        while window := list(itertools.islice(texts, ITER_WINDOW)):
            yield from self.encode(window, **options, first_row=first)
            first += len(window)

    def is_enough(self, text: str, prompt_name: str | None = None) -> bool:
        """Whether every text that begins with `text` has the vector of `text`, as far as "truncate" goes."""
        return self.tokenizer.is_enough(text, prompt=self._prompt(prompt_name, None))

    def _of_texts(
        self,
        rows: list[Any],
        tokenizer: Tokenizer,
        prompt: str,
        options: EncodeOptions,
        stats: EncodeStats,
        done: Done,
        on_truncated: Callable[[int], None] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the precision, and bool `[rows]`: which are finite."""
        quantiser = options.quantiser()
        # What does not depend on the other vectors is never held in fp32.
        at_once = Quantiser("float32", options.width) if quantiser.needs_all else quantiser
        vectors = np.empty((len(rows), at_once.result_width), dtype=at_once.dtype)
        finite = np.ones(len(rows), dtype=bool)
        for batch in self._stream(rows, tokenizer, prompt, options, stats, on_truncated):
            part = batch.vectors[:, : options.width]
            part = (F.normalize(part, dim=-1) if options.normalize_embeddings else part).numpy()
            made = at_once(part)
            finite[batch.rows] = _finite(made if options.precision == "float16" else part)
            vectors[batch.rows] = made
            done(len(batch.rows), batch.tokens)
        return (quantiser(vectors) if quantiser.needs_all else vectors), finite

    def _of_documents(
        self, documents: Documents, prompt: str, options: EncodeOptions, stats: EncodeStats, done: Done
    ) -> tuple[Any, np.ndarray]:
        """Vectors of documents, or with "each" a list of them, and bool `[documents]`: which are finite."""
        pieces = np.empty((len(documents.pieces), self.dimension), dtype=np.float32)
        tokenizer = cast(Tokenizer, PieceTokenizer(self.tokenizer))
        for batch in self._stream(documents.pieces, tokenizer, prompt, options, stats):
            pieces[batch.rows] = batch.vectors.numpy()
            done(len(batch.rows), batch.tokens)
        texts = len(documents.repaired)
        stats.texts += texts - len(pieces)
        stats.repaired += int(documents.repaired.sum())
        each = options.aggregate == "each"
        vectors = torch.from_numpy(pieces if each else documents.aggregated(pieces, options.aggregate))
        if self.head.unit_length and not each:
            vectors = F.normalize(vectors, dim=-1)
        vectors = vectors[:, : options.width]
        vectors = (F.normalize(vectors, dim=-1) if options.normalize_embeddings else vectors).numpy()
        made = options.quantiser()(vectors)
        finite = _finite(made if options.precision == "float16" else vectors)
        if not each:
            return made, finite
        bounds = documents.starts[1:-1]
        parts = [part.copy() for part in np.split(made, bounds)] if texts else []
        return parts, np.array([bool(part.all()) for part in np.split(finite, bounds)] if texts else [], dtype=bool)

    def _token_vectors(
        self, rows: list[str], prompt: str, options: EncodeOptions, stats: EncodeStats, done: Done
    ) -> list[Tensor]:
        return token_vectors(
            rows,
            self.tokenizer,
            lambda batch: self.model.run(batch.to(self.device)),
            prompt=prompt,
            token_budget=options.token_budget,
            batch_size=options.batch_size,
            stats=stats,
            on_batch=done,
        )

    def _stream(
        self, rows: list[Any], tokenizer: Tokenizer, prompt: str, options: EncodeOptions, stats: EncodeStats,
        on_truncated: Callable[[int], None] | None = None,
    ) -> Iterator[EncodedBatch]:  # fmt: skip
        return encode_stream(
            rows,
            tokenizer,
            self._runner(prompt),
            workers=self._workers,
            prompt=prompt,
            device=self.device,
            token_budget=options.token_budget,
            batch_size=options.batch_size,
            stats=stats,
            on_truncated=on_truncated,
            alike=self.model.deterministic,
        )

    def _with_prompt(self, options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            found = next((name for name in names if name in self.prompts), None)
            return {**options, "prompt_name": found}
        return options

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


def _finite(vectors: np.ndarray) -> np.ndarray:
    """bool `[vectors]`."""
    return np.asarray(np.isfinite(vectors).all(axis=1))


def _check_finite(finite: np.ndarray, first: int) -> None:
    bad = first + np.flatnonzero(~finite)
    if len(bad):
        listed = ", ".join(map(str, bad[:10])) + (", …" if len(bad) > 10 else "")
        raise NotFiniteError(f"row {listed}: the model gave NaN or infinity; expected finite vectors")
