"""What a model has to compute: its matrix products and its attention, from its configuration.

2 FLOP a multiply-add; activations, norms and embeddings are not counted. Attention counts the keys that a token may
see: all of its text, or those inside a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.config import CONFIG_NAME, model_type
from ...engine.errors import ConfigError
from ...engine.models import family_class

__all__ = ["Product", "attention_flops", "flops_per_token", "mean_flops", "products", "read_config"]


@dataclass(frozen=True)
class Product:
    """One linear layer: `[tokens, inputs]` to `[tokens, outputs]`.

    Attributes:
        name: what it does.
        inputs, outputs: channels.
        count: how often the model has it.
    """

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def flops(self) -> int:
        """Of one token through all of them."""
        return 2 * self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class _Attention:
    """Layers of one kind: their width over all heads, and how many keys to either side a token sees (None: all)."""

    width: int
    window: int | None
    count: int


def read_config(folder: Path) -> Any:
    """The configuration of a model folder, as padless reads it.

    Raises:
        ConfigError: unknown family, or a field out of range.
    """
    family = model_type(folder)
    if family not in _FAMILIES:
        raise ConfigError(f"{folder / CONFIG_NAME}: model_type {family!r}: its FLOPs are not known")
    return family_class(family, "Config", source=str(folder / CONFIG_NAME)).from_folder(folder)


def products(config: Any) -> tuple[Product, ...]:
    """The linear layers that every token goes through, poolers and heads left out."""
    return _FAMILIES[config.model_type](config)[0]


def attention_flops(config: Any, length: int) -> float:
    """Of one token's attention in a text of `length` tokens, all layers, the mean over its places in the text."""
    return sum(4.0 * kind.width * _keys(length, kind.window) * kind.count for kind in _kinds(config))


def flops_per_token(config: Any, length: int) -> float:
    """FLOP a token of a text of `length` tokens costs, the mean over its places in the text."""
    return sum(product.flops for product in products(config)) + attention_flops(config, length)


def mean_flops(config: Any, lengths: np.ndarray) -> float:
    """FLOP a token costs in texts of these lengths, `[texts]`: the mean over all their tokens."""
    found, counts = np.unique(lengths, return_counts=True)
    tokens = found * counts
    flops = np.array([flops_per_token(config, int(length)) for length in found])
    return float((flops * tokens).sum() / tokens.sum())


def _kinds(config: Any) -> tuple[_Attention, ...]:
    return _FAMILIES[config.model_type](config)[1]


def _keys(length: int, window: int | None) -> float:
    if window is None or window >= length:
        return length
    # At each end of the text the window is cut by 1, 2, ... `window` keys.
    return 2 * window + 1 - window * (window + 1) / length


_Costs = tuple[tuple[Product, ...], tuple[_Attention, ...]]


def _bert(config: Any) -> _Costs:
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return (
        Product("qkv", hidden, 3 * hidden, layers),
        Product("out", hidden, hidden, layers),
        Product("up", hidden, inner, layers),
        Product("down", inner, hidden, layers),
    ), (_Attention(hidden, None, layers),)


def _modernbert(config: Any) -> _Costs:
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    local = sum(kind == "sliding_attention" for kind in config.layer_types)
    return (
        Product("qkv", hidden, 3 * hidden, layers),
        Product("out", hidden, hidden, layers),
        Product("up, gate", hidden, 2 * inner, layers),
        Product("down", inner, hidden, layers),
    ), (_Attention(hidden, None, layers - local), _Attention(hidden, config.sliding_window, local))


def _mobilebert(config: Any) -> _Costs:
    hidden, inside, inner = config.hidden_size, config.true_hidden_size, config.intermediate_size
    layers, forwards = config.num_hidden_layers, config.num_feedforward_networks
    # One bottleneck for the layer's input and one that queries and keys share; values are made of the full width.
    shared = config.key_query_shared_bottleneck and not config.use_bottleneck_attention
    bottlenecks = (1 + shared) * config.use_bottleneck
    values = hidden if shared or not config.use_bottleneck else inside
    return (
        Product("embeddings", config.embedding_size * (3 if config.trigram_input else 1), hidden, 1),
        Product("bottleneck in", hidden, inside, layers * bottlenecks),
        Product("q, k", inside, 2 * inside, layers),
        Product("v", values, inside, layers),
        Product("out", inside, inside, layers),
        Product("up", inside, inner, layers * forwards),
        Product("down", inner, inside, layers * forwards),
        Product("bottleneck out", inside, hidden, layers * config.use_bottleneck),
    ), (_Attention(inside, None, layers),)


def _mt5(config: Any) -> _Costs:
    hidden, inner, layers = config.d_model, config.d_ff, config.num_layers
    width = config.num_heads * config.d_kv
    return (
        Product("qkv", hidden, 3 * width, layers),
        Product("out", width, hidden, layers),
        Product("up, gate" if config.is_gated_act else "up", hidden, inner * (1 + config.is_gated_act), layers),
        Product("down", inner, hidden, layers),
    ), (_Attention(width, None, layers),)


_FAMILIES: dict[str, Callable[[Any], _Costs]] = {
    "bert": _bert,
    "megatron-bert": _bert,
    "modernbert": _modernbert,
    "mobilebert": _mobilebert,
    "mt5": _mt5,
}
