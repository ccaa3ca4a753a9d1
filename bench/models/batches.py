"""Padded batches of token ids, for the systems that leave batching to their caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .system import max_length

__all__ = ["PaddedBatches", "restored"]


class PaddedBatches:
    """Tokenise all texts, then batches of `batch_size` texts, each padded to its longest.

    Args:
        model: folder with the `tokenizer.json`.
        batch_size: texts in a batch.
        by_length: texts of like length together, longest first; otherwise as they come.
    """

    def __init__(self, model: Path, batch_size: int, *, by_length: bool = True) -> None:
        from tokenizers import Tokenizer

        self.batch_size = batch_size
        self.by_length = by_length
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length(model))

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield rows `[batch]`, ids and mask int64 `[batch, longest]`."""
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(ids) for ids in encodings], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable") if self.by_length else np.arange(len(lengths))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            mask = (np.arange(int(lengths[rows].max())) < lengths[rows, None]).astype(np.int64)
            ids = np.zeros_like(mask)
            ids[mask.astype(bool)] = np.concatenate([encodings[row] for row in rows])
            yield rows, ids, mask


def restored(texts: int, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """float32 `[texts, dim]` from (rows, vectors) of batches in any order."""
    vectors = np.empty((texts, parts[0][1].shape[1]), dtype=np.float32)
    for rows, part in parts:
        vectors[rows] = part
    return vectors
