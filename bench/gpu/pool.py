"""Hands the cases of a part to worker processes, and outlives them: a dead or stuck worker costs one case."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import IO, Any

from .case import Figures

__all__ = ["Pool"]

START_SECONDS = 180.0
GRACE_SECONDS = 15.0
"""How long a case that runs when time is up may go on."""

OnResult = Callable[[str, Figures], None]


@dataclass
class _Queue:
    """What is left to do; no two heavy cases at the same time."""

    waiting: list[tuple[str, bool]]
    heavy_runs: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, deadline: float) -> tuple[str, bool] | None:
        with self.changed:
            while self.waiting and time.monotonic() < deadline:
                for place, (_, heavy) in enumerate(self.waiting):
                    if not (heavy and self.heavy_runs):
                        self.heavy_runs |= heavy
                        return self.waiting.pop(place)
                self.changed.wait(timeout=1.0)
        return None

    def done(self, heavy: bool) -> None:
        with self.changed:
            if heavy:
                self.heavy_runs = False
            self.changed.notify_all()


class _Worker:
    """One process of `worker.py`, and the lines to and from it."""

    def __init__(self, arguments: list[str], log: IO[bytes]) -> None:
        command = [sys.executable, "-m", f"{__package__}.worker", *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self.timed_out = False

    def read(self, seconds: float) -> str:
        """The next line; empty if the process ended or had to be ended."""
        assert self._process.stdout is not None
        timer = threading.Timer(max(seconds, 0.1), self._time_out)
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()

    def send(self, name: str) -> None:
        assert self._process.stdin is not None
        # If it has just died, reading its answer will show that.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(name) + "\n")
            self._process.stdin.flush()

    def end(self) -> int:
        """Close its input, wait a little, and see that it is gone; its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with self._process.stdout:
            return self._process.wait()

    def _time_out(self) -> None:
        self.timed_out = True
        self._process.kill()


class Pool:
    """Runs the cases of one part in a number of processes.

    Args:
        part: what `worker.py` takes as one.
        flags: "--dry", "--warm".
        workers: processes at a time.
        limit: seconds a case may take.
        log: where the processes' own output goes.
    """

    def __init__(self, part: str, flags: Collection[str], workers: int, limit: float, log: IO[bytes]) -> None:
        self._arguments = [part, *flags]
        self._workers = workers
        self._limit = limit
        self._log = log
        self._lock = threading.Lock()

    def run(self, finished: Collection[str], deadline: float, on_result: OnResult) -> list[str]:
        """Run every case that is not in `finished`.

        Args:
            finished: names of cases that have a result already.
            deadline: of `time.monotonic()`; no case starts after it.
            on_result: called with a case's name and figures, one call at a time.

        Returns:
            Names of the cases that time did not suffice for.

        Raises:
            RuntimeError: no worker came up; the log says why.
        """
        first, cases = self._start()
        queue = _Queue([(name, heavy) for name, heavy in cases if name not in finished])
        left = {name for name, _ in queue.waiting}

        def report(name: str, figures: Figures) -> None:
            with self._lock:
                left.discard(name)
                on_result(name, figures)

        count = max(min(self._workers, len(queue.waiting)), 1)
        threads = [
            threading.Thread(
                target=self._serve, args=(queue, deadline, report, first if place == 0 else None), daemon=True
            )
            for place in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [name for name, _ in cases if name in left]

    def _start(self) -> tuple[_Worker, list[tuple[str, bool]]]:
        worker = _Worker(self._arguments, self._log)
        line = worker.read(START_SECONDS)
        if not line:
            raise RuntimeError(f"no process came up to run the cases (exit code {worker.end()}): see log.txt")
        return worker, [(name, heavy) for name, heavy in json.loads(line)]

    def _serve(self, queue: _Queue, deadline: float, report: OnResult, worker: _Worker | None) -> None:
        while (taken := queue.take(deadline)) is not None:
            name, heavy = taken
            try:
                if worker is None:
                    worker, _ = self._start()
                worker.send(name)
                left = min(self._limit, deadline + GRACE_SECONDS - time.monotonic())
                line = worker.read(left)
            except RuntimeError as error:
                report(name, {"status": "error", "reason": str(error)})
                break
            finally:
                queue.done(heavy)
            answer: dict[str, Any] = json.loads(line) if line else {"lost": True}
            if "figures" in answer:
                report(name, answer["figures"])
            if answer["lost"]:
                timed_out, code = worker.timed_out, worker.end()
                worker = None
                if not line and not timed_out:
                    report(name, {"status": "error", "reason": f"the process died with exit code {code}"})
                elif not line and left >= self._limit:
                    report(name, {"status": "error", "reason": f"stopped after {self._limit:.0f} s"})
        if worker is not None:
            worker.end()
