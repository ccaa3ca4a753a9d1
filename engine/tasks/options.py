"""Options of a task's calls: a dataclass for each task, its values checked where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import OptionError

__all__ = ["at_least", "one_of", "read_options"]

T = TypeVar("T")


def read_options(kind: type[T], task: str, *given: Mapping[str, Any]) -> T:
    """The options that a call names; of two mappings that name the same one the later counts.

    Raises:
        OptionError: an option that the task does not have, or a value that `kind` refuses.
    """
    merged = {name: value for options in given for name, value in options.items()}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in merged:
        if name not in known:
            raise OptionError(f"{task}: {name}: no such option; expected one of {', '.join(known) or 'none'}")
    return kind(**merged)


def at_least(name: str, value: Any, least: int) -> None:
    """Raise OptionError unless `value` is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}: expected a whole number from {least}, got {value!r}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
