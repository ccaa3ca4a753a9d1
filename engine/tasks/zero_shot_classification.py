"""Zero-shot classification: which of any labels fits a text, asked of a model of natural language inference.

A label becomes a sentence by a template, and its score is how much the model takes it to follow from the text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError, OptionError
from .long_texts import LONG_TEXTS, aggregated, tokenise_texts
from .options import at_least, one_of
from .pieces import Pieces
from .task import Task
from .text_inputs import read_single_texts

__all__ = ["ZeroShotClassification", "ZeroShotOptions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZeroShotOptions:
    """Of a call.

    Attributes:
        candidate_labels: a list, or a str in which commas separate them.
        hypothesis_template: the sentence about a label, with `{}` where the label belongs.
        multi_label: whether each label is scored by itself, not against the others.
        long_texts: "truncate" the text, never the label's sentence, "error", or "chunk": the text is seen whole, in
            pieces that each stand beside the whole sentence.
        overlap: of "chunk", tokens that a piece repeats of the one before.
        aggregate: of "chunk", what becomes of the logits of a label's pieces before they are made probabilities:
            "mean", or "max", those of the piece that speaks most for the label.
    """

    candidate_labels: Sequence[str] | str = ()
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    long_texts: str = "truncate"
    overlap: int = 0
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        labels = self.candidate_labels
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not isinstance(labels, Sequence) or not labels or not all(isinstance(label, str) for label in labels):
            raise OptionError(f"candidate_labels: expected one label or more, got {self.candidate_labels!r:.60}")
        object.__setattr__(self, "candidate_labels", tuple(labels))
        one_of("multi_label", self.multi_label, (True, False))
        one_of("long_texts", self.long_texts, LONG_TEXTS)
        at_least("overlap", self.overlap, 0)
        one_of("aggregate", self.aggregate, ("mean", "max"))
        if not isinstance(self.hypothesis_template, str) or self._made_of(labels[0]) == self.hypothesis_template:
            found = self.hypothesis_template
            raise OptionError(f"hypothesis_template: expected a sentence with {{}} for the label, got {found!r:.80}")

    @property
    def hypotheses(self) -> tuple[str, ...]:
        """A sentence for each label."""
        return tuple(self._made_of(label) for label in self.candidate_labels)

    def _made_of(self, label: str) -> str:
        try:
            return self.hypothesis_template.format(label)
        except (LookupError, ValueError, AttributeError):
            # A name or a number in the braces, or braces that are not closed.
            return self.hypothesis_template


class ZeroShotClassification(Task[str, ZeroShotOptions]):
    """`{"sequence", "labels", "scores"}` of each text, most likely labels first."""

    name: ClassVar[str] = "zero-shot-classification"
    kind: ClassVar[str] = "ForSequenceClassification"
    options_class: ClassVar[type] = ZeroShotOptions
    input_names: ClassVar[tuple[str, ...]] = ("sequences",)
    window_items: ClassVar[int] = 128

    def __call__(self, inputs: Any = None, candidate_labels: Any = None, **options: Any) -> Any:
        """Answer one text or several; see `Task.__call__`.

        Args:
            inputs: a str or a list of them; also by the name `sequences`.
            candidate_labels: as in `ZeroShotOptions`.
            options: of `ZeroShotOptions` and `Task.__call__`.
        """
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[str], bool]:
        """One text or a list of them; an empty one is refused, as in transformers."""
        return read_single_texts(others.get("sequences", inputs), called="sequences", empty=False)

    def tokenise(self, items: Sequence[str], options: ZeroShotOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each text and label, or several where texts are chunked."""
        hypotheses = options.hypotheses
        pairs = [(text, hypothesis) for text in items for hypothesis in hypotheses]
        owners = np.repeat(np.arange(len(items)), len(hypotheses))
        return tokenise_texts(
            self.loaded,
            pairs,
            options.long_texts,
            options.overlap,
            in_pieces=0,
            truncation="only_first",
            owners=owners,
        )

    def score(self, batch: PackedBatch, options: ZeroShotOptions) -> Sequence[np.ndarray]:
        """float32 `[2]` of each piece: the logits of contradiction and of entailment."""
        logits: Tensor = self.loaded.model(batch).logits.float()
        return list(logits[:, [0 if self.entailment_id else -1, self.entailment_id]].cpu().numpy())

    def answer(
        self, item: str, place: int, pieces: Pieces, scores: Sequence[np.ndarray], options: ZeroShotOptions
    ) -> dict[str, Any]:
        """The labels by their scores."""
        logits = np.stack(scores)
        if not np.isfinite(logits).all():
            raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
        labels = options.candidate_labels
        alone = options.multi_label or len(labels) == 1
        if options.long_texts == "chunk":
            logits = _of_labels(logits, pieces.firsts(place), options.aggregate, alone)
        chances = _softmax(logits, axis=1)[:, 1] if alone else _softmax(logits[:, 1], axis=0)
        # Equal scores in the order that transformers gives them.
        order = np.argsort(chances, kind="stable")[::-1]
        return {
            "sequence": item,
            "labels": [labels[row] for row in order],
            "scores": [float(chances[row]) for row in order],
        }

    @cached_property
    def entailment_id(self) -> int:
        """Index of the label whose name begins with "entail"; the last one where none does, as in transformers."""
        for label, index in self.loaded.config.label2id.items():
            if label.lower().startswith("entail"):
                return index
        logger.warning("%s: label2id names no entailment; the last label is taken for it", self.loaded.folder)
        return -1


def _of_labels(logits: np.ndarray, firsts: np.ndarray, aggregate: str, alone: bool) -> np.ndarray:
    """Logits of pieces `[pieces, 2]` to those of their labels `[labels, 2]`.

    Args:
        logits: of contradiction and of entailment.
        firsts: the first piece of each label.
        aggregate: "mean" or "max".
        alone: whether a label is scored against its contradiction, not against the other labels.
    """
    if aggregate == "mean":
        return aggregated(logits, firsts, "mean")
    # Both logits of one piece: the highest of each by itself would weigh one part of a text against another.
    found = []
    for part in np.split(logits, firsts[1:]):
        support = part[:, 1] - part[:, 0] if alone else part[:, 1]
        found.append(part[support.argmax()])
    return np.stack(found)


def _softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)
