"""Options of a task's calls: a dataclass for each task, its values checked where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import OptionError

__all__ = ["at_least", "one_of", "read_options"]

T = TypeVar("T")

OF_TOKENIZERS = ("max_length", "truncation", "tokenizer_kwargs")
"""Arguments that transformers' pipelines take for some tasks only."""

OF_LENGTH = ("tokenizer_kwargs", "max_length", "max_seq_len", "doc_stride", "long_texts", "overlap", "stride")
"""Options that say what is done with long texts."""


def read_options(kind: type[T], task: str, *given: Mapping[str, Any]) -> T:
    """The options that a call names; of two mappings that name the same one the later counts.

    Raises:
        OptionError: an option that the task does not have, or a value that `kind` refuses.
    """
    merged = {name: value for options in given for name, value in options.items()}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in merged:
        if name not in known:
            instead = [option for option in OF_LENGTH if option in known] if name in OF_TOKENIZERS else []
            hint = f" (for long texts: {', '.join(instead)})" if instead else ""
            raise OptionError(f"{task}: {name}: no such option{hint}; expected one of {', '.join(known) or 'none'}")
    return kind(**merged)


def at_least(name: str, value: Any, least: int) -> None:
    """Raise OptionError unless `value` is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}: expected a whole number from {least}, got {value!r}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
