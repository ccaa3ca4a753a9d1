"""Next sentence prediction: whether the second text follows the first. The shape is that of text classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .long_texts import Text
from .text_classification import TextClassification
from .text_inputs import read_pairs

__all__ = ["NextSentencePrediction"]

LABELS = {0: "IsNext", 1: "NotNext"}
"""The head's two outputs, in the order that BERT was trained with; configurations do not name them."""


class NextSentencePrediction(TextClassification):
    """`{"label", "score"}` of each pair, or a list of them where `top_k` asks for it.

    Pairs are a tuple of two str or `{"text", "text_pair"}`, one or a list of them; options as of text classification.
    """

    name: ClassVar[str] = "next-sentence-prediction"
    kind: ClassVar[str] = "ForNextSentencePrediction"

    @property
    def labels(self) -> Mapping[int, str]:
        """Index -> name."""
        return LABELS

    @property
    def activation(self) -> str:
        """Of the two, one is right."""
        return "softmax"

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Text], bool]:
        """Pairs, see text_inputs.py."""
        pairs, single = read_pairs(inputs)
        return [*pairs], single
