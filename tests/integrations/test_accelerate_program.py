"""docs/examples/accelerate_transformers.py as its users run it, and transformers' pipelines around the same model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import padless

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "accelerate_transformers.py"
TEXTS = ["the sun stood still", "bread", "and the moon, and the night, and a river of stone"]


@pytest.fixture(scope="module")
def program() -> Any:
    """The example, imported as a module."""
    spec = importlib.util.spec_from_file_location("accelerate_transformers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_program_prints_the_same_with_and_without_the_line(
    program: Any, classifier_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for options in ([], ["--untouched"]):
        program.main([str(classifier_folder), *TEXTS, *options])
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    ours, theirs = printed
    assert [row["text"] for row in ours] == TEXTS
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=2e-6)


def test_the_program_says_in_one_line_what_padless_lacks(
    program: Any, classifier_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 99, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((classifier_folder / name).read_bytes())
    with pytest.raises(SystemExit) as ended:
        program.main([str(tmp_path), "a text"])
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "accelerate_transformers:" in line]
    assert len(lines) == 1
    assert "DistilBertForSequenceClassification is not supported" in lines[0]


def test_a_pipeline_of_transformers_answers_the_same(classifier_folder: Path) -> None:
    classify: Any = transformers.pipeline("text-classification", model=str(classifier_folder), device="cpu")
    expected = classify(TEXTS, top_k=None, batch_size=3)
    padless.accelerate(classify.model)
    served: list[int] = []
    vars(classify.model)["forward"].twin.ours.register_forward_hook(lambda *_: served.append(1))
    found = classify(TEXTS, top_k=None, batch_size=3)
    assert len(served) == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert [row["label"] for row in ours] == [row["label"] for row in theirs]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-6)
