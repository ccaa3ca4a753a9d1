"""How long the texts of a benchmark's batch are: named distributions, seeded, the same on every machine.

    fixed      every text has the given length
    variable   normal around half of the given length, clipped to 1 and to it: the shape of the "variable" sets that
               ModernBERT was measured on (Warner et al. 2024, table 2); the deviation, a sixth, is ours
    news       whole articles of the Lee background corpus, drawn from their real counts in `NEWS`
    squad      questions and paragraphs up to 384 tokens, as many on average as SQuAD 1.1 has: of its inputs padded to
               384, 54% are padding (Zhang et al. 2021, "Reducing BERT Computation by Padding Removal and Curriculum
               Learning"), so 177 a text are not; a gamma distribution of that mean, its shape parameter ours
    long       one text of the given length among many of 4 to 32 tokens
    single     one text of the given length: latency, not throughput

Those drawn have exactly the tokens asked for: the last text is cut. Only numbers are needed, so that a machine without
the corpora has the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..engine.errors import OptionError

__all__ = ["DISTRIBUTIONS", "NEWS", "Distribution", "Lengths", "draw_lengths"]

_SEED = 20250117
_SHORT = (4, 32)
_SQUAD_MEAN, _SQUAD_SHAPE, _SQUAD_LONGEST = 0.46 * 384, 6.0, 384
_SQUAD_SHORTEST = 24

NEWS = (
    383, 204, 72, 187, 198, 230, 529, 106, 407, 150, 163, 167, 496, 185, 174, 155, 111, 275, 113, 188, 115, 122,
    178, 176, 138, 345, 164, 146, 192, 248, 167, 320, 103, 380, 275, 274, 339, 488, 209, 192, 327, 214, 215, 146,
    337, 219, 126, 147, 370, 342, 215, 160, 341, 175, 130, 255, 150, 146, 342, 148, 284, 297, 208, 122, 274, 182,
    184, 84, 173, 235, 156, 163, 93, 169, 315, 185, 212, 178, 309, 402, 176, 350, 562, 282, 293, 112, 122, 431, 554,
    166, 351, 149, 176, 381, 176, 200, 322, 165, 350, 274, 175, 216, 149, 166, 439, 393, 463, 675, 149, 301, 136,
    224, 439, 161, 551, 206, 452, 155, 507, 206, 155, 135, 157, 79, 131, 299, 165, 290, 216, 335, 344, 479, 305,
    240, 318, 170, 137, 166, 405, 184, 410, 132, 167, 154, 303, 505, 181, 364, 201, 172, 298, 345, 777, 618, 197,
    163, 298, 536, 162, 176, 202, 450, 165, 173, 114, 257, 161, 644, 379, 169, 195, 172, 364, 176, 141, 166, 230,
    170, 185, 364, 154, 251, 244, 308, 559, 251, 123, 129, 190, 158, 223, 358, 246, 141, 214, 341, 65, 171, 147,
    109, 629, 244, 261, 323, 259, 138, 128, 57, 120, 204, 173, 226, 316, 347, 460, 221, 204, 285, 145, 163, 292,
    180, 157, 161, 338, 127, 134, 202, 190, 212, 177, 230, 382, 536, 221, 154, 177, 144, 148, 141, 146, 381, 105,
    311, 218, 227, 181, 226, 152, 313, 786, 469, 237, 221, 198, 284, 134, 341, 110, 445, 405, 127, 189, 172, 262,
    197, 110, 637, 589, 180, 246, 172, 483, 185, 380, 213, 69, 222, 165, 219, 107, 153, 165, 602, 335, 223, 138,
    201, 153, 169, 93, 201, 221, 237, 209, 185, 118, 137, 154, 389,
)  # fmt: skip
"""Tokens of each of the 300 articles, in the corpus' order, counted by MiniLM's tokenizer, special tokens included."""


@dataclass(frozen=True)
class Lengths:
    """The texts of one batch.

    Attributes:
        name: "fixed 128", "news".
        kind: a key of `DISTRIBUTIONS`.
        seqlen: the length that the distribution was given; None where it has its own.
        lengths: tokens of each text, 1 at least.
    """

    name: str
    kind: str
    seqlen: int | None
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)


@dataclass(frozen=True)
class Distribution:
    """One way to draw lengths.

    Attributes:
        draw: from generator, tokens of the batch and the given length to the lengths.
        by_seqlen: whether the given length changes anything.
    """

    draw: Callable[[random.Random, int, int], list[int]]
    by_seqlen: bool


def draw_lengths(kind: str, tokens: int, seqlen: int) -> Lengths:
    """A batch of about `tokens` tokens; for the same arguments always the same.

    Args:
        kind: a key of `DISTRIBUTIONS`.
        tokens: of the batch, 1 at least.
        seqlen: the length that distributions of one are given; others ignore it.

    Raises:
        OptionError: no such distribution, or a count below 1.
    """
    if kind not in DISTRIBUTIONS:
        raise OptionError(f"lengths {kind!r}: unknown, expected one of {', '.join(DISTRIBUTIONS)}")
    if tokens < 1:
        raise OptionError(f"tokens: expected at least 1, got {tokens}")
    if seqlen < 1:
        raise OptionError(f"seqlens: expected at least 1, got {seqlen}")
    distribution = DISTRIBUTIONS[kind]
    generator = random.Random(f"{_SEED} {kind} {tokens} {seqlen if distribution.by_seqlen else 0}")
    lengths = tuple(distribution.draw(generator, tokens, seqlen))
    if distribution.by_seqlen:
        return Lengths(f"{kind} {seqlen}", kind, seqlen, lengths)
    return Lengths(kind, kind, None, lengths)


def _filled(tokens: int, draw: Callable[[], int]) -> list[int]:
    """Draws until their sum is `tokens`, the last one cut."""
    lengths: list[int] = []
    left = tokens
    while left > 0:
        lengths.append(min(draw(), left))
        left -= lengths[-1]
    return lengths


def _fixed(_generator: random.Random, tokens: int, seqlen: int) -> list[int]:
    return [seqlen] * max(1, tokens // seqlen)


def _variable(generator: random.Random, tokens: int, seqlen: int) -> list[int]:
    return _filled(tokens, lambda: min(max(round(generator.gauss(seqlen / 2, seqlen / 6)), 1), seqlen))


def _news(generator: random.Random, tokens: int, _seqlen: int) -> list[int]:
    return _filled(tokens, lambda: generator.choice(NEWS))


def _squad(generator: random.Random, tokens: int, _seqlen: int) -> list[int]:
    def draw() -> int:
        drawn = round(generator.gammavariate(_SQUAD_SHAPE, _SQUAD_MEAN / _SQUAD_SHAPE))
        return min(max(drawn, _SQUAD_SHORTEST), _SQUAD_LONGEST)

    return _filled(tokens, draw)


def _long(generator: random.Random, tokens: int, seqlen: int) -> list[int]:
    # Where the long text takes all tokens, short ones of a quarter of it are there still.
    lengths = _filled(max(tokens - seqlen, seqlen // 4, 1), lambda: generator.randint(*_SHORT))
    lengths.insert(generator.randint(0, len(lengths)), seqlen)
    return lengths


def _single(_generator: random.Random, _tokens: int, seqlen: int) -> list[int]:
    return [seqlen]


DISTRIBUTIONS: dict[str, Distribution] = {
    "fixed": Distribution(_fixed, by_seqlen=True),
    "variable": Distribution(_variable, by_seqlen=True),
    "news": Distribution(_news, by_seqlen=False),
    "squad": Distribution(_squad, by_seqlen=False),
    "long": Distribution(_long, by_seqlen=True),
    "single": Distribution(_single, by_seqlen=True),
}
