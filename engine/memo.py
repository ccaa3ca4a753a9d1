"""What ops derive from a tensor that many calls are given, made once: a batch's list of tiles for all its layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

__all__ = ["Memo"]

T = TypeVar("T")


class Memo:
    """Results of functions of one tensor, as long as nobody writes to it.

    One for each pass through a model, so that writing between two passes is nobody's concern, and a CUDA graph that
    records a pass records all that the pass needs.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, Hashable], tuple[Tensor, object]] = {}

    def once(self, source: Tensor, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when this was first asked with the same tensor object and an equal key."""
        number = (id(source), key)
        if number not in self._made:
            self._made[number] = source, make()  # while the tensor lives, no other has its number
        return self._made[number][1]  # pyright: ignore[reportReturnType]
