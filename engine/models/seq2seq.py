"""A call through an encoder and a decoder: both packed on entry, run, and unpacked on exit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from ..batch import PackedBatch
from ..errors import InputError, OptionError
from ..outputs import ModelOutput
from .bare import BareModel
from .decoding import Decoding, Texts
from .kv_cache import KeyValueCache, texts_of
from .padding import Layout, PackedInputs
from .record import Record

__all__ = ["Decoded", "EncoderDecoder"]

Output = TypeVar("Output", bound=ModelOutput)


@dataclass(frozen=True)
class EncoderSide:
    """What the decoder's callers get of the encoder.

    Attributes:
        texts: the last hidden state, packed.
        layout: the way back to the caller's tensors.
        outputs: fields of the output, `encoder_last_hidden_state` and what was recorded.
    """

    texts: Texts
    layout: Layout
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Decoded:
    """Texts that went through both halves.

    Attributes:
        hidden: the decoder's last hidden state, `[tokens, hidden]`.
        inputs: what the decoder was called with.
        outputs: fields of the output that all classes have.
        as_tuple: the caller wants tuples.
    """

    hidden: Tensor
    inputs: PackedInputs
    outputs: dict[str, Any]
    as_tuple: bool

    def leave(self, output: Output) -> Output | tuple[Any, ...]:
        """The output with those fields, in the form the caller asked for."""
        for name, value in self.outputs.items():
            setattr(output, name, value)
        return output.to_tuple() if self.as_tuple else output


class EncoderDecoder(BareModel):
    """A bare model that has both. A family defines `decode` beside what `BareModel` asks for."""

    @abstractmethod
    def decode(self, decoding: Decoding, inputs_embeds: Tensor | None = None) -> Tensor:
        """The decoder's last hidden state of the new tokens, `[tokens, hidden]`."""

    @property
    @abstractmethod
    def decoder_layers(self) -> int:
        """Layers of the decoder, each with keys and values of its own."""

    def start_decoding(self, texts: Texts, capacity: int = 0) -> KeyValueCache:
        """An empty cache for one sequence a text, with room for so many tokens."""
        cache = KeyValueCache.empty(self.decoder_layers, capacity)
        cache.texts = texts_of(texts.batch)
        return cache

    def read_texts(
        self, input_ids: Any, attention_mask: Tensor | None, inputs_embeds: Tensor | None, encoder_outputs: Any
    ) -> Texts:
        """The encoder's output, packed; arguments as of the classes' `forward`.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or no input.
        """
        return self._encoder_side(input_ids, attention_mask, encoder_outputs, inputs_embeds, Record(), {}).texts

    def pass_through(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | PackedBatch | None,
        decoder_attention_mask: Tensor | None,
        encoder_outputs: Any,
        past_key_values: Any,
        inputs_embeds: Tensor | None,
        decoder_inputs_embeds: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        others: dict[str, Any],
    ) -> Decoded:
        """Encode, unless that is done, then decode; arguments as of the classes' `forward`.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or no input for one of the halves.
            OptionError: an argument of `others` that this model does not know.
        """
        record = self.new_record(output_attentions, output_hidden_states)
        as_tuple = self.wants_tuple(return_dict)
        side = self._encoder_side(input_ids, attention_mask, encoder_outputs, inputs_embeds, record, others)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise InputError(f"{type(self).__name__}: expected decoder_input_ids or decoder_inputs_embeds")
        cache = self._cache(past_key_values, use_cache, side.texts)
        if decoder_attention_mask is not None and cache is not None and len(cache.lengths):
            given = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
            assert isinstance(given, Tensor)
            decoder_attention_mask = decoder_attention_mask[:, -given.shape[1] :]
        inputs = self._pack(decoder_input_ids, decoder_attention_mask, None, None, decoder_inputs_embeds)
        return self._decoded(inputs, side, cache, record, as_tuple)

    def pass_shifted(
        self, input_ids: Any, attention_mask: Any, encoder_outputs: Any, use_cache: bool | None,
        output_attentions: bool | None, output_hidden_states: bool | None, return_dict: bool | None,
        others: dict[str, Any],
    ) -> Decoded:  # fmt: skip
        """Encode, then decode the same texts, each shifted to the right behind the start token.

        Raises:
            InputError: shapes that do not fit, or ids outside the vocabulary.
        """
        record = self.new_record(output_attentions, output_hidden_states)
        as_tuple = self.wants_tuple(return_dict)
        side = self._encoder_side(input_ids, attention_mask, encoder_outputs, None, record, others)
        packed = self._pack(input_ids, attention_mask, None, None, None)
        shifted = replace(packed.batch, input_ids=self._shifted_texts(packed.batch))
        cache = self._cache(None, use_cache, side.texts)
        return self._decoded(PackedInputs(shifted, None, packed.layout), side, cache, record, as_tuple)

    def _shift_right(self, input_ids: Tensor) -> Tensor:
        """`[…, sequence]`: the start token in front, the last token left out, and padding in place of -100.

        Raises:
            OptionError: the configuration has no start or no padding token.
        """
        shifted = input_ids.roll(1, dims=-1)
        shifted[..., 0] = self._start_token()
        if self.config.pad_token_id is None:
            raise OptionError("pad_token_id: expected one in the configuration, got None")
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def _shifted_texts(self, batch: PackedBatch) -> Tensor:
        shifted = batch.input_ids.roll(1)
        starts = batch.cu_seqlens[:-1][batch.cu_seqlens.diff() > 0].long()
        return shifted.index_fill(0, starts, self._start_token())

    def _start_token(self) -> int:
        if self.config.decoder_start_token_id is None:
            raise OptionError("decoder_start_token_id: expected one in the configuration, got None")
        return self.config.decoder_start_token_id

    def _encoder_side(
        self, input_ids: Any, attention_mask: Tensor | None, encoder_outputs: Any, inputs_embeds: Tensor | None,
        record: Record, others: dict[str, Any],
    ) -> EncoderSide:  # fmt: skip
        if encoder_outputs is not None:
            return self._given(encoder_outputs, attention_mask)
        encoded = self.encode_inputs(
            input_ids, attention_mask, None, None, inputs_embeds,
            record.wants_attentions, record.wants_hidden_states, True, others,
        )  # fmt: skip
        recorded = encoded.record.outputs(encoded.layout)
        outputs: dict[str, Any] = {f"encoder_{name}": value for name, value in recorded.items()}
        outputs["encoder_last_hidden_state"] = encoded.layout.unpack(encoded.hidden)
        return EncoderSide(Texts(encoded.hidden, encoded.batch), encoded.layout, outputs)

    def _given(self, encoder_outputs: Any, attention_mask: Tensor | None) -> EncoderSide:
        """An encoder's output that the caller has: a ModelOutput, ours or another's, or a tuple."""
        names = ("last_hidden_state", "hidden_states", "attentions")
        if isinstance(encoder_outputs, Sequence):
            found = dict(zip(names, encoder_outputs, strict=False))
        else:
            found = {name: getattr(encoder_outputs, name, None) for name in names}
        last = found.get("last_hidden_state")
        if not isinstance(last, Tensor) or last.dim() != 3:
            raise InputError("encoder_outputs: expected a last_hidden_state [batch, sequence, hidden] in front")
        packed = self._pack(None, attention_mask, None, None, last)
        assert packed.inputs_embeds is not None
        outputs = {f"encoder_{name}": value for name, value in found.items() if value is not None}
        return EncoderSide(Texts(packed.inputs_embeds, packed.batch), packed.layout, outputs)

    def _cache(self, given: Any, use_cache: bool | None, texts: Texts) -> KeyValueCache | None:
        if given is not None:
            if not isinstance(given, KeyValueCache):
                raise OptionError(
                    f"past_key_values: expected what this model returned before, got {type(given).__name__}"
                )
            return given
        wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
        return self.start_decoding(texts) if wanted else None

    def _decoded(
        self, inputs: PackedInputs, side: EncoderSide, cache: KeyValueCache | None, record: Record, as_tuple: bool
    ) -> Decoded:
        batch = replace(inputs.batch)
        texts = len(side.texts.batch)
        if len(batch) != texts:
            raise InputError(f"decoder_input_ids: expected {texts} sequences, one for each text, got {len(batch)}")
        self.check_inputs(replace(inputs, batch=batch))
        place = None if cache is None else cache.extend(batch)
        fresh = place is None or place.fresh
        decoding = Decoding(batch, side.texts, cache, place, record)
        hidden = self.decode(decoding, inputs.inputs_embeds)
        outputs = {**side.outputs, "past_key_values": cache}
        layout = inputs.layout
        if record.wants_hidden_states:
            outputs["decoder_hidden_states"] = tuple(layout.unpack(x) for x in record.hidden_states)
        if record.wants_attentions:
            own = layout if fresh else None
            outputs["decoder_attentions"] = tuple(layout.unpack_weights(w, own) for w in record.attentions)
            outputs["cross_attentions"] = tuple(layout.unpack_weights(w, side.layout) for w in record.cross_attentions)
        return Decoded(hidden, inputs, outputs, as_tuple)
