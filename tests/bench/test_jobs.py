"""`padless bench jobs`: a tiny real run, and what is refused before anything runs."""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from padless.bench.jobs.run import run
from padless.bench.jobs.systems import MODEL_ONLY, SCRIPT, SYSTEMS, JobSystem, run_system
from padless.bench.reports.report import check_report
from padless.bench.reports.rows import rows_of
from padless.bench.workloads import default_model, verses
from padless.engine.errors import InputError, JobError, OptionError

ROWS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one run."""
    folder = tmp_path_factory.mktemp("jobs")
    run(ROWS, "float32", 1, None, folder / "jobs.json", folder / "jobs.csv", folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def report(made: Path) -> dict[str, Any]:
    return json.loads((made / "jobs.json").read_text(encoding="utf-8"))


def test_every_way_did_the_job_and_wrote_the_same_vectors(report: dict[str, Any]) -> None:
    assert (report["kind"], report["schema"], report["failed"]) == ("jobs", 1, {})
    assert [system["system"] for system in report["systems"]] == [SCRIPT, MODEL_ONLY, "padless"]
    for system in report["systems"]:
        assert system["check"]["lowest_cosine"] >= 0.99999
    # The script is the reference; ours were computed by other code, and read back from Parquet and from npy.
    largest = {system["system"]: system["check"]["largest_difference"] for system in report["systems"]}
    assert largest[SCRIPT] == 0.0
    assert 0.0 < largest["padless"] <= 1e-5
    assert 0.0 < largest[MODEL_ONLY] <= 1e-5


def test_the_figures_follow_from_the_seconds(report: dict[str, Any]) -> None:
    assert report["workload"]["rows"] == ROWS
    systems = {system["system"]: system for system in report["systems"]}
    for system in systems.values():
        seconds = system["seconds"]["median"]
        assert system["rows_per_second"]["median"] == pytest.approx(ROWS / seconds)
        assert system["tokens_per_second"]["median"] == pytest.approx(report["workload"]["tokens"] / seconds)
        assert system["ratio"]["median"] == pytest.approx(systems[SCRIPT]["seconds"]["median"] / seconds)
        assert system["start_seconds"]["median"] > 0
    overhead = systems["padless"]["seconds"]["median"] / systems[MODEL_ONLY]["seconds"]["median"]
    assert systems["padless"]["overhead"]["median"] == pytest.approx(overhead)
    assert systems[SCRIPT]["overhead"] is None


def test_tokens_are_those_of_the_texts(report: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model(), local_files_only=True)
    expected = sum(map(len, tokenizer(verses()[:ROWS])["input_ids"]))
    assert report["workload"]["tokens"] == expected


def test_memory_is_of_the_process_and_not_of_its_parent(report: dict[str, Any], tmp_path: Path) -> None:
    """A child's figure begins with its parent's: this process is larger than what it starts here."""
    for system in report["systems"]:
        assert 200 < system["peak_rss_mib"]["median"] < 4000  # torch and the weights, at least
    held = np.ones(100 << 20, dtype=np.uint8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 200 << 10
    out = tmp_path / "out.json"
    command = "x = b'1' * (50 << 20)"
    line = [sys.executable, "-m", "padless.bench.jobs.process", str(out), sys.executable, "-c", command]
    assert subprocess.run(line, check=False).returncode == 0
    facts = json.loads(out.read_text())
    assert 50 < facts["peak_rss_mib"] < 100
    assert facts["seconds"] > 0
    assert held.all()


def test_the_report_can_be_drawn_compared_and_read_as_csv(report: dict[str, Any], made: Path) -> None:
    rows = rows_of(check_report(report))
    assert {row.case for row in rows} == {f"verses, {ROWS} rows, float32"}
    assert [(row.system, row.ours, row.unit) for row in rows] == [
        (SCRIPT, False, "rows/s"),
        (MODEL_ONLY, True, "rows/s"),
        ("padless", True, "rows/s"),
    ]
    assert (made / "pictures" / "jobs.png").read_bytes()[:4] == b"\x89PNG"
    with (made / "jobs.csv").open(encoding="utf-8", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [line["system"] for line in table] == [SCRIPT, MODEL_ONLY, "padless"]
    for line, system in zip(table, report["systems"], strict=True):
        assert float(line["rows_per_second"]) == system["rows_per_second"]["median"]
        assert (line["overhead"] == "") == (system["overhead"] is None)


WRITES = """
import json, pathlib, sys
import numpy as np
folder, scale, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
vectors = np.eye(4, dtype=np.float32)
vectors[2, 1] += scale
np.save(folder / "vectors.npy", vectors)
(folder / "facts.json").write_text(json.dumps({"seconds": seconds, "tokens": 40}))
"""


def stand_in(scale: float, seconds: float) -> JobSystem:
    """A process that writes four vectors, one of them off by `scale`, and states its seconds."""
    return JobSystem(
        lambda source, folder, model, dtype: [sys.executable, "-c", WRITES, str(folder), str(scale), str(seconds)],
        "facts.json",
        lambda folder: np.load(folder / "vectors.npy"),
        ("numpy",),
    )


def test_who_writes_other_vectors_has_a_reason_and_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {SCRIPT: stand_in(0.0, 0.02), MODEL_ONLY: stand_in(0.0, 0.01), "padless": stand_in(0.5, 0.012)}
    for name, system in systems.items():
        monkeypatch.setitem(SYSTEMS, name, system)
    run(4, "float32", 2, json_path=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [system["system"] for system in report["systems"]] == [SCRIPT, MODEL_ONLY]
    # cos of (1, 0.5) and (1, 0).
    assert report["failed"] == {"padless": "lowest cosine 0.894427, expected at least 0.99999"}
    printed = capsys.readouterr().out
    assert re.search(r"^padless +no number: lowest cosine 0\.894427", printed, re.MULTILINE)
    # The first round decided; the second ran without it.
    assert [line.split("  ")[1] for line in printed.splitlines() if line.startswith("  ")].count("padless") == 1
    monkeypatch.setitem(SYSTEMS, "padless", stand_in(0.0, 0.012))
    run(4, "float32", 2, json_path=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    ours = report["systems"][2]
    assert ours["overhead"] == {"median": pytest.approx(1.2), "p20": pytest.approx(1.2), "p80": pytest.approx(1.2)}
    assert ours["ratio"]["median"] == pytest.approx(0.02 / 0.012)


def test_shards_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    out = tmp_path / "out"
    out.mkdir()
    for place, rows in enumerate(([3, 1], [4, 0, 2])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), 3)
        pq.write_table(pa.table({"row": rows, "embedding": column}), out / f"part-{place:05d}.parquet")
    assert SYSTEMS["padless"].vectors(tmp_path).tolist() == vectors.tolist()


def test_a_system_that_ends_badly_is_named_with_its_last_line(tmp_path: Path) -> None:
    source = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"id": [0], "text": ["a"]}), source)
    with pytest.raises(JobError, match=r"^padless: ended with exit code 2: padless: .*no-model"):
        run_system("padless", source, tmp_path / "out", tmp_path / "no-model", "float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 0}, OptionError, r"^rows: expected 1 to 24,408, got 0$"),
        ({"rows": 24_409}, OptionError, r"^rows: expected 1 to 24,408, got 24,409$"),
        ({"dtype": "int8"}, OptionError, r"^dtype 'int8': expected float32 or bfloat16$"),
        ({"repeats": 0}, OptionError, r"^repeats: expected at least 1, got 0$"),
        ({"json_path": Path("/nowhere/at/all.json")}, InputError, r"^/nowhere/at/all\.json: cannot be written, "),
    ],
)
def test_what_is_out_of_range_is_named_before_anything_runs(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(**options)
