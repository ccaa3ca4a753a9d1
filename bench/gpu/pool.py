"""Hands the cases of a part to worker processes, and outlives them: a dead or stuck worker costs one case."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from .case import Figures

__all__ = ["Pool"]

START_SECONDS = 120.0
"""For a process to import what it needs, from a disk that may be cold."""

END_SECONDS = 10.0
LOST_STARTS = 3
"""So many processes in a row that did not come up end a part."""

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
    """One process of `worker.py`, and the lines to and from it.

    It leads a process group of its own, so that what it has started (compilers) ends with it.
    """

    def __init__(self, arguments: list[str], log: IO[bytes], environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", f"{__package__}.worker", *arguments]
        pipe, env = subprocess.PIPE, {**os.environ, **environment}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=env, process_group=0)
        self._unread = b""
        self.timed_out = False

    def read(self, seconds: float) -> Any:
        """The next answer; None if the process ended, said what is none, or had to be ended.

        Waits no longer than it says, even for a process that cannot be ended because its GPU hangs.
        """
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + max(seconds, 0.1)
        while b"\n" not in self._unread:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.timed_out = True
                self.kill()
                return None
            piece = os.read(pipe, 1 << 16)
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            self.kill()
            return None

    def send(self, name: str) -> None:
        assert self._process.stdin is not None
        # If it has just died, reading its answer will show that.
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(name).encode() + b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it and all it has started, at once."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> int | None:
        """Close its input, wait a little, and see that it is gone; its exit code, None if it cannot be ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        code = self._waited()
        self.kill()
        code = self._waited() if code is None else code
        self._process.stdout.close()
        return code

    def _waited(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=END_SECONDS)
        return None


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
        self._alive: set[_Worker] = set()
        self._lost_starts = 0
        # Each of many processes would start as many compilers and threads as there are CPUs. What a dry run computes is
        # so small that a second thread is only waited for.
        threads = 1 if "--dry" in flags else max((os.cpu_count() or 1) // max(workers, 1), 1)
        asked = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(min(threads, 8))}
        # Nothing is fetched; a library that tried would wait for a network that is not there.
        asked["HF_HUB_OFFLINE"] = "1"
        self._environment = {name: value for name, value in asked.items() if name not in os.environ}

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
        first, cases = self._start(deadline)
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
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            # After an interruption; otherwise each thread has ended its own.
            for worker in [*self._alive]:
                worker.kill()
        return [name for name, _ in cases if name in left]

    def _start(self, deadline: float) -> tuple[_Worker, list[tuple[str, bool]]]:
        worker = _Worker(self._arguments, self._log, self._environment)
        self._alive.add(worker)
        found = worker.read(min(START_SECONDS, max(deadline + GRACE_SECONDS - time.monotonic(), GRACE_SECONDS)))
        if not isinstance(found, list):
            self._lost_starts += 1
            why = "it took too long" if worker.timed_out else f"exit code {self._end(worker)}"
            raise RuntimeError(f"no process came up to run the cases ({why}): see log.txt")
        self._lost_starts = 0
        return worker, [(name, heavy) for name, heavy in found]

    def _end(self, worker: _Worker) -> int | None:
        self._alive.discard(worker)
        return worker.end()

    def _serve(self, queue: _Queue, deadline: float, report: OnResult, worker: _Worker | None) -> None:
        while self._lost_starts < LOST_STARTS and (taken := queue.take(deadline)) is not None:
            name, heavy = taken
            try:
                if worker is None:
                    worker, _ = self._start(deadline)
                worker.send(name)
                left = min(self._limit, deadline + GRACE_SECONDS - time.monotonic())
                answer = worker.read(left)
            except (RuntimeError, OSError) as error:
                worker = None
                report(name, {"status": "error", "reason": str(error)})
                continue
            finally:
                queue.done(heavy)
            if answer is not None:
                report(name, answer["figures"])
            if answer is None or answer["lost"]:
                timed_out, code = worker.timed_out, self._end(worker)
                worker = None
                if answer is None and not timed_out:
                    report(name, {"status": "error", "reason": f"the process died with exit code {code}"})
                elif answer is None and left >= self._limit:
                    report(name, {"status": "error", "reason": f"stopped after {self._limit:.0f} s"})
        if worker is not None:
            self._end(worker)
