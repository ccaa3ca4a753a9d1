"""A call through a model that is a decoder by itself: packed on entry, run over a cache, unpacked on exit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..batch import PackedBatch
from ..errors import InputError, OptionError
from .bare import BareModel, Encoded
from .decoding import Decoding, Texts
from .kv_cache import KeyValueCache, texts_of
from .padding import Layout, PackedInputs
from .record import Recorded

__all__ = ["CausalModel"]


class CausalModel(BareModel):
    """A bare model that is an encoder, or by its configuration a decoder. A family defines `decode`."""

    @property
    def is_decoder(self) -> bool:
        """Whether no token sees those behind it."""
        return self.config.is_decoder

    @property
    @abstractmethod
    def decoder_layers(self) -> int:
        """Layers, each with keys and values of its own."""

    @abstractmethod
    def decode(self, decoding: Decoding, inputs_embeds: Tensor | None = None) -> Tensor:
        """The last hidden state of the new tokens, `[tokens, hidden]`."""

    def decode_inputs(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        past_key_values: Any,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        others: dict[str, Any],
    ) -> Encoded:
        """Pack what `forward` was given, and decode it.

        Args:
            encoder_hidden_states: `[batch, sequence, hidden]`, to attend to across; with `encoder_attention_mask`.
            past_key_values: what an earlier call returned.
            use_cache: return `past_key_values`; None is the configuration's, and no in training.
            others: further arguments, as those of `BareModel.encode_inputs`.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or a text that is too long.
            OptionError: an argument of `others` that is not known, or a cache of another make.
        """
        for name, value in others.items():
            if name not in self.unused_arguments and value is not None and value is not False:
                raise OptionError(f"{type(self).__name__}: unknown argument {name}")
        record = self.new_record(output_attentions, output_hidden_states)
        cache = self._cache(past_key_values, use_cache)
        if attention_mask is not None and cache is not None and len(cache.lengths):
            given = input_ids if input_ids is not None else inputs_embeds
            assert isinstance(given, Tensor)
            attention_mask = attention_mask[:, -given.shape[1] :]
        inputs = self._pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        texts, layout = self._across(encoder_hidden_states, encoder_attention_mask, len(inputs.batch))
        if cache is not None and cache.texts is None and texts is not None:
            cache.texts = texts_of(texts.batch)
        batch = self._behind(inputs.batch, cache, position_ids)
        self.check_inputs(replace(inputs, batch=batch))
        place = None if cache is None else cache.extend(batch)
        fresh = place is None or place.fresh
        hidden = self.decode(Decoding(batch, texts, cache, place, record), inputs.inputs_embeds)
        found: dict[str, Any] = {"past_key_values": cache}
        if record.wants_hidden_states:
            found["hidden_states"] = tuple(inputs.layout.unpack(x) for x in record.hidden_states)
        if record.wants_attentions:
            own = inputs.layout if fresh else None
            found["attentions"] = tuple(inputs.layout.unpack_weights(w, own) for w in record.attentions)
            if record.cross_attentions:
                across = record.cross_attentions
                found["cross_attentions"] = tuple(inputs.layout.unpack_weights(w, layout) for w in across)
        as_tuple = self.wants_tuple(return_dict)
        return Encoded(hidden, batch, inputs.layout, Recorded(given=found), as_tuple)

    def pack_prompts(self, input_ids: Any, attention_mask: Tensor | None) -> PackedInputs:
        """The prompts, packed, and the way back.

        Raises:
            InputError: shapes that do not fit, ids outside the vocabulary, or no input.
        """
        inputs = self._pack(input_ids, attention_mask, None, None, None)
        self.check_inputs(inputs)
        return inputs

    def _cache(self, given: Any, use_cache: bool | None) -> KeyValueCache | None:
        if given is None:
            wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
            return KeyValueCache.empty(self.decoder_layers) if wanted else None
        if not isinstance(given, KeyValueCache):
            raise OptionError(f"past_key_values: expected what this model returned before, got {type(given).__name__}")
        return given

    def _across(self, hidden: Tensor | None, mask: Tensor | None, texts: int) -> tuple[Texts | None, Layout | None]:
        if hidden is None:
            return None, None
        if not self.config.add_cross_attention:
            raise OptionError("encoder_hidden_states: expected add_cross_attention in the configuration")
        packed = self._pack(None, mask, None, None, hidden)
        if len(packed.batch) != texts:
            raise InputError(f"encoder_hidden_states: expected {texts} texts, got {len(packed.batch)}")
        assert packed.inputs_embeds is not None
        return Texts(packed.inputs_embeds, packed.batch), packed.layout

    def _behind(self, batch: PackedBatch, cache: KeyValueCache | None, given: Tensor | None) -> PackedBatch:
        """The batch with positions that go on from those in the cache, unless the caller gave positions."""
        if cache is None or not len(cache.lengths) or given is not None or len(cache.lengths) != len(batch):
            return replace(batch)
        before = torch.repeat_interleave(cache.lengths.long(), batch.lengths.long()).to(batch.position_ids.device)
        spans = cache.lengths.long() + batch.lengths.long()
        return replace(batch, position_ids=batch.position_ids + before, spans=spans)
