"""Inputs of tasks on texts and pairs of texts, in the forms that transformers' pipelines take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .long_texts import Text

__all__ = ["described", "read_grouped", "read_pairs", "read_single_texts", "read_texts"]


def read_texts(inputs: Any) -> tuple[list[Text], bool]:
    """Texts of a call, and whether it was called with a single one.

    A text is a str; a pair is a tuple of two str, or a dict with "text" and "text_pair". Several are a list. A second
    text that is empty is none, as in transformers.

    Raises:
        InputError: an input is none of these; names the row.
    """
    if isinstance(inputs, str | tuple | Mapping):
        return [_read_text(inputs, "")], True
    if isinstance(inputs, bytes) or not hasattr(inputs, "__iter__"):
        raise InputError(f"inputs: expected a text, a pair, or a list of them, got {described(inputs)}")
    return [_read_text(value, f"row {row}: ") for row, value in enumerate(inputs)], False


def read_single_texts(inputs: Any, *, called: str = "inputs", empty: bool = True) -> tuple[list[str], bool]:
    """As `read_texts`, for tasks that have no pairs: a str, or an iterable of them.

    Args:
        inputs: what the caller gave.
        called: what messages call it.
        empty: whether a text may be "".
    """
    single = isinstance(inputs, str)
    if isinstance(inputs, bytes | Mapping) or not hasattr(inputs, "__iter__"):
        raise InputError(f"{called}: expected a text or a list of them, got {described(inputs)}")
    rows = [inputs] if single else list(inputs)
    for row, text in enumerate(rows):
        if not isinstance(text, str):
            raise InputError(f"row {row}: expected a string, got {described(text)}")
        if not (text or empty):
            raise InputError(f"row {row}: expected a text, got an empty one")
    return rows, single


def read_pairs(inputs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of a call, and whether it was called with a single one. A text of a pair may be empty.

    A pair is a tuple of two str, or a dict with "text" and "text_pair". Several are a list.

    Raises:
        InputError: an input is none of these; names the row.
    """
    if isinstance(inputs, tuple | Mapping):
        return [_read_pair(inputs, "")], True
    if isinstance(inputs, str | bytes) or not hasattr(inputs, "__iter__"):
        raise InputError(f"inputs: expected a pair, or a list of them, got {described(inputs)}")
    return [_read_pair(value, f"row {row}: ") for row, value in enumerate(inputs)], False


def read_grouped(
    inputs: Any, others: Mapping[str, Any], one: str, many: str
) -> tuple[list[tuple[str, tuple[str, ...]]], bool]:
    """Texts that each come with several others, and whether the call was with a single one.

    Args:
        inputs: a dict with the entries `one`, a str, and `many`, a list of str; or a list of them.
        others: the same by name, where `inputs` is None.
        one, many: names of the entries.

    Raises:
        InputError: an input is none of these; names the row.
    """
    if inputs is None:
        inputs = others
    elif others:
        raise InputError(f"inputs: expected them either by the names {one} and {many} or at once, got both")
    if isinstance(inputs, Mapping):
        return [_read_group(inputs, "", one, many)], True
    if isinstance(inputs, str | bytes) or not hasattr(inputs, "__iter__"):
        raise InputError(f'inputs: expected {{"{one}": …, "{many}": […]}} or a list of them, got {described(inputs)}')
    return [_read_group(value, f"row {row}: ", one, many) for row, value in enumerate(inputs)], False


def _read_group(value: Any, where: str, one: str, many: str) -> tuple[str, tuple[str, ...]]:
    if isinstance(value, Mapping) and set(value) == {one, many} and isinstance(value[one], str):
        several = value[many]
        if not isinstance(several, str | bytes | Mapping) and hasattr(several, "__iter__"):
            texts = tuple(several)
            for place, text in enumerate(texts):
                if not isinstance(text, str):
                    raise InputError(f"{where}{many}: {place}: expected a string, got {described(text)}")
            return value[one], texts
    raise InputError(f'{where}expected {{"{one}": a string, "{many}": a list of strings}}, got {described(value)}')


def _read_pair(value: Any, where: str) -> tuple[str, str]:
    parts = value
    if isinstance(value, Mapping) and set(value) == {"text", "text_pair"}:
        parts = (value["text"], value["text_pair"])
    if isinstance(parts, tuple | list) and len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return parts[0], parts[1]
    raise InputError(f'{where}expected two strings or {{"text": …, "text_pair": …}}, got {described(value)}')


def _read_text(value: Any, where: str) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and set(value) <= {"text", "text_pair"} and "text" in value:
        pair = (value["text"], value.get("text_pair"))
        value = pair if pair[1] is not None else pair[:1]
    if isinstance(value, tuple) and len(value) in (1, 2) and all(isinstance(part, str) for part in value):
        return value[0] if len(value) == 1 or not value[1] else (value[0], value[1])
    expected = 'a string, a tuple of two, or {"text": …, "text_pair": …}'
    raise InputError(f"{where}expected {expected}, got {described(value)}")


def described(value: Any) -> str:
    """A value as messages show it."""
    return f"{type(value).__name__} ({value!r:.60})"
