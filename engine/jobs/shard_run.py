"""One run through windows of a job: read ahead, computed, written behind, handed over shard by shard.

Reading has a thread of its own, one window ahead; tokenising has one inside the task; writing has one, one window
behind. What is computed depends on none of their timing. A shard is handed over before the next one is begun, so that
a run that is killed has at most one to do again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ..errors import InputError, NotFiniteError
from ..streaming.prefetch import prefetch
from ..streaming.stream import EncodeStats
from .background import Background
from .commits import FinishedShard
from .errors_file import RowRecord, record_of
from .finite import not_finite
from .inputs.input_file import InputFile
from .inputs.rows import Row
from .layout import part_name
from .manifest import ShardRecord
from .report import Report
from .stages import Stages
from .task import Answers, JobTask
from .watch import InputWatch
from .windows import Window
from .writer import ShardWriter

__all__ = ["ShardRun"]

NOT_FINITE = "the result is not finite"


@dataclass(slots=True)
class _OpenShard:
    """A shard in progress."""

    index: int
    writer: ShardWriter
    first_row: int
    input_rows: int = 0
    stats: EncodeStats = field(default_factory=EncodeStats)
    records: list[RowRecord] = field(default_factory=list)


class ShardRun:
    """Computes and writes shards, and hands them over to be committed.

    Args:
        task: what is computed.
        folder: the output folder, claimed and locked.
        files: the inputs, to tell how much is read.
        watch: of the inputs.
        schema: of a shard.
        has_id: whether it has an id column.
        carried: how many carried columns it has.
        rows_per_shard: input rows that a shard covers.
        report: listener; it is told of everything but commits.
        hand_over: commits a finished shard, or sees that it is.
        may_open: is called with a shard's number before its file is opened, and returns when it may be.

    Attributes:
        stages: where its time went.
    """

    def __init__(
        self,
        task: JobTask,
        folder: Path,
        files: Sequence[InputFile],
        watch: InputWatch,
        schema: pa.Schema,
        *,
        has_id: bool,
        carried: int,
        rows_per_shard: int,
        report: Report,
        hand_over: Callable[[FinishedShard], None],
        may_open: Callable[[int], None] | None = None,
    ) -> None:
        self._task, self._folder, self._files, self._watch = task, folder, files, watch
        self._schema, self._has_id, self._carried = schema, has_id, carried
        self._rows_per_shard, self._report = rows_per_shard, report
        self._hand_over, self._may_open = hand_over, may_open
        self._started = 0.0
        self.stages = Stages()

    def run(self, windows: Iterator[Window], *, first_shard: int) -> float:
        """Go through the windows; returns the seconds that took.

        Args:
            windows: from the first that is not committed.
            first_shard: number of the shard they begin with; it is written even if there are none and it is shard 0,
                so that whoever reads the folder finds the columns.

        Raises:
            JobError: the disk refuses.
            InputError: an input cannot be read further, or has changed.
        """
        self._started = time.perf_counter()
        shard: _OpenShard | None = None
        any_window = False
        with Background() as background:
            try:
                for window in self._read_ahead(windows):
                    any_window = True
                    shard = shard or self._open(window.shard)
                    self._compute(window, shard, background)
                    if window.ends_shard:
                        self._commit(shard, background)
                        shard = None
                if not any_window and first_shard == 0:
                    shard = self._open(0)
                if shard is not None:
                    self._commit(shard, background)
                    shard = None
            finally:
                if shard is not None:
                    background.abandon()
                    shard.writer.discard()
        self.stages.write += background.busy_seconds
        return time.perf_counter() - self._started

    def _open(self, index: int) -> _OpenShard:
        if self._may_open is not None:
            self._may_open(index)
        path = self._folder / part_name(index)
        writer = ShardWriter(path, self._schema, has_id=self._has_id, carried=self._carried)
        return _OpenShard(index, writer, index * self._rows_per_shard)

    def _read_ahead(self, windows: Iterator[Window]) -> Iterator[Window]:
        ahead = prefetch(self._read(windows))
        while True:
            begin = time.perf_counter()
            item = next(ahead, None)
            self.stages.wait_read += time.perf_counter() - begin
            if item is None:
                return
            window, rows_expected = item
            if rows_expected is not None:
                self._report.expect(rows_expected)
            yield window

    def _read(self, windows: Iterator[Window]) -> Iterator[tuple[Window, int | None]]:
        """The windows, each with an estimate of all rows; called in the reading thread."""
        while True:
            begin = time.perf_counter()
            window = next(windows, None)
            self.stages.read += time.perf_counter() - begin
            if window is None:
                return
            rows, fraction = window.rows[-1].number + 1, self._fraction_read()
            yield window, max(rows, round(rows / fraction)) if fraction > 0 else None

    def _compute(self, window: Window, shard: _OpenShard, background: Background) -> None:
        good = [row for row in window.rows if row.text is not None]
        self._report.skip(len(window.rows) - len(good))
        stats, before = EncodeStats(), time.perf_counter()
        answers = self._task.run(good, stats, self._report.advance) if good else Answers([])
        self.stages.tokenise += stats.tokenise_seconds
        self.stages.compute += stats.compute_seconds or time.perf_counter() - before
        self.stages.wait_tokenise += stats.wait_seconds
        shard.stats.add(stats)
        shard.input_rows += len(window.rows)
        bad = {**dict.fromkeys(not_finite(answers.columns).tolist(), NotFiniteError(NOT_FINITE)), **answers.bad}
        shard.records += _records(window.rows, good, bad)
        kept = [index for index in range(len(good)) if index not in bad]
        waited = background.wait_seconds
        background.submit(_write, shard.writer, good, answers, kept)
        self.stages.wait_write += background.wait_seconds - waited
        limit = self.stages.limit(time.perf_counter() - self._started)
        self._report.window_done(stats.tokens, stats.padded_tokens, limit)

    def _commit(self, shard: _OpenShard, background: Background) -> None:
        begin = time.perf_counter()
        background.wait()
        begin_commit = time.perf_counter()
        self._watch.check()
        size, digest = shard.writer.commit()
        errors = sum(record.kind == "error" for record in shard.records)
        records = sorted(shard.records, key=lambda record: record.row)
        record = ShardRecord(
            name=shard.writer.path.name,
            first_row=shard.first_row,
            input_rows=shard.input_rows,
            rows=shard.writer.rows_written,
            tokens=shard.stats.tokens,
            padded_tokens=shard.stats.padded_tokens,
            truncated=shard.stats.truncated,
            repaired=len(records) - errors,
            errors=errors,
            retries=shard.stats.retries,
            fallbacks=shard.stats.fallbacks,
            errors_bytes=0,
            bytes=size,
            blake2b=digest,
            failed_kernels=tuple(self._task.failed_kernels()),
        )
        self._hand_over(FinishedShard(shard.index, record, records))
        end = time.perf_counter()
        self.stages.write += end - begin_commit
        self.stages.wait_write += end - begin

    def _fraction_read(self) -> float:
        size = sum(file.bytes for file in self._files)
        return sum(file.bytes * file.fraction_read for file in self._files) / size if size else 1.0


def _records(rows: Sequence[Row], good: Sequence[Row], bad: dict[int, InputError]) -> list[RowRecord]:
    """Records of a window: rows that came bad, rows repaired, rows without a result."""
    unread = [record_of(row) for row in rows if row.text is None]
    repaired = [record_of(row) for index, row in enumerate(good) if row.kind == "repaired" and index not in bad]
    return [*unread, *repaired, *(record_of(good[index], error) for index, error in bad.items())]


def _write(writer: ShardWriter, rows: Sequence[Row], answers: Answers, kept: list[int]) -> None:
    columns = answers.columns
    if len(kept) < len(rows):
        chosen = pa.array(kept, pa.int64())
        rows, columns = [rows[index] for index in kept], [column.take(chosen) for column in columns]
    writer.write(rows, columns, [index in answers.truncated for index in kept])
