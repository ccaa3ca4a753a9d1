"""Part `generate` of the GPU report: what it says of systems right and wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from padless.bench.gpu import generate
from padless.bench.gpu.case import Context
from padless.bench.gpu.markdown import render
from padless.bench.gpu.model_shapes import SHAPES

HERE = Context(torch.device("cpu"), dry=False, memory=1 << 28)
DRY = replace(HERE, dry=True)
SYSTEMS = (generate.OURS, generate.GROWING)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU on this machine's CPU: a tiny shape under the name of the real one, and tiny work."""
    name = "mT5-small encoder"
    monkeypatch.setitem(SHAPES, name, replace(SHAPES[name], real=SHAPES[name].tiny))
    monkeypatch.setattr(generate, "SECONDS", 0.1)


def measured(models: Any, systems: tuple[str, ...] = SYSTEMS) -> dict[str, Any]:
    with torch.inference_mode(), torch.inference_mode(False), torch.no_grad():
        return generate._run(models, generate.Writing((9, 3, 14), (9, 3, 14), 8), systems)


class OnCpu(generate._Models):
    """In fp32, without graphs."""

    dtype = torch.float32  # pyright: ignore[reportAssignmentType]


@pytest.fixture
def models(small: None) -> generate._Models:
    return OnCpu(HERE)


def test_what_is_measured_adds_up_and_reads_as_measured(models: generate._Models) -> None:
    figures = measured(models)
    assert figures["status"] == "ok", figures
    assert (figures["texts"], figures["tokens"]) == (3, 24)
    assert figures["rounds"] >= 3
    for row in figures["timed"].values():
        assert row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["tokens_per_second"] == pytest.approx(24 / row["ms"]["median"] * 1e3, rel=0.02)
    assert figures["timed"][generate.OURS]["ratio"] == 1.0
    part = {"complete": True, "seconds": 1.0, "failure": None, "not_run": [], "cases": {"mT5-small/16 texts": figures}}
    page = render(
        {"dry": False, "written": "then", "machine": {"gpu": "A GPU"}, "kernel_hashes": {}, "parts": {"generate": part}}
    )
    row = figures["timed"][generate.GROWING]
    assert f"| mT5-small/16 texts | {generate.GROWING} | {row['ms']['median']:,.2f} |" in page


def test_recordings_that_are_not_there_have_no_figure(models: generate._Models) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    figures = measured(models, (generate.OURS, generate.OURS_GRAPHS))
    assert figures["status"] == "failed"
    assert figures["reason"].startswith("padless, CUDA graphs: OptionError: cuda_graphs: expected False or 'auto'")
    assert set(figures["timed"]) == {generate.OURS}


def test_a_token_that_is_not_transformers_is_found(models: generate._Models) -> None:
    assert models.theirs_wide is not None  # has the weights of ours as they are before
    project: Any = models.ours_wide.get_submodule("decoder.block.0.layer.1.EncDecAttention.o")
    project.weight = torch.nn.Parameter(project.weight.flip(0), requires_grad=False)
    figures = measured(models)
    assert figures["status"] == "failed"
    assert figures["reason"].startswith("wrong tokens in fp32, CUDA graphs False: ")
    assert "timed" not in figures


def test_logits_that_are_off_are_found(models: generate._Models, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = generate._forced

    def off(decoder: Any, tokens: Tensor) -> Tensor:
        logits = forced(decoder, tokens)
        logits[:, -1] = logits[:, 0]  # a step that did not move on
        return logits

    monkeypatch.setattr(generate, "_forced", off)
    figures = measured(models)
    assert figures["status"] == "failed"
    assert figures["reason"].startswith("wrong logits: error ")


def test_answers_that_prove_nothing_are_found() -> None:
    assert generate._blind(torch.tensor([[0, 5, 6, 7], [0, 5, 7, 6]])) is None
    assert "2 texts, 1 different" in str(generate._blind(torch.tensor([[0, 5, 6, 7], [0, 5, 6, 7]])))
    assert "2 different tokens" in str(generate._blind(torch.tensor([[0, 5, 5, 5], [0, 5, 7, 6]])))


def test_a_gpu_has_more_systems_than_a_dry_run() -> None:
    assert [case.name for case in generate.cases(HERE)] == [
        "mT5-small/16 texts",
        "mT5-small/16 texts, compiled",
        "mT5-small/one text",
    ]
    assert [case.name for case in generate.cases(DRY)] == ["mT5-small/16 texts", "mT5-small/one text"]
    assert len(generate.warm_cases(HERE)) == 2
    assert generate.warm_cases(DRY) == []
    given = generate.WRITINGS["16 texts"].inputs(250_112, HERE)
    lengths = given["attention_mask"].sum(dim=1).tolist()
    assert (len(lengths), min(lengths), max(lengths), len(set(lengths))) == (16, 16, 512, 16)
    assert int(given["input_ids"].max()) < 250_112
    assert not given["input_ids"][given["attention_mask"] == 0].any()
