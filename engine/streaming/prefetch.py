"""The threads behind an encode call: one that makes the next item ahead of time, and several that run batches."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

__all__ = ["Workers", "prefetch"]

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


class Workers:
    """Threads of one core each: as many as torch uses, started when first needed and ended when this is let go.

    They are kept from call to call because oneDNN compiles a product once for each thread and each shape, and because
    what a thread allocated is not all given back when it ends. Several callers may share them. A copy, and a process
    forked or spawned from this one, start their own.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._started_for: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[Workers], tuple[()]]:
        return Workers, ()

    def at_once(self, likely_calls: int, alike: bool = False) -> int:
        """How many calls to run at once: one for each of torch's threads, or 1 where that would leave a thread idle.

        Args:
            likely_calls: how many there will be.
            alike: each call is run by one core whatever their number: bits may depend on how many share a product.
        """
        with self._starting:
            threads = torch.get_num_threads()
        return threads if alike or likely_calls >= threads else 1

    def run(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]], at_once: int) -> Iterator[T]:
        """`function(*call)` for each call, in order, a few of them ahead of the caller; all by it if `at_once` is 1.

        An error raised by a call is raised here, in its place. Leaving the loop early drops the calls not begun and
        waits for the others.
        """
        if at_once == 1:
            yield from (function(*call) for call in calls)
            return
        executor = self._threads(at_once)
        pending: deque[Future[T]] = deque()
        try:
            for call in calls:
                pending.append(executor.submit(function, *call))
                if len(pending) == 2 * at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            wait([future for future in pending if not future.cancel()])

    def _threads(self, count: int) -> ThreadPoolExecutor:
        with self._starting:
            if self._executor is None or self._started_for != (os.getpid(), count):
                # A caller that still runs on the former threads holds them; without one they end.
                self._executor = _one_core_threads(count)
                self._started_for = os.getpid(), count
            return self._executor


def _one_core_threads(count: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    begun = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the process's number once, and would do so after the 1
        torch.set_num_threads(1)
        begun.wait()

    executor = ThreadPoolExecutor(count, "padless-run", begin)
    for _ in range(count):
        executor.submit(int)  # starts a thread, as those before it are not idle yet
    begun.wait()
    # A thread's own setting is also what threads started later begin with: put that back.
    torch.set_num_threads(threads)
    return executor
