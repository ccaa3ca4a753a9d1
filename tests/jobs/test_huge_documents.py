"""A whole job with one huge document among ordinary rows: its memory, its tokens, and the rows around it.

The document is one unit repeated, so that a small one of the same unit shows its first tokens; that job's peak memory
is what the huge one's is held against. The time is a guard against hanging only.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

MB = 10**6
SMALL_BYTES = 20_000
ROWS, PLACE = 41, 20
FACTOR = 3
"""Peak memory that a document may cost, in its own size."""

UNITS = {
    "words": "In the beginning was the Word. ",
    # Four bytes a character as a str, which makes 400 MB of 100.
    "emoji": "In the beginning was 😀 and the Word. ",
    "chinese": "漢字仮名交文",
    "quotes": 'she said "no"\nand left, ',
    "blanks": " ",
}
FORMS = (
    *("jsonl", "jsonl.gz", "escaped.jsonl", "csv", "quoted.csv", "csv.gz", "txt", "txt.gz"),
    *("parquet", "plain.parquet", "arrow", "arrows"),
)

RUN = """
import json, os, sys
import torch
from padless.engine.cli.app import run

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

def peak(command):
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")  # forget the peak so far
    code = run(command)
    assert code == 0, code
    print(kilobytes("VmHWM"), flush=True)

first, *rest = json.loads(sys.argv[1])
if rest:
    torch.set_num_threads(1)  # threads would not live on in a fork
peak(first)
for command in rest:
    # What allocators keep of one job would count as memory of the next, or make up for it.
    if (pid := os.fork()) == 0:
        peak(command)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def texts(kind: str, size: int) -> list[str | None]:
    """Ordinary rows, one of them null, and the document."""
    unit = UNITS[kind]
    rows: list[str | None] = [f"the sun stood still {number}" for number in range(ROWS)]
    rows[PLACE - 1] = None
    rows[PLACE] = unit * (size // len(unit.encode()))
    return rows


def write(path: Path, rows: list[str | None]) -> Path:
    """Rows in the format that the name tells; in lines and CSV, which have no null, as no UTF-8."""
    if path.suffix == ".parquet":
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False} if ".plain" in path.suffixes else {}
        pq.write_table(pa.table({"id": range(ROWS), "text": rows}), path, **options)
    elif path.suffix in (".arrow", ".arrows"):
        table = pa.table({"id": range(ROWS), "text": rows})
        make = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as handle:
            for line in lines(path, rows):
                handle.write(line)
    return path


def lines(path: Path, rows: list[str | None]) -> Iterator[bytes]:
    if ".csv" in path.suffixes:
        yield b"id,text\n"
    for number, text in enumerate(rows):
        if ".jsonl" in path.suffixes:
            line = json.dumps({"id": number, "text": text}, ensure_ascii=".escaped" in path.suffixes).encode()
        elif ".txt" in path.suffixes:
            line = b"\xff" if text is None else text.replace("\n", " ").encode()
        else:
            line = f"{number},".encode() + (b"\xff" if text is None else field(path, text).encode())
        yield line + b"\n"


def field(path: Path, text: str) -> str:
    if ".quoted" in path.suffixes:
        return '"' + text.replace('"', '""') + '"'
    return text.replace("\n", " ").replace('"', "'").replace(",", ";")


def results(out: Path) -> tuple[list[int], np.ndarray, list[bool], list[str], int]:
    table = pq.read_table(out / "part-00000.parquet")
    vectors = np.stack(table["embedding"].to_numpy()) if "embedding" in table.column_names else np.empty(0)
    reasons = [json.loads(line)["reason"] for line in (out / "errors.jsonl").read_text().splitlines()]
    tokens = json.loads((out / "summary.json").read_text())["tokens"]
    return table["row"].to_pylist(), vectors, table["truncated"].to_pylist(), reasons, tokens


def run_jobs(commands: list[list[str]], folder: Path) -> list[int]:
    """Peak memory of each, in bytes: the first in a process of its own, the others in forks that it then makes."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    call = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [1024 * int(peak) for peak in done.stdout.split()]


def command(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    named = [] if ".txt" in source.suffixes else ["--id-column", "id"]
    return [
        "embed", str(source), str(out), "--model", str(model), "--dtype", "float32", "--quiet", *named, *more
    ]  # fmt: skip


def assert_same_tokens_and_neighbours(small: Path, huge: Path) -> None:
    rows, vectors, truncated, reasons, tokens = results(huge)
    assert rows == [number for number in range(ROWS) if number != PLACE - 1]
    expected = results(small)
    assert (rows, truncated, reasons, tokens) == (expected[0], expected[2], expected[3], expected[4])
    assert len(reasons) == 1
    np.testing.assert_allclose(vectors, expected[1], atol=1e-5)


def test_a_huge_document_costs_no_more_than_three_times_its_size(tiny_folder: Path, tmp_path: Path) -> None:
    size = 20 * MB
    cases = [
        *(("words", "jsonl"), ("emoji", "quoted.csv"), ("chinese", "parquet")),
        *(("words", "arrow"), ("emoji", "txt"), ("emoji", "escaped.jsonl")),
    ]
    warm_up = write(tmp_path / "warm-up.jsonl", texts("words", SMALL_BYTES))
    commands, outs = [command(warm_up, tmp_path / "out-warm-up", tiny_folder)], []
    for number, (kind, form) in enumerate(cases):
        for name, content in (("small", SMALL_BYTES), ("huge", size)):
            source = write(tmp_path / f"{name}{number}.{form}", texts(kind, content))
            outs.append(tmp_path / f"out-{name}{number}")
            commands.append(command(source, outs[-1], tiny_folder))
    _, *peaks = run_jobs(commands, tmp_path)
    for case, small, huge in zip(cases, range(0, len(outs), 2), range(1, len(outs), 2), strict=True):
        assert_same_tokens_and_neighbours(outs[small], outs[huge])
        assert peaks[huge] - peaks[small] <= FACTOR * size, case


@pytest.mark.soak
@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("form", FORMS)
def test_100_mb(minilm_folder: Path, tmp_path: Path, form: str, kind: str) -> None:
    outs = [tmp_path / "small", tmp_path / "huge"]
    peaks, seconds = [], []
    for out, size in zip(outs, (SMALL_BYTES, 100 * MB), strict=True):
        source = write(tmp_path / f"{out.name}.{form}", texts(kind, size))
        begin = time.perf_counter()
        peaks += run_jobs([command(source, out, minilm_folder)], tmp_path)
        seconds.append(time.perf_counter() - begin)
    growth, more = (peaks[1] - peaks[0]) / MB, seconds[1] - seconds[0]
    read = json.loads((outs[1] / "summary.json").read_text())["stage_seconds"]["read"]
    print(f"{form}, {kind}: peak memory {growth:+.0f} MB, {more:+.1f} s, of which reading {read:.1f} s")
    assert_same_tokens_and_neighbours(*outs)
    assert growth <= 300
    assert more < 30


@pytest.mark.soak
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_100_mb_where_a_long_text_is_an_error(minilm_folder: Path, tmp_path: Path, form: str) -> None:
    source, out = write(tmp_path / f"huge.{form}", texts("words", 100 * MB)), tmp_path / "out"
    begin = time.perf_counter()
    (peak,) = run_jobs([command(source, out, minilm_folder, "--long-texts", "error")], tmp_path)
    seconds = time.perf_counter() - begin
    rows, _, _, reasons, _ = results(out)
    print(f"{form}: {seconds:.1f} s, peak memory {peak / MB:.0f} MB")
    assert rows == [number for number in range(ROWS) if number not in (PLACE - 1, PLACE)]
    assert sorted("longer than the 256 tokens" in reason for reason in reasons) == [False, True]
    assert seconds < 60
