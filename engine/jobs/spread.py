"""A job computed by several processes, one for each device."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .commits import Commits
from .devices import threads_of_each
from .factories import TaskFactory
from .inputs.input_file import InputFile
from .manifest import ShardRecord
from .messages import Plan
from .report import Report
from .stages import Stages
from .task import JobTask
from .watch import InputWatch
from .workers import WorkerPool

__all__ = ["SeveralProcesses"]


class SeveralProcesses(WorkerPool):
    """Worker processes as `Processes`; see there."""

    def __init__(self, make_task: TaskFactory, devices: Sequence[str], dtype: str) -> None:
        self.devices, self.threads = tuple(devices), threads_of_each(len(devices))
        super().__init__(make_task, self.devices, dtype, self.threads)

    def __enter__(self) -> SeveralProcesses:
        super().__enter__()
        return self

    @property
    def task(self) -> JobTask:
        return self.facts

    def compute(
        self,
        plan: Plan,
        files: Sequence[InputFile],
        done: Sequence[ShardRecord],
        commits: Commits,
        watch: InputWatch,
        report: Report,
        lock: int | None,
    ) -> tuple[float, Stages]:
        begin = time.perf_counter()
        try:
            self.hold_lock(lock)
            stages = self.compute_shards(plan, len(done), commits, watch, report)
            return time.perf_counter() - begin, stages
        finally:
            self.stop()  # before the folder is tidied and unlocked
