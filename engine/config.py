"""Model configurations: `config.json` read with suspicion.

A configuration comes from a stranger and decides how much memory is allocated, so every field is checked for its type
and its range before anything is built from it. Unknown fields are kept in `extra`: checkpoints carry many, and most
mean nothing here.
"""

from __future__ import annotations

import json
import logging
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

__all__ = ["CONFIG_NAME", "LIMITS", "ModelConfig", "model_type", "read_json"]

CONFIG_NAME = "config.json"

LARGEST_JSON = 100 * 2**20
"""Bytes. The largest real one, a weight index, has a few megabytes."""

LIMITS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 2**24),
    "type_vocab_size": (0, 2**16),
    "hidden_size": (1, 65_536),
    "embedding_size": (1, 65_536),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (0, 1_000),
    "num_attention_heads": (1, 4_096),
    "num_key_value_heads": (1, 4_096),
    "head_dim": (1, 8_192),
    "max_position_embeddings": (1, 2**24),
    "num_labels": (1, 2**20),
    "layer_norm_eps": (0, 1),
    "norm_eps": (0, 1),
    "initializer_range": (0, 100),
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
}
"""Field -> smallest and largest value, both allowed; far beyond any model, far below a harmful one."""

logger = logging.getLogger(__name__)


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Args:
        path: the file.
        what: what the file is to the reader, such as "model configuration"; begins the error message.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, not JSON, or not an object.
    """
    value = read_json_value(path, what=what)
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {path}: expected a JSON object, got {_describe(value)}")
    return value


def read_json_value(path: Path, *, what: str) -> Any:
    """Like `read_json`, for a file whose top level need not be an object."""
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise ConfigError(f"{what} {path}: {size:,} bytes, expected at most {LARGEST_JSON:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}: not UTF-8 text (byte {error.start})") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{what} {path}: not JSON ({error.msg}, line {error.lineno})") from None
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or brackets nested thousands deep.
        raise ConfigError(f"{what} {path}: not JSON that can be read ({type(error).__name__})") from None


def model_type(folder: Path) -> str:
    """The `model_type` field of the folder's `config.json`, such as "bert".

    Raises:
        ConfigError: there is no readable `config.json`, or the field is missing or not a string.
    """
    path = folder / CONFIG_NAME
    found = read_json(path, what="model configuration").get("model_type")
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{path}: model_type: expected a name such as 'bert', got {_describe(found)}")
    return found


@dataclass(frozen=True)
class ModelConfig:
    """Base of every model's configuration: a frozen dataclass whose fields are the ones its model reads.

    A subclass declares fields under the names of the checkpoint's `config.json`, with types made of
    int, float, bool, str, None, Literal, list, tuple, dict and unions of them. A field without a default must be in
    the file.

    Attributes:
        extra: the file's other fields, unchecked.
    """

    aliases: ClassVar[Mapping[str, str]] = {}
    """Older spelling -> field; the field's own name wins where a file has both."""

    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the folder's `config.json`.

        Raises:
            ConfigError: naming the file and the field.
        """
        path = folder / CONFIG_NAME
        raw = read_json(path, what="model configuration")
        if "auto_map" in raw:
            logger.warning("%s: auto_map names code beside the weights; it is ignored, padless runs its own", path)
        return cls.from_dict(raw, source=str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str) -> Self:
        """Build a configuration from the fields of a `config.json`.

        Args:
            raw: the parsed file.
            source: where it came from, for messages.

        Raises:
            ConfigError: a field is missing, of the wrong type or out of range.
        """
        hints = get_type_hints(cls)
        known = {item.name: item for item in fields(cls) if item.init and item.name != "extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in raw.items():
            target = name if name in known else cls.aliases.get(name)
            if target is None or target not in known:
                extra[name] = value
            elif target == name or target not in raw:
                values[target] = _checked(value, hints[target], f"{source}: {name}", LIMITS.get(target))
        for name, item in known.items():
            if name not in values and item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(f"{source}: {name}: missing")
        config = cls(**values, extra=extra)
        config.check(source)
        return config

    def check(self, source: str) -> None:
        """Hook for what one field alone cannot show, such as a hidden size that the heads do not divide.

        Raises:
            ConfigError: naming `source` and the fields.
        """


def _checked(value: Any, hint: Any, where: str, limits: tuple[float, float] | None) -> Any:
    if not _fits(value, hint):
        raise ConfigError(f"{where}: expected {_spell(hint)}, got {_describe(value)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: expected a finite number, got {value}")
        if limits is not None and not limits[0] <= value <= limits[1]:
            raise ConfigError(f"{where}: expected {limits[0]:g} to {limits[1]:g}, got {_describe(value)}")
    return tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin in (list, tuple):
        return f"a list of {_spell(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return names.get(hint, "an object")


def _describe(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
