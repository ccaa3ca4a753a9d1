"""The command line when it is stopped: exit code, one line, and the same command goes on; of real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from padless.engine.cli import app
from padless.engine.jobs.manifest import read_shards

ROWS_PER_SHARD = 211


def command(text: Path, out: Path, model: Path) -> list[str]:
    arguments = ["embed", text, out, "--model", model, "--rows-per-shard", ROWS_PER_SHARD, "--dtype", "float32"]
    return [sys.executable, "-m", "padless", *map(str, arguments)]


def write_lines(path: Path, rows: int) -> Path:
    """Every 100th line is no UTF-8."""
    lines = [b"the sun stood still \xff" if number % 100 == 99 else b"moon river" for number in range(rows)]
    path.write_bytes(b"\n".join(lines))
    return path


def stop_in_the_middle(call: list[str], out: Path, number: int, shards: int) -> tuple[int, str, str]:
    """Send a signal once so many shards are committed; returns exit status, output and complaint."""
    # Whoever runs these tests in the background of a script has told them, and all they start, to ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not ((out / "shards.jsonl").exists() and len(read_shards(out)) >= shards):
            time.sleep(0.002)
        process.send_signal(number)
        output, complaint = process.communicate()
    return process.returncode, output, complaint


def test_sigkill_then_the_same_command(tiny_folder: Path, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "in.txt", 10_000)
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    status, _, complaint = stop_in_the_middle(command(text, out, tiny_folder), out, signal.SIGKILL, 3)
    assert status == -signal.SIGKILL, complaint
    done = len(read_shards(out))
    assert done >= 3
    # The same command in this process, which has torch: whoever goes on knows of the other its folder only.
    for folder in (out, unbroken):
        assert app.run(command(text, folder, tiny_folder)[3:]) == 0
    names = sorted(path.name for path in unbroken.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    assert all((out / name).read_bytes() == (unbroken / name).read_bytes() for name in names if name != "summary.json")
    assert json.loads((out / "summary.json").read_text())["shards_resumed"] == done


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_stop_ends_in_one_line_that_says_how_to_go_on(
    tiny_folder: Path, tmp_path: Path, number: int, word: str, code: int
) -> None:
    """Long enough that no job is through with it before it is stopped."""
    text, out = write_lines(tmp_path / "in.txt", 400_000), tmp_path / "out"
    call = command(text, out, tiny_folder)
    if number == signal.SIGTERM:
        call.append("--log-json")
    status, output, complaint = stop_in_the_middle(call, out, number, 1)
    shards = read_shards(out)
    message = f"{word}: {len(shards):,} shard(s) are done, the same command goes on from there (without --overwrite)"
    assert (status, output) == (code, "")
    if number == signal.SIGTERM:
        last = json.loads(complaint.splitlines()[-1])
        assert (last["event"], last["message"], last["exit_code"]) == ("error", message, code)
    else:
        assert complaint == f"padless: {message}\n"
    assert not list(out.glob("*.tmp"))
    assert not (out / ".lock").exists()
    assert not (out / "summary.json").exists()
