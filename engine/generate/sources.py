"""Where options come from: the arguments of a call before what the model's files say, each value checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import LARGEST_CONFIG, read_json
from ..errors import ConfigError, OptionError
from .rules import (
    ARGUMENTS_ONLY,
    FOR_SAMPLING,
    IDLE,
    IDLE_ARGUMENTS,
    NOT_OPTIONS,
    RULES,
    SAMPLING_ONLY,
    WITHOUT_EFFECT,
    Rule,
    Unexpected,
)

__all__ = ["GENERATION_CONFIG_NAME", "OFF", "checked_values", "read_generation_config", "write_generation_config"]

GENERATION_CONFIG_NAME = "generation_config.json"

OFF: dict[str, Any] = {"top_k": 0}
"""What None means as an argument, where that is not the default."""

logger = logging.getLogger(__name__)


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """What the folder's `generation_config.json` holds; None where there is no such file.

    Names that are no options are kept and told of, as a newer transformers may know what they mean.

    Raises:
        ConfigError: the file is unreadable, too large, not JSON or not an object.
    """
    path = folder / GENERATION_CONFIG_NAME
    if not path.exists():
        return None
    held = read_json(path, what="generation configuration", largest=LARGEST_CONFIG)
    if unknown := _unknown(name for name, value in held.items() if value is not None):
        logger.warning("%s: no effect, unknown here: %s", path, ", ".join(unknown))
    return held


def write_generation_config(folder: Path, held: Any) -> None:
    """Write what `read_generation_config` gives, or an object with `to_dict`, to a folder that there is.

    Raises:
        ConfigError: the file cannot be written, or a value is none that JSON has.
        OptionError: neither a mapping nor such an object.
    """
    path = folder / GENERATION_CONFIG_NAME
    try:
        path.write_text(json.dumps(_said(held), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written ({error})") from None


def checked_values(
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None,
    source: str,
    defaults: Mapping[str, Any],
) -> tuple[dict[str, Any], frozenset[str]]:
    """The options that any source names, in the form in which they are kept, and the names that came as arguments.

    Args:
        arguments, config, generation_config, source: as of `GenerationOptions.resolve`.
        defaults: option -> what it is where no source names it.

    Raises:
        OptionError: an argument that is unknown, not supported or out of range.
        ConfigError: a value in the model's file that is not supported or out of range.
    """
    arguments = dict(arguments)
    given = _of_the_call(arguments.pop("generation_config", None))
    if unknown := sorted({*_unknown(arguments)} | ({*arguments} & NOT_OPTIONS)):
        raise OptionError(f"generate: unknown argument {', '.join(unknown)}")
    own = {**given, **arguments}
    # A model with a generation configuration has all its options there, as transformers sees it.
    model = _said(config if generation_config is None else generation_config)
    where = "config.json" if generation_config is None else source
    sampling = bool({**model, **own}.get("do_sample"))
    for name, value in {**model, **own}.items():
        _refuse_unsupported(name, value, sampling, None if name in own else where)
    values: dict[str, Any] = {}
    for name, rule in RULES.items():
        if name in own:
            asked = own[name]
            values[name] = (
                OFF.get(name, defaults[name])
                if asked is None
                else _checked(name, asked, rule, config["vocab_size"], None)
            )
        elif name in model and name not in ARGUMENTS_ONLY and (sampling or name not in FOR_SAMPLING):
            values[name] = _checked(name, model[name], rule, config["vocab_size"], where)
    if not values.get("return_dict_in_generate"):
        values.pop("output_scores", None)
    return values, frozenset(own)


def _said(source: Any) -> dict[str, Any]:
    if source is None:
        return {}
    if not isinstance(source, Mapping):
        if not hasattr(source, "to_dict"):
            raise OptionError(f"generation_config: expected a mapping or None, got a {type(source).__name__}")
        source = source.to_dict()
    return {name: value for name, value in source.items() if value is not None}


def _of_the_call(source: Any) -> dict[str, Any]:
    """A generation configuration that came as an argument: an object may be of a newer transformers, a mapping is the
    caller's own."""
    given = _said(source)
    if unknown := _unknown(given):
        if isinstance(source, Mapping):
            raise OptionError(f"generation_config: unknown option {', '.join(unknown)}")
        logger.warning("generation_config: no effect, unknown here: %s", ", ".join(unknown))
    return given


def _unknown(names: Iterable[str]) -> list[str]:
    return sorted({*names} - {*RULES, *IDLE, *IDLE_ARGUMENTS, *WITHOUT_EFFECT, *NOT_OPTIONS})


def _checked(name: str, value: Any, rule: Rule, vocab_size: int, where: str | None) -> Any:
    try:
        return rule(value, vocab_size)
    except Unexpected as expected:
        raise _error(where, f"{name}: expected {expected}, got {_short(value)}") from None


def _refuse_unsupported(name: str, value: Any, sampling: bool, where: str | None) -> None:
    idle = IDLE if where is not None else {**IDLE, **IDLE_ARGUMENTS}
    if name not in idle or value is None or (name in SAMPLING_ONLY and not sampling):
        return
    if idle[name] is None or value != idle[name]:
        raise _error(where, f"{name}: {_short(value)} is not supported, expected {idle[name]!r}")


def _error(where: str | None, message: str) -> ConfigError | OptionError:
    return OptionError(message) if where is None else ConfigError(f"{where}: {message}")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())  # a tensor's has several lines
    return text if len(text) <= 60 else text[:57] + "..."
