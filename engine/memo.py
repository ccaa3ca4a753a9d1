"""What ops derive from a tensor that many calls are given, made once: a batch's list of tiles for all its layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
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
        self._handed: tuple[Tensor, int, Tensor] | None = None

    def once(self, source: Tensor, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when this was first asked with the same tensor object and an equal key."""
        number = (id(source), key)
        if number not in self._made:
            self._made[number] = source, make()  # while the tensor lives, no other has its number
        return self._made[number][1]  # pyright: ignore[reportReturnType]

    def hand_on(self, rows: Tensor, facts: Tensor) -> None:
        """Leave what is known of a tensor that was just made for who is called with it next."""
        if not torch.compiler.is_compiling():  # which of a graph's tensors is meant, no tracer can tell
            self._handed = rows, _writes(rows), facts

    def handed(self, rows: Tensor) -> Tensor | None:
        """What was left with this very tensor, if that was the last and nobody wrote to it since."""
        if self._handed is None or torch.compiler.is_compiling():
            return None
        known, writes, facts = self._handed
        return facts if known is rows and writes == _writes(rows) else None


def _writes(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # tensors made in inference mode count none
