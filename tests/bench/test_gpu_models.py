"""Part `models` of the GPU report: its work, its operations, its judge, and what it says of systems right and wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from padless.bench.gpu import model_shapes, model_work, models
from padless.bench.gpu.case import Context
from padless.bench.gpu.markdown import render
from padless.bench.gpu.model_check import compare, tells_apart
from padless.bench.gpu.model_shapes import SHAPES, build, fill, flops
from padless.bench.gpu.model_systems import Padless, Transformers, peer_model
from padless.bench.gpu.model_work import WORKLOADS

CPU = torch.device("cpu")
HERE = Context(CPU, dry=False, memory=1 << 28)

# MFLOP a token at 128, 512 and 8,192 tokens: 2 x parameters + 4 x keys seen x width a layer, from the published shapes.
PUBLISHED = {
    "ModernBERT-base": {128: 228, 512: 238, 8192: 427},
    "BERT-base": {128: 175, 512: 189},
    "MegatronBERT-345m": {128: 617, 512: 654},
    "mT5-small encoder": {128: 39.3, 512: 44.0},
    "MobileBERT": {128: 42.1, 512: 46.8},
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_operations_are_those_of_the_published_shapes(family: str) -> None:
    model = build(SHAPES[family], CPU, torch.bfloat16, dry=False)
    for length, expected in PUBLISHED[family].items():
        assert flops(model, [length] * 3) / (3 * length) / 1e6 == pytest.approx(expected, rel=0.01)


def test_weights_are_the_same_each_time_and_fit_into_bf16() -> None:
    one, two = (build(SHAPES["mT5-small encoder"], CPU, torch.float32, dry=True) for _ in range(2))
    fill(one)
    fill(two)
    for (name, mine), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert torch.equal(mine, mine.bfloat16().float()), name
    assert not one.word_embeddings.weight[0].any()
    assert one.word_embeddings.weight[1:].std() > 0.9


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_what_it_says(name: str) -> None:
    workload = WORKLOADS[name]
    work, again = (workload.make(65_536, 61, 4096, dry=False) for _ in range(2))
    assert np.array_equal(work.texts.input_ids, again.texts.input_ids)
    assert work.texts.input_ids.min() >= 5
    assert work.texts.input_ids.max() < 61
    lengths = work.lengths
    assert int(lengths.max()) == workload.longest
    assert int(lengths.min()) >= 16
    if workload.latency:
        assert len(lengths) == 4
    else:
        assert work.tokens == pytest.approx(65_536, rel=0.05)
    assert (len(set(lengths.tolist())) > 20) == (name in ("variable 512", "news"))


def test_vectors_are_held_against_their_own_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 64, generator=generator)
    reference = F.normalize(mean + 0.03 * torch.randn(5, 64, generator=generator), dim=1)
    rounded = reference.bfloat16().float()
    assert compare(rounded, reference).wrong(0.999) is None
    # The vectors of other texts are nearly the same, and yet they are told apart.
    others = reference.roll(1, 0)
    like = compare(others, reference)
    assert like.cosine > 0.99
    assert like.apart < 0.5
    assert "without the texts' mean" in str(replace(like, cosine=1.0).wrong(0.999))
    turned = rounded.clone()
    turned[3] = -turned[3]
    assert "cosine -" in str(compare(turned, reference).wrong(0.999))
    rounded[2, 5] = float("nan")
    assert "cosine nan" in str(compare(rounded, reference).wrong(0.999))
    assert compare(reference[:4], reference).wrong(0.999) is not None
    assert tells_apart(reference) is None
    assert "two texts are alike" in str(tells_apart(torch.cat([reference, reference[:1]])))


def test_batches_are_padded_by_hand() -> None:
    shape = SHAPES["BERT-base"]
    ours = build(shape, CPU, torch.float32, dry=True)
    fill(ours)
    theirs = Transformers(peer_model(shape, ours, CPU, attention="eager", dry=True), CPU)
    work = replace(WORKLOADS["variable 512"].make(0, 61, 20, dry=True))
    assert work.lengths.tolist() == [9, 3, 14]
    # 14 alone, since two of 14 are more than 20; then 9 and 3 as two of 9.
    assert theirs.padding(work) == pytest.approx((14 + 2 * 9) / 26)
    assert Padless(ours, CPU).padding(work) == 1.0
    with torch.no_grad():
        assert compare(theirs.vectors(work), Padless(ours, CPU).vectors(work)).wrong(0.99999) is None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU on this machine's CPU: tiny shapes under the names of the real ones, and tiny work."""
    for name in ("BERT-base", "MobileBERT"):
        monkeypatch.setitem(SHAPES, name, replace(SHAPES[name], real=SHAPES[name].tiny))
    for name, lengths in (("variable 512", [40, 9, 21, 30]), ("one text, 128 tokens", [9, 9, 9, 9])):
        work = replace(WORKLOADS[name], draw=lambda _generator, _tokens, lengths=lengths: np.array(lengths))
        monkeypatch.setitem(model_work.WORKLOADS, name, work)
    monkeypatch.setattr(models, "_loaded", models._Model)
    monkeypatch.setattr(models, "SECONDS", 0.02)  # a few rounds


def measured(family: str, workload: str, *names: str) -> dict[str, Any]:
    with torch.inference_mode():
        return models._run(family, workload, names, HERE)


SDPA, EAGER = "transformers, sdpa", "transformers, eager"


@pytest.mark.usefixtures("small")
def test_what_is_measured_adds_up_and_reads_as_measured() -> None:
    cases = {
        f"{family}/{workload}": measured(family, workload, models.OURS, SDPA, EAGER, "transformers, flash_attention_2")
        for family in ("BERT-base", "MobileBERT")
        for workload in ("variable 512", "one text, 128 tokens")
    }
    for figures in cases.values():
        assert figures["status"] == "ok", figures
        assert set(figures["absent"]) == {"transformers, flash_attention_2"}
        assert set(figures["timed"]) == {models.OURS, SDPA, EAGER}
        texts = figures["texts"] if figures["latency"] else 1
        for row in figures["timed"].values():
            assert row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
            tokens = figures["tokens"] / texts
            rate = tokens / row["ms"]["median"] * 1e3  # recorded in whole tokens
            assert row["tokens_per_second"] == pytest.approx(rate, rel=0.01, abs=0.5)
            assert row["cosine"] >= 0.999
        assert figures["timed"][models.OURS]["ratio"] == 1.0
        best = min((SDPA, EAGER), key=lambda name: figures["timed"][name]["ms"]["median"])
        assert (figures["best_peer"], figures["ratio"]) == (best, figures["timed"][best]["ratio"])
        assert figures["rounds"] >= 5
    assert cases["BERT-base/variable 512"]["timed"][SDPA]["padding"] == pytest.approx(4 * 40 / 100)
    part = {"complete": True, "seconds": 1.0, "failure": None, "not_run": [], "cases": cases}
    page = render(
        {"dry": False, "written": "then", "machine": {"gpu": "A GPU"}, "kernel_hashes": {}, "parts": {"models": part}}
    )
    tokens = cases["MobileBERT/variable 512"]["timed"][models.OURS]["tokens_per_second"]
    assert f"| MobileBERT/variable 512 | {tokens:,} | not measured |" in page
    waited = cases["BERT-base/one text, 128 tokens"]["timed"][models.OURS]["ms"]["median"]
    assert f"| BERT-base/one text, 128 tokens | {waited:,.3f} | not measured |" in page
    assert "MobileBERT beside BERT-base" in page
    assert "- transformers, flash_attention_2, left out of 4" in page


@pytest.mark.usefixtures("small")
def test_a_system_with_wrong_vectors_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(shape: Any, weights: Any, device: Any, *, attention: str, **options: Any) -> Any:
        model = peer_model(shape, weights, device, attention=attention, **options)
        if attention == "eager":
            layer: Any = model.encoder.layer[1]  # pyright: ignore[reportFunctionMemberAccess]
            layer.output.dense.weight = torch.nn.Parameter(layer.output.dense.weight.flip(0), requires_grad=False)
        return model

    monkeypatch.setattr(models, "peer_model", wrong)
    figures = measured("BERT-base", "variable 512", models.OURS, SDPA, EAGER)
    assert figures["status"] == "ok"
    assert set(figures["timed"]) == {models.OURS, SDPA}
    assert figures["absent"][EAGER].startswith("wrong vectors: cosine")


@pytest.mark.usefixtures("small")
def test_what_is_ours_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = measured("BERT-base", "variable 512", models.OURS, models.OURS_TRITON, SDPA)
    assert figures["status"] == "failed"
    assert figures["reason"].startswith("padless, triton: backend 'triton' cannot serve")
    assert set(figures["timed"]) == {models.OURS, SDPA}
    # A row that fell back is not what its name says, and without ours nothing is timed.
    monkeypatch.setattr(Padless, "problem", lambda _: "attention: triton failed when it was called: no compiler")
    figures = measured("BERT-base", "variable 512", models.OURS, SDPA)
    assert figures["status"] == "failed"
    assert "timed" not in figures
    assert "no compiler" in figures["reason"]


@pytest.mark.usefixtures("small")
def test_recordings_that_were_not_replayed_have_no_figure() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    figures = measured("BERT-base", "one text, 128 tokens", models.OURS, models.OURS_GRAPHS, SDPA)
    assert "no batch was replayed; 1 recordings refused" in figures["absent"][models.OURS_GRAPHS]
    assert models.OURS_GRAPHS not in figures["timed"]


@pytest.mark.usefixtures("small")
def test_memory_that_is_not_there_costs_one_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Transformers, work: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 50 GiB.\nGPU 0 has")

    monkeypatch.setattr(Transformers, "vectors", full)
    figures = measured("BERT-base", "variable 512", models.OURS, SDPA, EAGER)
    assert figures["status"] == "ok"
    assert set(figures["timed"]) == {models.OURS}
    assert figures["absent"][SDPA] == "out of memory: CUDA out of memory. Tried to allocate 50 GiB."
    assert "best_peer" not in figures


def test_every_family_of_the_report_has_a_shape() -> None:
    assert set(models.FAMILIES) <= set(model_shapes.SHAPES)
    names = [case.name for case in models.cases(HERE)]
    assert {name.split("/")[0] for name in names} == {*models.FAMILIES, "MiniLM-L6", "ceilings"}
    assert [name for name in names if "long 8192" in name] == ["ModernBERT-base/long 8192"]
    assert {case.name for case in models.warm_cases(HERE)} == set(names) - {"ceilings"}
