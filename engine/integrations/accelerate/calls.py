"""What a call of transformers' `forward` asks for, as a call of ours; or why it is none that we serve.

We serve what we compute to the same numbers. Where transformers lets padding count (a loss over all columns, the state
in the first column, a text without a token), the call is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.megatron_bert import MegatronBertModel
from ...models.mobilebert import MobileBertFamily
from ...models.modernbert import ModernBertPreTrainedModel
from ...models.mt5 import MT5ForConditionalGeneration
from ...models.mt5_encoder import MT5Family
from ...models.seq2seq import EncoderDecoder
from ...models.tasks import TaskModel
from .rows import Mask

__all__ = ["Call", "NotServed", "read_call"]

TENSORS = frozenset({
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "labels", "next_sentence_label",
    "start_positions", "end_positions", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds",
})  # fmt: skip
FLAGS = ("output_attentions", "output_hidden_states", "return_dict", "use_cache")
SERVED = TENSORS | {*FLAGS, "encoder_outputs", "logits_to_keep"}
IGNORED = -100


class NotServed(Exception):
    """A call that is left to transformers; the text says why."""


@dataclass(frozen=True)
class Call:
    """A call that we serve.

    Attributes:
        arguments: of our `forward`.
        as_tuple: the caller wants a tuple.
        keeps_attentions: the caller wants the attention weights.
        own: columns of the decoder's side and their mask bool, None without padding; None where there is no decoder.
        across: the same of the encoder's side, where there are both.
    """

    arguments: dict[str, Any]
    as_tuple: bool
    keeps_attentions: bool
    own: tuple[int, Tensor | None] | None
    across: tuple[int, Tensor | None] | None


def read_call(model: Any, ours: Any, known: frozenset[str], given: Mapping[str, Any]) -> Call:
    """A call of `model` as one of `ours`.

    Args:
        model: of transformers.
        ours: made of it.
        known: the parameters that its `forward` names.
        given: arguments by name.

    Raises:
        NotServed: it is left to transformers.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in SERVED or (name not in known and name not in FLAGS):
            raise NotServed(f"it is given {name}")
        if name in TENSORS and not isinstance(value, Tensor):
            raise NotServed(f"{name} is a {type(value).__name__}")
    if "labels" in given and getattr(model, "_loss_function", None) is not None:
        raise NotServed("it has a loss_function of its own")
    arguments = {**given, **_flags(model, given)}
    both = isinstance(getattr(ours, "base_model", None), EncoderDecoder)
    decodes = both or bool(getattr(model.config, "is_decoder", False))
    if not decodes:
        arguments.pop("use_cache")
    mask = _take_mask(arguments, "attention_mask", "input_ids", "inputs_embeds")
    across = None
    own = _columns(arguments, mask, "input_ids", "inputs_embeds") if decodes else None
    if both:
        across = _columns(arguments, mask, "input_ids", "inputs_embeds", "encoder_outputs")
        written = _take_mask(arguments, "decoder_attention_mask", "decoder_input_ids", "decoder_inputs_embeds")
        behind = isinstance(ours, MT5ForConditionalGeneration)
        names = ("decoder_input_ids", "decoder_inputs_embeds", "labels" if behind else "input_ids")
        shifted = not behind and not {"decoder_input_ids", "decoder_inputs_embeds"} & arguments.keys()
        if shifted and mask is not None and mask.left:
            raise NotServed("the padding stands on the left, where the decoder sees it")
        own = _columns(arguments, mask if shifted else written, *names)
        if written is not None and written.holes:
            raise NotServed("decoder_attention_mask has holes")
        _check_labels(arguments, written)
    elif mask is not None:
        _check_labels(arguments, mask, next_token=decodes)
    if mask is not None:
        _check_padding(ours, arguments, mask)
        columns = arguments.get("input_ids", arguments.get("inputs_embeds"))
        absolute = not isinstance(ours, (MT5Family, ModernBertPreTrainedModel))
        if absolute and "position_ids" not in arguments and columns is not None:
            shape = columns.shape if "input_ids" in arguments else columns.shape[:-1]
            arguments["position_ids"] = torch.arange(shape[-1], device=columns.device).expand(shape)
    as_tuple = not arguments.pop("return_dict")
    if as_tuple and isinstance(ours, MegatronBertModel) and ours.pooler is None:
        raise NotServed("a tuple, in which this class keeps a place for the pooler that it lacks")
    return Call(arguments, as_tuple, arguments["output_attentions"], own, across)


def _flags(model: Any, given: Mapping[str, Any]) -> dict[str, bool]:
    """The flags as the call or the model's configuration has them now."""
    config = model.config
    found = {name: given.get(name, getattr(config, name, name == "return_dict")) for name in FLAGS}
    for name, value in found.items():
        if value is None:
            found[name] = False
        elif not isinstance(value, bool):
            raise NotServed(f"{name} is a selection, not True or False")
    if found["output_attentions"] and config._attn_implementation != "eager":
        raise NotServed("attention weights are asked for, which this attn_implementation gives in its own way")
    return found


def _take_mask(arguments: dict[str, Any], name: str, *inputs: str) -> Mask | None:
    """The mask, where it says that there is padding; a mask that says nothing is dropped."""
    mask = arguments.get(name)
    if mask is None:
        return None
    for beside in inputs:
        if beside in arguments:
            value = arguments[beside]
            shape = value.shape[:-1] if beside.endswith("embeds") else value.shape
            if mask.shape != shape:
                raise NotServed(f"{name} is not one value a token")
    found = Mask.read(mask.flatten(0, -2)) if mask.dim() > 1 and mask.numel() else None
    if found is None:
        raise NotServed(f"{name} is not one value a token")
    if found.empty:
        raise NotServed(f"{name} leaves a text without a token")
    if found.whole:
        del arguments[name]
        return None
    return found


def _columns(arguments: Mapping[str, Any], mask: Mask | None, *names: str) -> tuple[int, Tensor | None]:
    given = next((arguments[name] for name in names if name in arguments), None)
    if given is not None and not isinstance(given, Tensor):
        given = given[0]
    return 0 if given is None else given.shape[1], None if mask is None else mask.present


def _check_labels(arguments: Mapping[str, Any], mask: Mask | None, next_token: bool = False) -> None:
    """Leave labels at padding to transformers, which counts them."""
    labels = arguments.get("labels")
    if labels is None or mask is None or labels.numel() != mask.present.numel():
        return
    counted = labels.reshape(mask.present.shape).to(mask.present.device) != IGNORED
    present = mask.present
    if next_token:
        present, counted = present[:, 1:] & present[:, :-1], counted[:, 1:]
    if bool((counted & ~present).any()):
        raise NotServed("labels at padding, which count there")


def _check_padding(ours: Any, arguments: Mapping[str, Any], mask: Mask) -> None:
    """Leave to transformers what padding takes part in."""
    if "start_positions" in arguments:
        raise NotServed("a loss over start_positions, in which padding counts there")
    near = isinstance(ours, (MobileBertFamily, ModernBertPreTrainedModel, MT5Family))
    if mask.holes and near:
        raise NotServed("attention_mask has holes")
    if isinstance(ours, MobileBertFamily) and "inputs_embeds" in arguments:
        raise NotServed("inputs_embeds with padding, which trigrams see there")
    if mask.left and _reads_first(ours):
        raise NotServed("the padding stands on the left, and the state in the first column is read")


def _reads_first(ours: Any) -> bool:
    """Whether an output is made of the first column's state."""
    if isinstance(ours, ModernBertPreTrainedModel):
        pools = isinstance(ours, TaskModel) and ours.wants_pooler
        return pools and ours.config.classifier_pooling == "cls"
    return getattr(getattr(ours, "base_model", ours), "pooler", None) is not None
