"""A job on several devices whose processes are killed again and again, the parent or a worker, at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from padless.engine.jobs.layout import part_index
from padless.engine.jobs.manifest import read_shards

from .test_resume import assert_every_row_once, contents, write_lines

ROWS, ROWS_PER_SHARD, WORKERS = 24_000, 500, 2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find the workers")


def start(text: Path, out: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    command = ["embed", text, out, "--model", model, "--rows-per-shard", ROWS_PER_SHARD, "--dtype", "float32", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "padless", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def members(leader: int) -> list[int]:
    """The processes of a session that still run, the leader first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return sorted(found, key=lambda process: process != leader)


def committed(out: Path) -> int:
    return len(read_shards(out))


def uncommitted(out: Path) -> set[int]:
    done = committed(out)
    return {index for path in out.glob("part-*") if (index := part_index(path)) is not None and index >= done}


def kill_one(process: subprocess.Popen[str], out: Path, moments: random.Random) -> bool:
    """Kill the parent, or a process it started, once a few more shards are committed; False where it ended before."""
    shards = committed(out) + moments.randint(0, 4)
    while process.poll() is None and (committed(out) < shards or len(members(process.pid)) <= WORKERS):
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.05))
    alive = members(process.pid)
    if process.poll() is not None or not alive:
        return False
    with suppress(ProcessLookupError):
        os.kill(alive[0] if moments.random() < 0.5 else moments.choice(alive), signal.SIGKILL)
    return True


@pytest.mark.soak
@pytest.mark.parametrize("kills_wanted", [60])
def test_killed_parents_and_workers_lose_nothing(tiny_folder: Path, tmp_path: Path, kills_wanted: int) -> None:
    text = write_lines(tmp_path / "in.txt", ROWS)
    devices = ("--devices", f"cpu:{WORKERS}")
    with start(text, tmp_path / "unbroken", tiny_folder) as process:
        assert process.wait() == 0, process.communicate()
    expected = contents(tmp_path / "unbroken")
    moments = random.Random(20250117)
    kills = of_workers = again = jobs = 0
    while kills < kills_wanted:
        out, status = tmp_path / f"broken-{jobs}", 1
        while status:
            before, left_before = committed(out), uncommitted(out)
            with start(text, out, tiny_folder, *devices) as process:
                killed = kill_one(process, out, moments)
                complaint = process.communicate()[1]
            status = process.returncode
            deadline = time.monotonic() + 30
            while members(process.pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if not status:
                break
            assert killed, complaint
            assert status == -signal.SIGKILL or (status == 2 and "was ended by SIGKILL" in complaint), complaint
            done, left = committed(out), uncommitted(out)
            assert done >= before
            # A parent that lives tidies up, if it came so far as to begin; one that is killed leaves a shard a worker.
            assert left <= (
                set(range(done, done + WORKERS)) if status < 0 else left_before if done == before else set()
            )
            kills, of_workers, again = kills + 1, of_workers + (status == 2), again + len(left)
        jobs += 1
        assert contents(out) == expected
        assert_every_row_once(out, ROWS)
        assert not uncommitted(out)
        assert not (out / ".lock").exists()
    print(f"{kills} kills, {of_workers} of workers, over {jobs} jobs of {ROWS:,} rows, {again} shards done again")
