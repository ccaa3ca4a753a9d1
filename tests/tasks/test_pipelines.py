"""`padless.pipeline`: arguments in transformers' spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from writing_folders import write_megatron, write_mt5

import padless
from padless import ConfigError, OptionError, WeightsError


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_megatron(tmp_path_factory.mktemp("megatron"))


def test_options_of_the_pipeline_are_those_of_every_call(megatron: Path) -> None:
    plain = padless.pipeline("text-generation", megatron, dtype="float32")
    short = padless.pipeline("text-generation", megatron, dtype="float32", max_new_tokens=3, do_sample=False)
    assert short("moon") == plain("moon", max_new_tokens=3, do_sample=False)
    assert short("moon", max_new_tokens=5) == plain("moon", max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float64", "device": 0}, torch.float64),
        ({"dtype": "float64", "device": -1}, torch.float64),
        ({"dtype": "float64", "device_map": "auto"}, torch.float64),
    ],
    ids=str,
)
def test_device_and_dtype(megatron: Path, given: dict[str, Any], expected: torch.dtype) -> None:
    task = padless.pipeline("text-generation", megatron, **{"dtype": "float32", **given})
    if "torch_dtype" in given or "dtype" in given or expected is torch.float32:
        assert task.loaded.model.dtype == expected
    assert task.loaded.device.type == ("cuda" if torch.cuda.is_available() and given.get("device") != -1 else "cpu")


def test_a_loaded_model_goes_behind_a_task(megatron: Path) -> None:
    model = padless.AutoModelForCausalLM.from_pretrained(megatron)
    tokenizer = padless.AutoTokenizer.from_pretrained(megatron)
    options = {"max_new_tokens": 4, "do_sample": False}
    task = padless.pipeline("text-generation", model, tokenizer=tokenizer)
    assert task("moon", **options) == padless.pipeline("text-generation", megatron, dtype="float32")("moon", **options)


def test_the_task_is_found_by_the_checkpoint(megatron: Path) -> None:
    assert padless.pipeline(model=megatron).name == "text-generation"


def test_a_head_that_is_not_there_is_refused(megatron: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no weights for (bert\.pooler, classifier|classifier, bert\.pooler), which the task"
    ):
        padless.pipeline("text-classification", megatron)
    with pytest.raises(ConfigError, match=r"ForCausalLM needs one of .*asked for by the task text-generation"):
        padless.pipeline("text-generation", write_mt5(tmp_path))


MISUSE: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": "telepathy"}, "task: expected one of embedding, text-classification, .* got 'telepathy'"),
    "model": ({"model": None}, "model: expected a folder or an id"),
    "code": ({"trust_remote_code": True}, "no code of a folder is ever run"),
    "option": ({"max_tokens": 3}, "unknown argument max_tokens"),
    "tokenizer": ({"tokenizer": "elsewhere"}, "tokenizer: expected that of the model's folder"),
    "object": ({"model": object()}, "tokenizer: expected one of padless beside a loaded model"),
    "backend": ({"backend": "tpu"}, "backend: expected one of"),
    "dtype": ({"dtype": "int8"}, "dtype"),
}


@pytest.mark.parametrize(("given", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_one_clear_line(megatron: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        padless.pipeline(**{"task": "text-generation", "model": megatron, **given})
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused(megatron: Path) -> None:
    tokenizer = padless.AutoTokenizer.from_pretrained(megatron)
    bare = padless.MegatronBertModel.from_pretrained(megatron)
    with pytest.raises(OptionError, match="needs a class of padless ForCausalLM, got MegatronBertModel"):
        padless.pipeline("text-generation", bare, tokenizer=tokenizer)
    with pytest.raises(OptionError, match="task: expected a name beside a loaded model"):
        padless.pipeline(model=bare, tokenizer=tokenizer)
