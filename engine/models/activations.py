"""The activations a `config.json` may name, and the epilogues of the `linear` op that compute them."""

from __future__ import annotations

from ..errors import ConfigError

__all__ = ["ACTIVATIONS", "check_activation"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "linear": "none",
    "mish": "mish",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Name in `config.json` -> name of the epilogue. The tanh forms of gelu differ in spelling, not in value."""


def check_activation(source: str, field: str, name: str) -> None:
    """Raise ConfigError unless `name` is a key of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{source}: {field}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
