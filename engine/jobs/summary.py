"""The figures of a finished job: summary.json, and a few lines for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .layout import ERRORS
from .manifest import ShardRecord
from .progress import padding_avoided
from .stages import Stages
from .task import JobTask

__all__ = ["Summary", "summarise"]

_VECTOR = re.compile(r"fixed_size_list<.*>\[(\d+)\]")
"""The type of a column of vectors, as Arrow spells it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a finished job, also in summary.json.

    Counts are of the whole job, over all its runs; seconds and speeds are of the run that finished it.

    Attributes:
        task: name of the task.
        output: the output folder.
        rows: input rows.
        results: rows that got a result; `rows == results + errors`.
        errors: rows without a result, each with its reason in errors.jsonl.
        repaired: rows whose text or id held lone surrogates, each in errors.jsonl.
        truncated: rows whose text was longer than the model takes.
        retries: batches that ran out of memory and were computed in halves.
        fallbacks: rows computed again in float32, because their result was not finite.
        shards: Parquet files written.
        shards_resumed: how many of them earlier runs had committed.
        tokens: tokens computed, special tokens included.
        padded_tokens: tokens that batches of 32 in input order, each padded to its longest, would have computed.
        padding_avoided: `1 - tokens / padded_tokens`.
        seconds: wall time of this run from the first row read to the last shard committed.
        rows_per_second: rows of this run by its seconds.
        tokens_per_second: tokens of this run by its seconds.
        stage_seconds: `read`, `tokenise`, `compute`, `write` and `wait` of this run, see `Stages`.
        waited_for: seconds that the model waited for each of the other stages.
        limited_by: the stage that limited this run.
        token_budget: most tokens in a batch.
        threads: torch's threads.
        columns: name -> type of the result columns.
        dtype: what the model computed in.
        device: what the model computed on.
        versions: of padless, python, torch and pyarrow in this run.
        devices: of each process of this run; `stage_seconds` and `waited_for` are summed over them.
        failed_kernels: kernels that could not be compiled or started, and how; other implementations served in their
            place.
    """

    task: str
    output: str
    rows: int
    results: int
    errors: int
    repaired: int
    truncated: int
    retries: int
    fallbacks: int
    shards: int
    shards_resumed: int
    tokens: int
    padded_tokens: int
    padding_avoided: float
    seconds: float
    rows_per_second: float
    tokens_per_second: float
    stage_seconds: dict[str, float]
    waited_for: dict[str, float]
    limited_by: str
    token_budget: int
    threads: int
    columns: dict[str, str]
    dtype: str
    device: str
    versions: dict[str, str]
    devices: list[str] = field(default_factory=list)
    failed_kernels: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The summary for people, a few lines."""
        lines = [
            f"{self.results:,} {_noun(self.columns)}, {self.shards} shard(s) in {self.output}",
            f"{self.seconds:,.1f} s, {self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.padding_avoided:.0%} padding avoided, limited by {self.limited_by}, "
            f"{self.dtype} on {self._where()}",
        ]
        if self.shards_resumed:
            lines.append(f"{self.shards_resumed} shard(s) were done by earlier runs")
        if self.truncated:
            lines.append(f"{self.truncated:,} texts were longer than the model takes and were cut")
        if self.retries:
            lines.append(f"{self.retries:,} batches ran out of memory and were computed in halves")
        if self.fallbacks:
            lines.append(f"{self.fallbacks:,} rows were computed again in float32: their result was not finite")
        for failure in self.failed_kernels:
            lines.append(f"another implementation served in place of a kernel: {failure}")
        if self.errors or self.repaired:
            where = Path(self.output) / ERRORS
            lines.append(f"{self.errors:,} rows without a result, {self.repaired:,} repaired: see {where}")
        return "\n".join(lines)

    def _where(self) -> str:
        return self.device if len(self.devices) < 2 else ", ".join(_counted(self.devices))


def _counted(devices: Sequence[str]) -> list[str]:
    """Each device once, with how many processes it has if it has several."""
    return [
        device if devices.count(device) == 1 else f"{devices.count(device)} x {device}"
        for device in dict.fromkeys(devices)
    ]


def summarise(
    folder: Path,
    task: JobTask,
    shards: Sequence[ShardRecord],
    *,
    resumed: int,
    seconds: float,
    stages: Stages,
    token_budget: int,
    threads: int,
    versions: dict[str, str],
    devices: Sequence[str],
) -> Summary:
    """The summary of a job whose shards are all committed, the first `resumed` of them by earlier runs."""

    def total(name: str, among: Sequence[ShardRecord] = shards) -> int:
        return sum(getattr(shard, name) for shard in among)

    tokens, padded_tokens = total("tokens"), total("padded_tokens")
    ours = shards[resumed:]
    return Summary(
        task=task.name,
        output=str(folder),
        rows=total("input_rows"),
        results=total("rows"),
        errors=total("errors"),
        repaired=total("repaired"),
        truncated=total("truncated"),
        retries=total("retries"),
        fallbacks=total("fallbacks"),
        shards=len(shards),
        shards_resumed=resumed,
        tokens=tokens,
        padded_tokens=padded_tokens,
        padding_avoided=padding_avoided(tokens, padded_tokens),
        seconds=seconds,
        rows_per_second=total("input_rows", ours) / seconds,
        tokens_per_second=total("tokens", ours) / seconds,
        stage_seconds=stages.seconds(),
        waited_for=stages.waited_for(),
        limited_by=stages.limit(seconds * len(devices)),
        token_budget=token_budget,
        threads=threads,
        columns={field.name: str(field.type) for field in task.fields},
        dtype=task.dtype,
        device=task.device,
        versions=versions,
        devices=list(devices),
        failed_kernels=list(dict.fromkeys(failure for shard in shards for failure in shard.failed_kernels)),
    )


def _noun(columns: dict[str, str]) -> str:
    """What the results are."""
    if len(columns) == 1 and (vector := _VECTOR.fullmatch(next(iter(columns.values())))):
        return f"vectors of {vector[1]} numbers"
    return "results"
