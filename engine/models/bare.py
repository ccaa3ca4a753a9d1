"""The bare encoder of a family, and the way of a call through it: packed on entry, run, unpacked on exit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from ..batch import PackedBatch
from ..errors import InputError, OptionError
from ..outputs import BaseModelOutputWithPooling, ModelOutput
from .padding import Layout, PackedInputs, pack_padded
from .pretrained import PreTrainedModel
from .record import Record, Recorded

__all__ = ["BareModel", "Encoded", "EncoderModel"]

Output = TypeVar("Output", bound=ModelOutput)


@dataclass(frozen=True)
class Encoded:
    """Texts that went through a bare model.

    Attributes:
        hidden: the last hidden state, `[tokens, hidden]`.
        batch: where the texts begin and end.
        layout: the way back to the caller's tensors.
        record: hidden states and attentions, where asked for.
        as_tuple: the caller wants tuples.
        pooled: the bare model's pooler output, `[texts, hidden]`, where it was called as a whole, for its hooks.
    """

    hidden: Tensor
    batch: PackedBatch
    layout: Layout
    record: Record
    as_tuple: bool
    pooled: Tensor | None = None

    def first_tokens(self) -> Tensor:
        """`[texts, hidden]`, the first token of every text; zeros for an empty one."""
        if not torch.compiler.is_compiling() and not self.hidden.shape[0]:
            return self.hidden.new_zeros(len(self.batch), self.hidden.shape[1])
        starts = self.batch.cu_seqlens[:-1].long().clamp(max=self.hidden.shape[0] - 1)
        empty = self.batch.cu_seqlens.diff() == 0
        return self.hidden[starts].masked_fill(empty[:, None], 0.0)

    def mean_tokens(self) -> Tensor:
        """`[texts, hidden]`, the mean over the tokens of every text; zeros for an empty one."""
        lengths = self.batch.cu_seqlens.diff()
        texts = torch.arange(lengths.shape[0], device=lengths.device)
        texts = texts.repeat_interleave(lengths, output_size=self.hidden.shape[0])
        wide = self.hidden.to(torch.promote_types(self.hidden.dtype, torch.float32))
        sums = wide.new_zeros(lengths.shape[0], wide.shape[1]).index_add(0, texts, wide)
        return (sums / lengths.clamp(min=1)[:, None]).to(self.hidden.dtype)

    def leave(self, output: Output) -> Output | tuple[Any, ...]:
        """The output with what was recorded, in the form the caller asked for."""
        for name, value in self.record.outputs(self.layout).items():
            setattr(output, name, value)
        return output.to_tuple() if self.as_tuple else output


class EncoderModel(PreTrainedModel):
    """A model that encodes texts: the bare one, or one with a head."""

    unused_arguments: ClassVar[frozenset[str]] = frozenset()
    """Arguments of `forward` that older code passes and that mean nothing here."""
    accepts_loss_kwargs: ClassVar[bool] = False
    """For transformers' Trainer: losses are means over a batch, so it must not pass `num_items_in_batch`."""

    def encode_inputs(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        others: dict[str, Any],
    ) -> Encoded:
        """Pack what `forward` was given, and run the bare model on it; a bare model inside that has hooks is called
        with it, as transformers calls it, so that they fire and what they return counts.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or a text that is too long.
            OptionError: an argument of `others` that this model does not know.
        """
        for name, value in others.items():
            if name not in self.unused_arguments and value is not None and value is not False:
                raise OptionError(f"{type(self).__name__}: unknown argument {name}")
        inputs = self._pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        base = self.base_model
        record = self.new_record(output_attentions, output_hidden_states)
        as_tuple = self.wants_tuple(return_dict)
        if base is not self and (base._forward_hooks or base._forward_pre_hooks):
            given = self._each_text(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            return self._called(inputs, record, as_tuple, *given)
        base.check_inputs(inputs)
        hidden = base.run(inputs.batch, inputs.inputs_embeds, record)
        return Encoded(hidden, inputs.batch, inputs.layout, record, as_tuple)

    def new_record(self, output_attentions: bool | None, output_hidden_states: bool | None) -> Record:
        """What a call is to keep; None is the configuration's choice."""
        config = self.config
        return Record(
            wants_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            wants_attentions=config.output_attentions if output_attentions is None else output_attentions,
        )

    def wants_tuple(self, return_dict: bool | None) -> bool:
        """Whether a call is to return a tuple; None is the configuration's choice."""
        return not (self.config.return_dict if return_dict is None else return_dict)

    def _each_text(self, *given: Any) -> tuple[Any, ...]:
        """The inputs with one row a text."""
        return given

    def _called(self, inputs: PackedInputs, record: Record, as_tuple: bool, first: Any, *others: Any) -> Encoded:
        """The bare model called as a module; its hooks may return a ModelOutput or a tuple."""
        names = ("attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        output = self.base_model(
            first,
            **{name: value for name, value in zip(names, others, strict=True) if value is not None},
            output_attentions=record.wants_attentions,
            output_hidden_states=record.wants_hidden_states,
            return_dict=True,
        )
        found = {name: getattr(output, name, None) for name in ("hidden_states", "attentions")}
        kept = Recorded(given={name: value for name, value in found.items() if value is not None})
        hidden = inputs.layout.pack(output[0], "last_hidden_state")
        return Encoded(hidden, inputs.batch, inputs.layout, kept, as_tuple, getattr(output, "pooler_output", None))

    def _pack(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> PackedInputs:
        if isinstance(input_ids, PackedBatch):
            beside = (attention_mask, token_type_ids, position_ids, inputs_embeds)
            if any(value is not None for value in beside):
                raise InputError("a PackedBatch holds all inputs, expected no other beside it")
            return PackedInputs(input_ids, None, Layout())
        return pack_padded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)


class BareModel(EncoderModel):
    """The encoder of a family without a task head.

    A family defines `_run`, `word_embeddings`, and `longest` where it has a table of positions.
    """

    output_class: ClassVar[type[Any]] = BaseModelOutputWithPooling

    @classmethod
    def without_pooler(cls, config: Any) -> Self:
        """The bare model for those who pool themselves."""
        return cls(config)

    @property
    @abstractmethod
    def word_embeddings(self) -> nn.Embedding:
        """The table of the vocabulary."""

    @property
    def longest(self) -> int | None:
        """Most tokens of a text; None where nothing limits them."""
        return self.config.max_position_embeddings

    @abstractmethod
    def _run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """As `run`, of a batch whose memo is empty."""

    def run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, hidden]`, of packed texts: what everything else is wrapped around.

        Args:
            batch: token ids below `vocab_size`, texts of at most `longest` tokens; trusted.
            inputs_embeds: `[tokens, width]` in place of the word embeddings.
            record: what to keep on the way.
        """
        # Between two calls somebody may write to a batch, and a recording of the second must not lean on the first.
        # A graph of a compiler leans on nothing, see `Memo`.
        return self._run(batch if torch.compiler.is_compiling() else replace(batch), inputs_embeds, record)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a batch.

        Args:
            input_ids: int64 `[batch, sequence]`, or a PackedBatch that holds everything.
            attention_mask: `[batch, sequence]`, zero where there is no token, on whichever side.
            token_type_ids: int64 `[batch, sequence]`; None is type 0. Families without types leave them out.
            position_ids: int64 `[batch, sequence]`; None counts the tokens of each text from 0.
            inputs_embeds: `[batch, sequence, width]` in place of `input_ids`.
            output_attentions: keep the softmax weights; eager then serves the attention.
            output_hidden_states: keep the hidden states.
            return_dict: False returns a tuple.
            others: arguments of older versions, accepted where they are None or mean nothing here.

        Returns:
            `last_hidden_state [batch, sequence, hidden]`, zeros at padding, and `pooler_output [batch, hidden]` where
            there is a pooler; for a PackedBatch `[tokens, hidden]` and `[texts, hidden]`.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or a text that is too long.
        """
        encoded = self.encode_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, output_hidden_states, return_dict, others,
        )  # fmt: skip
        pooler = getattr(self, "pooler", None)
        pooled = None if pooler is None else pooler(encoded.first_tokens())
        hidden = encoded.layout.unpack(encoded.hidden)
        return encoded.leave(self.output_class(last_hidden_state=hidden, pooler_output=pooled))

    def check_inputs(self, inputs: PackedInputs) -> None:
        """Refuse what would read outside a table.

        Raises:
            InputError: naming the text or the value.
        """
        if torch.compiler.is_compiling():
            return  # a number that is looked at becomes part of the graph
        batch, embeds = inputs.batch, inputs.inputs_embeds
        if embeds is not None:
            width, dtype = self.word_embeddings.embedding_dim, self.word_embeddings.weight.dtype
            if embeds.shape[-1] != width or embeds.dtype != dtype:
                wanted, found = (str(kind).removeprefix("torch.") for kind in (dtype, embeds.dtype))
                raise InputError(
                    f"inputs_embeds: expected {width} channels of {wanted}, got {embeds.shape[-1]} of {found}"
                )
        if self.longest is not None and batch.max_seqlen > self.longest:
            row = int(batch.lengths.argmax())
            raise InputError(f"text {row}: {batch.max_seqlen} tokens, the model takes at most {self.longest}")
        if inputs.layout.shape is None or not batch.tokens:
            return  # our own packing is trusted: nothing in that path may wait for the device
        rows = getattr(self.word_embeddings, "num_embeddings", self.config.vocab_size)
        limits = {"input_ids": (batch.input_ids, rows)}
        if batch.token_type_ids is not None and getattr(self.config, "type_vocab_size", None):
            limits["token_type_ids"] = (batch.token_type_ids, self.config.type_vocab_size)
        if self.longest is not None:
            limits["position_ids"] = (batch.position_ids, self.longest)
        for name, (values, limit) in limits.items():
            lowest, highest = (int(value) for value in torch.aminmax(values))
            if lowest < 0 or highest >= limit:
                found = lowest if lowest < 0 else highest
                raise InputError(f"{name}: expected 0 to {limit - 1}, got {found}")
