"""The second text of a row: one string, or a list of choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from .rows import shown, without_surrogates

__all__ = ["pair_of_field", "pair_problem", "pair_without_surrogates"]


def pair_problem(value: str | Sequence[object], what: str, described: Callable[[object], str] = shown) -> str:
    """What is wrong with a pair, or "": a list must hold at least one choice, and strings only."""
    if isinstance(value, str):
        return ""
    if not value:
        return f"{what} is an empty list, expected at least one choice"
    for position, choice in enumerate(value):
        if not isinstance(choice, str):
            return f"{what}: choice {position} is {described(choice)}, expected a string"
    return ""


def pair_of_field(field: str) -> str | list[str]:
    """The pair in a field of a format without lists: choices where it is a JSON array of strings, itself otherwise."""
    if not field.startswith("[") or not field.endswith("]"):
        return field
    try:
        choices = json.loads(field)
    except (ValueError, RecursionError):
        return field
    return choices if choices and all(isinstance(choice, str) for choice in choices) else field


def pair_without_surrogates(pair: str | list[str] | None, repairs: list[str]) -> str | list[str] | None:
    """The pair with lone surrogates replaced, as `without_surrogates` does it."""
    if pair is None:
        return None
    if isinstance(pair, str):
        return without_surrogates(pair, "pair", repairs)
    return [without_surrogates(choice, "pair", repairs) for choice in pair]
