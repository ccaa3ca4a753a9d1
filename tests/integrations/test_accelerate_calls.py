"""Which calls padless serves on an accelerated model, and that the others are left to transformers, with one line."""

from __future__ import annotations

import copy
import logging
import re
import threading
from typing import Any

import pytest
import torch
from accelerated import EVERYTHING, HAS_DECODER, assert_same, call_of, count_calls, pair, untouched
from parity_models import ModelClass

import padless

BERT = ModelClass("bert", "Model")
MASKED = ModelClass("bert", "ForMaskedLM")
MOBILE = ModelClass("mobilebert", "ForTokenClassification")
MODERN = ModelClass("modernbert", "Model")
WRITER = ModelClass("mt5", "ForConditionalGeneration")
CAUSAL = ModelClass("megatron-bert", "ForCausalLM")


def with_holes(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = call["attention_mask"].clone()
    mask[0, 3:6] = 0
    return {**call, "attention_mask": mask}


def without_a_token(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = call["attention_mask"].clone()
    mask[1] = 0
    return {**call, "attention_mask": mask}


def of_pairs(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = call["attention_mask"].bool()
    return {**call, "attention_mask": mask[:, None, None] & mask[:, None, :, None]}


def labelled_everywhere(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**call, "labels": call["input_ids"].clone()}


def beyond_the_vocabulary(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**call, "input_ids": call["input_ids"] + 60}


def embedded(call: dict[str, torch.Tensor], width: int = 24) -> dict[str, Any]:
    ids = call["input_ids"]
    embeds = torch.randn(*ids.shape, width, generator=torch.Generator().manual_seed(1))
    return {**{name: value for name, value in call.items() if name != "input_ids"}, "inputs_embeds": embeds}


LEFT_TO_TRANSFORMERS = {
    "holes in a window": (MODERN, "right", with_holes, {}, "attention_mask has holes"),
    "a text without a token": (MASKED, "right", without_a_token, {}, "leaves a text without a token"),
    "a mask of pairs": (MASKED, "right", of_pairs, {}, "attention_mask is not one value a token"),
    "labels at padding": (MASKED, "right", labelled_everywhere, {}, "labels at padding"),
    "the first column": (BERT, "left", dict, {}, "the state in the first column is read"),
    "trigrams of embeddings": (MOBILE, "right", lambda call: embedded(call, 12), {}, "inputs_embeds with padding"),
    "a selection of states": (BERT, "right", dict, {"output_hidden_states": [0]}, "output_hidden_states is a select"),
    "an argument we do not know": (BERT, "right", dict, {"cu_seq_lens_q": torch.zeros(1)}, "it is given cu_seq_lens_q"),
    "ids out of range": (BERT, "right", beyond_the_vocabulary, {}, "input_ids: expected 0 to 60"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_TO_TRANSFORMERS)
def test_what_is_not_served_is_left_to_transformers_with_one_line(case: str, caplog: pytest.LogCaptureFixture) -> None:
    item, side, change, options, reason = LEFT_TO_TRANSFORMERS[case]
    model, accelerated, _ = pair(item, attention=None)
    calls = count_calls(accelerated)
    call = change(call_of(item, side))
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="padless"):
        for _ in range(2):
            expected, found = (_result(one, {**call, **options}) for one in (model, accelerated))
            if isinstance(expected, Exception):
                assert (type(found), str(found)) == (type(expected), str(expected))
                continue
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    # Views of one buffer may stand at other addresses, where a product rounds in another way.
                    assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6, equal_nan=True), name
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("padless")]
    assert len(lines) == 1
    assert re.search(reason, lines[0])
    assert not calls


def _result(model: Any, call: dict[str, Any]) -> Any:
    try:
        return model(**call)
    except Exception as error:
        return error


@pytest.mark.parametrize("item", [MASKED, MODERN, WRITER], ids=str)
def test_embeddings_positions_and_a_bare_call_are_served(item: ModelClass) -> None:
    model, accelerated, _ = pair(item, attention=None)
    calls = count_calls(accelerated)
    call = call_of(item)
    served = [
        embedded(call),
        {"input_ids": call["input_ids"]},
        {**call, "attention_mask": call["attention_mask"].float()},
    ]
    if item is WRITER:
        served[1]["labels"] = call["decoder_input_ids"]
        state = model.get_encoder()(call["input_ids"], call["attention_mask"])
        beside = {name: value for name, value in call.items() if name != "input_ids"}
        served += [{**beside, "encoder_outputs": state}, {**beside, "encoder_outputs": (state[0],)}]
    else:
        served.append({**call, "position_ids": torch.arange(42)[None].expand(6, -1).flip(1)})
    with torch.no_grad():
        for one in served:
            assert_same(accelerated(**one), model(**one), call)
    assert len(calls) == len(served)


def test_arguments_may_come_in_their_order() -> None:
    model, accelerated, _ = pair(BERT)
    calls = count_calls(accelerated)
    call = call_of(BERT)
    mask = call["attention_mask"]
    with torch.no_grad():
        assert_same(accelerated(call["input_ids"], mask, call["token_type_ids"]), model(**call), call)
        assert len(calls) == 1
        with pytest.raises(TypeError, match="multiple values"):
            accelerated(call["input_ids"], input_ids=call["input_ids"])


VARIANTS: dict[str, tuple[ModelClass, dict[str, Any]]] = {
    "logits of labels alone": (ModelClass("modernbert", "ForMaskedLM"), {"sparse_prediction": True}),
    "the mean of a text": (ModelClass("modernbert", "ForSequenceClassification"), {"classifier_pooling": "mean"}),
    "no windows": (MODERN, {"layer_types": ["full_attention"] * 4}),
    "no trigrams": (MOBILE, {"trigram_input": False, "embedding_size": 32}),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_configuration_changes_is_computed_so(variant: str, side: str) -> None:
    item, fields = VARIANTS[variant]
    model, accelerated, _ = pair(item, **fields)
    calls = count_calls(accelerated)
    call = call_of(item, side, with_targets=True)
    with torch.no_grad():
        assert_same(accelerated(**call), model(**call), call)
    assert len(calls) == 1


@pytest.mark.parametrize("family", ["bert", "mobilebert", "megatron-bert"])
def test_a_model_without_its_pooler(family: str) -> None:
    item = ModelClass(family, "Model")
    model = item.theirs(untouched(item).config, add_pooling_layer=False).eval()
    accelerated = padless.accelerate(copy.deepcopy(model))
    calls = count_calls(accelerated)
    with torch.no_grad():
        for side in ("left", "right"):
            call = call_of(item, side)
            assert_same(accelerated(**call), model(**call), call)
        assert len(calls) == 2
        # MegatronBERT's tuple has None where the pooler's output would be.
        assert_same(accelerated(**call, return_dict=False), model(**call, return_dict=False), call)


@pytest.mark.parametrize("side", ["left", "right"])
def test_mobilebert_sees_the_padding_beside_a_text_as_transformers_does(side: str) -> None:
    """Its trigrams reach into the next column; published weights have values for [PAD]."""
    model, accelerated, _ = pair(MOBILE)
    calls = count_calls(accelerated)
    with torch.no_grad():
        for one in (model, accelerated):
            one.mobilebert.embeddings.word_embeddings.weight[0] = 3.0
        call = call_of(MOBILE, side)
        mask = call["attention_mask"]
        call["input_ids"] = call["input_ids"].masked_fill(mask == 0, 0)
        expected = model(**call)
        assert_same(accelerated(**call), expected, call)
        other = {**call, "input_ids": call["input_ids"].masked_fill(mask == 0, 9)}
        assert_same(accelerated(**other), model(**other), call)
        assert (model(**other).logits - expected.logits)[mask.bool()].abs().max() > 1e-2
        # A text that fills its row has no neighbour.
        alone = {name: value[3:4, (2 if side == "left" else 0) :][:, :40] for name, value in call.items()}
        assert_same(accelerated(**alone), model(**alone), alone)
    assert len(calls) == 3


@pytest.mark.parametrize("item", [WRITER, *([CAUSAL] if HAS_DECODER else [])], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_loop_of_its_own_goes_on_from_the_cache_that_we_return(item: ModelClass, side: str) -> None:
    model, accelerated, _ = pair(item, attention=None)
    calls = count_calls(accelerated)
    call = call_of(item, side)
    name = "decoder_attention_mask" if item is WRITER else "attention_mask"
    ids = "decoder_input_ids" if item is WRITER else "input_ids"
    following = torch.tensor([[9], [8], [7], [6], [5], [9]])
    results = []
    with torch.no_grad():
        for one in (model, accelerated):
            first = one(**call)
            mask = torch.cat([call[name], torch.ones_like(following)], dim=1)
            beside = {key: value for key, value in call.items() if key in ("input_ids", "attention_mask")}
            second = {**(beside if item is WRITER else {}), ids: following, name: mask}
            results.append(one(**second, past_key_values=first.past_key_values).logits)
    assert len(calls) == 1
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


def test_flags_of_the_configuration_count_as_they_are_at_the_call() -> None:
    model, accelerated, _ = pair(BERT)
    call = call_of(BERT)
    for one in (model, accelerated):
        one.config.output_hidden_states = True
        one.config.return_dict = False
    with torch.no_grad():
        found = accelerated(**call)
        assert isinstance(found, tuple)
        assert_same(found, model(**call), call)


def test_hooks_and_modules_that_were_replaced_are_never_passed_by() -> None:
    model, accelerated, _ = pair(MASKED)
    calls, fired = count_calls(accelerated), []
    call = call_of(MASKED)
    with torch.no_grad():
        handle = accelerated.bert.encoder.layer[1].register_forward_hook(lambda *_: fired.append(1))
        accelerated(**call)
        assert (len(fired), len(calls)) == (1, 0)
        handle.remove()
        accelerated(**call)
        assert (len(fired), len(calls)) == (1, 1)
        # Those of the model itself are called around ours, and those that transformers keeps for itself do not count.
        accelerated.register_forward_hook(lambda *_: fired.append(1))
        type(accelerated).forward(accelerated, **call, **EVERYTHING)
        assert any(module._forward_hooks for module in accelerated.bert.modules())
        accelerated(**call)
        assert (len(fired), len(calls)) == (2, 2)
        # A module that is replaced is a reason too, until it is one of the published kind.
        layer = accelerated.bert.encoder.layer[0].intermediate.dense
        accelerated.bert.encoder.layer[0].intermediate.dense = torch.nn.Sequential(layer)
        assert_same(accelerated(**call), model(**call), call)
        accelerated.bert.encoder.layer[0].intermediate.dense = layer
        accelerated(**call)
    assert len(calls) == 2  # of the model of ours that was replaced with it


def test_autocast_and_a_loss_of_the_models_own_are_left_to_transformers() -> None:
    model, accelerated, _ = pair(MASKED)
    calls = count_calls(accelerated)
    call = call_of(MASKED, with_targets=True)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(accelerated(**call).logits, model(**call).logits)
        assert not calls
        accelerated(**call)
        assert len(calls) == 1
        for one in (model, accelerated):
            one.loss_function = lambda *_, **__: torch.tensor(7.0)
        assert accelerated(**call).loss == model(**call).loss
        assert len(calls) == 1


def test_a_dtype_that_we_refuse_is_left_to_transformers(caplog: pytest.LogCaptureFixture) -> None:
    model, accelerated, _ = pair(MOBILE)
    call = call_of(MOBILE)
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="padless"):
        assert torch.equal(accelerated.half()(**call).logits, model.half()(**call).logits)
        accelerated(**call)
        assert ["float16: MobileBERT" in record.getMessage() for record in caplog.records] == [True]
        accelerated.float()
        calls = count_calls(accelerated)
        accelerated(**call)
    assert len(calls) == 1


def test_threads_share_one_model() -> None:
    _, accelerated, _ = pair(BERT)
    call = call_of(BERT)
    with torch.no_grad():
        expected = accelerated(**call).last_hidden_state
    accelerated.double()
    accelerated.float()
    found: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            found.append(accelerated(**call).last_hidden_state)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(one, expected) for one in found)


def test_what_is_compiled_is_the_original() -> None:
    model, accelerated, _ = pair(BERT)
    calls = count_calls(accelerated)
    call = call_of(BERT)
    seen: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    with torch.no_grad():
        found = torch.compile(accelerated, backend=backend)(**call)
        assert_same(found, model(**call), call)
    assert seen
    assert not calls
    padless.restore(accelerated)
