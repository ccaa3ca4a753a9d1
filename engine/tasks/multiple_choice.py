"""Multiple choice: which of several texts goes with a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError
from .long_texts import LONG_TEXTS, aggregated, tokenise_texts
from .options import at_least, one_of
from .pieces import Pieces
from .task import Task
from .text_inputs import described, read_grouped

__all__ = ["ChoiceOptions", "MultipleChoice", "Question"]


@dataclass(frozen=True)
class Question:
    """A prompt and the texts to choose from."""

    prompt: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceOptions:
    """Of a call.

    Attributes:
        long_texts: of a prompt with a choice, "truncate" the longer of the two, "error", or "chunk": the prompt is seen
            whole, in pieces that each stand beside the whole choice.
        overlap: of "chunk", tokens that a piece repeats of the one before.
        aggregate: of "chunk", what becomes of the logits of a choice's pieces before they are made probabilities:
            "mean" or "max".
    """

    long_texts: str = "truncate"
    overlap: int = 0
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        one_of("long_texts", self.long_texts, LONG_TEXTS)
        at_least("overlap", self.overlap, 0)
        one_of("aggregate", self.aggregate, ("mean", "max"))


class MultipleChoice(Task[Question, ChoiceOptions]):
    """`{"choice", "text", "score", "scores"}` of each question: the index of the most likely choice, its text and its
    probability, and the probabilities of all choices in their order.

    A question is `prompt=…, choices=[…]` by name, or `{"prompt", "choices"}`, one or a list of them.
    """

    name: ClassVar[str] = "multiple-choice"
    kind: ClassVar[str] = "ForMultipleChoice"
    options_class: ClassVar[type] = ChoiceOptions
    input_names: ClassVar[tuple[str, ...]] = ("prompt", "choices")
    window_items: ClassVar[int] = 256

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Question], bool]:
        """Questions; one without choices is refused."""
        found, single = read_grouped(inputs, others, "prompt", "choices")
        for row, (_, choices) in enumerate(found):
            if not choices:
                raise InputError(f"row {row}: choices: expected one or more, got {described(choices)}")
        return [Question(prompt, choices) for prompt, choices in found], single

    def tokenise(self, items: Sequence[Question], options: ChoiceOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each choice, the prompt before it, or several where prompts are chunked."""
        pairs = [(item.prompt, choice) for item in items for choice in item.choices]
        owners = np.repeat(np.arange(len(items)), [len(item.choices) for item in items])
        return tokenise_texts(self.loaded, pairs, options.long_texts, options.overlap, in_pieces=0, owners=owners)

    def score(self, batch: PackedBatch, options: ChoiceOptions) -> Sequence[float]:
        """The logit of each piece."""
        # All texts of a batch count as choices of one question there; the softmax of each follows in `answer`.
        return self.loaded.model(batch).logits.float().flatten().tolist()

    def answer(
        self, item: Question, place: int, pieces: Pieces, scores: Sequence[float], options: ChoiceOptions
    ) -> dict[str, Any]:
        """The most likely choice, the first of several that are equal."""
        logits = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(logits).all():
            raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
        logits = aggregated(logits, pieces.firsts(place), options.aggregate)
        raised = np.exp(logits - logits.max())
        chances = (raised / raised.sum()).tolist()
        best = int(logits.argmax())
        return {"choice": best, "text": item.choices[best], "score": chances[best], "scores": chances}
