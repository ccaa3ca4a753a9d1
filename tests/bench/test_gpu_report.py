"""`make gpu-report` without a GPU: the whole path as a dry run, and what it says where it cannot run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.autotune.device import Device
from padless.autotune.entries import KERNELS, entry_of, is_candidate
from padless.autotune.exchange import read_exchange, record_tree
from padless.autotune.kernel_hash import kernel_hashes
from padless.autotune.search import Found
from padless.bench.gpu import attention, correctness, fused, generate, machine, models, profile, sanitizer, store, tune
from padless.bench.gpu import report as gpu_report
from padless.bench.gpu.case import Context
from padless.bench.gpu.markdown import render
from padless.bench.gpu.store import Store
from padless.engine.contract import Call
from padless.kernels import norm


def report(out: Path, *arguments: str, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-m", "padless.bench.gpu.report", "--out", str(out), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made" / "here"
    done = report(folder, "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def found(dry: Path) -> dict[str, Any]:
    return json.loads((dry / "report.json").read_text())


def test_it_leaves_its_files_and_no_partial_one(dry: Path) -> None:
    assert {file.name for file in dry.iterdir()} == {"report.json", "report.md", "log.txt", "configs.json"}


def test_every_case_of_every_part_is_sound(found: dict[str, Any]) -> None:
    assert list(found["parts"]) == ["correctness", "attention", "fused", "models", "generate", "tune"]
    for part in found["parts"].values():
        assert part["complete"]
        assert part["not_run"] == []
        assert {name for name, figures in part["cases"].items() if figures["status"] != "ok"} == set()


def test_every_kernel_was_checked_repeated_and_is_within_its_bound(found: dict[str, Any]) -> None:
    cases = found["parts"]["correctness"]["cases"]
    assert {name.split("/")[0] for name in cases} == {"attention", "decode", "rope", "embed", "trigram", "pool"}
    for figures in cases.values():
        assert 0.0 <= figures["of_bound"] <= 1.0
        assert figures["repeats"] >= 2
        assert figures["repeats_differ"] == 0
    assert max(figures["of_bound"] for figures in cases.values()) > 0.0


def test_every_fused_kernel_was_checked_before_it_was_timed(found: dict[str, Any]) -> None:
    cases = {name: figures for name, figures in found["parts"]["fused"]["cases"].items() if name != "ceilings"}
    assert {name.split("/")[0] for name in cases} == {"linear", "norm_linear", "norm", "mobilebert", "head"}
    for name, figures in cases.items():
        assert 0.0 < figures["of_bound"] <= 1.0, name
        assert figures["repeats"] >= 2
        assert figures["repeats_differ"] == 0
        alone = {"the product alone, cuBLAS"} if name.startswith(("linear", "norm_linear", "head")) else set()
        assert figures["timed"].keys() == {"padless", "op by op"} | alone
        assert set(figures["timed"].values()) == {None}
        assert not {"of_product", "tokens_per_second"} & set(figures)


def test_every_system_was_checked_before_it_was_timed(found: dict[str, Any]) -> None:
    cases = {name: figures for name, figures in found["parts"]["models"]["cases"].items() if name != "ceilings"}
    assert {name.split("/")[0] for name in cases} == {*models.FAMILIES, "MiniLM-L6"}
    for name, figures in cases.items():
        assert set(figures["timed"].values()) == {None}, name
        assert not {"ratio", "best_peer", "rounds"} & set(figures)
        assert figures["checked"].keys() == figures["timed"].keys()
        assert min(row["cosine"] for row in figures["checked"].values()) >= 0.9999
        assert min(row["apart"] for row in figures["checked"].values()) >= 0.999
    for family in models.FAMILIES:
        figures = cases[f"{family}/variable 512"]
        assert {"padless", "padless, triton", "padless, eager", "transformers, eager"} <= set(figures["timed"])
        served = "\n".join(figures["explain"])
        assert re.search(r"attention +cpu", served), served
    assert "sentence-transformers, batches of 32" in cases["MiniLM-L6/texts"]["timed"]


def test_what_was_written_was_checked_before_it_was_timed(found: dict[str, Any]) -> None:
    cases = found["parts"]["generate"]["cases"]
    assert set(cases) == {"mT5-small/16 texts", "mT5-small/one text"}
    for figures in cases.values():
        assert figures["timed"] == {generate.OURS: None, generate.GROWING: None}
        assert figures["error"] <= 1e-5
        assert figures["absent"] == {}


def test_it_says_what_it_ran_on(found: dict[str, Any]) -> None:
    machine = found["machine"]
    assert found["dry"] is True
    assert machine["gpu"].startswith("none")
    assert machine["torch"] == torch.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", machine["triton"])
    assert set(found["kernel_hashes"]) == set(kernel_hashes())
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in found["kernel_hashes"].values())


def test_a_dry_run_shows_no_figure_that_looks_like_a_gpu_s(dry: Path, found: dict[str, Any]) -> None:
    page = (dry / "report.md").read_text()
    assert "not measured" in page
    assert not re.search(r"[\d.]+ (TFLOP/s|GB/s|µs|%)", page)
    for name, figures in found["parts"]["attention"]["cases"].items():
        assert set(figures.get("timed", {}).values()) <= {None}, name
        assert not {"ratio", "of_copy", "gemm_tflops"} & set(figures), name
    # A peer that is missing is named, with the reason.
    assert "torch varlen" in page
    assert "needs a GPU" in page


def test_every_op_is_tuned_and_a_dry_run_has_no_entries(dry: Path, found: dict[str, Any]) -> None:
    cases = found["parts"]["tune"]["cases"]
    assert {name.split("/")[0] for name in cases} == set(KERNELS)
    for name, figures in cases.items():
        assert (figures["tried"], figures["refused"], figures["best"]) == (1, {}, None), name
        assert not {"record", "us", "gain", "timed"} & set(figures)
    tree = json.loads((dry / "configs.json").read_text())
    assert (tree["records"], tree["note"]) == ([], "no entries: a dry run measures nothing")
    assert read_exchange(dry / "configs.json", is_candidate) == ([], [])


def test_what_part_tune_found_is_beside_the_report_for_import(tmp_path: Path) -> None:
    """Entries as a GPU would leave them, through the report's own store, to files that serve."""
    call = Call("norm", "cuda", torch.bfloat16, sm=90, hidden=768)
    best = norm.CANDIDATES[3]
    result = Found(call, norm.default_config(call), best, 90.0, 100.0, 1.11, {}, 1, {}, (), "all tried")
    device = Device("cuda", "NVIDIA H200", "nvidia-h200", 90, 132, frozenset())
    entry = entry_of(result, device, "580.95.05")
    assert entry is not None
    store = Store(tmp_path, {"gpu": "NVIDIA H200", "commit": "abc"}, {}, dry=False)
    assert not (tmp_path / "configs.json").exists()
    store.add("tune", "norm/768", {"status": "ok", "shipped": "a", "best": "b", "tried": 1, "refused": {}, "untried": 0,
                                   "record": record_tree(device.slug, "norm", entry)})  # fmt: skip
    records, refused = read_exchange(tmp_path / "configs.json", is_candidate)
    assert ([record.entries for record in records], refused) == ([(entry,)], [])
    assert entry.provenance.kernel_hash == kernel_hashes()["norm"]
    assert (entry.provenance.us, entry.provenance.default_us) == (90.0, 100.0)


def test_a_second_run_keeps_what_is_there_and_adds_the_missing_part(dry: Path, tmp_path: Path) -> None:
    known = json.loads((dry / "report.json").read_text())
    known |= {"parts": {"tune": known["parts"]["tune"]}, "kernel_hashes": kernel_hashes()}
    cases = known["parts"]["tune"]["cases"]
    name = next(iter(cases))
    cases[name]["reason"] = "kept from the first run"
    (tmp_path / "report.json").write_text(json.dumps(known))
    done = report(tmp_path, "--dry", "--parts", "tune,profile")
    assert done.returncode == 0, done.stderr
    assert "tune: its results are there already" in done.stdout
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts["tune"]["cases"][name]["reason"] == "kept from the first run"
    assert {figures["status"] for figures in parts["profile"]["cases"].values()} == {"left out"}
    assert "a dry run" in (tmp_path / "report.md").read_text()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a call says that ends before any kernel is imported, in this process: one line, exit code 2."""

    def call(out: Path, *arguments: str, interpret: bool = True) -> str:
        if interpret:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert gpu_report.main(["--out", str(out), *arguments]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        return printed.err

    return call


def test_a_report_of_other_kernels_is_not_continued(dry: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    known = json.loads((dry / "report.json").read_text())
    known["kernel_hashes"] = kernel_hashes() | {"rope": "0" * 16}
    text = json.dumps(known)
    (tmp_path / "report.json").write_text(text)
    assert "a report of another kernel_hashes; name an empty folder" in refused(tmp_path, "--dry")
    assert (tmp_path / "report.json").read_text() == text


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"machine": 3}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str, refused: Callable[..., str]) -> None:
    (tmp_path / "report.json").write_text(content)
    assert "expected a GPU report to continue" in refused(tmp_path, "--dry")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, on which it would run")
def test_without_a_gpu_it_ends_in_one_line(tmp_path: Path) -> None:
    done = report(tmp_path / "out", interpret=False)
    assert done.returncode == 2
    assert re.fullmatch(r"gpu_report: torch \S+ sees no GPU; .*DRY=1\n", done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "interpret", "message"),
    [
        (("--dry",), False, "set TRITON_INTERPRET=1"),
        ((), True, "TRITON_INTERPRET=1 is for a dry run"),
        (("--dry", "--parts", "attention,nonsense"), True, "got nonsense"),
        (("--dry", "--parts", ","), True, "got none"),
        (("--dry", "--minutes", "0"), True, "expected more than 0"),
    ],
)
def test_a_wrong_call_ends_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], interpret: bool, message: str, refused: Callable[..., str]
) -> None:
    assert message in refused(tmp_path, *arguments, interpret=interpret)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gibibytes", [8, 24, 70])
@pytest.mark.parametrize("part", [correctness, attention, fused, models, generate, tune, sanitizer, profile])
def test_the_cases_of_a_gpu_have_names_of_their_own(part: Any, gibibytes: int) -> None:
    names = [case.name for case in part.cases(Context(torch.device("cpu"), False, gibibytes << 30))]
    assert names
    assert len(set(names)) == len(names)


def test_what_was_measured_reads_as_measured() -> None:
    """Figures worked out by hand, and a case of each unhappy kind."""

    def timed(median: float, **rates: float) -> dict[str, Any]:
        return {"us": {"median": median, "p20": median - 1, "p80": median + 1}, "host_us": 12.0, **rates}

    equal = {
        "status": "ok",
        "target_tflops": 340.0,
        "best_peer": "sdpa cudnn",
        "ratio": 0.9,
        "absent": {"flash-attn 3": "not installed"},
        "timed": {"padless": timed(100.0, tflops=350.0, ratio=1.0), "sdpa cudnn": timed(90.0, tflops=388.9, ratio=0.9)},
    }
    window = {
        "status": "ok",
        "target_ratio": 1.5,
        "best_peer": "flex",
        "ratio": 1.1,
        "absent": {"flash-attn 3": "not installed"},
        "timed": {
            "padless": timed(100.0, tflops=70.0, ratio=1.0),
            "flex": timed(110.0, tflops=60.0, ratio=1.1),
            "torch varlen": timed(160.0, tflops=50.0, ratio=1.6),
        },
    }
    decode = {
        "status": "ok",
        "target_of_copy": 0.8,
        "of_copy": 0.7,
        "absent": {},
        "timed": {"padless": timed(1000.0, gbps=2800.0, ratio=1.0)},
    }
    checked = {"status": "ok", "of_bound": 0.5, "repeats": 250, "repeats_differ": 0}
    gated = checked | {
        "target_of_product": 1.0,
        "of_product": 1.04,
        "tokens_per_second": 1_000_000,
        "timed": {"padless": timed(100.0, tflops=500.0, ratio=1.0), "op by op": timed(200.0, tflops=250.0, ratio=2.0)},
    }
    normed = checked | {"target_gbps": 3900.0, "timed": {"padless": timed(100.0, gbps=3800.0, ratio=1.0)}}
    fused = {"linear/gate, bf16": gated, "norm/768, bf16": normed, "norm/768, fp16": checked}
    part = {"complete": False, "seconds": 3.0, "failure": "no process came up", "not_run": ["equal/8192"]}
    cases = {
        "ceilings": {"status": "ok", "gemm_tflops": 700.0, "copy_gbps": 4000.0},
        "equal/512": equal,
        "window/2048": window,
        "decode/64": decode,
        "bias/512": {"status": "error", "reason": "the process died with exit code -9"},
    }
    page = render(
        {
            "dry": False,
            "written": "then",
            "machine": {"gpu": "NVIDIA H200", "slug": "nvidia-h200"},
            "kernel_hashes": {"rope": "0123"},
            "parts": {"attention": {**part, "cases": cases}, "fused": {**part, "not_run": [], "cases": fused}},
        }
    )
    assert "# GPU report: NVIDIA H200" in page
    assert "| equal/512 | 350 TFLOP/s | 50 % | sdpa cudnn | 0.90 | 340 TFLOP/s, met |" in page
    # The target speaks of flash-attn and torch varlen; the best peer is another.
    assert "| window/2048 | 70 TFLOP/s | 10 % | flex | 1.10 | 1.5 times, met |" in page
    assert "| decode/64 | 2,800 GB/s | 70 % | a copy of as many bytes | 0.70 | 0.8 of the copy, missed |" in page
    assert "| equal/512 | sdpa cudnn | 90.0 | 89.0 to 91.0 | 389 TFLOP/s | 12.0 | 0.9 |" in page
    assert "- flash-attn 3, left out of 2: not installed" in page
    assert "- **bias/512**: error: the process died with exit code -9" in page
    assert "- **equal/8192**: not run\n" in page
    assert "- **the part itself**: no process came up" in page
    assert "**not complete**" in page
    assert "| linear/gate, bf16 | 0.50 | 0 | 500 TFLOP/s | 1,000,000 | 1 of the product alone, met |" in page
    assert "| norm/768, bf16 | 0.50 | 0 | 3,800 GB/s | not measured | 3900 GB/s, missed |" in page
    assert "| norm/768, fp16 | 0.50 | 0 | not measured | not measured |  |" in page
    assert "| linear/gate, bf16 | op by op | 200.0 | 199.0 to 201.0 | 250 TFLOP/s | 12.0 | 2.0 |" in page
    assert "dry run" not in page


SMI = """#!/bin/sh
case "$1" in
  --query-gpu=driver_version) echo "580.159.03";;
  --query-compute-apps=pid) printf '4242\\n4243\\n';;
  --query-gpu=clocks.sm,*) [ -n "$PADLESS_TEST_OLD" ] && echo 'Field "mig" is not a valid field to query.' && exit 2
    echo '345, 1980, 3201, 3201, 700.00, 700.00, 31, 4, Enabled, Disabled';;
  --query-gpu=power.limit) echo '700.00';;
  --query-gpu=ecc.mode.current) echo '[N/A]';;
  *) exit 2;;
esac
"""


@pytest.mark.parametrize("there", ["new", "old", "silent", "none"])
def test_clocks_and_limits_are_told_as_far_as_they_are_known(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    if there != "none":
        program.write_text("#!/bin/sh\nexit 9\n" if there == "silent" else SMI)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PADLESS_TEST_OLD", "1" if there == "old" else "")
    found = machine.settings()
    if there == "new":
        assert found == {
            "sm_clock_mhz": 345.0, "highest_sm_clock_mhz": 1980.0, "memory_clock_mhz": 3201.0,
            "highest_memory_clock_mhz": 3201.0, "power_limit_w": 700.0, "highest_power_limit_w": 700.0,
            "temperature_c": 31.0, "memory_used_before_mib": 4.0, "ecc": "Enabled", "mig": "Disabled",
            "other_processes": 2,
        }  # fmt: skip
    else:
        # One field that a version does not know, or has nothing to say of, costs no other one.
        assert found == ({"power_limit_w": 700.0, "other_processes": 2} if there == "old" else {})
    assert machine.driver_version() == ("580.159.03" if there in ("new", "old") else "unknown")


def stored(folder: Path) -> store.Store:
    return store.Store(folder, {"gpu": "A GPU"}, {}, dry=False)


def test_a_file_that_cannot_be_written_costs_no_figure(tmp_path: Path) -> None:
    report = stored(tmp_path)
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    report.add("fused", "a case", {"status": "ok"})
    assert report.unsaved
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["fused"]["cases"] == {"a case": {"status": "ok"}}
    (tmp_path / "report.md").rmdir()
    report.save()
    assert report.unsaved is None
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.md"}


def test_a_page_that_cannot_be_made_costs_no_figure(tmp_path: Path) -> None:
    report = stored(tmp_path)
    report.add("fused", "a case", {"status": "ok", "of_bound": 0.5})  # and nothing else that the page needs
    assert "This page could not be made: KeyError" in (tmp_path / "report.md").read_text()
    assert "a case" in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize("drawn", [6, 2, 0, -1])
def test_pictures_are_at_most_four_and_never_a_failure(
    drawn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(report: dict[str, Any], folder: Path) -> list[Path]:
        if drawn < 0:
            raise ValueError("no figures\nto draw")
        made = [folder / f"{place}.png" for place in range(drawn)]
        for picture in made:
            picture.write_bytes(b"")
        return made

    figures: Any = types.ModuleType("padless.bench.plots.figures")
    figures.draw = draw
    monkeypatch.setitem(sys.modules, "padless.bench.plots", types.ModuleType("padless.bench.plots"))
    monkeypatch.setitem(sys.modules, "padless.bench.plots.figures", figures)
    report = stored(tmp_path)
    with (tmp_path / "log.txt").open("ab", buffering=0) as log:
        gpu_report._draw(report, log)
    assert len(list(tmp_path.glob("*.png"))) == min(max(drawn, 0), 4)
    said = (tmp_path / "log.txt").read_text()
    assert said.count("\n") == 1
    assert ("no pictures: ValueError: no figures" in said) == (drawn < 0)
