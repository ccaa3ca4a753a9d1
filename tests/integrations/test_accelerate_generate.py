"""`generate` of accelerated models writes the tokens that the untouched ones write."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from accelerated import HAS_DECODER, T5_CLASSES, texts_for, untouched
from parity_inputs import padded_call
from parity_models import ModelClass

import padless

END = 7
WRITERS = [
    ModelClass("mt5", "ForConditionalGeneration"),
    *(item for item in T5_CLASSES if item.kind == "ForConditionalGeneration"),
    *([ModelClass("megatron-bert", "ForCausalLM")] if HAS_DECODER else []),
]
SERVED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "beams": {"num_beams": 3, "max_new_tokens": 9},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 7, "early_stopping": True},
    "beams that end": {"num_beams": 2, "max_new_tokens": 9, "eos_token_id": [*range(7, 31)], "length_penalty": 3.0},
    "sampling": {"do_sample": True, "top_p": 0.9, "max_new_tokens": 6},
    "rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "max_new_tokens": 9},
    "a configuration": {"generation_config": transformers.GenerationConfig(max_new_tokens=4, num_beams=2)},
}
LEFT: dict[str, tuple[dict[str, Any], str]] = {
    "scores": (
        {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4}, "return_dict_in_generate",
    ),
    "typical sampling": ({"typical_p": 0.5, "do_sample": True, "max_new_tokens": 4}, "typical_p"),
    "a processor": (
        {"logits_processor": transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(2.0)]),
         "max_new_tokens": 4}, "logits_processor",
    ),
}  # fmt: skip


def both(item: ModelClass) -> tuple[Any, Any, dict[str, Any]]:
    model = untouched(item, attention=None)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, 0
    call = padded_call(item, texts_for(item), "left")
    call = {name: value for name, value in call.items() if name in ("input_ids", "attention_mask")}
    return model, padless.accelerate(copy.deepcopy(model)), call


def seeded(model: Any, call: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    return model.generate(**call)


@pytest.mark.parametrize("item", WRITERS, ids=str)
def test_the_same_tokens(item: ModelClass, caplog: pytest.LogCaptureFixture) -> None:
    model, accelerated, call = both(item)
    with caplog.at_level(logging.WARNING, logger="padless"):
        for options in SERVED.values():
            expected = seeded(model, {**call, **options})
            found = seeded(accelerated, {**call, **options})
            assert torch.equal(found, expected), options
        assert torch.equal(
            accelerated.generate(call["input_ids"], max_new_tokens=5),
            model.generate(call["input_ids"], max_new_tokens=5),
        )
        # What is set on the model counts as it is at the call.
        for one in (model, accelerated):
            one.generation_config.max_new_tokens = 3
        assert torch.equal(seeded(accelerated, call), seeded(model, call))
    assert not [record for record in caplog.records if record.name.startswith("padless")]


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.parametrize("item", [WRITERS[0], WRITERS[-1]], ids=str)
def test_options_that_we_lack_are_left_to_transformers(
    item: ModelClass, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, accelerated, call = both(item)
    options, reason = LEFT[case]
    expected = seeded(model, {**call, **options})
    with caplog.at_level(logging.WARNING, logger="padless"):
        found = seeded(accelerated, {**call, **options})
    assert type(found) is type(expected)
    ours, theirs = (x if isinstance(x, torch.Tensor) else x.sequences for x in (found, expected))
    assert torch.equal(ours, theirs)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1  # not one for each step, too
    assert reason in lines[0]


def test_a_mistake_is_refused_in_the_words_of_transformers() -> None:
    model, accelerated, call = both(WRITERS[0])
    with pytest.raises(ValueError, match="max_new_tokns"):
        model.generate(**call, max_new_tokns=3)
    with pytest.raises(ValueError, match="max_new_tokns"):
        accelerated.generate(**call, max_new_tokns=3)


def test_restored_it_writes_by_itself() -> None:
    model, accelerated, call = both(WRITERS[0])
    padless.restore(accelerated)
    assert "generate" not in vars(accelerated)
    call["max_new_tokens"] = 5
    assert torch.equal(seeded(accelerated, call), seeded(model, call))
