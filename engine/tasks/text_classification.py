"""Text classification: single texts or pairs, one class of several, several labels at once, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError
from .long_texts import LONG_TEXTS, Text, tokenise_texts
from .options import at_least, one_of
from .pieces import Pieces
from .scores import sigmoid
from .task import Task
from .text_inputs import read_texts
from .tokenizer_arguments import TokenizerArguments

__all__ = ["ClassificationOptions", "TextClassification", "activated", "activation_of"]

ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class ClassificationOptions:
    """Of a call.

    Attributes:
        top_k: labels of each answer, most likely first; None is all of them; 1 without being asked for is the one
            label by itself, as in transformers.
        function_to_apply: "softmax", "sigmoid" or "none", in capitals too; None is sigmoid for several labels at once
            or a single one, none for a regression, else softmax.
        long_texts: what is done with a text that the model cannot take whole, see long_texts.py.
        overlap: of "chunk", tokens that a piece repeats of the one before.
        aggregate: of "chunk", what becomes of the scores of the pieces: "mean", "max", or "each" for a list of answers,
            one a piece.
        truncation, max_length, padding: see tokenizer_arguments.py; of "chunk", `max_length` is that of a piece.
    """

    top_k: int | str | None = ""
    function_to_apply: str | None = None
    long_texts: str = "truncate"
    overlap: int = 0
    aggregate: str = "mean"
    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str | None = None

    def __post_init__(self) -> None:
        _ = self.tokenizer_arguments
        if self.top_k not in ("", None):
            at_least("top_k", self.top_k, 1)
        if self.function_to_apply is not None:
            name = self.function_to_apply
            object.__setattr__(self, "function_to_apply", name.lower() if isinstance(name, str) else name)
            one_of("function_to_apply", self.function_to_apply, ACTIVATIONS)
        one_of("long_texts", self.long_texts, LONG_TEXTS)
        one_of("aggregate", self.aggregate, ("mean", "max", "each"))
        at_least("overlap", self.overlap, 0)

    @property
    def tokenizer_arguments(self) -> TokenizerArguments:
        """Those that a tokenizer knows.

        Raises:
            OptionError: one of them is out of range.
        """
        return TokenizerArguments(self.truncation, self.max_length, self.padding)


class TextClassification(Task[Text, ClassificationOptions]):
    """`{"label", "score"}` of each text, or a list of them where `top_k` asks for it."""

    name: ClassVar[str] = "text-classification"
    kind: ClassVar[str] = "ForSequenceClassification"
    options_class: ClassVar[type] = ClassificationOptions

    @property
    def labels(self) -> Mapping[int, str]:
        """Index -> name."""
        return self.loaded.config.id2label

    @property
    def activation(self) -> str:
        """What turns logits into scores where a call does not say it."""
        return activation_of(self.loaded.config)

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Text], bool]:
        """Texts or pairs, see text_inputs.py."""
        return read_texts(inputs)

    def tokenise(self, items: Sequence[Text], options: ClassificationOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each text, or several where they are chunked."""
        loaded, long_texts, truncation = options.tokenizer_arguments.applied(self.loaded, options.long_texts)
        return tokenise_texts(loaded, items, long_texts, options.overlap, truncation=truncation)

    def score(self, batch: PackedBatch, options: ClassificationOptions) -> Sequence[np.ndarray]:
        """float32 `[labels]` of each piece."""
        logits: Tensor = self.loaded.model(batch).logits.float()
        return list(activated(logits, options.function_to_apply or self.activation).cpu().numpy())

    def answer(
        self, item: Text, place: int, pieces: Pieces, scores: Sequence[np.ndarray], options: ClassificationOptions
    ) -> Any:
        """The labels by their scores."""
        whole = np.stack(scores)
        if not np.isfinite(whole).all():
            raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
        if options.aggregate == "each" and options.long_texts == "chunk":
            return [self._labels(row, options) for row in whole]
        return self._labels(whole.max(axis=0) if options.aggregate == "max" else whole.mean(axis=0), options)

    def shaped(self, answers: list[Any], inputs: Any, single: bool, options: ClassificationOptions) -> Any:
        """A text by itself is answered by a list of one, as in transformers; a dict by its answer."""
        if not single:
            return answers
        return answers if isinstance(inputs, str) and options.top_k == "" else answers[0]

    def _labels(self, scores: np.ndarray, options: ClassificationOptions) -> Any:
        names = self.labels
        order = np.argsort(-scores, kind="stable")
        if options.top_k == "":
            return {"label": names[int(order[0])], "score": float(scores[order[0]])}
        kept = order if options.top_k is None else order[: options.top_k]
        return [{"label": names[int(label)], "score": float(scores[label])} for label in kept]


def activation_of(config: Any) -> str:
    """What turns a classifier's logits into scores, by the kind of problem that its configuration names."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def activated(logits: Tensor, activation: str) -> Tensor:
    """`[rows, labels]` to scores of the same shape."""
    if activation == "softmax":
        return torch.softmax(logits, dim=-1)
    return sigmoid(logits) if activation == "sigmoid" else logits
