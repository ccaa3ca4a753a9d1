"""The task classes, once for all families: a bare model, a head on its tokens or its texts, and a loss.

A family's class is one of these plus what its head looks like: `token_features` and `text_features` say what the last
linear layer sees, and a family that has layers between the bare model and the classifier overrides them.

Inputs are padded `[batch, sequence]` tensors with a mask, or one PackedBatch in place of `input_ids`, whose outputs and
labels are then packed as well.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import ConfigError, InputError, OptionError
from ..outputs import (
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    PreTrainingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from .bare import BareModel, Encoded, EncoderModel
from .blocks import Dense
from .heads import TopPredictions, highest
from .losses import class_loss, sequence_loss, span_loss
from .padding import PackedInputs, rows_of
from .signatures import taking

__all__ = [
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
    "TaskModel",
]


class TaskModel(EncoderModel):
    """A bare model with a head.

    A family defines:
        base_class: its bare model.
        classifier_dropout: probability of dropout in front of the classifier, in training.
        token_features, text_features, masked_lm_head, next_sentence_head: where they differ from what is here.
    """

    base_class: ClassVar[type[BareModel]]
    wants_pooler: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ("labels",)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "answer"):
            cls.forward = taking(cls.forward, cls.targets)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        base = self.base_class(config) if self.wants_pooler else self.base_class.without_pooler(config)
        setattr(self, self.base_model_prefix, base)

    @property
    def classifier_dropout(self) -> float:
        """Of the configuration, under the field this family has for it."""
        chosen = getattr(self.config, "classifier_dropout", None)
        return self.config.hidden_dropout_prob if chosen is None else chosen

    def token_features(self, hidden: Tensor) -> Tensor:
        """`[tokens, hidden]` to what the last layer sees of every token."""
        return hidden

    def text_features(self, encoded: Encoded) -> Tensor:
        """`[texts, hidden]`, what the last layer sees of every text."""
        return self.base_model.pooler(encoded.first_tokens()) if encoded.pooled is None else encoded.pooled

    answer: Callable[..., ModelOutput]
    """`answer(encoded, **targets)`: head and loss; the targets are those of `targets` that were given, in the caller's
    layout."""

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Encode a batch and answer the task; inputs as for the bare model.

        Args:
            labels: what is right; with them the output has a loss. `[batch, sequence]` for tokens, `[batch]` or
                `[batch, labels]` for texts, `[batch]` for multiple choice; -100 leaves one out.
            next_sentence_label: `[batch]`, of pre-training.
            start_positions: `[batch]`, index of an answer's first token, of question answering.
            end_positions: `[batch]`, index of its last.
            positions: where masked language models are asked: bool `[batch, sequence]`, or int64 indices of packed
                tokens, or a list of either; the logits are then `[asked, vocab]`, in that order.

        Returns:
            The task's class of `engine/outputs.py`, or a tuple of what is in it.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or a text that is too long.
            OptionError: a target of another task.
        """
        encoded = self.encode_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, output_hidden_states, return_dict, others,
        )  # fmt: skip
        targets = {
            "labels": labels,
            "next_sentence_label": next_sentence_label,
            "start_positions": start_positions,
            "end_positions": end_positions,
            "positions": positions,
        }
        given = {name: value for name, value in targets.items() if value is not None}
        for name in given:
            if name not in self.targets:
                raise OptionError(f"{type(self).__name__}: takes no {name}, only {', '.join(self.targets)}")
        return encoded.leave(self.answer(encoded, **given))

    def _dropped(self, features: Tensor) -> Tensor:
        return F.dropout(features, self.classifier_dropout) if self.training else features


class ForMaskedLM(TaskModel):
    """Which token belongs where one is masked. A family defines `masked_lm_logits`, and `predict_top` where it has a
    quicker way to the highest of them.
    """

    targets = ("labels", "positions")

    def top_predictions(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        positions: Tensor | Sequence[Any],
        k: int = 5,
    ) -> TopPredictions:
        """The `k` most likely tokens of each position that is asked about, most likely first; inputs as for `forward`.

        Logits of the whole vocabulary need not be written for it.

        Args:
            positions: where: bool `[batch, sequence]`, such as `input_ids == tokenizer.mask_token_id`, or int64 indices
                of packed tokens, or a list of either.
            k: how many; all where the vocabulary has no more.

        Returns:
            One row for each position, in their order.

        Raises:
            InputError: as `forward`, or positions that do not fit.
            OptionError: `k` is no whole number from 1.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise OptionError(f"k: expected a whole number from 1, got {k!r}")
        encoded = self.encode_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, False, False, True, {}
        )
        return self.predict_top(encoded.hidden[_asked(positions, encoded)], k)

    def predict_top(self, hidden: Tensor, k: int) -> TopPredictions:
        """`[asked, hidden]` to the `k` most likely tokens of each row."""
        return highest(self.masked_lm_logits(hidden), k)

    @abstractmethod
    def masked_lm_logits(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""

    def answer(self, encoded: Encoded, labels: Tensor | None = None, positions: Tensor | None = None) -> MaskedLMOutput:
        """Logits of every token, or only where they are asked for or, under `sparse_prediction`, labelled."""
        packed = None if labels is None else encoded.layout.pack(labels, "labels").to(encoded.hidden.device)
        rows = None
        if positions is not None:
            rows = _asked(positions, encoded)
        elif packed is not None and getattr(self.config, "sparse_prediction", False):
            rows = (packed != self.config.sparse_pred_ignore_index).nonzero().flatten()
        if rows is None:
            logits = self.masked_lm_logits(encoded.hidden)
            shown = encoded.layout.unpack(logits)
        else:
            packed = None if packed is None else packed[rows]
            shown = logits = self.masked_lm_logits(encoded.hidden[rows])
        return MaskedLMOutput(None if packed is None else class_loss(logits, packed), shown)


class ForPreTraining(ForMaskedLM):
    """Both tasks of BERT's pre-training. A family defines `masked_lm_logits` and `next_sentence_logits`."""

    wants_pooler = True
    targets = ("labels", "next_sentence_label")

    @abstractmethod
    def next_sentence_logits(self, features: Tensor) -> Tensor:
        """`[texts, hidden]` to `[texts, 2]`."""

    def answer(  # type: ignore[override]
        self, encoded: Encoded, labels: Tensor | None = None, next_sentence_label: Tensor | None = None
    ) -> PreTrainingOutput:
        """Both logits; the loss is there where both labels are."""
        words = self.masked_lm_logits(encoded.hidden)
        sentences = self.next_sentence_logits(self.text_features(encoded))
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = class_loss(words, encoded.layout.pack(labels, "labels"))
            loss = loss + class_loss(sentences, next_sentence_label)
        return PreTrainingOutput(loss, encoded.layout.unpack(words), sentences)


class ForNextSentencePrediction(TaskModel):
    """Whether the second text follows the first. A family defines `next_sentence_logits`."""

    wants_pooler = True

    @abstractmethod
    def next_sentence_logits(self, features: Tensor) -> Tensor:
        """`[texts, hidden]` to `[texts, 2]`."""

    def answer(self, encoded: Encoded, labels: Tensor | None = None) -> NextSentencePredictorOutput:
        """`[texts, 2]`."""
        logits = self.next_sentence_logits(self.text_features(encoded))
        return NextSentencePredictorOutput(None if labels is None else class_loss(logits, labels), logits)


class ForSequenceClassification(TaskModel):
    """One class, several, or a number for every text."""

    wants_pooler = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = Dense(config.hidden_size, config.num_labels)

    def answer(self, encoded: Encoded, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """`[texts, labels]`."""
        logits = self.classifier(self._dropped(self.text_features(encoded)))
        loss = None if labels is None else sequence_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(loss, logits)


class ForMultipleChoice(TaskModel):
    """Which of several texts. Inputs have an axis more, `[batch, choices, sequence]`; in a PackedBatch the choices of a
    question follow each other, and without labels all texts are choices of one question.
    """

    wants_pooler = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = Dense(config.hidden_size, 1)

    def _pack(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> PackedInputs:
        flat = self._each_text(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        inputs = super()._pack(*flat)
        if isinstance(input_ids, PackedBatch):
            return inputs
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        return replace(inputs, layout=replace(inputs.layout, choices=given.shape[1]))

    def _each_text(self, *given: Any) -> tuple[Any, ...]:
        input_ids, *_, inputs_embeds = given
        if isinstance(input_ids, PackedBatch):
            return given
        chosen = input_ids if input_ids is not None else inputs_embeds
        axes = 3 if input_ids is not None else 4
        if chosen is None or chosen.dim() != axes:
            found = None if chosen is None else list(chosen.shape)
            raise InputError(f"{type(self).__name__}: expected inputs [batch, choices, sequence, …], got {found}")
        return tuple(None if value is None else value.flatten(0, 1) for value in given)

    def answer(self, encoded: Encoded, labels: Tensor | None = None) -> MultipleChoiceModelOutput:
        """`[batch, choices]`."""
        scores = self.classifier(self._dropped(self.text_features(encoded)))
        choices = encoded.layout.choices or len(scores) // (1 if labels is None else labels.numel())
        logits = scores.view(-1, choices)
        return MultipleChoiceModelOutput(None if labels is None else class_loss(logits, labels), logits)


class ForTokenClassification(TaskModel):
    """A class for every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = Dense(config.hidden_size, config.num_labels)

    def answer(self, encoded: Encoded, labels: Tensor | None = None) -> TokenClassifierOutput:
        """`[batch, sequence, labels]`; labels at padding do not count, whatever they are."""
        logits = self.classifier(self._dropped(self.token_features(encoded.hidden)))
        loss = None if labels is None else class_loss(logits, encoded.layout.pack(labels, "labels"))
        return TokenClassifierOutput(loss, encoded.layout.unpack(logits))


class ForQuestionAnswering(TaskModel):
    """Where the answer begins and where it ends. A family names the layer by `span_layer`."""

    targets = ("start_positions", "end_positions")
    span_layer: ClassVar[str] = "qa_outputs"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        if config.num_labels != 2:
            raise ConfigError(f"{type(self).__name__}: num_labels: expected 2, first and last, got {config.num_labels}")
        setattr(self, self.span_layer, Dense(config.hidden_size, config.num_labels))

    def answer(
        self, encoded: Encoded, start_positions: Tensor | None = None, end_positions: Tensor | None = None
    ) -> QuestionAnsweringModelOutput:
        """Two logits for every token, the lowest finite value at padding, so that no answer is found there."""
        features = self.span_features(encoded.hidden)
        logits = getattr(self, self.span_layer)(features)
        lowest = torch.finfo(logits.dtype).min
        start, end = (encoded.layout.unpack(column, lowest) for column in logits.unbind(dim=1))
        loss = None
        if start_positions is not None and end_positions is not None:
            # A PackedBatch has its texts side by side; the loss is over each text, so they are put in rows.
            rows = rows_of(encoded.batch) if encoded.layout.shape is None else encoded.layout
            present = rows.unpack(torch.ones_like(logits[:, 0], dtype=torch.bool), False)
            starts, ends = (rows.unpack(column, lowest) for column in logits.unbind(dim=1))
            loss = span_loss(starts, ends, start_positions, end_positions, present)
        return QuestionAnsweringModelOutput(loss, start, end)

    def span_features(self, hidden: Tensor) -> Tensor:
        """`[tokens, hidden]`, what the last layer sees."""
        return self.token_features(hidden)


def _asked(positions: Tensor | Sequence[Any], encoded: Encoded) -> Tensor:
    """int64 indices of packed tokens."""
    if not isinstance(positions, Tensor):
        try:
            positions = torch.tensor(positions, dtype=None if len(positions) else torch.int64)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"positions: expected a tensor or a list, got {type(positions).__name__}") from None
    if positions.dtype == torch.bool:
        packed = encoded.layout.pack(positions, "positions")
        if packed.shape != encoded.hidden.shape[:1]:
            raise InputError(f"positions: expected one value a token, got shape {list(positions.shape)}")
        return packed.nonzero().flatten()
    if positions.dim() != 1 or positions.dtype != torch.int64:
        found = f"{str(positions.dtype).removeprefix('torch.')} of shape {list(positions.shape)}"
        raise InputError(f"positions: expected bool a token or int64 indices of packed tokens, got {found}")
    tokens = len(encoded.hidden)
    if len(positions):
        lowest, highest = (int(value) for value in torch.aminmax(positions))
        if lowest < 0 or highest >= tokens:
            found = lowest if lowest < 0 else highest
            raise InputError(f"positions: expected 0 to {tokens - 1}, got {found}")
    return positions.to(encoded.hidden.device)
