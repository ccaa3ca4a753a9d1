"""What part `models` is run on: token ids made on the spot, in the lengths that texts have.

variable 512    evenly spread over 16 to 512 tokens
fixed 128       no peer pads
fixed 512       the same at a length at which attention counts
news            the lengths of 300 news articles, most of them around 200 tokens
long 8192       whole documents, for a model that takes them
one text …      latency of a batch of one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...engine.batch import TokenizedTexts

__all__ = ["WORKLOADS", "Work", "Workload"]

_SEED = 20250117
_FIRST_ID = 5
"""Below are special tokens."""

# Every twentieth of the articles that `bench.workloads.news` reads, in tokens of BERT's vocabulary.
_NEWS = (
    57, 111, 129, 141, 150, 160, 166, 172, 177, 186, 201, 214, 223, 247, 284, 312, 341, 371, 432, 529, 786,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Tokenised texts, and how many tokens a batch may have, padding included."""

    texts: TokenizedTexts
    budget: int

    @property
    def lengths(self) -> np.ndarray:
        """int32 `[texts]`."""
        return self.texts.lengths

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Workload:
    """A kind of work.

    Attributes:
        draw: lengths of a number of tokens together, about; None of them is over `longest`.
        longest: most tokens of a text.
        tiny: lengths for a dry run.
        latency: it is asked how long one batch takes, not how many tokens a second.
        eager: padless' own eager form is timed as well.
        checked: how many texts are held against fp32.
    """

    draw: Callable[[np.random.Generator, int], np.ndarray]
    longest: int
    tiny: tuple[int, ...]
    latency: bool = False
    eager: bool = False
    checked: int = 8

    def make(self, tokens: int, vocabulary: int, budget: int, *, dry: bool) -> Work:
        """The texts, the same for every system.

        Args:
            tokens: about how many together.
            vocabulary: ids are below it.
            budget: most tokens of a batch.
            dry: a few short ones.
        """
        generator = np.random.default_rng(_SEED)
        lengths = np.array(self.tiny) if dry else self.draw(generator, tokens)
        lengths = lengths.astype(np.int32)
        ids = generator.integers(_FIRST_ID, vocabulary, int(lengths.sum()), dtype=np.int32)
        nothing = np.zeros(len(lengths), dtype=bool)
        return Work(TokenizedTexts(ids, lengths, None, nothing, nothing), budget)


def _even(generator: np.random.Generator, tokens: int) -> np.ndarray:
    lengths = np.rint(np.linspace(16, 512, max(tokens // 264, 1)))
    return generator.permutation(lengths)


def _fixed(length: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda generator, tokens: np.full(max(tokens // length, 1), length)


def _few(length: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Texts that are run one at a time."""
    return lambda generator, tokens: np.full(4, length)


def _news(generator: np.random.Generator, tokens: int) -> np.ndarray:
    count = max(tokens // 240, 1)
    drawn = np.interp(generator.random(count), np.linspace(0, 1, len(_NEWS)), _NEWS)
    return np.rint(drawn).clip(max=512)


WORKLOADS = {
    "variable 512": Workload(_even, 512, (9, 3, 14), eager=True),
    "fixed 128": Workload(_fixed(128), 128, (8, 8)),
    "one text, 128 tokens": Workload(_few(128), 128, (7, 7), latency=True, eager=True),
    "news": Workload(_news, 512, (5, 13, 6)),
    "fixed 512": Workload(_fixed(512), 512, (16, 16)),
    "long 8192": Workload(_fixed(8192), 8192, (40, 40, 40), checked=3),
    "one text, 512 tokens": Workload(_few(512), 512, (16, 16), latency=True),
}
"""In the order of their weight: what is cut off when time runs out stands last."""
