"""A job on several devices, as CPU workers: the bytes of a job on one, whatever happens to the processes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import padless
from padless.engine.cli import app
from padless.engine.errors import InputError, JobError, OptionError
from padless.engine.jobs.devices import find_devices
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.factories import EmbeddingJob
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import open_inputs, read_rows
from padless.engine.jobs.layout import part_index
from padless.engine.jobs.manifest import ShardRecord, read_shards
from padless.engine.jobs.report import Report
from padless.engine.jobs.row_cursor import RowCursor
from padless.engine.jobs.run import run_job, run_job_on
from padless.engine.jobs.shard_queue import ShardQueue

ROWS_PER_SHARD = 211
NEVER_THE_SAME = ("summary.json", ".lock")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """What each worker has, and the process compared with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_lines(path: Path, rows: int) -> Path:
    """Texts of one to twelve words; every 100th line is no UTF-8."""
    some = random.Random(20250117)
    lines = []
    for number in range(rows):
        words = " ".join(some.choices(("sun", "moon", "river", "stone"), k=some.randint(1, 12)))
        lines.append(b"stone \xff" if number % 100 == 99 else words.encode())
    path.write_bytes(b"\n".join(lines))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in NEVER_THE_SAME}


def run_one(model: padless.Encoder, inputs: list[Path], out: Path, **options: Any) -> dict[str, bytes]:
    """The job in this process; what it wrote."""
    run_job(EmbeddingTask(model), inputs, out, rows_per_shard=ROWS_PER_SHARD, **options)
    return contents(out)


def run_several(model: Path, workers: int, inputs: list[Path], out: Path, **options: Any) -> Any:
    devices = find_devices(f"cpu:{workers}")
    return run_job_on(
        EmbeddingJob(str(model)), devices, "float32", inputs, out, rows_per_shard=ROWS_PER_SHARD, **options
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that no job is through with it before it is stopped."""
    return write_lines(tmp_path_factory.mktemp("text") / "in.txt", 12_000)


@pytest.fixture(scope="module")
def alone(tiny: padless.Encoder, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process that is not stopped makes of it."""
    return run_one(tiny, [text], tmp_path_factory.mktemp("alone") / "out")


class Heard(Report):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.names: list[str] = []
        self.devices: list[str | None] = []
        self.rows = 0

    def begin(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def advance(self, texts: int, tokens: int) -> None:
        self.rows += texts

    def skip(self, rows: int) -> None:
        self.rows += rows

    def shard_done_on(self, shard: ShardRecord, device: str | None) -> None:
        self.names.append(shard.name)
        self.devices.append(device)


def uncommitted(out: Path) -> list[int]:
    """Numbers of shards that have a file, whole or not, but no line."""
    done = len(read_shards(out))
    found = {part_index(path) for path in out.glob("part-*")}
    return sorted(index for index in found if index is not None and index >= done)


def test_two_workers_write_the_bytes_of_one_process(tiny: padless.Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    """Parquet, whose gaps are skipped, and lines, which are read on; ids and a carried column; errors in order."""
    rows = 2 * ROWS_PER_SHARD + 5
    texts = [None if number % 50 == 7 else "moon " * (number % 13 + 1) for number in range(rows)]
    table = pa.table({"text": texts, "name": [f"n{number}" for number in range(rows)], "size": ["big"] * rows})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    lines = [{"text": "river " + "stone " * (number % 9), "name": f"x{number}", "size": "s"} for number in range(1500)]
    records = [json.dumps(line) if number % 40 else "{" for number, line in enumerate(lines)]
    (tmp_path / "b.jsonl").write_text("\n".join(records))
    inputs, columns = [tmp_path / "a.parquet", tmp_path / "b.jsonl"], InputColumns(id="name", kept=("size",))
    expected = run_one(tiny, inputs, tmp_path / "one", columns=columns)
    assert len(expected["errors.jsonl"].splitlines()) > 40
    heard = Heard()
    summary = run_several(tiny_folder, 2, inputs, tmp_path / "two", columns=columns, report=heard)
    assert contents(tmp_path / "two") == expected
    assert not (tmp_path / "two" / ".lock").exists()
    assert heard.names == sorted(name for name in expected if name.startswith("part-"))
    assert set(heard.devices) == {"cpu"}
    assert heard.rows == summary.rows == rows + 1500
    assert summary.devices == heard.facts["devices"] == ["cpu"] * 2
    assert summary.threads == 1
    assert set(summary.stage_seconds) == {"read", "tokenise", "compute", "write", "wait"}
    assert not multiprocessing.active_children()


def test_no_rows_at_all_still_give_a_shard_with_the_columns(
    tiny: padless.Encoder, job_host: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_bytes(b"")
    expected = run_one(tiny, [tmp_path / "in.txt"], tmp_path / "one")
    assert "part-00000.parquet" in expected
    job = {"rows_per_shard": ROWS_PER_SHARD, "devices": 3}
    assert job_host.run([tmp_path / "in.txt"], tmp_path / "three", **job) == (0, "")
    assert contents(tmp_path / "three") == expected


def test_a_killed_worker_is_one_line_and_the_job_goes_on(
    tiny: padless.Encoder, job_host: Any, text: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, complaint = job_host.run([text], out, rows_per_shard=ROWS_PER_SHARD, devices=3, kill_worker_at=4)
    assert status == 2
    assert re.match(r"JobError: cpu: its process \d+ was ended by SIGKILL, exit code -9", complaint)
    assert complaint.count("\n") == 1
    assert not list(out.glob("*.tmp"))
    assert not (out / ".lock").exists()
    assert 4 <= len(read_shards(out)) < len([name for name in alone if name.startswith("part-")])
    assert not uncommitted(out)
    assert run_one(tiny, [text], out) == alone


def test_an_error_of_a_worker_is_that_of_one_process(tiny: padless.Encoder, job_host: Any, tmp_path: Path) -> None:
    """A compressed file that is cut off: found by whoever comes so far."""
    whole = gzip.compress(write_lines(tmp_path / "in.txt", 5000).read_bytes())
    torn = tmp_path / "torn.txt.gz"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as among_one:
        run_one(tiny, [torn], tmp_path / "one")
    among_several = job_host.run([torn], tmp_path / "two", rows_per_shard=ROWS_PER_SHARD, devices=2)
    assert among_several == (2, f"InputError: {among_one.value}\n")
    assert not list((tmp_path / "two").glob("*.tmp"))
    torn.write_bytes(whole)
    with pytest.raises(JobError, match="holds another job"):  # the file is another one now
        run_one(tiny, [torn], tmp_path / "two")


def start(text: Path, out: Path, model: Path) -> subprocess.Popen[str]:
    arguments = ["embed", text, out, "--model", model, "--rows-per-shard", ROWS_PER_SHARD, "--dtype", "float32"]
    command = [sys.executable, "-m", "padless", *map(str, arguments), "--devices", "cpu:2"]
    # Whoever runs these tests in the background of a script has told them, and all they start, to ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    signal.signal(signal.SIGINT, before)
    return process


def wait_for_shards(leader: int, out: Path, count: int) -> None:
    """Until so many are committed; the process that began the session still runs then."""
    while not ((out / "shards.jsonl").exists() and len(read_shards(out)) >= count):
        assert is_running(leader)
        time.sleep(0.002)
    assert len(session_members(leader)) >= 3


def is_running(process: int) -> bool:
    """Zombies do not run."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def session_members(leader: int) -> list[int]:
    """Processes of a session that still run; zombies do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def assert_all_end(leader: int) -> None:
    deadline = time.monotonic() + 10
    while (left := session_members(leader)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see which processes are left")
def test_a_kill_leaves_no_process_and_costs_a_shard_a_worker(
    tiny: padless.Encoder, job_host: Any, text: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Of the parent alone; test_devices_killed.py kills the command line, and workers too."""
    out = tmp_path / "out"
    process = job_host.begin([text], out, rows_per_shard=ROWS_PER_SHARD, devices=2)
    wait_for_shards(process, out, 5)
    os.kill(process, signal.SIGKILL)
    assert job_host.ended(out) == (-signal.SIGKILL, "")
    assert_all_end(process)
    done = len(read_shards(out))
    assert set(uncommitted(out)) <= {done, done + 1}
    # By one process, to the bytes that one process alone writes.
    assert run_one(tiny, [text], out) == alone


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see which processes are left")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)], ids=["INT", "TERM"]
)
def test_a_stop_leaves_no_process_and_no_begun_shard(
    tiny: padless.Encoder, tiny_folder: Path, text: Path, alone: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    """Of the command line. Ctrl-C goes to all processes of a terminal; here SIGTERM to the parent alone."""
    out = tmp_path / "out"
    with start(text, out, tiny_folder) as process:
        wait_for_shards(process.pid, out, random.Random(number).randint(1, 10))
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        output, complaint = process.communicate()
        assert_all_end(process.pid)
    done = len(read_shards(out))
    assert not uncommitted(out)
    word, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
    line = f"{word}: {done:,} shard(s) are done, the same command goes on from there (without --overwrite)"
    assert (process.returncode, output, complaint) == (code, "", f"padless: {line}\n")
    assert not list(out.glob("*.tmp"))
    assert not (out / ".lock").exists()
    assert run_one(tiny, [text], out) == alone


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cuda:9", "cuda:9 was asked for, this machine has"),
        ("cpu:0", "at least 1"),
        ("cpu:x", "at least 1"),
        ("cpu:", "at least 1"),
        ("cpu:100000", "this machine has"),
        ("cpu:2,cuda:0", "expected 'all'"),
        ("cuda:", "expected 'all'"),
        ("cuda:-1", "expected 'all'"),
        ("gpu", "expected 'all'"),
        ("", "expected 'all'"),
    ],
)
def test_misuse_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, devices: str, message: str
) -> None:
    text = write_lines(tmp_path / "in.txt", 3)
    command = ["embed", str(text), str(tmp_path / "out"), "-m", str(tiny_folder), "--devices", devices]
    assert app.run(command) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("padless: devices: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_only_one_process_can_do_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path
) -> None:
    text, out = str(write_lines(tmp_path / "in.txt", 3)), str(tmp_path / "out")
    more = ["-m", str(tiny_folder), "--devices", "cpu:2"]
    assert app.run(["embed", "-", out, *more]) == 2
    assert "standard input can be read by one process only" in capsys.readouterr().err
    assert app.run(["embed", text, "-", *more]) == 2
    assert "expected a folder" in capsys.readouterr().err
    assert app.run(["embed", text, out, "--device", "cpu", *more]) == 2
    assert "--device is given too" in capsys.readouterr().err
    assert not Path(out).exists()


def test_devices_by_name() -> None:
    assert find_devices("cpu:3") == ("cpu",) * 3
    assert find_devices("cpu") == ("cpu",)
    everything, gpus = find_devices("all"), torch.cuda.device_count()
    assert everything == (tuple(f"cuda:{index}" for index in range(gpus)) or ("cpu",))
    if gpus:
        with pytest.raises(OptionError, match="named twice"):
            find_devices("cuda:0,cuda")


def test_shards_come_back_in_order_whoever_is_first() -> None:
    moments = random.Random(20250117)
    for _ in range(50):
        shards: ShardQueue[int] = ShardQueue(3)
        busy, back = [shards.hand_out() for _ in range(4)], []
        while busy:
            index = busy.pop(moments.randrange(len(busy)))
            assert index is not None
            if index >= 11:
                shards.no_rows(index)
            else:
                back += shards.finished(index, index)
                assert back == list(range(3, shards.committed))
            if (following := shards.hand_out()) is not None:
                busy.append(following)
        assert back == list(range(3, 11))
        assert shards.is_empty


def test_a_cursor_gives_the_rows_of_any_rising_shards(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.txt", 57)
    pq.write_table(
        pa.table({"text": [f"t{number}" for number in range(100)]}), tmp_path / "b.parquet", row_group_size=9
    )
    moments = random.Random(20250117)
    for inputs in ([lines], [tmp_path / "b.parquet"], [lines, tmp_path / "b.parquet"]):
        every = list(read_rows(open_inputs(inputs)))
        for size in (1, 7, 10, 500):
            cursor = RowCursor(open_inputs(inputs), size)
            for index in sorted(moments.sample(range(len(every) // size + 3), 3)):
                found, expected = list(cursor.shard(index)), every[index * size : (index + 1) * size]
                assert [(row.number, row.file, row.text, row.kind) for row in found] == [
                    (row.number, row.file, row.text, row.kind) for row in expected
                ]
