"""What a job tells: JSON events, a bar on a terminal, the stages of the summary."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import padless
from padless.engine.jobs.background import Background
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.events import JsonLog
from padless.engine.jobs.manifest import read_shards
from padless.engine.jobs.progress import Progress
from padless.engine.jobs.run import run_job
from padless.engine.jobs.stages import Stages


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_bytes(b"the sun\nmoon\n\xff\nriver stone\nbread\n" * 8)
    return path


def test_json_events_tell_the_whole_job(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    told, out = io.StringIO(), tmp_path / "out"
    run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=15, report=JsonLog(told, seconds_between=0))
    events: list[dict[str, Any]] = [json.loads(line) for line in told.getvalue().splitlines()]
    assert all(event["time"].endswith("+00:00") for event in events)
    start, finish = events[0], events[-1]
    assert (start["event"], start["rows_done"], start["shards_done"]) == ("start", 0, 0)
    assert (start["task"], start["inputs"], start["dtype"]) == ("embedding", [str(text)], "float32")
    shards = [event for event in events if event["event"] == "shard"]
    assert [shard["name"] for shard in shards] == [shard.name for shard in read_shards(out)]
    assert [shard["errors_in_run"] for shard in shards] == [3, 6, 8]
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["rows"] for event in progress] == sorted(event["rows"] for event in progress)
    assert (progress[-1]["rows"], progress[-1]["rows_expected"], progress[-1]["eta_seconds"]) == (40, 40, 0.0)
    assert progress[-1]["limited_by"] in ("read", "tokenise", "compute", "write")
    assert finish["event"] == "finish"
    told_summary = {name: value for name, value in finish.items() if name not in ("event", "time")}
    assert told_summary == json.loads((out / "summary.json").read_text())


def test_a_line_is_one_write(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    # A signal comes between two writes: the line that tells of it must not be glued to half of another.
    class Writes(io.StringIO):
        def write(self, part: str) -> int:
            written.append(part)
            return len(part)

    written: list[str] = []
    log = JsonLog(Writes(), seconds_between=0)
    run_job(EmbeddingTask(tiny), [text], tmp_path / "out", rows_per_shard=15, report=log)
    log.stopped("terminated: none", 143)
    assert {json.loads(line)["event"] for line in written} == {"start", "progress", "shard", "finish", "error"}
    assert all(line.endswith("}\n") for line in written)


def test_progress_is_told_every_few_seconds_only(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    run_job(EmbeddingTask(tiny), [text], tmp_path / "out", report=JsonLog(told, seconds_between=3600))
    assert [json.loads(line)["event"] for line in told.getvalue().splitlines()] == ["start", "shard", "finish"]


def test_summary_tells_stages_and_versions(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    begin = time.perf_counter()
    summary = run_job(EmbeddingTask(tiny), [text], tmp_path / "out", rows_per_shard=10)
    wall = time.perf_counter() - begin
    assert list(summary.stage_seconds) == ["read", "tokenise", "compute", "write", "wait"]
    assert 0 < summary.seconds <= wall
    # None of these threads can have been at work for longer than the job took.
    assert all(0 < summary.stage_seconds[stage] <= wall for stage in ("read", "tokenise", "write"))
    assert summary.stage_seconds["wait"] == pytest.approx(sum(summary.waited_for.values()), abs=1e-5)
    assert list(summary.versions) == ["padless", "python", "torch", "pyarrow"]
    assert (summary.retries, summary.fallbacks, summary.shards_resumed) == (0, 0, 0)


@pytest.mark.parametrize(
    ("waits", "limit"),
    [
        ({}, "compute"),
        ({"wait_read": 9.0}, "compute"),
        ({"wait_read": 11.0, "wait_write": 10.0}, "read"),
        ({"wait_read": 11.0, "wait_tokenise": 40.0, "compute": 300.0}, "tokenise"),
        ({"wait_write": 99.0}, "write"),
    ],
)
def test_stage_that_limits_is_the_one_waited_for(waits: dict[str, float], limit: str) -> None:
    assert Stages(**waits).limit(100.0) == limit


def test_no_bar_and_no_word_where_nobody_looks(
    tiny: padless.Encoder, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job(EmbeddingTask(tiny), [text], tmp_path / "out", report=Progress(show=False))
    assert capfd.readouterr() == ("", "")


def test_bar_of_a_resumed_job_begins_where_it_was(
    tiny: padless.Encoder, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=10)
    lines = (out / "shards.jsonl").read_bytes().splitlines(keepends=True)
    (out / "shards.jsonl").write_bytes(b"".join(lines[:3]))
    (out / "summary.json").unlink()
    run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=10, report=Progress(show=True))
    shown = capfd.readouterr().err.split("\r")
    assert shown[1].strip().startswith("30 rows")
    assert "40/40" in shown[-1]
    assert "limited by " in shown[-1]


def test_background_runs_in_order_and_tells_errors_in_place() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise ValueError("third")
        done.append(number)

    def submit_all(background: Background) -> Iterator[int]:
        for number in range(10):
            background.submit(work, number)
            yield number

    with Background() as background:
        begun: list[int] = []
        with pytest.raises(ValueError, match="third"):
            begun.extend(submit_all(background))
        assert done[:3] == [0, 1, 2]
        background.abandon()
        background.wait()
    # The error is told when at most two more were waiting: never a whole job later.
    assert len(done) <= 5
