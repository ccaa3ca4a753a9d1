"""A job that dies at any moment leaves whole committed shards, and nothing under a shard's name that is not whole."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from padless.engine.jobs.layout import part_name
from padless.engine.jobs.manifest import read_shards

ROWS_PER_SHARD = 211

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from padless.engine.cli.app import run
sys.exit(run(sys.argv[2:]))
"""


def command(text: Path, out: Path, model: Path) -> list[str]:
    arguments = ["embed", text, out, "--model", model, "--rows-per-shard", ROWS_PER_SHARD, "--dtype", "float32"]
    return [sys.executable, "-m", "padless", *map(str, arguments)]


def assert_only_whole_shards(out: Path) -> None:
    """Every committed shard is what its line says; whatever else is there is not under a committed name."""
    shards = read_shards(out)
    errors_length = (out / "errors.jsonl").stat().st_size
    for index, shard in enumerate(shards):
        content = (out / shard.name).read_bytes()
        assert shard.name == part_name(index)
        assert hashlib.blake2b(content, digest_size=32).hexdigest() == shard.blake2b
        assert shard.first_row == index * ROWS_PER_SHARD
        table = pq.read_table(out / shard.name)
        assert len(table) == shard.rows == ROWS_PER_SHARD - shard.errors
        assert shard.errors_bytes <= errors_length
    committed = {shard.name for shard in shards}
    uncommitted = {path.name for path in out.glob("part-*")} - committed
    # At most the shard in progress: its temporary file, or the whole file that has no line yet.
    following = part_name(len(shards))
    assert uncommitted <= {following, f"{following}.tmp"}
    if following in uncommitted:
        pq.read_table(out / following)
    assert not (out / "summary.json").exists()


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    """Long enough that no job is through with it before it is stopped; every 100th line is no UTF-8."""
    path = tmp_path / "in.txt"
    lines = [b"the sun stood still \xff" if number % 100 == 99 else b"moon river" for number in range(400_000)]
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("committed", [1, 2, 5, 11])
def test_sigkill_leaves_only_whole_shards(long_text: Path, tiny_folder: Path, tmp_path: Path, committed: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(long_text, out, tiny_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        while process.poll() is None and not (out / "shards.jsonl").exists():
            time.sleep(0.01)
        while process.poll() is None and len(read_shards(out)) < committed:
            time.sleep(0.001)
        process.kill()
        _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint
    assert len(read_shards(out)) >= committed
    assert_only_whole_shards(out)


def test_interrupt_ends_in_one_line_and_whole_shards(long_text: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Whoever runs these tests in the background of a script has told them, and all they start, to ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(long_text, out, tiny_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not ((out / "shards.jsonl").exists() and read_shards(out)):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, complaint = process.communicate()
    assert (process.returncode, output, complaint) == (130, "", "padless: interrupted\n")
    assert_only_whole_shards(out)
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize(
    ("limit", "refused", "committed"),
    [
        (1_000, "manifest.json", 0),
        (10_000, "part-00000.parquet", 0),
        (20_000, "part-00000.parquet", 0),
        # Half the rows are bad: a shard's file stays below the limit, the records of two shards do not.
        (25_000, "errors.jsonl", 1),
    ],
)
def test_disk_that_refuses_ends_in_one_line_and_whole_shards(
    tiny_folder: Path, tmp_path: Path, limit: int, refused: str, committed: int
) -> None:
    """A limit on the size of a file stands for the full disk: a write fails in the middle."""
    text = tmp_path / "in.txt"
    lines = [b"\xff" if refused == "errors.jsonl" and number % 2 else b"sun" for number in range(ROWS_PER_SHARD * 4)]
    text.write_bytes(b"\n".join(lines))
    out = tmp_path / "out"
    limited = [sys.executable, "-c", LIMITED, str(limit), *command(text, out, tiny_folder)[3:]]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"padless: {out / refused}: cannot be written (")
    assert not list(out.glob("*.tmp"))
    if (out / "manifest.json").exists():
        assert_only_whole_shards(out)
        assert len(read_shards(out)) == committed
