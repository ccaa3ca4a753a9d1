"""A job's worker processes, seen from their parent: started, given shards, listened to, and ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from types import TracebackType
from typing import Any

from ..errors import JobError
from .commits import Commits, FinishedShard
from .factories import TaskFactory
from .messages import (
    Ask,
    CommittedUpTo,
    Ended,
    Failed,
    FindBudget,
    LockFollows,
    NoRows,
    Plan,
    Progressed,
    Shard,
    TaskFacts,
)
from .report import Report
from .shard_queue import ShardQueue
from .stages import Stages
from .watch import InputWatch
from .worker_process import work

__all__ = ["WorkerPool"]

SECONDS_TO_END = 10.0
"""That a worker which has nothing left to do may take to end by itself."""


@dataclass(slots=True)
class _Worker:
    device: str
    process: BaseProcess
    connection: Connection


class WorkerPool:
    """One process for each device, used as a context manager: none of them outlives it.

    Args:
        make_task: loads the model in each of them; can be pickled.
        devices: of each.
        dtype: that all compute in.
        threads: torch's, of each.

    Attributes:
        facts: of the first worker's task, once entered.

    Raises:
        JobError: a worker died, or computes in another dtype than the first.
        PadlessError: what a worker raised.
    """

    facts: TaskFacts

    def __init__(self, make_task: TaskFactory, devices: Sequence[str], dtype: str, threads: int) -> None:
        self._make_task, self._devices, self._dtype, self._threads = make_task, devices, dtype, threads
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        try:
            for device in self._devices:
                self._start(device)
            facts: list[TaskFacts] = [self._receive(worker) for worker in self._workers]
            self.facts = facts[0]
            for device, other in zip(self._devices, facts, strict=True):
                if other.dtype != self.facts.dtype:
                    raise JobError(
                        f"{device}: computes in {other.dtype}, {self._devices[0]} in {self.facts.dtype}, expected one "
                        "dtype: name it with --dtype"
                    )
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def token_budget(self) -> int:
        """What fits on all of them, as the first finds it."""
        self._send(self._workers[0], FindBudget(len(self._workers)))
        return self._receive(self._workers[0])

    def hold_lock(self, descriptor: int | None) -> None:
        """Have the workers hold a folder's lock with this process, so that it is free once all of them have ended."""
        if descriptor is None:
            return
        for worker in self._workers:
            self._send(worker, LockFollows())
            with suppress(OSError):  # it died: its next message tells
                assert worker.process.pid is not None
                send_handle(worker.connection, descriptor, worker.process.pid)

    def compute_shards(
        self, plan: Plan, first_shard: int, commits: Commits, watch: InputWatch, report: Report
    ) -> Stages:
        """Have all shards from `first_shard` on computed, and commit them in order; returns where the time went.

        Raises:
            JobError: a worker died, or the disk refuses.
            InputError: an input cannot be read further, or has changed.
        """
        shards: ShardQueue[tuple[str, FinishedShard]] = ShardQueue(first_shard)
        stages = Stages()
        for worker in self._workers:
            self._send(worker, CommittedUpTo(first_shard, len(self._workers)))
            self._send(worker, plan)
        for worker, message in self._messages():
            match message:
                case Ask():
                    self._send(worker, Shard(shards.hand_out()))
                case NoRows():
                    shards.no_rows(message.index)
                case FinishedShard():
                    for device, finished in shards.finished(message.index, (worker.device, message)):
                        watch.check()
                        commits.commit(finished, device)
                    for other in self._workers:
                        self._send(other, CommittedUpTo(shards.committed, len(self._workers)))
                case Progressed():
                    _tell(report, message)
                case Ended():
                    stages.add(message.stages)
        assert shards.is_empty
        return stages

    def stop(self) -> None:
        """End all workers, at once: their parent has what it wanted of them, or wants nothing any more."""
        for worker in self._workers:
            # Closed first: whoever waits for a message then ends.
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def _start(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(theirs, self._make_task, device, self._dtype, self._threads, os.getpid()),
            name=f"padless-{device}",
            daemon=True,
        )
        with _no_stops():
            process.start()
            self._workers.append(_Worker(device, process, ours))
        theirs.close()

    def _messages(self) -> Iterator[tuple[_Worker, Any]]:
        """What the workers send, until each of them has ended."""
        busy = {worker.connection: worker for worker in self._workers}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                message = self._receive(worker)
                if isinstance(message, Ended):
                    del busy[worker.connection]
                yield worker, message

    def _receive(self, worker: _Worker) -> Any:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(SECONDS_TO_END)
            raise JobError(
                f"{worker.device}: its process {worker.process.pid} {_ending(worker.process.exitcode)}; the same "
                "command goes on behind the last committed shard"
            ) from None
        if isinstance(message, Failed):
            raise message.error
        return message

    def _send(self, worker: _Worker, message: object) -> None:
        with suppress(OSError):  # it died: receiving from it tells
            worker.connection.send(message)


def _tell(report: Report, told: Progressed) -> None:
    if told.expected is not None:
        report.expect(told.expected)
    if told.texts or told.tokens:
        report.advance(told.texts, told.tokens)
    if told.skipped:
        report.skip(told.skipped)
    if told.window is not None:
        report.window_done(*told.window)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (the kernel does that where memory runs out)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}, exit code {code}{hint}"


@contextmanager
def _no_stops() -> Iterator[None]:
    """Hold back the signals that ask for a stop; a process started in the block never gets them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
