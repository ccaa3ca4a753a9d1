"""Pairs of one model of transformers: untouched, and accelerated; and what they return, side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from parity_inputs import Texts, draw_texts, padded_call
from parity_models import TINY, ModelClass, model_classes, their_model
from torch import Tensor

import padless

LENGTHS = (23, 1, 9, 40, 2, 9)
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
BOUND = 1e-5


@dataclass(frozen=True)
class T5Class(ModelClass):
    """A class of transformers' T5, which our mT5 computes; the first T5 scales the states before its head."""

    scaled: bool = True

    @property
    def name(self) -> str:
        return "T5" + self.kind

    def __str__(self) -> str:
        return self.name if self.scaled else f"{self.name}-1.1"


HAS_DECODER = hasattr(transformers.models.megatron_bert.modeling_megatron_bert, "create_causal_mask")
"""Some versions of transformers let a MegatronBERT decoder see ahead; accelerate refuses those."""

T5_CLASSES = [
    *(T5Class("mt5", item.kind) for item in model_classes() if item.family == "mt5"),
    T5Class("mt5", "ForConditionalGeneration", scaled=False),
]
CLASSES = [
    *(item for item in model_classes() if HAS_DECODER or item.kind != "ForCausalLM"),
    *T5_CLASSES,
]


def untouched(item: ModelClass, *, attention: str | None = "eager", **fields: Any) -> Any:
    """A seeded tiny model of transformers, in evaluation mode."""
    fields = {**TINY[item.family], **fields}
    if not isinstance(item, T5Class):
        return their_model(item, fields, attention=attention)
    fields |= {"feed_forward_proj": "relu" if item.scaled else "gated-gelu", "decoder_start_token_id": 0}
    labels = {} if item.kind == "ForQuestionAnswering" else {"num_labels": 9}
    config = transformers.T5Config(**{**fields, **labels, "tie_word_embeddings": item.scaled})
    with torch.random.fork_rng():
        torch.manual_seed(20261122)
        return item.theirs._from_config(config, attn_implementation=attention).eval()


def pair(item: ModelClass, *, attention: str | None = "eager", **fields: Any) -> tuple[Any, Any, Texts]:
    """The untouched model, an accelerated copy, and texts for both."""
    model = untouched(item, attention=attention, **fields)
    return model, padless.accelerate(copy.deepcopy(model)), texts_for(item)


def texts_for(item: ModelClass) -> Texts:
    """Texts of odd lengths; their ids are below the vocabulary's size."""
    return draw_texts(item, LENGTHS, TINY[item.family]["vocab_size"])


def call_of(item: ModelClass, side: str = "right", **options: Any) -> dict[str, Tensor]:
    """Arguments of `forward`."""
    return padded_call(item, texts_for(item), side, **options)


def count_calls(model: Any) -> list[int]:
    """A list that grows by one with every call that our model serves."""
    calls: list[int] = []
    twin = vars(model)["forward"].twin
    twin.ready()
    twin.ours.register_forward_hook(lambda *_: calls.append(1))
    return calls


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor of an output with its place, and the type of what holds none."""
    if isinstance(value, Tensor) or value is None:
        yield name, value
    elif isinstance(value, tuple | list):
        for index, one in enumerate(value):
            yield from leaves(one, f"{name}.{index}")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}")
    elif hasattr(value, "self_attention_cache"):
        for half in (value.self_attention_cache, value.cross_attention_cache):
            for index, layer in enumerate(half.layers):
                kept = (getattr(layer, "keys", None), getattr(layer, "values", None))
                yield from leaves(kept, f"{name}.cache.{index}")
    else:
        yield name, type(value)


def assert_same(found: Any, expected: Any, call: Mapping[str, Tensor]) -> None:
    """One output is of the type and has the fields of the other, and its values where there are tokens.

    The first axes of a tensor say whose tokens its rows are: those of a mask of that shape.
    """
    assert type(found) is type(expected)
    ours, theirs = dict(leaves(found)), dict(leaves(expected))
    assert list(ours) == list(theirs)
    masks = [call[name].flatten(0, -2).bool() for name in ("attention_mask", "decoder_attention_mask") if name in call]
    for name, wanted in theirs.items():
        got = ours[name]
        if not isinstance(wanted, Tensor):
            assert got == wanted, name
            continue
        assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device), name
        bound = BOUND * max(1.0, wanted.abs().max().item())
        gap = (got - wanted).abs()
        of_heads = gap.dim() == 4
        rows = gap.transpose(1, 2) if of_heads else gap
        near = [rows[mask].max() <= bound for mask in masks if rows.shape[:2] == mask.shape]
        assert gap.max() <= bound or any(near), (name, gap.max().item(), bound)
