"""Places in a text, for answers that point into it; also where the tokenizer does not take it as it was given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from ..tokenization.surrogates import without_surrogates

__all__ = ["Characters"]

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class Characters:
    """A text as the tokenizer takes it, whole or in words, and where its characters stand in the text that was given.

    Attributes:
        words: surrogate pairs as the character they stand for, lone ones as U+FFFD.
        text: the words with the delimiter between them.
        starts: int64 `[words]`, where each word begins in `text`.
    """

    def __init__(self, given: Sequence[str], delimiter: str = "") -> None:
        self.words = [without_surrogates(word) for word in given]
        self.text = delimiter.join(self.words)
        self.starts = _starts(self.words, delimiter)
        self._pairs = None
        # A lone surrogate is as long as U+FFFD: only pairs move what stands behind them.
        if any(len(word) != len(taken) for word, taken in zip(given, self.words, strict=True)):
            begins = _starts(given, delimiter).tolist()
            pairs = [
                begin + found.start()
                for word, begin in zip(given, begins, strict=True)
                for found in _PAIR.finditer(word)
            ]
            self._pairs = np.array(pairs) - np.arange(len(pairs))

    def place(self, index: int) -> int:
        """Of a character of `text`, or its end, the place in the text that was given."""
        return index if self._pairs is None else index + int(np.searchsorted(self._pairs, index))


def _starts(words: Sequence[str], delimiter: str) -> np.ndarray:
    steps = (len(word) + len(delimiter) for word in words[:-1])
    return np.fromiter(itertools.accumulate(steps, initial=0), dtype=np.int64)[: len(words)]
