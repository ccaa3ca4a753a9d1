"""`padless bench compare`: verdicts worked out by hand, and one line for what cannot be compared."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from padless.bench.gpu import decode, fused
from padless.bench.reports.compare import Change, compare, parse_threshold, run
from padless.bench.reports.report import check_report, read_report
from padless.bench.reports.rows import BOUNDS, rows_of
from padless.engine.errors import InputError, OptionError

Tree = dict[str, Any]


def spread(median: float, p20: float, p80: float) -> Tree:
    return {"median": median, "p20": p20, "p80": p80}


def kernels(**us: tuple[float, float, float]) -> Tree:
    """A report of one case, microseconds by system."""
    systems = [{"system": name.replace("_", " "), "us": spread(*times)} for name, times in us.items()]
    case = {"op": "norm", "case": "768", "dtype": "float32", "tokens": 100, "flops": 10, "bytes": 10}
    return {
        "schema": 1,
        "kind": "kernels",
        "written": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "A CPU", "slug": "a-cpu", "threads": 2, "torch": "2.13.0", "commit": "aaa"},
        "kernel_hashes": {"norm": "1" * 16, "rope": "2" * 16},
        "ceilings": {"tflops": {"float32": 1.0}, "gbps": 10.0},
        "cases": [{**case, "systems": systems, "left_out": {}, "failed": {}}],
    }


def models(**tokens_per_second: tuple[float, float, float]) -> Tree:
    """A report of schema 1, which had one model."""
    systems = [
        {"system": name, "dtype": "float32", "tokens_per_second": spread(*rates), "versions": {"torch": "2.13.0"}}
        for name, rates in tokens_per_second.items()
    ]
    return {
        "schema": 1,
        "kind": "models",
        "written": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "A CPU", "slug": "a-cpu", "commit": "aaa"},
        "model": "tiny",
        "workload": {"name": "news", "texts": 2, "tokens": 100},
        "systems": systems,
        "left_out": {"onnxruntime float32": "not installed"},
        "failed": {},
    }


def changes(old: Tree, new: Tree, threshold: float = 0.03) -> dict[str, Change]:
    found = compare(check_report(old, "old"), check_report(new, "new"), threshold)
    return {change.label: change for change in found.changes}


def test_less_time_is_faster_and_the_spreads_must_not_touch() -> None:
    old = kernels(a=(100, 98, 102), b=(100, 98, 102), c=(100, 98, 102), d=(100, 98, 102), e=(100, 99.9, 100.1))
    new = kernels(a=(80, 79, 82), b=(125, 120, 130), c=(110, 101, 120), d=(100, 98, 102), e=(101, 100.9, 101.1))
    found = changes(old, new)
    assert [(found[name].speed, found[name].apart, found[name].verdict) for name in "abcde"] == [
        (1.25, True, "faster"),
        (0.8, True, "slower"),
        (pytest.approx(100 / 110), False, "same"),  # 10% slower, but within the spread
        (1.0, False, "same"),
        (pytest.approx(100 / 101), True, "same"),  # beyond the spread, but 1% only
    ]
    # The slowest first.
    assert list(found) == ["b", "c", "e", "d", "a"]


def test_of_a_rate_more_is_faster() -> None:
    found = changes(models(padless=(1000, 990, 1010), other=(1000, 990, 1010)),
                    models(padless=(1250, 1200, 1300), other=(800, 790, 810)))  # fmt: skip
    assert (found["padless float32"].speed, found["padless float32"].verdict) == (1.25, "faster")
    assert (found["other float32"].speed, found["other float32"].verdict) == (0.8, "slower")


@pytest.mark.parametrize(("threshold", "verdict"), [(0.19, "slower"), (0.21, "same")])
def test_the_threshold_counts_there_and_back_alike(threshold: float, verdict: str) -> None:
    """100 to 125 microseconds is a fifth less speed; 125 to 100 is undoing just that."""
    slow, quick = kernels(a=(125, 125, 125)), kernels(a=(100, 100, 100))
    assert changes(quick, slow, threshold)["a"].verdict == verdict
    assert changes(slow, quick, threshold)["a"].verdict == verdict.replace("slower", "faster")


def test_touching_spreads_are_no_change() -> None:
    assert changes(kernels(a=(100, 95, 110)), kernels(a=(115, 110, 120)))["a"].verdict == "same"
    assert changes(kernels(a=(100, 95, 109)), kernels(a=(115, 110, 120)))["a"].verdict == "slower"


def test_what_one_lacks_is_named_with_the_other_s_reason() -> None:
    old = models(padless=(1000, 990, 1010), onnxruntime=(900, 890, 910))
    new = models(padless=(1000, 990, 1010), openvino=(900, 890, 910))
    old["left_out"], old["failed"] = {}, {"openvino float32": "lowest cosine 0.2"}
    found = compare(check_report(old), check_report(new), 0.03)
    assert found.only_old == ("tiny, news, onnxruntime float32: 900 tokens/s (left out: not installed)",)
    assert found.only_new == ("tiny, news, openvino float32: 900 tokens/s (failed: lowest cosine 0.2)",)


def test_what_else_differs_stands_first() -> None:
    old, new = kernels(a=(1, 1, 1)), kernels(a=(1, 1, 1))
    new["machine"] |= {"torch": "2.14.0", "commit": "bbb", "threads": 4}
    new["kernel_hashes"] = {"norm": "1" * 16, "rope": "3" * 16, "pool": "4" * 16}
    new["cases"][0]["tokens"] = 200
    found = compare(check_report(old), check_report(new), 0.03)
    assert found.same_machine
    assert found.differences == (
        "threads: 2, now 4",
        "torch: 2.13.0, now 2.14.0",
        "commit: aaa, now bbb",
        "kernels: other code in pool, rope",
        "norm: 768, float32: 100 tokens, now 200: not the same work",
    )
    new["machine"] |= {"cpu": "Another", "slug": "another"}
    found = compare(check_report(old), check_report(new), 0.03)
    assert not found.same_machine
    assert found.differences[0] == "other machine: A CPU, now Another: the figures say little of the code"


def test_versions_of_the_systems_are_compared() -> None:
    old, new = models(padless=(1, 1, 1)), models(padless=(1, 1, 1))
    new["systems"][0]["versions"] = {"torch": "2.14.0"}
    assert compare(check_report(old), check_report(new), 0.03).differences == ("torch: 2.13.0, now 2.14.0",)


def test_both_schemas_of_models_are_one() -> None:
    old = models(padless=(1000, 990, 1010))
    new = copy.deepcopy(old)
    one = {name: new.pop(name) for name in ("model", "workload", "systems", "left_out", "failed")}
    new |= {"schema": 2, "models": [one | {"tokens": 100}]}
    assert rows_of(check_report(old)) == rows_of(check_report(new))


def test_the_row_that_the_table_takes_is_padless() -> None:
    tree = kernels(cpu=(80, 79, 81), eager=(160, 150, 170))
    tree["cases"][0] |= {"chosen": "cpu", "lengths": "fixed 128", "seqlen": 128}
    ours, eager = rows_of(check_report(tree))
    assert (ours.system, ours.label, ours.ours, ours.shown) == ("padless", "cpu", True, "padless (cpu)")
    assert (eager.system, eager.ours, eager.length) == ("eager", False, 128)
    assert ours.case == "norm: 768, fixed 128, float32"
    assert ours.speed_over(eager.value) == 2.0


def test_what_does_less_than_the_op_is_no_peer() -> None:
    assert {decode.COPY, fused.ALONE} <= set(BOUNDS)
    rows = {row.label: row for row in rows_of(check_report(kernels(padless=(2, 2, 2), eager=(3, 3, 3))))}
    assert [row.peer for row in rows.values()] == [False, True]
    tree = kernels(padless=(2, 2, 2), product=(1, 1, 1))
    tree["cases"][0]["systems"][1]["system"] = "product-alone"
    assert [row.peer for row in rows_of(check_report(tree))] == [False, False]


def test_a_gpu_report_is_compared_by_its_timed_parts() -> None:
    def report(median: float) -> Tree:
        case = {"status": "ok", "absent": {"flash-attn 3": "not installed"}, "timed": {
            "padless": {"us": spread(median, median - 1, median + 1), "tflops": 350.0, "ratio": 1.0}, "flex": None,
        }}  # fmt: skip
        return {
            "schema": 1, "kind": "gpu-report", "written": "then", "dry": False,
            "machine": {"gpu": "A GPU", "slug": "a-gpu", "torch": "2.13.0", "commit": "aaa"}, "kernel_hashes": {},
            "parts": {"attention": {"cases": {"equal/512": case}},
                      "candidates": {"cases": {"d64": {"timed": {"x": {"us": spread(1, 1, 1)}}}}}},
        }  # fmt: skip

    found = changes(report(100.0), report(50.0))
    assert {name: (change.case, change.speed) for name, change in found.items()} == {
        "padless": ("attention: equal/512", 2.0)
    }


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("0.03", 0.03), ("0%", 0.0), ("0", 0.0), ("12.5%", 0.125)])
def test_a_threshold_is_percent_or_fraction(text: str, value: float) -> None:
    assert parse_threshold(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "three", "-1%", "100%", "1", "nan", "inf%"])
def test_no_other_threshold(text: str) -> None:
    with pytest.raises(OptionError, match=r"^threshold: expected 0% to below 100%, such as 3% or 0.03, got "):
        parse_threshold(text)


def without(tree: Tree, *path: str | int) -> Tree:
    tree = copy.deepcopy(tree)
    owner: Any = tree
    for step in path[:-1]:
        owner = owner[step]
    del owner[path[-1]]
    return tree


def changed(tree: Tree, value: Any, *path: str | int) -> Tree:
    tree = copy.deepcopy(tree)
    owner: Any = tree
    for step in path[:-1]:
        owner = owner[step]
    owner[path[-1]] = value
    return tree


ONE = kernels(a=(1, 1, 1))
IN_US = ("cases", 0, "systems", 0, "us")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "expected a JSON object, found a list"),
        ({}, "kind: missing, expected a text"),
        (
            changed(ONE, "tests", "kind"),
            "kind: expected one of kernels, models, generate, accelerate, jobs, gpu-report, found 'tests'",
        ),
        (changed(ONE, 7, "schema"), "schema: expected 1 of kind kernels, found 7"),
        (without(ONE, "written"), "written: missing, expected a text"),
        (without(ONE, "machine", "cpu"), None),
        (without(ONE, "cases"), "cases: missing, expected a list"),
        (without(ONE, *IN_US, "p20"), "cases[0].systems[0].us.p20: missing, expected a number"),
        (changed(ONE, "1", *IN_US, "p20"), "cases[0].systems[0].us.p20: expected a number, found '1'"),
        (changed(ONE, True, *IN_US, "p20"), "cases[0].systems[0].us.p20: expected a number, found True"),
        (changed(ONE, None, *IN_US), "cases[0].systems[0].us: expected a JSON object, found None"),
        (changed(ONE, 0, *IN_US, "p20"), "expected 0 < p20 <= median <= p80"),
        (changed(ONE, 2, *IN_US, "p20"), "expected 0 < p20 <= median <= p80"),
        (changed(ONE, ONE["cases"] * 2, "cases"), "norm: 768, float32, a: found twice, expected once"),
    ],
)  # fmt: skip
def test_a_report_that_is_none_is_one_line(tmp_path: Path, tree: Any, message: str | None) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(tree))
    if message is None:
        assert read_report(path).commit == "aaa"  # a machine without a name can still be compared
        return
    with pytest.raises(InputError) as caught:
        rows_of(read_report(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.json: expected a report in JSON, found \w+: "):
        read_report(path)


def write(folder: Path, name: str, tree: Tree) -> Path:
    path = folder / name
    path.write_text(json.dumps(tree))
    return path


def test_reports_of_two_kinds_are_one_line(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.json", kernels(a=(1, 1, 1))), write(tmp_path, "b.json", models(a=(1, 1, 1)))
    with pytest.raises(InputError, match=r"b\.json: a report of kind models, expected kernels as .*a\.json$"):
        run(a, b)


def test_slower_fails_only_where_asked_and_never_on_two_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick, slow = kernels(a=(100, 99, 101), b=(10, 10, 10)), kernels(a=(150, 149, 151), b=(9, 9, 9))
    old, new = write(tmp_path, "old.json", quick), write(tmp_path, "new.json", slow)
    assert run(old, new) == 0
    printed = capsys.readouterr().out
    assert re.search(r"norm: 768, float32 +a +100\.0 µs +150\.0 µs +0\.667x +apart +slower\n", printed)
    assert "1 slower, 0 same, 1 faster; a change counts beyond 3.0%" in printed
    assert run(old, new, fail_on_slower=True) == 1
    assert run(old, new, threshold="40%", fail_on_slower=True) == 0
    assert run(new, old, fail_on_slower=True) == 1  # b
    elsewhere = write(tmp_path, "elsewhere.json", changed(slow, "another", "machine", "slug"))
    assert run(old, elsewhere) == 0
    with pytest.raises(InputError, match="a verdict on what became slower needs one machine"):
        run(old, elsewhere, fail_on_slower=True)
    nothing = write(tmp_path, "nothing.json", changed(quick, [], "cases"))
    with pytest.raises(InputError, match=r"expected a system and case that .*old\.json has too, found none"):
        run(old, nothing, fail_on_slower=True)


def test_the_command_s_exit_codes(tmp_path: Path) -> None:
    old = write(tmp_path, "old.json", kernels(a=(100, 99, 101)))
    new = write(tmp_path, "new.json", kernels(a=(150, 149, 151)))

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "padless", "bench", "compare", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True)

    done = command(old, new, "--fail-on-slower")
    assert (done.returncode, done.stderr) == (1, "")
    assert "slower" in done.stdout
    done = command(old, tmp_path / "none.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"padless: .*none\.json: expected a report, No such file or directory\n", done.stderr)
