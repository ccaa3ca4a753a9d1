"""One step ahead: the next items of an iterator are made by a thread while the caller works on the current one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Yield the items in order, up to `depth` of them made ahead of time by one background thread.

    An error raised while an item is made is raised here, in that item's place. Leaving the loop early waits for the
    item in the making and drops it.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="padless-prefetch") as executor:
        pending: deque[Future[T | object]] = deque(executor.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(executor.submit(next, iterator, _END))
                yield item  # type: ignore[misc]
        finally:
            for future in pending:
                future.cancel()
