"""What a token costs on paper: matrix products, FLOPs, bytes and launches of the five families, from a configuration.

A FLOP is half a multiply-add, so `[a, k] @ [k, b]` is `2 a k b` of them. Counted are the products of the encoder and
its attention, and of attention only the keys that a token sees. Not counted are softmax, norms, activations, poolers
and heads: they run on other units, or once a text.

Bytes are what the kernels that padless binds for a GPU of sm_90 read and write of activations in bf16, each tensor once
a launch, as `launches.py` counts them where they are dispatched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..engine.config import ModelConfig
from ..engine.errors import OptionError
from ..engine.models.bert import BertConfig
from ..engine.models.megatron_bert import MegatronBertConfig
from ..engine.models.mobilebert_config import MobileBertConfig
from ..engine.models.modernbert_config import SLIDING, ModernBertConfig
from ..engine.models.mt5 import MT5Config

__all__ = [
    "Step",
    "attention_flops_per_token",
    "bytes_per_token",
    "flops_per_token",
    "keys_seen",
    "launches",
    "parameters",
    "product_flops_per_token",
    "steps",
    "weight_bytes",
]

ELEMENT = 2
"""Bytes of a bf16 number."""

STATISTICS_COLUMNS = 64
"""Columns of a sum whose mean and M2 are kept, in fp32, for the norm that is folded into the next product."""


@dataclass(frozen=True)
class Step:
    """A kernel that each token goes through.

    Attributes:
        name: what it computes.
        moved: bytes of activations read and written a token.
        products: (inputs, outputs) of its matrix products.
        channels: of its attention, all heads together; 0 where it has none.
        window: keys seen to either side; -1: all of the text.
    """

    name: str
    moved: float
    products: tuple[tuple[int, int], ...] = ()
    channels: int = 0
    window: int = -1

    @property
    def parameters(self) -> int:
        """Numbers of its matrices; each is multiplied once a token."""
        return sum(inputs * outputs for inputs, outputs in self.products)

    def flops(self, length: int) -> float:
        """FLOPs a token of a text of `length` tokens: two products with each key that is seen."""
        return 2.0 * self.parameters + 4.0 * self.channels * keys_seen(length, self.window)


def keys_seen(length: int, window: int = -1) -> float:
    """Keys that a token sees, on average over a text of `length` tokens; fewer at its edges if there is a window."""
    if length < 1:
        raise OptionError(f"length: expected at least 1 token, got {length}")
    if window < 0:
        return float(length)
    reach = min(window, length - 1)
    return 1 + 2 * reach - reach * (reach + 1) / length


def steps(config: ModelConfig) -> tuple[Step, ...]:
    """The kernels from token ids to the last hidden state, in order.

    Raises:
        OptionError: the configuration is of another family, or of a MobileBERT without its published bottlenecks.
    """
    for kind, build in _BUILDERS.items():
        if isinstance(config, kind):
            return build(config)
    known = ", ".join(kind.model_type for kind in _BUILDERS)
    raise OptionError(f"cost of {config.model_type!r}: not known, expected one of {known}")


def parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: all matrices, and no table that is only gathered from."""
    return sum(step.parameters for step in steps(config))


def product_flops_per_token(config: ModelConfig) -> float:
    """FLOPs of the matrix products with weights."""
    return 2.0 * parameters(config)


def attention_flops_per_token(config: ModelConfig, length: int) -> float:
    """FLOPs of the attention a token of a text of `length` tokens, special tokens included."""
    return sum(step.flops(length) - 2.0 * step.parameters for step in steps(config))


def flops_per_token(config: ModelConfig, length: int) -> float:
    """FLOPs a token of a text of `length` tokens, special tokens included; the mean over its tokens.

    Raises:
        OptionError: as `steps`, or `length` is below 1.
    """
    return sum(step.flops(length) for step in steps(config))


def bytes_per_token(config: ModelConfig) -> float:
    """Bytes of activations that cross memory a token."""
    return sum(step.moved for step in steps(config))


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of the matrices, read once a batch."""
    return ELEMENT * parameters(config)


def launches(config: ModelConfig) -> int:
    """Kernels of a batch, from token ids to the last hidden state."""
    return len(steps(config))


def _bert(config: Any) -> tuple[Step, ...]:
    h, inner = config.hidden_size, config.intermediate_size
    norm = _step("norm", 2 * h)
    layer = (
        _step("qkv", 4 * h, (h, 3 * h)),
        _attention(h),
        _step("out", 3 * h, (h, h)),
        norm,
        _step("up", h + inner, (h, inner)),
        _step("down", inner + 2 * h, (inner, h)),
        norm,
    )
    return (_step("embed", 4 * h), *layer * config.num_hidden_layers)


def _megatron(config: Any) -> tuple[Step, ...]:
    h, inner = config.hidden_size, config.intermediate_size
    norm = _step("norm", 2 * h)
    layer = (
        norm,
        _step("qkv", 4 * h, (h, 3 * h)),
        _attention(h),
        _step("out", 3 * h + _statistics(h), (h, h)),
        _step("up", h + inner + _statistics(h), (h, inner)),
        _step("down", inner + 2 * h, (inner, h)),
    )
    return (_step("embed", 4 * h), *layer * config.num_hidden_layers, norm)


def _modernbert(config: Any) -> tuple[Step, ...]:
    h, inner, noted = config.hidden_size, config.intermediate_size, _statistics(config.hidden_size)

    def layer(kind: str) -> tuple[Step, ...]:
        return (
            _step("qkv", 4 * h + noted, (h, 3 * h)),
            _attention(h, config.sliding_window if kind == SLIDING else -1),
            _step("out", 3 * h + noted, (h, h)),
            _step("up", h + inner + noted, (h, 2 * inner)),
            _step("down", inner + 2 * h + noted, (inner, h)),
        )

    layers = [step for kind in config.layer_types or () for step in layer(kind)]
    return (_step("embed", 2 * h), *layers, _step("norm", 2 * h))


def _mt5(config: Any) -> tuple[Step, ...]:
    h, inner, noted = config.d_model, config.d_ff, _statistics(config.d_model)
    attended = config.num_heads * config.d_kv
    layer = (
        _step("qkv", h + 3 * attended + noted, (h, 3 * attended)),
        _attention(attended),
        _step("out", attended + 2 * h + noted, (attended, h)),
        _step("up", h + inner + noted, (h, (2 if config.is_gated_act else 1) * inner)),
        _step("down", inner + 2 * h + noted, (inner, h)),
    )
    return (_step("embed", 2 * h), *layer * config.num_layers, _step("norm", 2 * h))


def _mobilebert(config: Any) -> tuple[Step, ...]:
    if not config.use_bottleneck or config.use_bottleneck_attention or not config.key_query_shared_bottleneck:
        raise OptionError("cost of 'mobilebert': known with the bottlenecks of the published checkpoint only")
    h, width, inner = config.hidden_size, config.true_hidden_size, config.intermediate_size
    # The residual streams, of full width and of the bottleneck's, are fp32.
    wide, narrow = 2 * h, 2 * width
    stack = config.num_feedforward_networks * ((width, inner), (inner, width))
    layer = (
        _step("in", wide + narrow + 3 * width, (h, width), (h, width), (width, 2 * width), (h, width)),
        _attention(width),
        _step("out", width + narrow + wide + wide, (width, width), *stack, (width, h)),
    )
    words = config.embedding_size * (3 if config.trigram_input else 1)
    embed = (
        _step("words", 2 * words),
        _step("widen", words + h, (words, h)),
        _step("places", 3 * h),
        _step("norm", h + h + wide),
    )
    return (*embed, *layer * config.num_hidden_layers, _step("round", wide + h))


def _step(name: str, elements: float, *products: tuple[int, int]) -> Step:
    return Step(name, ELEMENT * elements, products)


def _attention(channels: int, window: int = -1) -> Step:
    return Step("attention", ELEMENT * 4 * channels, channels=channels, window=window)


def _statistics(width: int) -> float:
    """Elements, in place of two fp32 for each group of columns."""
    return 2 * 4 / ELEMENT * -(-width // STATISTICS_COLUMNS)


_BUILDERS: dict[type[ModelConfig], Callable[[Any], tuple[Step, ...]]] = {
    BertConfig: _bert,
    ModernBertConfig: _modernbert,
    MobileBertConfig: _mobilebert,
    MegatronBertConfig: _megatron,
    MT5Config: _mt5,
}
