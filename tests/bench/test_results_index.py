"""The index of committed results: it is current, and a result of kernels that are gone is marked stale in it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from padless.autotune.kernel_hash import kernel_hashes
from padless.autotune.record import Entry, Provenance, Record, RecordError, Tiling, encode
from padless.bench.reports.index import INDEX, RESULTS, SHIPPED, render
from padless.engine.errors import InputError

Tree = dict[str, Any]

HASHES = kernel_hashes()


def spread(median: float) -> Tree:
    return {"median": median, "p20": median * 0.9, "p80": median * 1.1}


def frame(kind: str, **further: Any) -> Tree:
    machine = {"gpu": "A GPU", "slug": "a-gpu", "commit": "0123456789ab"}
    head = {"schema": 1, "kind": kind, "written": "2026-01-02T03:04:05+00:00", "machine": machine}
    return head | {"kernel_hashes": HASHES} | further


def kernels() -> Tree:
    """Twice as fast as the fastest peer at one case, half as fast at the other, and one that nobody else computes."""

    def case(name: str, **us: float) -> Tree:
        systems = [{"system": system, "us": spread(time)} for system, time in us.items()]
        return {"op": "norm", "case": name, "dtype": "float32", "chosen": "triton", "systems": systems}

    cases = [case("a", triton=10.0, eager=60.0, liger=20.0), case("b", triton=10.0, eager=5.0), case("c", triton=1.0)]
    return frame("kernels", cases=cases)


def gpu_report(dry: bool = False) -> Tree:
    timed = {"padless": {"us": spread(100.0)}, "flex": {"us": spread(150.0)}}
    cases = {"equal/512": {"status": "ok", "timed": timed}, "equal/1024": {"status": "failed", "reason": "wrong"}}
    parts = {"attention": {"cases": cases}, "correctness": {"cases": {"rope": {"status": "ok"}}}}
    return frame("gpu-report", dry=dry, parts=parts)


def jobs() -> Tree:
    systems = [
        {"system": name, "dtype": "float32", "rows_per_second": spread(rate), "overhead": overhead}
        for name, rate, overhead in (("sentence-transformers", 140.0, None), ("padless", 300.0, spread(1.05)))
    ]
    return frame("jobs", workload={"name": "verses", "rows": 5000, "tokens": 175_000}, dtype="float32", systems=systems)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for name, tree in {
        "a-gpu/kernels.json": kernels(),
        "a-gpu/jobs.json": jobs(),
        "a-gpu/report/report.json": gpu_report(),
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree))
    (folder / "a-gpu" / "report" / "configs.json").write_text("{}")  # tilings, no report
    return folder


def lines(page: str) -> dict[str, list[str]]:
    """The cells of each line of the tables, by the first."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {re.sub(r"^\[(.*)\]\(\1\)$", r"\1", cells[0]): cells[1:] for cells in found}


def test_the_committed_index_is_current() -> None:
    """If this fails: make results-index. A kernel was changed, or a result added."""
    assert INDEX.read_text(encoding="utf-8") == render(RESULTS, SHIPPED, HASHES)


def test_a_line_says_what_where_when_and_how_well(results: Path) -> None:
    found = lines(render(results, results / "none", HASHES))
    same = ["A GPU", "2026-01-02", "`0123456789ab`"]
    assert found == {
        "report": ["kind", "machine", "date", "commit", "says", "kernels"],
        "a-gpu/jobs.json": [
            "jobs", *same,
            "verses, 5,000 rows, float32: 300 rows/s, 1.050 s for each second of the model", "current",
        ],
        "a-gpu/kernels.json": [
            # The geometric mean of 2 and 1/2 is 1.
            "kernels", *same, "1.00 times the fastest peer, geometric mean of 2 cases (0.50 to 2.00)", "current",
        ],
        "a-gpu/report/report.json": [
            "gpu-report", *same,
            "2 of 3 cases sound; 1.50 times the fastest peer, geometric mean of 1 cases (1.50 to 1.50)", "current",
        ],
    }  # fmt: skip


def test_a_changed_kernel_turns_its_results_stale(results: Path) -> None:
    other = HASHES | {"rope": "f" * 16, "norm": "e" * 16}
    found = lines(render(results, results / "none", other))
    assert {cells[-1] for name, cells in found.items() if name != "report"} == {"**stale**: norm, rope"}
    # A kernel that is gone counts too; one that is new does not.
    gone = {name: value for name, value in HASHES.items() if name != "pool"} | {"newcomer": "d" * 16}
    found = lines(render(results, results / "none", gone))
    assert found["a-gpu/kernels.json"][-1] == "**stale**: pool"
    # Only those measured with it: this one carries one hash of an older kernel itself.
    tree = kernels()
    tree["kernel_hashes"] = HASHES | {"embed": "0" * 16}
    (results / "a-gpu" / "kernels.json").write_text(json.dumps(tree))
    found = lines(render(results, results / "none", HASHES))
    assert found["a-gpu/kernels.json"][-1] == "**stale**: embed"
    assert found["a-gpu/jobs.json"][-1] == "current"


def test_a_committed_result_with_an_older_kernel_is_not_the_committed_index(tmp_path: Path) -> None:
    """What the first test would do: the same results, one of which was made with other kernels."""
    copied = tmp_path / "results"
    (copied / "a-gpu").mkdir(parents=True)
    (copied / "a-gpu" / "kernels.json").write_text(json.dumps(kernels()))
    before = render(copied, SHIPPED, HASHES)
    assert "**stale**:" not in before.split("\n\n")[2]
    assert render(copied, SHIPPED, HASHES | {"norm": "0" * 16}) != before


def test_a_dry_run_and_a_report_without_hashes_say_so(results: Path) -> None:
    (results / "a-gpu" / "report" / "report.json").write_text(json.dumps(gpu_report(dry=True)))
    tree = jobs()
    del tree["kernel_hashes"]
    (results / "a-gpu" / "jobs.json").write_text(json.dumps(tree))
    found = lines(render(results, results / "none", HASHES))
    assert found["a-gpu/report/report.json"][-2] == "a dry run: nothing is measured"
    assert found["a-gpu/jobs.json"][-1] == "none carried"


def test_models_name_the_baseline(results: Path) -> None:
    systems = [
        {"system": name, "dtype": dtype, "tokens_per_second": spread(5000 * ratio), "ratio": spread(ratio)}
        for name, dtype, ratio in (
            ("sentence-transformers", "float32", 1.0),
            ("padless", "float32", 1.5),
            ("padless", "bfloat16", 2.5),
            ("openvino", "bfloat16", 2.7),
        )
    ]
    tree = frame("models", model="tiny", workload={"name": "news", "texts": 2, "tokens": 100}, systems=systems)
    path = results / "a-gpu" / "jobs.json"
    path.write_text(json.dumps(tree))
    assert lines(render(results, results / "none", HASHES))["a-gpu/jobs.json"][-2] == (
        "tiny, news: padless bfloat16 12,500 tokens/s, 2.50 times sentence-transformers float32"
    )
    one: Tree = {name: tree.pop(name) for name in ("model", "workload", "systems")}
    other: Tree = copy.deepcopy(one) | {"model": "another"}
    for system in other["systems"]:
        if system["system"] == "padless":
            system["ratio"] = spread(1.2)
    path.write_text(json.dumps(tree | {"schema": 2, "models": [one, other]}))
    assert lines(render(results, results / "none", HASHES))["a-gpu/jobs.json"][-2] == (
        "2 cases; padless 1.20 to 2.50 times as fast as sentence-transformers float32"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"broken\.json: expected a report in JSON, found JSONDecodeError: "),
        ("{}", r"broken\.json: kind: missing, expected a text$"),
        ('{"kind": "models", "schema": 9}', r"broken\.json: schema: expected 1 or 2 of kind models, found 9$"),
    ],
)
def test_a_broken_result_is_one_line(results: Path, content: str, message: str) -> None:
    (results / "a-gpu" / "broken.json").write_text(content)
    with pytest.raises(InputError, match=message):
        render(results, results / "none", HASHES)


def entry(head_dim: int, kernel_hash: str) -> Entry:
    provenance = Provenance("A GPU", 132, 90, "2.13.0", "3.7.1", "570.1", kernel_hash, 90.0, 100.0)
    tiling = Tiling((("BLOCK_M", 128), ("BLOCK_N", 64)), 4, 2, None)
    return Entry((("dtype", "bfloat16"), ("head_dim", head_dim)), tiling, provenance)


def test_tuned_configurations_of_other_kernels_are_counted(results: Path, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    path = configs / "a-gpu" / "attention.json"
    path.parent.mkdir(parents=True)
    entries = (entry(64, HASHES["attention"]), entry(128, HASHES["attention_forward"]), entry(32, "0" * 16))
    path.write_bytes(encode(Record("a-gpu", "attention", entries)))
    page = render(results, configs, HASHES)
    assert "| GPU | op | entries | measured with other kernels |" in page
    assert "| a-gpu | attention | 3 | 1 |" in page
    path.write_bytes(encode(Record("a-gpu", "attention", entries[:2])))
    assert "| a-gpu | attention | 2 | none |" in render(results, configs, HASHES)
    path.write_text("{}")
    with pytest.raises(RecordError, match=r"attention\.json: "):
        render(results, configs, HASHES)
