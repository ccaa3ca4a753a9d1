"""Tokens with scores to entities: transformers' aggregation strategies, on arrays of tokens instead of dicts of each.

"none"      every token by itself
"simple"    neighbouring tokens of one kind are an entity; "B-" begins another one
"first"     as "simple", on words: a word is what its first token is
"average"   a word is what the mean of its tokens' scores says
"max"       a word is what its surest token is
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["STRATEGIES", "Labels", "Tokens", "entities_of", "without_overlaps"]

STRATEGIES = ("none", "simple", "first", "average", "max")

Join = Callable[[Sequence[str]], str]
"""Tokens to the text they spell."""


class Labels:
    """A model's labels, by their numbers.

    Attributes:
        names: of each label, such as "B-PER".
        groups: what an entity of it is called, such as "PER".
        kinds: int64 `[labels]`, equal for labels that one entity may hold.
        begins: bool `[labels]`, whether a token of it is the first of its entity.
    """

    def __init__(self, id2label: dict[int, str]) -> None:
        self.names = [id2label[number] for number in range(len(id2label))]
        self.groups = [name.split("-", 1)[-1] for name in self.names]
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in self.names]
        self.kinds = np.unique(tags, return_inverse=True)[1]
        self.begins = np.array([name.startswith("B-") for name in self.names], dtype=bool)

    def kept(self, names: Sequence[str], ignored: Sequence[str]) -> np.ndarray:
        """bool `[labels]`: whether what is called `names[label]` is wanted."""
        return np.array([name not in ignored for name in names], dtype=bool)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one piece, or its words, without special tokens.

    Attributes:
        spelled: each as the vocabulary has it, an unknown one as the text has it; of a word a list of its tokens.
        starts, ends: int64 `[tokens]`, characters of the text.
        indices: int64 `[tokens]`, places in the piece.
        labels: int64 `[tokens]`, the most likely label.
        scores: float32 `[tokens]`, its probability.
    """

    spelled: Sequence[Any]
    starts: np.ndarray
    ends: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.spelled)

    def words(self, subword: np.ndarray, strategy: str, every: np.ndarray | None) -> Tokens:
        """The same with tokens joined to words.

        Args:
            subword: bool `[tokens]`, whether a token belongs to the word before it.
            strategy: "first", "average" or "max".
            every: float32 `[tokens, labels]`, all scores; "average" needs them.
        """
        first = _firsts(~subword)
        stops = np.append(first[1:], len(self))
        if strategy == "average":
            assert every is not None
            means = _means(every, first)
            labels, scores = means.argmax(axis=1), means.max(axis=1)
        else:
            chosen = first if strategy == "first" else _highest(self.scores, first)
            labels, scores = self.labels[chosen], self.scores[chosen]
        spelled = [self.spelled[begin:stop] for begin, stop in zip(first.tolist(), stops.tolist(), strict=True)]
        return Tokens(spelled, self.starts[first], self.ends[stops - 1], self.indices[first], labels, scores)

    def each(self, labels: Labels, ignored: Sequence[str]) -> list[dict[str, Any]]:
        """Every token whose label is wanted."""
        chosen = labels.kept(labels.names, ignored)[self.labels].nonzero()[0]
        return [
            {
                "entity": labels.names[label],
                "score": score,
                "index": index,
                "word": self.spelled[place],
                "start": start,
                "end": end,
            }
            for place, label, score, index, start, end in zip(
                chosen.tolist(),
                *(values[chosen].tolist() for values in (self.labels, self.scores, self.indices)),
                *(values[chosen].tolist() for values in (self.starts, self.ends)),
                strict=True,
            )
        ]

    def grouped(self, labels: Labels, ignored: Sequence[str], join: Join) -> list[dict[str, Any]]:
        """Neighbours of one kind as entities, those that are wanted."""
        kinds = labels.kinds[self.labels]
        first = _firsts(labels.begins[self.labels] | (kinds != np.roll(kinds, 1)))
        stops = np.append(first[1:], len(self))
        scores = _means(self.scores, first)
        wanted = labels.kept(labels.groups, ignored)[self.labels[first]]
        return [
            {
                "entity_group": labels.groups[self.labels[begin]],
                "score": score,
                "word": join([part if isinstance(part, str) else join(part) for part in self.spelled[begin:stop]]),
                "start": int(self.starts[begin]),
                "end": int(self.ends[stop - 1]),
            }
            for begin, stop, score in zip(*(values[wanted].tolist() for values in (first, stops, scores)), strict=True)
        ]


def entities_of(
    tokens: Tokens,
    subword: np.ndarray,
    every: np.ndarray | None,
    labels: Labels,
    *,
    strategy: str,
    ignored: Sequence[str],
    join: Join,
) -> list[dict[str, Any]]:
    """The entities of a piece, in its order.

    Args:
        tokens, subword, every: as of `Tokens.words`.
        labels: of the model.
        strategy: one of `STRATEGIES`.
        ignored: labels, or under the other strategies than "none" names of entities, that are left out.
        join: tokens to the text they spell.
    """
    if not len(tokens):
        return []
    if strategy == "none":
        return tokens.each(labels, ignored)
    words = tokens if strategy == "simple" else tokens.words(subword, strategy, every)
    return words.grouped(labels, ignored, join)


def without_overlaps(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that overlapping pieces found in one place the longest, and of equally long ones the surest."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _firsts(begins: np.ndarray) -> np.ndarray:
    """Where groups begin: wherever `begins` says so, and at the first of all."""
    begins[0] = True
    return begins.nonzero()[0]


def _means(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """float64: of each group that begins at `first`, the mean of its rows."""
    counts = np.diff(np.append(first, len(values)))
    return np.add.reduceat(values, first, axis=0, dtype=np.float64) / counts.reshape(-1, *[1] * (values.ndim - 1))


def _highest(scores: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Of each group that begins at `first`, the place of its highest score, of equal ones the first."""
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(scores))))
    order = np.lexsort((np.arange(len(scores)), -scores, group))
    return order[first]
