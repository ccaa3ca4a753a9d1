"""`padless bench generate` in tiny sizes: its checks, its report and its pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.bench.generate.check import check_logits, check_tokens
from padless.bench.generate.run import run
from padless.bench.generate.subjects import make_subject
from padless.bench.reports.compare import compare
from padless.bench.reports.report import read_report
from padless.bench.reports.rows import rows_of
from padless.engine.cli.app import run as command_line
from padless.engine.errors import InputError, OptionError

T5: dict[str, Any] = {"vocab_size": 31000, "d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 2, "num_heads": 3}
MEGATRON: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(("name", "fields"), [("mt5-small", T5), ("megatron-bert-345m", MEGATRON)])
def test_every_system_is_checked_and_timed(
    name: str, fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "generate.json"
    report = run([name], texts=5, new_tokens=6, repeats=2, threads=1, json_path=file, fields=fields)
    (model,) = report["models"]
    assert model["failed"] == {}
    systems = [(system["system"], system["dtype"]) for system in model["systems"]]
    assert sorted(systems) == sorted((s, d) for s in ("padless", "transformers") for d in ("float32", "bfloat16"))
    for system in model["systems"]:
        expected = sorted(5 * 6 / seconds for seconds in system["seconds"])
        assert system["tokens_per_second"]["median"] == pytest.approx(sum(expected) / 2)
    assert json.loads(file.read_text()) == report
    rows = rows_of(read_report(file))
    assert {row.label for row in rows} == {f"{system} {dtype}" for system, dtype in systems}
    assert compare(read_report(file), read_report(file), 0.05).changes
    printed = capsys.readouterr().out
    assert "6 tokens behind each of 5 texts" in printed
    assert f"{name}, " in printed


def test_other_tokens_have_no_figure() -> None:
    expected = torch.arange(12).reshape(3, 4)
    wrong = expected.clone()
    wrong[1, 3] += 1
    assert check_tokens(expected.clone(), expected) is None
    assert check_tokens(wrong, expected) == "other tokens in 1 of 3 sequences"
    assert check_tokens(expected[:, :3], expected) == "tokens of shape [3, 3], expected [3, 4]"


@pytest.mark.parametrize(("name", "fields"), [("mt5-small", T5), ("megatron-bert-345m", MEGATRON)])
def test_logits_in_bf16_are_held_against_transformers_in_bf16(name: str, fields: dict[str, Any]) -> None:
    subject = make_subject(name, "skewed_256", 4, fields)
    ids = {"input_ids": subject.input_ids, "attention_mask": subject.attention_mask}
    written = subject.theirs.generate(**ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    theirs, ours = (copy.deepcopy(model).to(torch.bfloat16) for model in (subject.theirs, subject.ours))
    assert check_logits(subject, ours, theirs, written) is None
    with torch.no_grad():
        next(p for n, p in ours.named_parameters() if "o.weight" in n or "output.dense.weight" in n).neg_()
    assert "logits differ by" in (check_logits(subject, ours, theirs, written) or "")


def test_texts_are_on_the_side_that_generation_needs() -> None:
    read = make_subject("mt5-small", "skewed_256", 3, T5)
    prompts = make_subject("megatron-bert-345m", "skewed_256", 3, MEGATRON)
    assert torch.equal(read.attention_mask.flip(1), prompts.attention_mask)
    assert read.attention_mask[:, 0].all()
    assert prompts.attention_mask[:, -1].all()
    assert read.tokens == int(read.workload.lengths.clip(max=256).sum())


MISUSE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"models": ["gpt"]}, OptionError, "model 'gpt': unknown, expected some of mt5-small"),
    "none": ({"models": []}, OptionError, "models: expected at least one"),
    "dtype": ({"dtypes": ["int8"]}, OptionError, "dtype 'int8'"),
    "repeats": ({"repeats": 0}, OptionError, "repeats: expected at least 1"),
    "folder": ({"json_path": Path("nowhere/a.json")}, InputError, "there is no folder nowhere"),
}


@pytest.mark.parametrize(("given", "kind", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_one_line(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        run(**given)


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["bench", "generate", "--models", "gpt"]) == 2
    assert "model 'gpt': unknown" in capsys.readouterr().err
