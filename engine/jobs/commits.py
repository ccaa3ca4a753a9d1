"""Committing shards: what makes a written shard exist, strictly in the order of the shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .errors_file import RowRecord, append_records
from .layout import ERRORS
from .manifest import ShardRecord, append_shard
from .report import Report

__all__ = ["Commits", "FinishedShard"]


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard whose file has its name, but that does not exist yet.

    Attributes:
        index: number of the shard.
        record: its line; `errors_bytes` is known once it is committed.
        errors: its records for errors.jsonl, in the order of the rows.
    """

    index: int
    record: ShardRecord
    errors: list[RowRecord]


class Commits:
    """Appends the records and the line of one shard after the other.

    Args:
        folder: the output folder, claimed and locked.
        report: is told of every shard.

    Attributes:
        shards: committed by this run.
    """

    def __init__(self, folder: Path, report: Report) -> None:
        self._folder, self._report = folder, report
        self.shards: list[ShardRecord] = []

    def commit(self, finished: FinishedShard, device: str | None = None) -> None:
        """Make a shard exist; `device` is told to the report where there are several.

        Raises:
            JobError: the disk refuses.
        """
        record = replace(finished.record, errors_bytes=append_records(self._folder / ERRORS, finished.errors))
        append_shard(self._folder, record)
        self.shards.append(record)
        self._report.shard_done_on(record, device)
