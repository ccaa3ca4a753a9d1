"""`padless bench accelerate`: what is measured is what it says, and a call that padless did not compute ends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from padless.bench.accelerate import sentence_transformers_models as measured
from padless.bench.models.systems import BASELINE
from padless.engine.cli.app import run as command_line
from padless.engine.errors import InputError
from padless.engine.integrations.accelerate.sentence_loop import SentenceLoop


def run(**options: Any) -> dict[str, Any]:
    return measured.run(tokens=300, repeats=1, threads=1, dtypes=["float32"], **options)


def test_a_report_holds_every_system_beside_the_library_itself(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    report = run(json_path=file)
    (model,) = report["models"]
    labels = [f"{system['system']} {system['dtype']}" for system in model["systems"]]
    assert labels[0] == BASELINE
    assert set(labels[1:]) == {"padless.accelerate float32", "padless float32"}
    assert model["systems"][0]["ratio"]["median"] == 1.0
    assert all(system["check"]["lowest_cosine"] >= 0.99999 for system in model["systems"])
    assert json.loads(file.read_text()) == report


def test_a_call_that_falls_back_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SentenceLoop, "_why_not", lambda self, given: "for the test")
    with pytest.raises(InputError, match=r"padless\.accelerate: sentence-transformers computed: for the test"):
        run()


def test_the_command_hands_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["bench", "accelerate", "--dtypes", "int8"]) == 2
    assert "int8" in capsys.readouterr().err
