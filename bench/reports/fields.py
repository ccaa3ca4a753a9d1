"""The fields of a report that was read from JSON: each asked for by name, a wrong one being one line that says where.

cases = Node(report, "kernels.json").items("cases")
cases[3].number("tokens")      # InputError: kernels.json: cases[3].tokens: expected a number, found "many"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...engine.errors import InputError
from ..timing import Spread

__all__ = ["Node"]


class Node:
    """A JSON object and the way to it.

    Every method raises InputError, one line with the way to the field, where the field is missing or of another type.
    """

    def __init__(self, tree: Any, where: str) -> None:
        """Take what must be an object.

        Args:
            tree: as `json.load` gives it.
            where: how an error begins: the file, or what it is a report of.
        """
        if not isinstance(tree, dict):
            raise InputError(f"{where}: expected a JSON object, found {_shown(tree)}")
        self.tree = tree
        self.where = where

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.tree.get(name) is not None

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._value(name, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, "a number", value)
        return float(value)

    def text(self, name: str) -> str:
        """A string."""
        value = self._value(name, "a text")
        if not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return value

    def node(self, name: str) -> Node:
        """An object."""
        return Node(self._value(name, "a JSON object"), self._way(name))

    def items(self, name: str) -> list[Node]:
        """A list of objects."""
        value = self._value(name, "a list")
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return [Node(item, f"{self._way(name)}[{place}]") for place, item in enumerate(value)]

    def nodes(self, name: str) -> dict[str, Node | None]:
        """An object of objects, in their order; None where one is null."""
        found = self.node(name)
        return {key: None if value is None else Node(value, found._way(key)) for key, value in found.tree.items()}

    def texts(self, name: str) -> dict[str, str]:
        """An object of strings; empty where there is none."""
        found = self.node(name) if self.has(name) else Node({}, self.where)
        return {key: found.text(key) for key in found.tree}

    def spread(self, name: str) -> Spread:
        """Median, p20 and p80."""
        found = self.node(name)
        return Spread(found.number("median"), found.number("p20"), found.number("p80"))

    def any_text(self, names: Sequence[str]) -> str | None:
        """The first of these fields that is there, None where none is."""
        return next((self.text(name) for name in names if self.has(name)), None)

    def _value(self, name: str, expected: str) -> Any:
        if name not in self.tree:
            raise InputError(f"{self._way(name)}: missing, expected {expected}")
        return self.tree[name]

    def _wrong(self, name: str, expected: str, value: Any) -> InputError:
        return InputError(f"{self._way(name)}: expected {expected}, found {_shown(value)}")

    def _way(self, name: str) -> str:
        return f"{self.where}: {name}" if ": " not in self.where else f"{self.where}.{name}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value)[:60]
