"""Jobs of vectors: an `Encoder` as a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..embedding.encoder import Encoder, EncodeStats
from ..embedding.long_documents import LONG_TEXTS
from ..embedding.quantisation import Quantiser
from ..errors import InputError, MemoryLimitError, NotFiniteError, OptionError
from ..failures import is_out_of_memory
from ..loading import load
from ..tasks.options import at_least, one_of
from .inputs.long_texts import IsEnough
from .inputs.rows import Row
from .task import Answers

__all__ = ["EmbeddingOptions", "EmbeddingTask"]

NOT_FINITE = "the model's vector is not finite, nor is that of the eager implementation in float32"


PRECISIONS = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}
"""Of the vectors, and what their numbers are; int8 and uint8 would need ranges that hold for the whole job."""


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """What is computed from each text; the arguments of `Encoder.encode` of the same names."""

    prompt_name: str | None = None
    normalize_embeddings: bool = False
    truncate_dim: int | None = None
    precision: str = "float32"
    long_texts: str = "truncate"
    overlap: int = 0
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        one_of("precision", self.precision, tuple(PRECISIONS))
        one_of("long_texts", self.long_texts, LONG_TEXTS)
        one_of("aggregate", self.aggregate, ("mean", "max"))
        one_of("normalize_embeddings", self.normalize_embeddings, (True, False))
        at_least("overlap", self.overlap, 0)
        if self.prompt_name is not None and not isinstance(self.prompt_name, str):
            raise OptionError(f"prompt_name: expected a string, got {self.prompt_name!r:.60}")


class EmbeddingTask:
    """A vector for every row, column `embedding`: a list of fixed size, of float32 unless the precision is another.

    A vector that is not finite is computed again, the text alone, in float32 by the eager implementation.

    Args:
        encoder: from `padless.load`; its dtype and device are the job's.
        options: what is computed from each text.

    Raises:
        OptionError: an option is out of range, or the model has no such prompt.
    """

    name = "embedding"
    paired: bool | None = False
    several: bool = False

    def __init__(self, encoder: Encoder, options: EmbeddingOptions | None = None) -> None:
        self._encoder = encoder
        self.options = options or EmbeddingOptions()
        self.dimension = _output_dimension(encoder, self.options)
        self._quantiser = Quantiser(self.options.precision, self.dimension)
        element = pa.field("element", PRECISIONS[self.options.precision], nullable=False)
        self._type = pa.list_(element, self._quantiser.result_width)
        self._call(encoder, [])  # refuses an overlap that leaves no room, before a folder is made

    @property
    def description(self) -> dict[str, object]:
        fixed = {"deterministic": True} if self._encoder.model.deterministic else {}
        return {**asdict(self.options), "max_seq_length": self._encoder.max_seq_length, **fixed}

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        return (pa.field("embedding", self._type, nullable=False),)

    @property
    def folder(self) -> Path:
        return self._encoder.folder

    @property
    def dtype(self) -> str:
        return str(self._encoder.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self._encoder.device)

    @property
    def token_budget(self) -> int:
        return self._encoder.token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        self._encoder.token_budget = value

    @property
    def is_enough(self) -> IsEnough | None:
        prompt_name = self.options.prompt_name
        if self.options.long_texts == "chunk":
            return None
        return lambda text: self._encoder.is_enough(text, prompt_name)

    def explain(self) -> str:
        return self._encoder.explain()

    def failed_kernels(self) -> list[str]:
        return self._encoder.failed_kernels()

    def run(self, rows: Sequence[Row], stats: EncodeStats, on_batch: Callable[[int, int], None]) -> Answers:
        texts = [row.text or "" for row in rows]
        vectors, bad, truncated = self._encode(texts, stats, on_batch)
        suspects = [row for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist() if row not in bad]
        for row in suspects:
            stats.fallbacks += 1
            found = self._encode_exactly(texts[row])
            if isinstance(found, InputError):
                bad[row] = found
            else:
                vectors[row] = found
        # Not before all of them are known to be numbers: a bit does not tell.
        made = self._quantiser(vectors)
        for row in np.flatnonzero(~np.isfinite(made.astype(np.float32)).all(axis=1)).tolist():
            bad.setdefault(row, NotFiniteError(f"the vector does not fit into {self.options.precision}"))
        flat = pa.array(made.reshape(-1))
        if self.options.long_texts == "error":
            long = f"the text is longer than the {self._encoder.max_seq_length} tokens that the model takes"
            bad = {**dict.fromkeys(truncated, InputError(long)), **bad}
        return Answers([pa.FixedSizeListArray.from_arrays(flat, type=self._type)], bad, truncated)

    def _encode(
        self, texts: list[str], stats: EncodeStats, on_batch: Callable[[int, int], None]
    ) -> tuple[np.ndarray, dict[int, InputError], set[int]]:
        """Vectors of all texts, zeros for those too large for the memory, which are told with the reason; and which
        texts were cut.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        bad: dict[int, InputError] = {}
        truncated: set[int] = set()
        kept = list(range(len(texts)))
        while kept:
            counted, reported = EncodeStats(), 0

            def count(done: int, tokens: int) -> None:
                nonlocal reported
                reported += done
                on_batch(done, tokens)

            try:
                cut: list[int] = []
                told: dict[str, Any] = {"stats": counted, "on_batch": count, "on_truncated": cut.append}
                vectors[kept] = self._call(self._encoder, [texts[row] for row in kept], **told)
                truncated = {kept[place] for place in cut}
                stats.add(counted)
                break
            except MemoryLimitError as error:
                # The longest come first, so that little was computed in vain.
                row = kept.pop(error.row or 0)  # which an encode call always names
                bad[row] = error.of_row(None)
                stats.retries += counted.retries
                on_batch(1 - reported, 0)
        return vectors, bad, truncated

    def _encode_exactly(self, text: str) -> np.ndarray | InputError:
        try:
            vector = self._call(self._exact, [text])[0]
        except MemoryLimitError as error:
            return NotFiniteError(f"the model's vector is not finite; again in float32: {error.of_row(None)}")
        return vector if np.isfinite(vector).all() else NotFiniteError(NOT_FINITE)

    def _call(self, encoder: Encoder, texts: list[str], **more: Any) -> np.ndarray:
        options = {**asdict(self.options), "precision": "float32"}
        if options["long_texts"] == "error":  # such a row costs itself only: see `run`
            options["long_texts"] = "truncate"
        return encoder.encode(texts, check_finite=False, **options, **more)

    @cached_property
    def _exact(self) -> Encoder:
        """The same model in float32 on the eager implementations; on the CPU where the GPU has no room for it."""
        ours = self._encoder

        def loaded(device: Any) -> Encoder:
            fixed = ours.model.deterministic  # which eager does not promise
            rows = "auto" if fixed else "eager"
            return load(
                ours.folder, device=device, dtype="float32", backend=rows, deterministic=fixed, cuda_graphs=False
            )

        try:
            encoder = loaded(ours.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            encoder = loaded("cpu")
        return replace(
            encoder, tokenizer=ours.tokenizer, prompts=ours.prompts, default_prompt_name=ours.default_prompt_name
        )


def _output_dimension(encoder: Encoder, options: EmbeddingOptions) -> int:
    """Numbers in a vector of this job; raises OptionError where the options do not fit the model."""
    if options.prompt_name is not None and options.prompt_name not in encoder.prompts:
        known = ", ".join(sorted(encoder.prompts)) or "none"
        raise OptionError(f"prompt_name: {options.prompt_name!r} is not a prompt of the model; its prompts: {known}")
    if options.truncate_dim is None:
        return encoder.dimension
    if not isinstance(options.truncate_dim, int) or not 1 <= options.truncate_dim <= encoder.dimension:
        raise OptionError(f"truncate_dim: expected 1 to {encoder.dimension}, got {options.truncate_dim!r}")
    return options.truncate_dim
