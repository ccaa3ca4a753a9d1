"""Other ways to call: embeddings for ids, positions that are given, masks with holes, empty texts, asked positions."""

from __future__ import annotations

import copy
import io
from functools import cache
from typing import Any

import pytest
import torch
from parity_compare import difference
from parity_inputs import draw_texts, packed, padded, padded_call, run_alone, run_form
from parity_models import TINY, ModelClass, bare_class, model_classes, our_model, their_model
from torch import Tensor

from padless import OptionError

FAMILIES = list(dict.fromkeys(item.family for item in model_classes()))
WITH_POSITIONS = [family for family in FAMILIES if family != "mt5"]
MASKED = [item for item in model_classes() if item.kind == "ForMaskedLM"]


@cache
def pair(item: ModelClass, **fields: Any) -> tuple[Any, Any]:
    theirs = their_model(item, {**TINY[item.family], **fields})
    return theirs.requires_grad_(False), our_model(theirs, item).requires_grad_(False)


def assert_close(found: Tensor, expected: Tensor, family: str) -> None:
    gap, bound = difference(found, expected, family)
    assert gap <= bound


def hidden(outputs: Any) -> Tensor:
    return outputs.last_hidden_state


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_place_of_ids(family: str, side: str) -> None:
    item = bare_class(family)
    theirs, ours = pair(item)
    texts = draw_texts(item, (7, 1, 12), 61)
    width = theirs.get_input_embeddings().weight.shape[1]
    draw = torch.Generator().manual_seed(4)
    embeds = [torch.randn(length, width, generator=draw) for length in texts.lengths]
    expected = torch.cat([hidden(theirs(inputs_embeds=part[None]))[0] for part in embeds])
    longest = 14
    rows = torch.full((3, longest, width), 1e3)  # what stands at padding must not count
    mask = padded([torch.ones(length, dtype=torch.long) for length in texts.lengths], side)
    rows[mask.bool()] = torch.cat(embeds)
    found = hidden(ours(inputs_embeds=rows, attention_mask=mask))
    assert_close(found[mask.bool()], expected, family)
    # The embeddings of ids say the same as the ids.
    lookup = ours.get_input_embeddings().weight
    call = padded_call(item, texts, side)
    ids = call.pop("input_ids")
    call.pop("token_type_ids", None)
    by_ids = hidden(ours(input_ids=ids, **call))
    assert_close(hidden(ours(inputs_embeds=lookup[ids], **call)), by_ids, family)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_positions_that_are_given(family: str) -> None:
    item = bare_class(family)
    theirs, ours = pair(item)
    texts = draw_texts(item, (9, 4), 61)
    places = [torch.tensor([3, 4, 5, 9, 10, 11, 30, 31, 63]), torch.tensor([50, 2, 2, 0])]
    expected = torch.cat(
        [hidden(theirs(ids[None], position_ids=place[None]))[0] for ids, place in zip(texts.ids, places, strict=True)]
    )
    mask = padded([torch.ones_like(ids) for ids in texts.ids], "left")
    found = hidden(
        ours(padded(texts.ids, "left"), attention_mask=mask, position_ids=padded(places, "left", fill=9_999))
    )
    assert_close(found[mask.bool()], expected, family)
    counted = torch.cat([hidden(theirs(ids[None]))[0] for ids in texts.ids])
    assert (counted - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_with_holes_leaves_the_text_that_is_there(family: str) -> None:
    """Also MobileBERT's trigram: neighbours are those that are there."""
    item = bare_class(family)
    theirs, ours = pair(item)
    ids = draw_texts(item, (12,), 61).ids[0]
    mask = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0])
    expected = hidden(theirs(ids[mask.bool()][None]))[0]
    found = hidden(ours(ids[None], attention_mask=mask[None]))[0]
    assert_close(found[mask.bool()], expected, family)
    assert not found[~mask.bool()].any()


def by_name(outputs: Any) -> dict[str, Tensor]:
    """The outputs that are tensors; a cache is none."""
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


ENDING = ModelClass("mt5", "ForSequenceClassification")
"""It wants an end token in each text."""


@pytest.mark.parametrize(
    "item", [item for item in model_classes() if item.kind != "ForMultipleChoice" and item != ENDING], ids=str
)
def test_a_text_without_tokens_disturbs_nobody(item: ModelClass) -> None:
    _, ours = pair(item)
    texts = draw_texts(item, (5, 8), 61)
    call = padded_call(item, texts, "right")
    alone = ours(**call)
    among = ours(**{name: torch.cat([value[:1], value[:1] * 0, value[1:]]) for name, value in call.items()})
    for name in by_name(alone):
        assert_close(among[name][[0, 2]], alone[name], item.family)
        assert torch.isfinite(among[name]).all(), name
    if "pooler_output" in alone:  # of a text without a first token: of zeros
        assert_close(among.pooler_output[1:2], ours.pooler(torch.zeros(1, alone[0].shape[-1])), item.family)
    none = ours(**{name: value * 0 for name, value in call.items()})
    assert all(torch.isfinite(value).all() for value in by_name(none).values())


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("item", [item for item in model_classes() if item.kind != "ForMultipleChoice"], ids=str)
def test_a_batch_of_no_texts_gives_outputs_of_no_texts(item: ModelClass, everything: bool) -> None:
    _, ours = pair(item)
    options: dict[str, Any] = {"output_hidden_states": everything, "output_attentions": everything}
    if item.takes_decoder_ids:
        options["decoder_input_ids"] = torch.zeros(0, 4, dtype=torch.long)
    outputs = ours(input_ids=torch.zeros(0, 6, dtype=torch.long), **options)
    for name, value in outputs.items():
        if name == "past_key_values":
            continue
        for one in value if isinstance(value, tuple) else (value,):
            assert one.shape[0] == 0, name


@pytest.mark.parametrize("item", MASKED, ids=str)
def test_logits_only_where_they_are_asked_for(item: ModelClass) -> None:
    theirs, ours = pair(item)
    texts = draw_texts(item, (9, 1, 14), 61)
    expected = run_alone(theirs, item, texts)["logits"]
    asked = torch.rand(24, generator=torch.Generator().manual_seed(1)) < 0.4
    call = padded_call(item, texts, "left")
    where = padded(list(asked.split(texts.lengths)), "left") != 0
    assert_close(ours(**call, positions=where).logits, expected[asked], item.family)
    assert_close(ours(packed(texts), positions=asked).logits, expected[asked], item.family)
    order = torch.tensor([23, 0, 9, 9, 5])
    assert_close(ours(packed(texts), positions=order).logits, expected[order], item.family)
    assert ours(packed(texts), positions=torch.zeros(24, dtype=torch.bool)).logits.shape == (0, 61)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_longer_than_every_window_and_bucket(family: str) -> None:
    """The windows and distances of the tiny configurations many times over, up to the last position there is."""
    item = bare_class(family)
    longest = {} if family == "mt5" else {"max_position_embeddings": 300}
    theirs, ours = pair(item, **longest)
    texts = draw_texts(item, (300, 1, 257), 61)
    expected = run_alone(theirs, item, texts)
    found = run_form(ours, item, texts, "packed")
    for name in expected:
        assert_close(found[name], expected[name], family)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mobilebert"])
def test_half_precision(family: str) -> None:
    item = bare_class(family)
    theirs = their_model(item, TINY[family])
    ours = our_model(theirs, item, dtype="float16")
    texts = draw_texts(item, (23, 1, 9), 61)
    with torch.no_grad():
        found = hidden_of(run_form(ours, item, texts, "packed"))
        expected = hidden_of(run_alone(theirs, item, texts))
        low = hidden_of(run_alone(theirs.half(), item, texts))
    assert found.dtype == torch.float16
    gaps = [(x.double() - expected.double()).abs().max().item() for x in (found, low)]
    assert gaps[0] <= 2 * gaps[1] + 1e-3


def hidden_of(outputs: dict[str, Tensor]) -> Tensor:
    return outputs["last_hidden_state"]


def test_mobilebert_refuses_half_precision_and_says_why() -> None:
    item = bare_class("mobilebert")
    theirs, ours = pair(item)
    with pytest.raises(OptionError, match="float16"):
        our_model(theirs, item, dtype="float16")
    with pytest.raises(OptionError, match="float16"):
        copy.deepcopy(ours).half()


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_a_copy_and_a_pickled_model_compute_the_same(item: ModelClass) -> None:
    _, ours = pair(item)
    texts = draw_texts(item, (7, 2), 61)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    before = run_form(ours, item, texts, "packed")
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        found = run_form(other, item, texts, "packed")
        assert all(torch.equal(found[name], before[name]) for name in before)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.5)
        assert any(
            not torch.equal(a, b)
            for a, b in zip(run_form(other, item, texts, "packed").values(), before.values(), strict=True)
        )
    again = run_form(ours, item, texts, "packed")
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_weights_that_are_loaded_into_a_running_model_count(item: ModelClass) -> None:
    """Fused copies of the weights must not outlive them."""
    theirs, _ = pair(item)
    texts = draw_texts(item, (7, 2), 61)
    ours = our_model(theirs, item)
    other = their_model(item, TINY[item.family], noise=0.7)
    with torch.no_grad():
        run_form(ours, item, texts, "packed")
        ours.load_state_dict(other.state_dict())
        found, expected = run_form(ours, item, texts, "packed"), run_alone(other, item, texts)
    for name in expected:
        assert_close(found[name], expected[name], item.family)
