"""What models return: named tensors that also read as tuples and mappings, as code written for transformers expects.

    outputs.logits    outputs["logits"]    outputs[0]    loss, logits = outputs[:2]

Fields that were not computed are None as attributes, and are not there at all as items: `outputs[0]` is the loss where
there is one and the logits where there is none.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor
from torch.utils._pytree import MappingKey, register_pytree_node

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "CausalLMOutputWithCrossAttentions",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceModelOutput",
    "NextSentencePredictorOutput",
    "PreTrainingOutput",
    "QuestionAnsweringModelOutput",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Seq2SeqQuestionAnsweringModelOutput",
    "Seq2SeqSequenceClassifierOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
]


class ModelOutput:
    """Base of the outputs: a dataclass of tensors that is also a mapping and a sequence of what is there.

    torch's tree utilities see inside, and with them whatever moves or hooks the tensors of a model's output.
    """

    def __init_subclass__(cls) -> None:
        register_pytree_node(cls, ModelOutput._flatten, cls._unflatten, flatten_with_keys_fn=ModelOutput._flatten_named)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self._present()[key]
        return self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in (field.name for field in fields(self)):  # type: ignore[arg-type]
            raise KeyError(name)
        setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, name: object) -> bool:
        return name in self._present()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` where it was not computed."""
        return self._present().get(name, default)

    def keys(self) -> KeysView[str]:
        """Names of the fields that are there, in order."""
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        """The fields that are there, in order."""
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        """(name, value) of the fields that are there, in order."""
        return self._present().items()

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order; what `return_dict=False` returns."""
        return tuple(self._present().values())

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def _flatten(self) -> tuple[list[Any], list[str]]:
        return list(self.values()), list(self.keys())

    def _flatten_named(self) -> tuple[list[tuple[Any, Any]], list[str]]:
        return [(MappingKey(name), value) for name, value in self.items()], list(self.keys())

    @classmethod
    def _unflatten(cls, values: Iterable[Any], names: list[str]) -> Self:
        return cls(**dict(zip(names, values, strict=True)))


# Every class ends with what any model adds on request:
#   hidden_states: the input of the first layer, then the output of every layer, `[batch, sequence, hidden]` each;
#   attentions: softmax weights of every layer, `[batch, heads, sequence, sequence]`.
# For a PackedBatch the axes `batch, sequence` are one axis `tokens`, except in `attentions`. Labels bring a loss.


@dataclass
class BaseModelOutput(ModelOutput):
    """Of a bare model without pooler: `last_hidden_state [batch, sequence, hidden]`."""

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Of a bare model: also `pooler_output [batch, hidden]`, or None where the model has no pooler."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Of a bare model that has a decoder's form as well; what only that has stays None in an encoder."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: Any = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """`logits [batch, sequence, vocab]`; `past_key_values` is a `KeyValueCache` of `engine/models/kv_cache.py`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """`logits [batch, sequence, vocab]`, or `[asked, vocab]` where only some positions were asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class PreTrainingOutput(ModelOutput):
    """`prediction_logits [batch, sequence, vocab]`, `seq_relationship_logits [batch, 2]`; the loss is their sum."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class NextSentencePredictorOutput(ModelOutput):
    """`logits [batch, 2]`: the second text follows the first, or is any other."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """`logits [batch, labels]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    """`logits [batch, choices]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """`logits [batch, sequence, labels]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits [batch, sequence]`; at padding they are the lowest finite value."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# Those of a model with an encoder and a decoder end with what both halves add; `past_key_values` is a `KeyValueCache`
# of `engine/models/kv_cache.py`, and `cross_attentions` are `[batch, heads, decoder's sequence, encoder's sequence]`.


@dataclass
class Seq2SeqModelOutput(ModelOutput):
    """Of a bare model: `last_hidden_state [batch, sequence, hidden]` of the decoder."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class Seq2SeqLMOutput(ModelOutput):
    """`logits [batch, sequence, vocab]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class Seq2SeqSequenceClassifierOutput(ModelOutput):
    """`logits [batch, labels]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class Seq2SeqQuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits [batch, sequence]`; at padding they are the lowest finite value."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
