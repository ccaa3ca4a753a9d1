from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from padless.bench.models import check_vectors, run
from padless.bench.workloads import default_model
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
        ({"device": "cuda"}, r"^device 'cuda': models are measured on 'cpu'$"),
        ({"repeats": 0}, r"^repeats: expected at least 1, got 0$"),
        ({"threads": 0}, r"^threads: expected at least 1, got 0$"),
        ({"dtypes": ("int8",)}, r"^dtype 'int8': expected float32 or bfloat16$"),
        ({"peers": ("tensorrt",)}, r"^system 'tensorrt': unknown, expected one of sentence-transformers, "),
        ({"dtypes": ()}, r"^dtypes: expected at least one$"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(**options)


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(InputError, match=r"^workload 'none': unknown"):
        run(workload="none")


def test_a_run_reports_the_same_facts_on_screen_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    run("cpu", ("float32",), 1, (), "tiny", 2, file, default_model())
    printed = capsys.readouterr().out
    report = json.loads(file.read_text(encoding="utf-8"))
    assert (report["schema"], report["kind"], report["repeats"]) == (1, "models", 2)
    assert report["failed"] == {}
    baseline, ours = report["systems"]
    assert (baseline["system"], ours["system"]) == ("sentence-transformers", "padless")
    assert baseline["ratio"] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert baseline["padding_factor"] > ours["padding_factor"] == 1.0
    assert ours["check"]["largest_difference"] <= 1e-5
    for system in (baseline, ours):
        rates = [report["workload"]["tokens"] / seconds for seconds in system["seconds"]]
        assert system["tokens_per_second"]["median"] == pytest.approx(np.median(rates))
        assert f"{np.median(rates):,.0f}" in printed
    ratios = [theirs / own for theirs, own in zip(baseline["seconds"], ours["seconds"], strict=True)]
    assert ours["ratio"]["median"] == pytest.approx(np.median(ratios))
    (ceiling,) = report["gemm_ceiling"]
    assert f"{ceiling['tokens_per_second']:,.0f} tok/s" in printed
    assert report["machine"]["threads"] == 1


def test_a_system_whose_vectors_differ_gets_a_reason_and_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The transformers peer pools by the mean; this folder asks for the first token, so it must be caught.
    model = shutil.copytree(default_model(), tmp_path / "model")
    pooling = model / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text(encoding="utf-8"))
    settings.update(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    pooling.write_text(json.dumps(settings), encoding="utf-8")
    file = tmp_path / "report.json"
    run("cpu", ("float32",), 1, ("transformers",), "tiny", 1, file, model)
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [system["system"] for system in report["systems"]] == ["sentence-transformers", "padless"]
    assert report["failed"]["transformers float32"].startswith("lowest cosine 0.")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("transformers"))
    assert line.split() == [
        "transformers",
        "float32",
        "no",
        "number:",
        *report["failed"]["transformers float32"].split(),
    ]
