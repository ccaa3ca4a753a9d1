"""docs/examples/embed_with_ray.py on a local Ray of two workers: killed, resumed, run again.

Ray runs in processes of its own, a driver and what it starts; they are found by a mark in their environment, and by the
log files that they keep open.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import padless

if missing := [name for name in ("ray", "pandas") if find_spec(name) is None]:
    pytest.skip(f"Ray Data needs {missing[0]}: pip install 'padless[ray]'", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "examples" / "embed_with_ray.py"
script = runpy.run_path(str(SCRIPT))
FILES, ROWS_PER_FILE = 4, 41
WORDS = ("the", "sun", "stood", "still", "and", "moon", "river", "stone", "bread", "night")

# The script's own `main`, for each list of arguments, between which the same Ray stays up; then the callable on values
# of several types, which Ray keeps as Python objects. A process that has had nothing to do for a second is not ended:
# the next task would start another.
DRIVER = """
import json, runpy, sys
import pyarrow as pa, ray
from padless.engine.integrations.ray import AnswerBatches

ray.init(
    num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20, _temp_dir=sys.argv[1],
    _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
)
main = runpy.run_path(sys.argv[2])["main"]
for arguments in json.loads(sys.argv[4]):
    main(arguments)
if sys.argv[3]:
    ray.data.DataContext.get_current().checkpoint_config = None
    items = [{"id": 0, "text": "the sun"}, {"id": 1, "text": 7}, {"id": 2, "text": None}]
    rows = ray.data.from_items(items, override_num_blocks=1)
    answers = rows.map_batches(
        AnswerBatches,
        fn_constructor_kwargs={"model": sys.argv[3], "dtype": "float32"},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,
    )
    print(json.dumps(sorted(answers.take_all(), key=lambda row: row["id"])))
ray.shutdown()
"""


class Drivers:
    """Starts drivers, and ends whatever is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(16)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PADLESS_TEST_MARK": self.mark,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray writes one into the home folder
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else Ray starts 32 processes to read the footers of a few files, at each read.
            "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *calls: list[str], model: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(self.folder), str(SCRIPT), str(model or ""), json.dumps(calls)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=null, text=True)

    def left(self) -> list[int]:
        """Processes that were started by a driver, drivers included."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)]

    def _is_ours(self, process: Path) -> bool:
        with contextlib.suppress(OSError):
            if self.mark.encode() in (process / "environ").read_bytes():
                return True
            # Ray writes the titles of its processes over their environment.
            return any(os.readlink(file).startswith(str(self.folder)) for file in (process / "fd").iterdir())
        return False

    def wait_until_gone(self, seconds: float) -> list[int]:
        """The processes that are left when none is or the time is over."""
        end = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def end(self) -> None:
        for process in self.left():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


@dataclass
class Job:
    """A job that was killed, resumed and run again.

    Attributes:
        inputs: the rows of all input files.
        killed: name -> bytes of the files that were committed when the driver was killed.
        status: of the driver that resumed it.
        said: lines that it printed.
        left: processes that were there a while after it had ended.
        output: the output folder.
    """

    inputs: pa.Table
    killed: dict[str, bytes]
    status: int
    said: list[Any]
    left: list[int]
    output: Path

    @property
    def written(self) -> pa.Table:
        return pq.read_table(self.output / "vectors")


def write_inputs(folder: Path) -> pa.Table:
    """Rows of 1 to 12 words, here and there a null, an empty text, and one without a finite vector."""
    random = np.random.default_rng(20261122)
    tables = []
    folder.mkdir()
    for number in range(FILES):
        lengths = random.integers(1, 13, ROWS_PER_FILE)
        texts: list[str | None] = [" ".join(random.choice(WORDS, length)) for length in lengths]
        texts[number], texts[number + 1], texts[number + 2] = None, "", "the bomb"
        ids = range(number * ROWS_PER_FILE, (number + 1) * ROWS_PER_FILE)
        tables.append(pa.table({"id": ids, "text": pa.array(texts, pa.string()), "left out": [0] * ROWS_PER_FILE}))
        # Two row groups: a row's place in its file is then another than its place in what is read at once.
        pq.write_table(tables[-1], folder / f"{number:02}.parquet", row_group_size=23)
    return pa.concat_tables(tables)


def committed(output: Path) -> list[Path]:
    return [path for path in output.glob("checkpoint/*.parquet") if ".pending" not in path.name]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, embedding_folder: Path, classifier_folder: Path) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    inputs = write_inputs(folder / "in")
    output = folder / "out"
    arguments = [str(folder / "in"), str(output), "--model", str(embedding_folder), "--carry", "id"]
    arguments += ["--dtype", "float32", "--cpus-per-worker", "0", "--batch-size", "8", "--block-mib", "0.004"]
    # Each worker imports torch: only the run that has the most to do has two. Their number is none of the job's.
    alone = [*arguments, "--workers", "1"]
    # A short path: the names of Unix sockets have little room.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        drivers = Drivers(Path(temporary))
        try:
            first = drivers.start(alone)
            while first.poll() is None and not committed(output):
                time.sleep(0.002)
            first.kill()
            first.communicate()
            assert first.returncode == -signal.SIGKILL, "the driver had ended before it was killed"
            # What a driver leaves behind ends within a minute by itself; here the whole host is gone.
            drivers.end()
            assert not drivers.wait_until_gone(30)
            killed = {path.name: path.read_bytes() for path in committed(output)}
            second = drivers.start([*arguments, "--workers", "2"], alone, model=classifier_folder)
            said, _ = second.communicate()
            lines = [json.loads(line) for line in said.splitlines() if line.startswith(("{", "["))]
            left = drivers.wait_until_gone(30)
            yield Job(inputs, killed, second.returncode, lines, left, output)
        finally:
            drivers.end()


def test_every_row_is_there_once(job: Job) -> None:
    before = sum(pq.read_metadata(pa.BufferReader(content)).num_rows for content in job.killed.values())
    assert 0 < before < len(job.inputs)
    assert job.status == 0
    written = job.written
    assert sorted(written["id"].to_pylist()) == job.inputs["id"].to_pylist()
    assert set(written.column_names) == {"id", "text", "row_hash", "embedding", "padless_error"}
    texts = dict(zip(written["id"].to_pylist(), written["text"].to_pylist(), strict=True))
    assert [texts[row] for row in job.inputs["id"].to_pylist()] == job.inputs["text"].to_pylist()


def test_what_was_committed_is_not_done_again(job: Job) -> None:
    for name, content in job.killed.items():
        assert (job.output / "checkpoint" / name).read_bytes() == content
        assert [path.name for path in (job.output / "vectors").glob(f"{Path(name).stem}*")], name


def test_vectors_are_those_of_encode(job: Job, embedding_folder: Path) -> None:
    encoder = padless.load(embedding_folder, device="cpu", dtype="float32")
    rows = job.written.select(["text", "embedding", "padless_error"]).to_pylist()
    good = [row for row in rows if row["padless_error"] is None]
    bad = [row for row in rows if row["padless_error"] is not None]
    expected = encoder.encode([row["text"] for row in good])
    np.testing.assert_allclose([row["embedding"] for row in good], expected, atol=1e-6, rtol=0)
    assert {row["embedding"] for row in bad} == {None}
    reasons = sorted((row["text"] or "", row["padless_error"]) for row in bad)
    not_finite = "the model's vector is not finite, nor is that of the eager implementation in float32"
    expected_reasons = [("", "null, expected a string"), ("the bomb", not_finite)]
    assert reasons == sorted(expected_reasons * FILES)


def test_a_finished_job_is_left_as_it_is(job: Job) -> None:
    resumed, again, _ = job.said
    rows = len(job.inputs)
    assert resumed == again
    assert (again["rows"], again["vectors"], again["errors"]) == (rows, rows - 2 * FILES, 2 * FILES)


def test_values_of_several_types_are_looked_at_one_by_one(job: Job, classifier_folder: Path) -> None:
    first, *others = job.said[2]
    (expected,) = padless.load(classifier_folder, device="cpu", dtype="float32")(["the sun"])
    assert (first["label"], first["padless_error"]) == (expected["label"], None)
    assert first["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert [row["padless_error"] for row in others] == ["int 7, expected a string", "null, expected a string"]
    assert [row["label"] for row in others] == [None, None]


def test_no_process_is_left(job: Job) -> None:
    assert job.left == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--normalize"], "holds rows of a job with another normalize, expected an output of its own"),
        (["--text-column", "id"], "column 'id' has type int64, expected string"),
        (["--text-column", "txt"], "no column 'txt'; columns found: id, text, left out"),
        (["--carry", "id", "body"], "no column 'body'; columns found: id, text, left out"),
        (["--model", "/nowhere"], "model '/nowhere': no such folder"),
    ],
)
def test_misuse_ends_in_one_line(
    job: Job, embedding_folder: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    """Found before Ray is started."""
    arguments = [str(job.output.parent / "in"), str(job.output), "--model", str(embedding_folder), "--carry", "id"]
    with pytest.raises(SystemExit) as end:
        script["main"]([*arguments, "--dtype", "float32", *changed])
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("embed_with_ray: ")
    assert message in said.err


def test_workers_leave_room_for_what_ray_does_itself() -> None:
    options = script["parser"]().parse_args(["in", "out", "--model", "m", "--workers", "3", "--cpus-per-worker", "1.5"])
    script["check_cpus"](options, 6.5)
    with pytest.raises(padless.OptionError, match=r"are 6\.5, the cluster has 6;"):
        script["check_cpus"](options, 6)


def test_a_job_that_wrote_nothing_makes_room_for_another(tmp_path: Path) -> None:
    """A wrong option that only a worker finds must not bar the way for the right one."""
    target, output = script["place"](str(tmp_path / "out"))
    script["claim"](target, output, {"dtype": "wrong"})
    script["claim"](target, output, {"dtype": "right"})
    assert json.loads((tmp_path / "out" / "job.json").read_text()) == {"dtype": "right"}
    (tmp_path / "out" / "vectors").mkdir()
    (tmp_path / "out" / "vectors" / "0.parquet").touch()
    script["claim"](target, output, {"dtype": "right"})
    with pytest.raises(padless.JobError, match="holds rows of a job with another dtype"):
        script["claim"](target, output, {"dtype": "wrong"})
