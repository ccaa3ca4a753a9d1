"""`padless bench accelerate-models` in tiny sizes: its check, its report and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.bench.accelerate.transformers_models import DTYPES, check, run
from padless.bench.models.seeded import write_seeded
from padless.bench.plots.figures import figures
from padless.bench.reports.report import read_report
from padless.bench.reports.rows import rows_of
from padless.engine.cli.app import run as command_line
from padless.engine.errors import InputError, OptionError

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "local_attention": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny model already stands under the name of a published one."""
    folder = tmp_path_factory.mktemp("models")
    write_seeded("modernbert", folder / "modernbert-base", TINY)
    return folder


def test_every_system_is_checked_and_timed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "accelerate.json"
    report = run(
        ["modernbert-base"], folder=folder, tokens=600, batch_size=3, repeats=2, threads=1, json_path=file
    )  # fmt: skip
    (model,) = report["models"]
    assert model["failed"] == {}
    systems = [(system["system"], system["dtype"]) for system in model["systems"]]
    assert systems[0] == ("transformers", "float32")
    assert sorted(systems) == sorted((s, d) for s in ("transformers", "padless.accelerate") for d in DTYPES)
    assert model["padding_factor"] > 1.2
    for system in model["systems"]:
        expected = [model["tokens"] / seconds for seconds in system["seconds"]]
        assert system["tokens_per_second"]["median"] == pytest.approx(sum(expected) / 2)
    assert json.loads(file.read_text()) == report
    rows = rows_of(read_report(file))
    assert [(row.label, row.ours) for row in rows] == [(f"{s} {d}", s == "padless.accelerate") for s, d in systems]
    assert [name for name, _ in figures(read_report(file))] == ["accelerate"]
    assert f"modernbert-base, {model['tokens']} tokens of mixed_256" in capsys.readouterr().out


def test_what_is_wrong_has_no_figure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([[1, 1, 0]])
    right = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1))
    at_padding, at_token = right.clone(), right.clone()
    at_padding[0, 2] = 9.0
    at_token[0, 1] += 1e-3
    batches = [(mask, mask)]
    assert check([at_padding], [right], batches, "float32") is None
    assert "differs by 1.00e-03" in str(check([at_token], [right], batches, "float32"))
    assert check([at_token], [right], batches, "bfloat16") is None
    assert "lowest cosine" in str(check([-right], [right], batches, "bfloat16"))
    assert "differs by nan" in str(check([right * torch.nan], [right], batches, "float32"))
    monkeypatch.setattr("padless.bench.accelerate.transformers_models.LARGEST_DIFFERENCE", 0.0)
    report = run(["modernbert-base"], folder=folder, tokens=300, repeats=1, threads=1, dtypes=["float32"])
    assert [system["system"] for system in report["models"][0]["systems"]] == ["transformers"]
    assert "differs by" in report["models"][0]["failed"]["padless.accelerate float32"]


def test_what_cannot_be_measured_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="model 'gpt2': expected some of"):
        run(["gpt2"], folder=folder)
    with pytest.raises(OptionError, match="repeats: expected at least 1, got 0"):
        run(folder=folder, repeats=0)
    with pytest.raises(InputError, match="cannot be written"):
        run(folder=folder, json_path=tmp_path / "none" / "report.json")


def test_the_command_hands_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["bench", "accelerate-models", "--dtypes", "int8"]) == 2
    assert "dtype 'int8': expected some of float32, bfloat16" in capsys.readouterr().err
