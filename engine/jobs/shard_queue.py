"""Which shard is whose, and in which order they are committed, when several workers compute them."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["ShardQueue"]

T = TypeVar("T")


class ShardQueue(Generic[T]):
    """Hands out shard numbers in order, and gives finished shards back in order.

    Args:
        first: number of the first shard that is not committed.

    Attributes:
        committed: shards below this number have been given back.
    """

    def __init__(self, first: int) -> None:
        self.committed = first
        self._next, self._end = first, -1
        self._waiting: dict[int, T] = {}

    def hand_out(self) -> int | None:
        """The next shard to compute; None where there is none."""
        if self._end >= 0 and self._next >= self._end:
            return None
        self._next += 1
        return self._next - 1

    def no_rows(self, index: int) -> None:
        """Shard `index` has no rows, and so has none behind it."""
        self._end = index if self._end < 0 else min(index, self._end)

    def finished(self, index: int, shard: T) -> list[T]:
        """Shards that are next to be committed now that shard `index` is finished; often none, or several."""
        self._waiting[index] = shard
        found: list[T] = []
        while self.committed in self._waiting:
            found.append(self._waiting.pop(self.committed))
            self.committed += 1
        return found

    @property
    def is_empty(self) -> bool:
        """Whether no finished shard waits for an earlier one."""
        return not self._waiting
