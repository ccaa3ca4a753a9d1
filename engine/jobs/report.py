"""What a job tells while it runs; this one tells nothing. `progress.py` shows a bar, `events.py` writes JSON lines."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .manifest import ShardRecord

__all__ = ["Report"]


class Report:
    """A listener of a job; used as a context manager around it."""

    def begin(self, facts: dict[str, Any]) -> None:
        """The job starts or goes on: output, rows_done, shards_done, token_budget, dtype, device, threads."""

    def note(self, text: str) -> None:
        """Something the user should know that stops nothing."""

    def expect(self, rows: int) -> None:
        """How many rows there are; an estimate that gets better."""

    def advance(self, texts: int, tokens: int) -> None:
        """A batch is computed."""

    def skip(self, rows: int) -> None:
        """Rows that are not computed are through."""

    def window_done(self, tokens: int, padded_tokens: int, limited_by: str) -> None:
        """A window of rows is computed; `limited_by` is the stage that the job waits for."""

    def shard_done(self, shard: ShardRecord) -> None:
        """A shard is committed."""

    def shard_done_on(self, shard: ShardRecord, device: str | None) -> None:
        """A shard is committed that `device` computed; None where the job has one device."""
        self.shard_done(shard)

    def finish(self, summary: dict[str, Any]) -> None:
        """The job is done; `summary` is the content of summary.json."""

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
