from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from padless.bench.models.check import check_vectors
from padless.bench.models.measure import CUTS, check_and_time, cut_of
from padless.bench.models.mobilebert import against_bert
from padless.bench.models.output import COLUMNS
from padless.bench.models.run import run
from padless.bench.models.system import Job
from padless.bench.models.systems import BASELINE, make_system, make_systems
from padless.bench.models.torch_systems import Transformers
from padless.bench.workloads import default_model, load_workload
from padless.engine.cli.app import run as command_line
from padless.engine.errors import InputError, OptionError


def unit_vectors(rows: int, width: int = 384) -> np.ndarray:
    vectors = np.random.default_rng(3).standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def turned(vectors: np.ndarray, row: int, cosine: float) -> np.ndarray:
    """The vectors, row `row` turned to have exactly this cosine to what it was."""
    result = vectors.astype(np.float64)
    other = np.roll(result[row], 1)
    other -= (other @ result[row]) * result[row]
    result[row] = cosine * result[row] + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    return result.astype(np.float32)


def test_the_worst_text_decides() -> None:
    reference = unit_vectors(7)
    check = check_vectors("openvino", "bfloat16", turned(reference, 5, 0.99), reference)
    assert check.lowest_cosine == pytest.approx(0.99, abs=1e-6)
    assert check.failure == "lowest cosine 0.990000, expected at least 0.999"
    assert check_vectors("openvino", "bfloat16", turned(reference, 5, 0.9995), reference).failure is None


def test_rows_in_the_wrong_order_fail() -> None:
    reference = unit_vectors(5)
    assert check_vectors("padless", "float32", reference[::-1], reference).failure is not None


def test_our_float32_is_held_to_1e_5_in_every_component() -> None:
    reference = unit_vectors(3)
    near, far = reference.copy(), reference.copy()
    near[1, 200] += 8e-6
    far[1, 200] += 2e-5
    assert check_vectors("padless", "float32", near, reference).failure is None
    assert check_vectors("padless", "float32", far, reference).failure == (
        "largest difference 2.00e-05, expected at most 1e-05"
    )
    assert check_vectors("openvino", "float32", far, reference).failure is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_fail(bad: float) -> None:
    reference = unit_vectors(4)
    vectors = reference.copy()
    vectors[2, 0] = bad
    assert check_vectors("transformers", "bfloat16", vectors, reference).failure is not None


def test_zero_vectors_fail() -> None:
    reference = unit_vectors(4)
    assert check_vectors("padless", "float32", np.zeros_like(reference), reference).failure is not None


def test_a_missing_row_fails() -> None:
    reference = unit_vectors(4)
    assert check_vectors("padless", "float32", reference[:3], reference).failure == "shape (3, 384), expected (4, 384)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("minilm", "xlnet")}, r"^model 'xlnet': unknown, expected all, or some of minilm, bert-base, "),
        ({"models": ()}, r"^models: expected at least one$"),
        ({"models": ("minilm",), "model": "m"}, r"^model and models: expected one of them, got both$"),
        ({"tokens": 0}, r"^tokens: expected at least 1, got 0$"),
        ({"device": "cuda"}, r"^device 'cuda': models are measured on 'cpu'$"),
        ({"repeats": 0}, r"^repeats: expected at least 1, got 0$"),
        ({"threads": 0}, r"^threads: expected at least 1, got 0$"),
        ({"dtypes": ("int4",)}, r"^dtype 'int4': expected one of float32, bfloat16, int8$"),
        (
            {"peers": ("tensorrt",)},
            r"^system 'tensorrt': unknown, expected one of transformers-unsorted, sentence-transformers, ",
        ),
        ({"dtypes": ()}, r"^dtypes: expected at least one$"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(**options)


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(InputError, match=r"^workload 'none': unknown"):
        run(workload="none")


def test_int8_is_held_to_a_cosine_of_its_own() -> None:
    reference = unit_vectors(5)
    assert check_vectors("onnxruntime", "int8", turned(reference, 2, 0.995), reference).failure is None
    check = check_vectors("onnxruntime", "int8", turned(reference, 2, 0.818), reference)
    assert check.failure == "lowest cosine 0.818000, expected at least 0.99"


def test_systems_stand_in_the_table_s_order_with_the_reference_and_ours() -> None:
    labels = [system.label for system in make_systems(("openvino", "transformers-unsorted"), ("bfloat16", "float32"))]
    assert labels == [
        "transformers-unsorted float32",
        BASELINE,
        "openvino bfloat16",
        "openvino float32",
        "padless bfloat16",
        "padless float32",
    ]
    assert [system.label for system in make_systems((), ("int8",))] == [BASELINE]


def test_a_system_is_not_made_in_a_dtype_that_it_does_not_have() -> None:
    with pytest.raises(OptionError, match=r"^system 'onnxruntime': dtype: expected one of float32, int8, got 'bfl"):
        make_system("onnxruntime", "bfloat16")


def test_large_models_run_fewer_tokens(small_model: Callable[[str], Path], tmp_path: Path) -> None:
    texts = load_workload("mixed_256", default_model())
    assert cut_of(texts, default_model(), None) is texts
    assert cut_of(texts, default_model(), 1000).kept_tokens(256) == pytest.approx(1000, abs=130)
    sizes = []
    for layers, cut in ((3, CUTS[1]), (8, CUTS[0])):
        folder = shutil.copytree(small_model("bert"), tmp_path / str(layers))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.update(hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=layers)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        sizes.append(cut_of(texts, folder, None).kept_tokens(512))
        assert sizes[-1] == pytest.approx(cut[1], abs=130)
    assert sizes[0] > sizes[1]


def test_a_run_reports_the_same_facts_on_screen_and_in_its_files(
    small_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, csv_file, markdown_file = (tmp_path / f"report.{suffix}" for suffix in ("json", "csv", "md"))
    model = small_model("bert")
    returned = run(
        model=model,
        workload="tiny",
        dtypes=("float32", "int8"),
        peers=("transformers-unsorted", "onnxruntime"),
        threads=1,
        repeats=2,
        json_path=json_file,
        csv_path=csv_file,
        markdown_path=markdown_file,
    )
    printed = capsys.readouterr().out
    report = json.loads(json_file.read_text(encoding="utf-8"))
    assert report == returned
    assert (report["schema"], report["kind"], report["repeats"]) == (2, "models", 2)
    assert (report["machine"]["threads"], report["mobilebert_against_bert"]) == (1, None)
    (entry,) = report["models"]
    assert (entry["model"], entry["weights"], entry["failed"], entry["left_out"]) == ("bert", "given", {}, {})
    assert entry["order"] == [f"{system['system']} {system['dtype']}" for system in entry["systems"]]
    systems = dict(zip(entry["order"], entry["systems"], strict=True))
    baseline, ours, unsorted = systems[BASELINE], systems["padless float32"], systems["transformers-unsorted float32"]
    assert set(systems) == {*(s["system"] + " float32" for s in (baseline, ours, unsorted)), *ONNX}
    assert baseline["ratio"] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert unsorted["padding_factor"] > baseline["padding_factor"] > ours["padding_factor"] == 1.0
    assert ours["check"]["largest_difference"] <= 1e-5
    rows = {f"{row['system']} {row['dtype']}": row for row in rows_of(csv_file)}
    written = markdown_file.read_text(encoding="utf-8")
    for label, system in systems.items():
        rates = [entry["tokens"] / seconds for seconds in system["seconds"]]
        assert system["tokens_per_second"]["median"] == pytest.approx(np.median(rates))
        ratios = [theirs / own for theirs, own in zip(baseline["seconds"], system["seconds"], strict=True)]
        assert system["ratio"]["median"] == pytest.approx(np.median(ratios))
        assert f"{np.median(rates):,.0f}" in printed
        assert f"| {np.median(rates):,.0f} |" in written.replace("**", "")
        assert float(rows[label]["tokens_per_second"]) == system["tokens_per_second"]["median"]
        assert (rows[label]["status"], rows[label]["latency_ms_p50"]) == ("measured", "")
    assert tuple(rows[BASELINE]) == COLUMNS
    (ceiling,) = entry["gemm_ceiling"]
    assert f"{ceiling['tokens_per_second']:,.0f} tok/s" in printed


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


ONNX = ("onnxruntime float32", "onnxruntime int8")


def test_a_system_whose_vectors_differ_keeps_its_line_with_its_cosine_and_no_figure(
    small_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The transformers peer pools by the mean; this folder asks for the first token, so it must be caught.
    model = asking_for_the_first_token(small_model("bert"), tmp_path / "model")
    json_file, csv_file, markdown_file = (tmp_path / f"report.{suffix}" for suffix in ("json", "csv", "md"))
    options: dict[str, Any] = {"dtypes": ("float32",), "peers": ("transformers",), "threads": 1, "repeats": 1}
    options |= {"json_path": json_file, "csv_path": csv_file, "markdown_path": markdown_file}
    run(model=model, workload="tiny", **options)
    (entry,) = json.loads(json_file.read_text(encoding="utf-8"))["models"]
    assert [system["system"] for system in entry["systems"]] == ["sentence-transformers", "padless"]
    reason = entry["failed"]["transformers float32"]
    cosine = entry["checks"]["transformers float32"]["lowest_cosine"]
    assert reason == f"lowest cosine {cosine:.6f}, expected at least 0.99999"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("transformers "))
    assert line.split() == ["transformers", "float32", *"-----", f"{cosine:.6f}", "fails:", *reason.split()]
    written = markdown_file.read_text(encoding="utf-8")
    assert f"| transformers float32 | none: fails its check |  |  |  | **{cosine:.6f}** |" in written
    assert f"- transformers float32: {reason}." in written
    row = next(row for row in rows_of(csv_file) if row["system"] == "transformers")
    assert (row["status"], row["tokens_per_second"], row["ratio"], row["reason"]) == ("failed", "", "", reason)
    assert float(row["lowest_cosine"]) == cosine


def asking_for_the_first_token(model: Path, copy: Path) -> Path:
    shutil.copytree(model, copy)
    pooling = copy / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text(encoding="utf-8"))
    settings.update(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    pooling.write_text(json.dumps(settings), encoding="utf-8")
    return copy


class Careless(Transformers):
    """Right when it is checked first, then with two rows swapped."""

    calls = 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        vectors = super().encode(texts)
        return vectors if self.calls == 1 else vectors[[1, 0, *range(2, len(vectors))]]


def test_what_was_timed_is_checked_as_well(small_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = small_model("bert")
    texts = load_workload("tiny", model)
    job = Job(model, tmp_path, 1, texts.batch_size, texts.texts)
    systems = [make_system(*BASELINE.split()), Careless("float32")]
    for system in systems:
        system.prepare(job)
    measured, checks = check_and_time(systems, texts, texts.kept_tokens(512), repeats=1)
    assert [row.label for row in measured] == [BASELINE]
    assert (checks["transformers float32"].failure or "").startswith("lowest cosine ")


def test_latency_is_of_each_text_in_a_call_of_its_own(small_model: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options: dict[str, Any] = {"dtypes": ("float32",), "peers": (), "threads": 1, "repeats": 2}
    run(model=small_model("mt5"), workload="latency", tokens=500, json_path=file, **options)
    (entry,) = json.loads(file.read_text(encoding="utf-8"))["models"]
    texts = entry["workload"]["texts"]
    for system in entry["systems"]:
        # Nothing is padded in a batch of one, whoever runs it.
        assert system["padding_factor"] == 1.0
        spread = system["latency_ms"]
        assert 0 < spread["p20"] <= spread["median"] <= spread["p80"]
        assert texts * spread["p20"] / 2 < 1000 * max(system["seconds"])


def test_mobilebert_is_set_against_bert_only_by_systems_that_are_right_for_both(
    small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"workload": "tiny", "tokens": 300, "dtypes": ("float32", "int8")}
    options |= {"threads": 1, "repeats": 2}
    found = against_bert(small_model("mobilebert"), small_model("bert"), **options)
    assert (list(found.ratios), found.failed) == (["padless float32", "transformers float32"], {})
    (sentence,) = found.sentences()
    assert f"padless {found.ratios['padless float32'].median:.2f} times" in sentence
    assert "5.5 times, on a phone" in sentence
    wrong = asking_for_the_first_token(small_model("mobilebert"), tmp_path / "wrong")
    found = against_bert(wrong, small_model("bert"), **options)
    assert list(found.ratios) == ["transformers float32"]
    assert found.failed["padless float32"].startswith("lowest cosine ")
    assert found.failed["padless float32"] in found.sentences()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "xlnet"), "padless: model 'xlnet': unknown, expected all, or some of minilm, "),
        (("--tokens", "0"), "padless: Invalid value for '--tokens'"),
        (("--dtypes", "int4"), "padless: dtype 'int4': expected one of "),
        (
            ("--json", "no/such/report.json"),
            "padless: no/such/report.json: cannot be written, there is no folder ",
        ),
        (
            ("--markdown", "no/such/report.md"),
            "padless: no/such/report.md: cannot be written, there is no folder ",
        ),
        (
            ("--model", "no_such_model", "--repeats", "1"),
            "padless: model configuration no_such_model/config.json: no such file",
        ),
        (("--plot", "figures"), "padless: plots "),
    ],
)
def test_a_wrong_call_ends_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "padless.bench.plots.figures", None)
    assert command_line(["bench", "models", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
