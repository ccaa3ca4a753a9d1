"""BERT's pre-training classes for the families whose checkpoints keep both heads under `cls`: BERT, MegatronBERT,
MobileBERT.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .blocks import Dense
from .heads import Predictions, TopPredictions, WordPredictions, highest
from .resizing import Vocabulary
from .tasks import ForMaskedLM, ForNextSentencePrediction, ForPreTraining, TaskModel

__all__ = ["CLS_VOCABULARY", "ClsForMaskedLM", "ClsForNextSentencePrediction", "ClsForPreTraining"]

CLS_VOCABULARY = Vocabulary(
    tables=("embeddings.word_embeddings",), decoder="cls.predictions.decoder", bias="cls.predictions.bias"
)
"""Of the families whose decoder is `cls.predictions.decoder`."""


class _WithPredictions(TaskModel):
    """A class whose `cls.predictions` is a masked language model's head, tied to the word embeddings."""

    predictions_class: ClassVar[type[nn.Module]] = WordPredictions

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cls = nn.ModuleDict({"predictions": self.predictions_class(config)})

    def tie_table(self) -> dict[str, str]:
        """The decoder is the word embeddings; its bias has two names."""
        if not self.config.tie_word_embeddings:
            return {}
        return {
            "cls.predictions.decoder.weight": f"{self.base_model_prefix}.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }

    def masked_lm_logits(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        return self.cls["predictions"](hidden)

    def predict_top(self, hidden: Tensor, k: int) -> TopPredictions:
        """`[asked, hidden]` to the `k` most likely tokens of each row."""
        predictions = self.cls["predictions"]
        if isinstance(predictions, Predictions):
            return predictions.predict_top(hidden, k)
        return highest(predictions(hidden), k)


class ClsForMaskedLM(_WithPredictions, ForMaskedLM):
    """`cls.predictions` alone."""


class ClsForPreTraining(_WithPredictions, ForPreTraining):
    """`cls.predictions` and `cls.seq_relationship`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cls["seq_relationship"] = Dense(config.hidden_size, 2)

    def next_sentence_logits(self, features: Tensor) -> Tensor:
        """`[texts, hidden]` to `[texts, 2]`."""
        return self.cls["seq_relationship"](features)


class ClsForNextSentencePrediction(ForNextSentencePrediction):
    """`cls.seq_relationship` alone."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cls = nn.ModuleDict({"seq_relationship": Dense(config.hidden_size, 2)})

    def next_sentence_logits(self, features: Tensor) -> Tensor:
        """`[texts, hidden]` to `[texts, 2]`."""
        return self.cls["seq_relationship"](features)
