"""What a job tells to programs: a JSON object a line, on stderr."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from .manifest import ShardRecord
from .report import Report

__all__ = ["JsonLog"]

SECONDS_BETWEEN = 5.0
"""Progress is told no more often."""


class JsonLog(Report):
    """Writes `start`, `note`, `progress`, `shard`, `finish` and `error` events, each with its `time` (UTC).

    Args:
        stream: where to; None is stderr.
        seconds_between: least time between two `progress` events.
    """

    def __init__(self, stream: TextIO | None = None, seconds_between: float = SECONDS_BETWEEN) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._between = seconds_between
        self._started = self._told = time.perf_counter()
        self._rows = self._tokens = self._before = self._errors = 0
        self._expected: int | None = None
        self._limited_by: str | None = None

    def begin(self, facts: dict[str, Any]) -> None:
        self._started = self._told = time.perf_counter()
        self._before = facts["rows_done"]
        self._tell("start", **facts)

    def note(self, text: str) -> None:
        self._tell("note", message=text)

    def expect(self, rows: int) -> None:
        self._expected = rows

    def advance(self, texts: int, tokens: int) -> None:
        self._rows += texts
        self._tokens += tokens
        self._progress()

    def skip(self, rows: int) -> None:
        self._rows += rows
        self._progress()

    def window_done(self, tokens: int, padded_tokens: int, limited_by: str) -> None:
        self._limited_by = limited_by

    def shard_done(self, shard: ShardRecord) -> None:
        self.shard_done_on(shard, None)

    def shard_done_on(self, shard: ShardRecord, device: str | None) -> None:
        self._errors += shard.errors
        where = {} if device is None else {"device": device}
        self._tell("shard", **asdict(shard), **where, errors_in_run=self._errors)

    def finish(self, summary: dict[str, Any]) -> None:
        self._tell("finish", **summary)

    def stopped(self, message: str, exit_code: int) -> None:
        """The job ends before it is done."""
        self._tell("error", message=message, exit_code=exit_code)

    def _progress(self) -> None:
        now = time.perf_counter()
        if now - self._told < self._between:
            return
        self._told, seconds = now, max(now - self._started, 1e-9)
        left = None if self._expected is None else max(self._expected - self._before - self._rows, 0)
        self._tell(
            "progress",
            rows=self._before + self._rows,
            rows_expected=self._expected,
            rows_per_second=round(self._rows / seconds, 1),
            tokens_per_second=round(self._tokens / seconds, 1),
            eta_seconds=None if left is None or not self._rows else round(left * seconds / self._rows, 1),
            limited_by=self._limited_by,
        )

    def _tell(self, event: str, **facts: Any) -> None:
        told = datetime.now(UTC).isoformat(timespec="milliseconds")
        # One write: a signal comes before a line or behind it, and the last line is not glued to half of another.
        self._stream.write(json.dumps({"event": event, "time": told, **facts}) + "\n")
        self._stream.flush()
