"""The model families padless knows, by the `model_type` of their `config.json`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import ConfigError

__all__ = ["FAMILIES", "model_class"]

FAMILIES = {"bert": ("bert", "BertModel")}
"""`model_type` -> (module of this folder, class)."""


def model_class(model_type: str, *, source: str) -> Any:
    """The class that runs a model type; imported only when asked for.

    Args:
        model_type: as `config.json` has it.
        source: the file it came from, for the message.

    Raises:
        ConfigError: an unknown model type; lists those that are known.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"{source}: model_type: expected one of {', '.join(FAMILIES)}, got {model_type!r}")
    module, name = FAMILIES[model_type]
    return getattr(import_module(f".{module}", __name__), name)
