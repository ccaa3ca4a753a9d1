"""FLOPs against torch's counter over transformers' models, bytes and launches against what padless dispatches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from padless.bench.cost import (
    attention_flops_per_token,
    bytes_per_token,
    flops_per_token,
    keys_seen,
    launches,
    parameters,
    product_flops_per_token,
    steps,
    weight_bytes,
)
from padless.bench.launches import FAMILIES, Counts, Layer, layer_of
from padless.engine.config import ModelConfig
from padless.engine.errors import OptionError
from padless.engine.models.bert import BertConfig, BertModel
from padless.engine.models.megatron_bert import MegatronBertConfig
from padless.engine.models.mobilebert import MobileBertConfig
from padless.engine.models.modernbert import ModernBertConfig, ModernBertModel
from padless.engine.models.mt5 import MT5Config, MT5EncoderModel

SHAPE: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 5, "num_attention_heads": 6, "intermediate_size": 160}
T5_SHAPE: dict[str, Any] = {"d_model": 96, "d_kv": 8, "d_ff": 160, "num_layers": 3, "num_heads": 5}
MOBILE_SHAPE: dict[str, Any] = {
    **SHAPE,
    "embedding_size": 24,
    "intra_bottleneck_size": 48,
    "num_feedforward_networks": 3,
}


PAIRS: dict[str, tuple[type[ModelConfig], str, dict[str, Any]]] = {
    "bert": (BertConfig, "BertModel", SHAPE),
    "megatron": (MegatronBertConfig, "MegatronBertModel", SHAPE),
    "mobilebert": (MobileBertConfig, "MobileBertModel", MOBILE_SHAPE),
    "modernbert": (ModernBertConfig, "ModernBertModel", SHAPE),
    "mt5": (MT5Config, "MT5EncoderModel", T5_SHAPE),
    "t5 without gate": (MT5Config, "MT5EncoderModel", {**T5_SHAPE, "feed_forward_proj": "relu"}),
}
"""Our configuration, transformers' model, and the fields of both."""

NO_TOKENS = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)


def counted_by_torch(model_class: str, length: int, device: str, **fields: Any) -> float:
    """FLOPs a token of transformers' eager encoder, for two texts of `length` tokens."""
    build: Any = getattr(transformers, model_class)
    with torch.device(device):
        model = build(build.config_class(**fields, **NO_TOKENS, attn_implementation="eager")).eval()
        model.pooler = None
        ids = torch.ones(2, length, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(ids)
    return counter.get_total_flops() / (2 * length)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("length", [7, 60])
def test_flops_are_those_that_torch_counts_in_transformers(name: str, length: int) -> None:
    kind, theirs, fields = PAIRS[name]
    config = kind(**fields)
    counted = counted_by_torch(theirs, length, "cpu", **fields, vocab_size=64)
    assert flops_per_token(config, length) == pytest.approx(counted, rel=1e-12)
    assert flops_per_token(config, length) == pytest.approx(
        product_flops_per_token(config) + attention_flops_per_token(config, length), rel=1e-12
    )


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_flops_of_published_widths_are_those_that_torch_counts(name: str) -> None:
    """512 tokens, without memory; a window of 1,024 keys shows all of them, which is what transformers computes."""
    kind, theirs, _ = PAIRS[name]
    fields = {"local_attention": 1024} if name == "modernbert" else {}
    config: Any = kind
    found = flops_per_token(config(**fields), 512)
    assert found == pytest.approx(counted_by_torch(theirs, 512, "meta", **fields), rel=1e-12)


@pytest.mark.parametrize(("length", "window"), [(1, 0), (1, 64), (9, 3), (64, 64), (65, 64), (66, 64), (500, 64)])
def test_the_keys_that_are_seen_are_those_of_the_mask(length: int, window: int) -> None:
    places = torch.arange(length)
    mask = (places[:, None] - places[None, :]).abs() <= window
    assert keys_seen(length, window) == pytest.approx(mask.sum().item() / length, rel=1e-12)
    assert keys_seen(length) == length


def test_a_window_costs_as_many_flops_as_it_shows_keys() -> None:
    config = ModernBertConfig(**SHAPE, local_attention=32)
    layers = config.layer_types or []
    seen = {"full_attention": 300.0, "sliding_attention": keys_seen(300, 16)}
    assert layers.count("sliding_attention") == 3
    expected = sum(2 * 2 * 96 * seen[kind] for kind in layers)
    assert attention_flops_per_token(config, 300) == pytest.approx(expected, rel=1e-12)


# M FLOP a token at 128, 512 and 8,192 tokens: the project's notes, derived apart from this code.
NOTES = {
    "ModernBERT-base": (ModernBertConfig(), (228, 238, 427)),
    "ModernBERT-large": (
        ModernBertConfig(hidden_size=1024, num_hidden_layers=28, intermediate_size=2624, num_attention_heads=16),
        (699, 716, 1031),
    ),
    "BERT-base": (BertConfig(), (175, 189, 472)),
    "MegatronBERT-345m": (MegatronBertConfig(), (617, 654, 1409)),
    "mT5-small": (MT5Config(), (39.3, 44.0, 138)),
    "mT5-base": (MT5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12), (175, 189, 472)),
    "MobileBERT": (MobileBertConfig(), (42.1, 46.8)),
}


@pytest.mark.parametrize("name", NOTES)
def test_flops_of_the_published_checkpoints_are_those_of_the_notes(name: str) -> None:
    config, expected = NOTES[name]
    for length, megaflops in zip((128, 512, 8192), expected, strict=False):
        assert flops_per_token(config, length) / 1e6 == pytest.approx(megaflops, rel=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_and_launches_of_a_layer_are_those_that_are_dispatched(family: str) -> None:
    layer = FAMILIES[family]
    _check_layer(layer, layer_of(layer, fused=True, lengths=(512,) * 16))


@dataclass(kw_only=True)
class WideBertConfig(BertConfig):
    """Other widths, none a multiple of another."""

    hidden_size: int = 640
    num_attention_heads: int = 10
    intermediate_size: int = 1152


class WideBert(BertModel):
    config_class = WideBertConfig


@dataclass(kw_only=True)
class WideModernConfig(ModernBertConfig):
    """Other widths, none a multiple of another."""

    hidden_size: int = 640
    num_attention_heads: int = 10
    intermediate_size: int = 832


class WideModern(ModernBertModel):
    config_class = WideModernConfig


@dataclass(kw_only=True)
class WideT5Config(MT5Config):
    """Other widths, none a multiple of another."""

    d_model: int = 640
    num_heads: int = 7
    d_ff: int = 832


class WideT5(MT5EncoderModel):
    config_class = WideT5Config


@pytest.mark.parametrize(
    "layer",
    [Layer("wide", WideBert), Layer("wide", WideModern, layers=2), Layer("wide", WideT5, field="num_layers")],
    ids=["bert", "modernbert", "mt5"],
)
def test_bytes_follow_the_widths(layer: Layer) -> None:
    _check_layer(layer, layer_of(layer, fused=True, lengths=(512,) * 16))


def _check_layer(layer: Layer, counts: Counts) -> None:
    def of(function: Callable[[ModelConfig], float]) -> float:
        build: Any = layer.model_class.config_class
        more, less = (build(**{layer.field: layer.layers + more}) for more in (1, 0))
        return function(more) - function(less)

    tokens = 16 * 512
    assert of(launches) == counts.total
    # Not in the formula: the edges of the texts, tables of angles and of biases by distance, which are none of a token.
    assert of(bytes_per_token) == pytest.approx(counts.activations / tokens, rel=0.002)
    # Nor biases and weights of norms, and the fp32 sums of what a norm was folded into.
    assert of(weight_bytes) == pytest.approx(counts.weights, rel=0.02)
    assert of(weight_bytes) <= counts.weights


def test_parameters_are_the_matrices_of_the_model() -> None:
    for config, model in (
        (BertConfig(**SHAPE), BertModel(BertConfig(**SHAPE), add_pooling_layer=False)),
        (MT5Config(**T5_SHAPE), MT5EncoderModel(MT5Config(**T5_SHAPE))),
        (ModernBertConfig(**SHAPE), ModernBertModel(ModernBertConfig(**SHAPE))),
    ):
        matrices = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        assert parameters(config) == sum(matrix.numel() for matrix in matrices)
        assert weight_bytes(config) == 2 * parameters(config)


def test_what_is_not_known_is_refused() -> None:
    class OtherConfig(ModelConfig):
        model_type: ClassVar[str] = "other"

    with pytest.raises(OptionError, match=r"^cost of 'other': not known, expected one of bert, modernbert, "):
        steps(OtherConfig())
    with pytest.raises(OptionError, match="published checkpoint only"):
        flops_per_token(MobileBertConfig(use_bottleneck=False, hidden_size=128), 4)
    with pytest.raises(OptionError, match="at least 1 token, got 0"):
        flops_per_token(BertConfig(), 0)
