"""Who computes a job: this process, with a loaded task; `spread.py` has the other answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from .budget import token_budget
from .commits import Commits
from .inputs.input_file import InputFile
from .inputs.reader import read_rows
from .manifest import ShardRecord
from .messages import Plan
from .report import Report
from .stages import Stages
from .task import JobTask
from .watch import InputWatch
from .windows import cut_windows

__all__ = ["OwnProcess", "Processes"]


class Processes(Protocol):
    """One process or several, that compute the shards of a job.

    Attributes:
        task: what is computed; its `run` is not called by others.
        devices: of each process.
        threads: torch's, of each process.
    """

    @property
    def task(self) -> JobTask: ...

    @property
    def devices(self) -> Sequence[str]: ...

    @property
    def threads(self) -> int: ...

    def token_budget(self) -> int:
        """Most tokens in a batch, from the free memory."""
        ...

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
        """Compute and commit all shards behind `done`; returns the seconds that took, and where they went.

        Args:
            plan: what is read and written.
            files: its inputs, opened.
            done: shards that earlier runs have committed.
            commits: makes shards exist.
            watch: of the inputs.
            report: listener.
            lock: descriptor of the folder's lock, for those who write there too.
        """
        ...


class OwnProcess:
    """The process that calls, with the task it has loaded."""

    def __init__(self, task: JobTask) -> None:
        self.task = task
        self.devices = (task.device,)

    @property
    def threads(self) -> int:
        import torch

        return torch.get_num_threads()

    def token_budget(self) -> int:
        return token_budget(self.task)

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
        from .shard_run import ShardRun  # brings torch: not needed to check a job

        fixed = plan.fixed
        with _budget(self.task, fixed["token_budget"]), _threads(fixed["threads"]):
            run = ShardRun(
                self.task,
                plan.folder,
                files,
                watch,
                plan.schema,
                has_id=plan.has_id,
                carried=plan.carried,
                rows_per_shard=plan.rows_per_shard,
                report=report,
                hand_over=commits.commit,
            )
            rows = read_rows(files, sum(shard.input_rows for shard in done), self.task.is_enough)
            windows = cut_windows(rows, plan.rows_per_shard, fixed["window_rows"], fixed["window_characters"])
            return run.run(windows, first_shard=len(done)), run.stages


@contextmanager
def _budget(task: JobTask, tokens: int) -> Iterator[None]:
    """Have the task's batches be of so many tokens; the model is the caller's, and has its own again afterwards."""
    before, task.token_budget = task.token_budget, tokens
    try:
        yield
    finally:
        task.token_budget = before


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have torch compute in so many threads: how products are split over them may change bits."""
    import torch

    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
