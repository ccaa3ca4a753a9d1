"""A job that is killed again and again ends with the bytes of one that never was, and does little twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from padless.engine.jobs.layout import part_name
from padless.engine.jobs.manifest import read_shards

WORDS = ("sun", "moon", "river", "stone", "bread", "night", "still", "stood")
NEVER_THE_SAME = ("summary.json", ".lock")


def write_lines(path: Path, rows: int, bad_every: int = 100) -> Path:
    """Texts of one to eight words; every so-manieth line is no UTF-8."""
    random_words = random.Random(20250117)
    lines = [" ".join(random_words.choices(WORDS, k=random_words.randint(1, 8))).encode() for _ in range(rows)]
    lines[bad_every - 1 :: bad_every] = [b"stone \xff"] * len(lines[bad_every - 1 :: bad_every])
    path.write_bytes(b"\n".join(lines))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same, byte by byte, however often the job was stopped."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in NEVER_THE_SAME}


def assert_nothing_torn(folder: Path, rows_per_shard: int) -> int:
    """Every committed shard is what its line tells; returns how many there are."""
    if not (folder / "shards.jsonl").exists():
        return 0
    shards = read_shards(folder)
    for index, shard in enumerate(shards):
        content = (folder / shard.name).read_bytes()
        assert (shard.name, shard.first_row) == (part_name(index), index * rows_per_shard)
        assert hashlib.blake2b(content, digest_size=32).hexdigest() == shard.blake2b
        assert shard.errors_bytes <= (folder / "errors.jsonl").stat().st_size
    # Beside them at most the shard in progress: as a temporary file, or whole but without its line.
    following = part_name(len(shards))
    names = {path.name for path in folder.glob("part-*")} - {shard.name for shard in shards}
    assert names <= {following, f"{following}.tmp"}
    if following in names:
        pq.read_table(folder / following)
    return len(shards)


def assert_every_row_once(folder: Path, rows: int) -> None:
    """Each input row has a result or an error, and only one of them."""
    numbers = [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path)["row"].to_pylist()]
    records = map(json.loads, (folder / "errors.jsonl").read_text().splitlines())
    assert sorted([*numbers, *(record["row"] for record in records if record["kind"] == "error")]) == list(range(rows))


def kill_until_done(
    host: Any, text: Path, out: Path, most_kills: int, longest_life: float, moments: random.Random, **job: Any
) -> tuple[int, int]:
    """Run the job, killing it at random moments but no more often than that, until it ends by itself; returns kills and
    shards done again.
    """
    kills = begun_again = 0
    while True:
        before = assert_nothing_torn(out, job["rows_per_shard"]) if out.exists() else 0
        kill = {"kill_after": moments.uniform(0, longest_life), "signal": signal.SIGKILL} if kills < most_kills else {}
        status, complaint = host.run([text], out, **kill, **job)
        assert status in (0, -signal.SIGKILL), complaint
        if status == 0:
            return kills, begun_again
        kills += 1
        after = assert_nothing_torn(out, job["rows_per_shard"]) if out.exists() else 0
        assert after >= before
        begun = {path for path in out.glob("part-*") if path.name.removesuffix(".tmp") >= part_name(after)}
        assert len(begun) <= 1
        begun_again += len(begun)
        # A later run has more to check before it goes on; on a busy machine none would ever come further.
        longest_life *= 1.0 if after > before else 1.15


@pytest.mark.parametrize(
    ("kills_wanted", "rows", "threads"),
    [(20, 12_000, 1), pytest.param(200, 24_000, 2, marks=pytest.mark.soak)],
    ids=["20", "200"],
)
def test_sigkill_at_random_moments_costs_nothing_but_time(
    job_host: Any, tmp_path: Path, kills_wanted: int, rows: int, threads: int
) -> None:
    job = {"rows_per_shard": 1000, "threads": threads}
    text = write_lines(tmp_path / "in.txt", rows)
    begin = time.perf_counter()
    assert job_host.run([text], tmp_path / "unbroken", **job)[0] == 0
    unbroken = time.perf_counter() - begin
    expected = contents(tmp_path / "unbroken")
    assert_every_row_once(tmp_path / "unbroken", rows)
    moments = random.Random(20250117)
    kills = again = jobs = 0
    while kills < kills_wanted:
        out = tmp_path / f"broken-{jobs}"
        found = kill_until_done(job_host, text, out, kills_wanted - kills, unbroken / 6, moments, **job)
        kills, again, jobs = kills + found[0], again + found[1], jobs + 1
        assert contents(out) == expected
        assert not (out / ".lock").exists()
    print(f"{kills} kills over {jobs} jobs of {rows:,} rows, {again} shards done again")
    assert again <= kills


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.soak)])
def test_sigkill_before_every_touch_of_the_folder(job_host: Any, tmp_path: Path, step: int) -> None:
    """Not at random: before each time that a name in the folder is opened, renamed or removed, or each second time."""
    text, job = write_lines(tmp_path / "in.txt", 11, bad_every=5), {"rows_per_shard": 6}
    assert job_host.run([text], tmp_path / "unbroken", **job)[0] == 0
    expected = contents(tmp_path / "unbroken")
    assert sorted(expected) == ["errors.jsonl", "manifest.json", *map(part_name, range(2)), "shards.jsonl"]
    kills, touch = 0, 1
    while True:
        out = tmp_path / f"broken-{touch}"
        status, complaint = job_host.run([text], out, kill_at=touch, **job)
        if status == 0:
            break
        assert status == -signal.SIGKILL, complaint
        kills += 1
        if out.exists():
            assert_nothing_torn(out, 6)
        # Every other time the next run is killed as well, so that what is half removed by a resumed job counts too.
        if kills % 2:
            assert job_host.run([text], out, kill_at=touch + 1, **job)[0] in (0, -signal.SIGKILL)
        assert job_host.run([text], out, **job) == (0, "")
        assert contents(out) == expected
        touch += step
    assert touch > 25
    assert kills == (touch - 1) // step


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_leaves_no_temporary_file_and_no_lock(job_host: Any, tmp_path: Path, number: int, status: int) -> None:
    text, job = write_lines(tmp_path / "in.txt", 24_000), {"rows_per_shard": 500}
    out = tmp_path / "out"
    process = job_host.begin([text], out, **job)
    latest = time.monotonic() + 120  # a job that never commits must not hang the suite; it takes a second or two
    while not ((out / "shards.jsonl").exists() and read_shards(out)):
        assert time.monotonic() < latest
        time.sleep(0.002)
    os.kill(process, number)
    assert job_host.ended(out)[0] == status
    done = assert_nothing_torn(out, 500)
    assert done
    assert not list(out.glob("*.tmp"))
    assert not (out / ".lock").exists()
    assert job_host.run([text], out, **job) == (0, "")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["shards"], summary["shards_resumed"]) == (24_000, 48, done)
    assert_every_row_once(out, 24_000)


def test_torn_tails_are_cut_off(job_host: Any, tmp_path: Path) -> None:
    """What a power cut may leave after the last committed shard: a torn line, records of no shard, a whole file."""
    text, job = write_lines(tmp_path / "in.txt", 40, bad_every=7), {"rows_per_shard": 10}
    out = tmp_path / "out"
    assert job_host.run([text], out, **job)[0] == 0
    expected = contents(out)
    (out / "summary.json").unlink()
    lines = (out / "shards.jsonl").read_bytes().splitlines(keepends=True)
    (out / "shards.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:-1])
    (out / "errors.jsonl").write_bytes(expected["errors.jsonl"] + b'{"file": "in')
    (out / "part-00007.parquet.tmp").write_bytes(b"PAR1")
    (out / "part-00008.parquet").write_bytes(expected["part-00000.parquet"])
    assert job_host.run([text], out, **job) == (0, "")
    assert contents(out) == expected
    assert json.loads((out / "summary.json").read_text())["shards_resumed"] == 2


@pytest.mark.parametrize("left", [[], ["manifest.json"], ["manifest.json", "errors.jsonl"]])
def test_folder_of_a_job_that_just_began(job_host: Any, tmp_path: Path, left: list[str]) -> None:
    text, out = write_lines(tmp_path / "in.txt", 30), tmp_path / "out"
    assert job_host.run([text], out)[0] == 0
    expected = contents(out)
    for path in out.iterdir():
        if path.name not in left:
            path.unlink()
    assert job_host.run([text], out) == (0, "")
    assert contents(out) == expected


def test_only_the_summary_was_missing(job_host: Any, tmp_path: Path) -> None:
    text, out = write_lines(tmp_path / "in.txt", 20), tmp_path / "out"
    for rows_per_shard in (8, 10):  # the last shard short, and full
        folder = out.with_name(f"out-{rows_per_shard}")
        assert job_host.run([text], folder, rows_per_shard=rows_per_shard)[0] == 0
        expected = contents(folder)
        (folder / "summary.json").unlink()
        assert job_host.run([text], folder, rows_per_shard=rows_per_shard) == (0, "")
        assert contents(folder) == expected
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["shards"] == summary["shards_resumed"] == len(expected) - 3
