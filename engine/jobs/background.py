"""Work done beside the caller, in order, in one thread: the writing of a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

__all__ = ["Background"]


class Background:
    """Runs calls in a thread, one after the other; at most one is under way and one more waits.

    Used as a context manager: leaving waits for what is under way and drops the rest.

    Attributes:
        busy_seconds: spent in calls.
        wait_seconds: in which the caller stood still for them.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="padless-write")
        self._pending: list[Future[None]] = []
        self.busy_seconds = self.wait_seconds = 0.0

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have `call(*arguments)` done; an error of an earlier call is raised here."""
        while len(self._pending) > 1:
            self._finish_first()
        self._pending.append(self._executor.submit(self._timed, call, arguments))

    def wait(self) -> None:
        """Wait until all is done; an error of a call is raised here."""
        while self._pending:
            self._finish_first()

    def abandon(self) -> None:
        """Wait for the call under way, drop the others; errors are dropped too."""
        for future in self._pending:
            future.cancel()
        for future in self._pending:
            if not future.cancelled():
                future.exception()
        self._pending.clear()

    def _finish_first(self) -> None:
        begin, first = time.perf_counter(), self._pending[0]
        try:
            first.result()
        finally:
            self.wait_seconds += time.perf_counter() - begin
            if first.done():  # not so where an interrupt came in between: `abandon` has to wait for it
                self._pending.pop(0)

    def _timed(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        begin = time.perf_counter()
        try:
            call(*arguments)
        finally:
            self.busy_seconds += time.perf_counter() - begin

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
        self._executor.shutdown()
