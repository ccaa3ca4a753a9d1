"""A worker of a job on several devices: loads the model, computes the shards it is given, and tells its parent.

It writes the files of its shards and nothing else; only the parent commits. It ends with its parent, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from .budget import token_budget
from .factories import TaskFactory
from .inputs.reader import open_sources
from .messages import (
    Ask,
    CommittedUpTo,
    Ended,
    Failed,
    LockFollows,
    NoRows,
    Plan,
    Progressed,
    Shard,
    TaskFacts,
)
from .report import Report
from .row_cursor import RowCursor
from .task import JobTask
from .watch import InputWatch
from .windows import Window, cut_windows

__all__ = ["SECONDS_BETWEEN", "work"]

SECONDS_BETWEEN = 0.2
"""Progress is told no more often, windows apart."""

_PR_SET_PDEATHSIG = 1


def work(connection: Connection, make_task: TaskFactory, device: str, dtype: str, threads: int, parent: int) -> None:
    """The whole life of a worker.

    Args:
        connection: to the parent.
        make_task: loads the model.
        device, dtype: that it computes on and in.
        threads: torch's.
        parent: id of the process that started this one.
    """
    # A stop from the keyboard comes to every process of the terminal; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    outbox = _Outbox(connection)
    try:
        import torch
        from tqdm import tqdm

        # Its own is a semaphore of the system, which a process that is killed leaves behind.
        tqdm.set_lock(threading.RLock())
        torch.set_num_threads(threads)
        task = make_task(device, dtype)
        outbox.send(TaskFacts.of(task))
        inbox = _Inbox(connection)
        while not isinstance(order := inbox.orders.get(), Plan):
            outbox.send(token_budget(task, order.workers))
        _compute(task, order, inbox, outbox)
    except BaseException as error:
        outbox.send(Failed(_sendable(error)))


def _compute(task: JobTask, plan: Plan, inbox: _Inbox, outbox: _Outbox) -> None:
    import torch

    from .shard_run import ShardRun

    if torch.get_num_threads() != plan.fixed["threads"]:
        torch.set_num_threads(plan.fixed["threads"])
    task.token_budget = plan.fixed["token_budget"]
    files = open_sources(plan.sources, plan.columns)
    cursor = RowCursor(files, plan.rows_per_shard, task.is_enough)

    def ask() -> int | None:
        outbox.send(Ask())
        return inbox.shards.get()

    def windows(index: int | None) -> Iterator[Window]:
        while index is not None:
            any_window = False
            fixed = plan.fixed
            for window in cut_windows(
                cursor.shard(index), plan.rows_per_shard, fixed["window_rows"], fixed["window_characters"]
            ):
                any_window = True
                yield window
            if not any_window:
                outbox.send(NoRows(index))
            index = ask()

    first = ask()
    run = ShardRun(
        task,
        plan.folder,
        files,
        InputWatch(files),
        plan.schema,
        has_id=plan.has_id,
        carried=plan.carried,
        rows_per_shard=plan.rows_per_shard,
        report=(teller := _Teller(outbox)),
        hand_over=outbox.send,
        # One uncommitted file for each worker: that is what a killed job has to do again.
        may_open=inbox.wait_for_turn,
    )
    run.run(windows(first), first_shard=-1 if first is None else first)
    teller.flush()
    outbox.send(Ended(run.stages))


class _Outbox:
    """Sends to the parent, from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()

    def send(self, message: object) -> None:
        with self._sending:
            try:
                self._connection.send(message)
            except OSError:  # the parent has gone
                os._exit(1)


class _Inbox:
    """What the parent sends, received by a thread of its own; once the parent has gone, the process ends.

    Attributes:
        orders: FindBudget and Plan.
        shards: numbers handed out, and None after the last.
    """

    def __init__(self, connection: Connection) -> None:
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.shards: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._turns, self._may_open = threading.Condition(), 0
        threading.Thread(target=self._receive, args=(connection,), name="padless-inbox", daemon=True).start()

    def wait_for_turn(self, index: int) -> None:
        """Wait until the file of shard `index` may be begun."""
        with self._turns:
            self._turns.wait_for(lambda: index < self._may_open)

    def _receive(self, connection: Connection) -> None:
        while True:
            try:
                message = connection.recv()
                if isinstance(message, LockFollows):
                    recv_handle(connection)  # held, never used: closed by the end of the process
                    continue
            except (EOFError, OSError):
                os._exit(1)
            if isinstance(message, Shard):
                self.shards.put(message.index)
            elif isinstance(message, CommittedUpTo):
                with self._turns:
                    self._may_open = message.index + message.workers
                    self._turns.notify_all()
            else:
                self.orders.put(message)


class _Teller(Report):
    """Sends on what a listener is told, gathered for a moment."""

    def __init__(self, outbox: _Outbox) -> None:
        self._outbox, self._sent = outbox, time.perf_counter()
        self._texts = self._tokens = self._skipped = 0
        self._expected: int | None = None

    def expect(self, rows: int) -> None:
        self._expected = rows

    def advance(self, texts: int, tokens: int) -> None:
        self._texts += texts
        self._tokens += tokens
        if time.perf_counter() - self._sent > SECONDS_BETWEEN:
            self.flush()

    def skip(self, rows: int) -> None:
        self._skipped += rows

    def window_done(self, tokens: int, padded_tokens: int, limited_by: str) -> None:
        self.flush((tokens, padded_tokens, limited_by))

    def flush(self, window: tuple[int, int, str] | None = None) -> None:
        """Send what has come together."""
        self._outbox.send(Progressed(self._texts, self._tokens, self._skipped, self._expected, window))
        self._texts = self._tokens = self._skipped = 0
        self._expected, self._sent = None, time.perf_counter()


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; where that cannot be, a closed connection tells it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    """The error with a note of where it was raised; one that cannot be pickled becomes a RuntimeError."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        return plain
    return error
