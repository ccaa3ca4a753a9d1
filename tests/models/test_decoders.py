"""Decoders step by step over their cache compute what they compute at once, in any company and any order."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import padless
from padless import InputError, OptionError
from padless.engine.outputs import BaseModelOutput

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "is_decoder": True,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 28,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": False,
}
KINDS = ("mt5", "megatron", "megatron across")
TEXTS, WRITTEN = (9, 3, 14), 30
CUTS = [(1,) * WRITTEN, (7, 1, 1, 20, 1), (29, 1), (2, 28)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 61, shape, generator=torch.Generator().manual_seed(seed))


@cache
def model(kind: str) -> Any:
    torch.manual_seed(7)
    if kind == "mt5":
        made: Any = padless.MT5ForConditionalGeneration(padless.MT5Config(**T5_SIZES))
    else:
        config = padless.MegatronBertConfig(**SIZES, add_cross_attention=kind.endswith("across"))
        made = padless.MegatronBertForCausalLM(config)
    return made.double().eval().requires_grad_(False)


@cache
def beside(kind: str) -> dict[str, Tensor]:
    """What is attended to across: texts of several lengths, padded on the left."""
    mask = torch.stack([torch.arange(14) >= 14 - length for length in TEXTS]).long()
    if kind == "mt5":
        return {"input_ids": draw(3, 14, seed=1), "attention_mask": mask}
    if kind.endswith("across"):
        hidden = torch.randn(3, 14, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
    return {}


def call(kind: str, ids: Tensor, rows: slice = slice(None), **options: Any) -> Any:
    name = "decoder_input_ids" if kind == "mt5" else "input_ids"
    given = {key: value[rows] for key, value in beside(kind).items()}
    return model(kind)(**given, **{name: ids}, **options)


@cache
def at_once(kind: str) -> Tensor:
    return call(kind, draw(3, WRITTEN), use_cache=False).logits


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_in_pieces_as_at_once(kind: str, cuts: tuple[int, ...]) -> None:
    past: Any = None
    found = []
    for part in draw(3, WRITTEN).split(cuts, dim=1):
        outputs = call(kind, part, past_key_values=past, use_cache=True)
        past = outputs.past_key_values
        found.append(outputs.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), at_once(kind), rtol=0, atol=1e-10)
    assert past.get_seq_length() == WRITTEN


@pytest.mark.parametrize("kind", KINDS)
def test_in_pieces_with_attentions_kept(kind: str) -> None:
    ids = draw(3, WRITTEN)
    whole = call(kind, ids, use_cache=False, output_attentions=True)
    past = call(kind, ids[:, :20], use_cache=True).past_key_values
    rest = call(kind, ids[:, 20:], past_key_values=past, output_attentions=True)
    torch.testing.assert_close(rest.logits, at_once(kind)[:, 20:], rtol=0, atol=1e-10)
    own = "decoder_attentions" if kind == "mt5" else "attentions"
    for part, full in zip(rest[own], whole[own], strict=True):
        torch.testing.assert_close(part, full[:, :, 20:], rtol=0, atol=1e-10)
    if kind != "megatron":
        for part, full in zip(rest.cross_attentions, whole.cross_attentions, strict=True):
            torch.testing.assert_close(part, full[:, :, 20:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_those_behind_it(kind: str) -> None:
    ids = draw(3, WRITTEN)
    changed = ids.clone()
    changed[:, 11:] = draw(3, WRITTEN - 11, seed=5)
    found = call(kind, changed, use_cache=False).logits
    assert torch.equal(found[:, :11], at_once(kind)[:, :11])
    assert not torch.equal(found[:, 11], at_once(kind)[:, 11])


@pytest.mark.parametrize("kind", ["mt5", "megatron"])
@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1, 0, 2], [0, 1, 2]])
def test_sequences_leave_stand_in_another_order_and_repeat(kind: str, rows: list[int]) -> None:
    from padless.engine.models.steps import Steps

    made = model(kind)
    base = made.base_model
    texts = base.read_texts(**beside(kind), inputs_embeds=None, encoder_outputs=None) if kind == "mt5" else None
    ids = draw(3, WRITTEN)
    lengths = (5, 1, 8)  # prompts of several lengths, packed
    steps = Steps(base, made.language_model_head, texts)
    first = steps.start([row[:length] for row, length in zip(ids, lengths, strict=True)], steps=9, sequences=5)
    at = list(lengths)

    def right(row: int) -> Tensor:
        return call(kind, ids[row : row + 1, : at[row]], slice(row, row + 1), use_cache=False).logits[0, -1].float()

    torch.testing.assert_close(first, torch.stack([right(row) for row in range(3)]), rtol=0, atol=1e-6)
    order = [0, 1, 2]
    for again in range(2):
        steps.reorder(torch.tensor(rows) if again == 0 else torch.arange(len(order)))
        order = [order[row] for row in rows] if again == 0 else order
        found = steps.step(torch.stack([ids[row, at[row]] for row in order]))
        at = [length + 1 for length in at]
        torch.testing.assert_close(found, torch.stack([right(row) for row in order]), rtol=0, atol=1e-6)


def test_what_the_encoder_returned_stands_for_the_text() -> None:
    mt5, given = model("mt5"), beside("mt5")
    ids = draw(3, WRITTEN)
    encoded = mt5(**given, decoder_input_ids=ids[:, :1]).encoder_last_hidden_state
    for outputs in ((encoded,), BaseModelOutput(last_hidden_state=encoded)):
        found = mt5(
            encoder_outputs=outputs, attention_mask=given["attention_mask"], decoder_input_ids=ids, use_cache=False
        )
        torch.testing.assert_close(found.logits, at_once("mt5"), rtol=0, atol=1e-10)


def test_labels_are_shifted_behind_the_start_token() -> None:
    mt5, given = model("mt5"), beside("mt5")
    labels = draw(3, 6)
    labels[1, 4:] = -100
    shifted = mt5._shift_right(labels)
    assert shifted.tolist() == [[0, *row[:-1]] for row in labels.where(labels >= 0, 0).tolist()]
    assert torch.equal(mt5.prepare_decoder_input_ids_from_labels(labels), shifted)
    by_labels, by_ids = mt5(**given, labels=labels), mt5(**given, decoder_input_ids=shifted, labels=labels)
    assert torch.equal(by_labels.logits, by_ids.logits)
    assert torch.equal(by_labels.loss, by_ids.loss)


def test_a_cache_of_others_is_refused() -> None:
    past = call("mt5", draw(3, 2), use_cache=True).past_key_values
    with pytest.raises(InputError, match="of 3 sequences, got inputs of 2"):
        call("mt5", draw(2, 1), slice(0, 2), past_key_values=past)
    with pytest.raises(OptionError, match="past_key_values: expected what this model returned before, got tuple"):
        call("megatron", draw(3, 2), past_key_values=((torch.zeros(1),),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected exactly one of input_ids and inputs_embeds"),
        ({"input_ids": draw(2, 3)}, "expected decoder_input_ids or decoder_inputs_embeds"),
        ({"input_ids": draw(2, 3), "decoder_input_ids": draw(3, 4)}, "expected 2 sequences, one for each text, got 3"),
        ({"input_ids": draw(2, 3), "decoder_input_ids": draw(2, 4) + 60}, "input_ids: expected 0 to 60"),
        ({"encoder_outputs": (torch.zeros(2, 3),), "decoder_input_ids": draw(2, 4)}, "expected a last_hidden_state"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(padless.PadlessError, match=message):
        model("mt5")(**arguments)


def test_what_only_a_decoder_takes() -> None:
    encoder = padless.MegatronBertModel(padless.MegatronBertConfig(**{**SIZES, "is_decoder": False}))
    with pytest.raises(OptionError, match="encoder_hidden_states"):
        encoder(draw(2, 3), encoder_hidden_states=torch.zeros(2, 3, 24))
    with pytest.raises(OptionError, match="add_cross_attention"):
        model("megatron")(draw(2, 3), encoder_hidden_states=torch.zeros(2, 3, 24, dtype=torch.float64))
    with pytest.raises(padless.ConfigError, match="add_cross_attention: expected is_decoder beside it"):
        padless.MegatronBertConfig(**{**SIZES, "is_decoder": False, "add_cross_attention": True})
    past = model("megatron")(draw(1, 64), use_cache=True).past_key_values
    with pytest.raises(InputError, match="position_ids: expected 0 to 63"):
        model("megatron")(draw(1, 1), past_key_values=past)


def test_a_head_that_a_checkpoint_lacks_is_the_word_embeddings(tmp_path: Path) -> None:
    """transformers leaves it out where the two are one, and writes in the configuration what was there before."""
    torch.manual_seed(1)
    bare = padless.MT5Model(padless.MT5Config(**T5_SIZES))
    bare.save_pretrained(tmp_path)
    written = padless.MT5ForConditionalGeneration.from_pretrained(tmp_path)
    assert not written.config.tie_word_embeddings
    assert torch.equal(written.lm_head.weight, bare.shared.weight)
    apart = padless.MT5ForConditionalGeneration(padless.MT5Config(**T5_SIZES))
    apart.save_pretrained(tmp_path)
    again = padless.MT5ForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, apart.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.shared.weight)


@pytest.mark.parametrize("number", [0, 2])
def test_texts_of_a_classifier_end_alike(number: int) -> None:
    torch.manual_seed(3)
    classifier = padless.MT5ForSequenceClassification(padless.MT5Config(**T5_SIZES, num_labels=3)).eval()
    ids = draw(2, 5)
    ids[:, -1] = 1
    ids[0, : number + 1] = 1 if number else ids[0, 0]
    if number == 0:
        ids[0, -1] = 7
    with pytest.raises(InputError, match="input_ids: expected as many end tokens in each text, at least 1"):
        classifier(ids)
