"""Reports onto the disk: what is written is read back, and a disk that refuses is one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from padless.bench.kernels.csv_file import write_csv as write_kernels
from padless.bench.reports.files import check_folders, frame, write_json, writing
from padless.bench.reports.report import KINDS, read_report
from padless.bench.reports.systems import systems_of, table_of
from padless.engine.errors import InputError

MACHINE = {"cpu": "some CPU", "commit": "0" * 40}
FULL = Path("/dev/full")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpu-report"])
def test_a_report_begins_as_it_is_read(kind: str, tmp_path: Path) -> None:
    report = frame(kind, MACHINE, repeats=3, models=[])
    write_json(report, tmp_path / "report.json")
    found = read_report(tmp_path / "report.json")
    assert (found.kind, found.machine_name, found.commit) == (kind, "some CPU", "0" * 40)
    assert found.root.tree == report
    assert list(report) == ["schema", "kind", "written", "machine", "repeats", "models"]


def test_a_folder_that_is_not_there_is_named_before_any_work(tmp_path: Path) -> None:
    check_folders(None, tmp_path / "a.json", "b.json")
    with pytest.raises(InputError, match=r"^.*/no/a\.json: cannot be written, there is no folder .*/no$"):
        check_folders(tmp_path / "a.json", tmp_path / "no" / "a.json")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a disk without room")
@pytest.mark.parametrize(
    "write", [lambda: write_json(frame("models", MACHINE), FULL), lambda: write_kernels({"cases": []}, FULL)]
)
def test_a_full_disk_is_one_line(write: Callable[[], None]) -> None:
    with pytest.raises(InputError, match=r"^/dev/full: cannot be written, No space left on device$"):
        write()


def test_lines_end_as_they_are_written(tmp_path: Path) -> None:
    with writing(tmp_path / "a.csv") as file:
        file.write("a\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == b"a\r\nb\n"


def test_systems_are_set_against_the_baseline_round_by_round() -> None:
    seconds = {"theirs float32": [2.0, 4.0, 8.0], "ours float32": [1.0, 1.0, 4.0]}
    found = systems_of(seconds, 800, baseline="theirs float32", versions_of=lambda system: {system: "1"})
    assert [(entry["system"], entry["dtype"], entry["versions"]) for entry in found] == [
        ("theirs", "float32", {"theirs": "1"}),
        ("ours", "float32", {"ours": "1"}),
    ]
    assert [entry["tokens_per_second"]["median"] for entry in found] == [200, 800]
    # Of 2, 4 and 2 times; medians of the rates would say 4.
    assert [entry["ratio"]["median"] for entry in found] == [1, 2]
    report: dict[str, Any] = {"systems": found, "failed": {"ours bfloat16": "differs"}}
    head, *lines = (line.split() for line in table_of(report, "tok/s", digits=1))
    assert head == ["system", "dtype", "tok/s", "p20", "p80", "ratio"]
    assert [[*line[:3], line[-1]] for line in lines] == [
        ["theirs", "float32", "200.0", "1.00x"],
        ["ours", "float32", "800.0", "2.00x"],
        ["ours", "bfloat16", "no", "differs"],
    ]
    rate = found[1]["tokens_per_second"]
    assert lines[1][3:5] == [f"{rate['p20']:.1f}", f"{rate['p80']:.1f}"]
