"""Every class accelerated against the same model untouched: what it returns, in which type, for padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerated import CLASSES, EVERYTHING, assert_same, call_of, count_calls, pair
from parity_models import ModelClass

READS_FIRST = ("ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification", "ForMultipleChoice")


DECODERS = ("ForCausalLM", "ForConditionalGeneration")


def left_is_served(item: ModelClass) -> bool:
    """Whether no output is made of the first column, which is padding then, and no decoder sees it."""
    if item.has_decoder:
        return item.takes_decoder_ids
    pools = item.is_bare and item.family in ("bert", "megatron-bert", "mobilebert")
    return not pools and (item.kind not in READS_FIRST)


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_outputs_are_those_of_the_untouched_model(item: ModelClass) -> None:
    model, accelerated, _ = pair(item)
    calls = count_calls(accelerated)
    served = 0
    forms: list[tuple[str, dict[str, Any]]] = [
        ("right", {}), ("right", {"return_dict": False}), ("right", EVERYTHING), ("left", {}), ("left", EVERYTHING),
    ]  # fmt: skip
    with torch.no_grad():
        for side, options in forms:
            call = call_of(item, side)
            assert_same(accelerated(**call, **options), model(**call, **options), call)
            served += side == "right" or left_is_served(item)
            assert len(calls) == served, (side, options)


@pytest.mark.parametrize("item", [item for item in CLASSES if not item.is_bare], ids=str)
def test_losses_are_those_of_the_untouched_model(item: ModelClass) -> None:
    model, accelerated, _ = pair(item, attention=None)
    calls = count_calls(accelerated)
    with torch.no_grad():
        call = call_of(item, with_targets=True)
        expected, found = model(**call), accelerated(**call)
        assert_same(found, expected, call)
        assert found.loss == found[0]
        # In transformers padding counts in a loss over all columns, so that is left to it.
        assert len(calls) == (item.kind != "ForQuestionAnswering")
        whole = {name: value[:1] for name, value in call_of(item, with_targets=True).items()}
        whole = {name: value for name, value in whole.items() if not name.endswith("mask")}
        assert_same(accelerated(**whole), model(**whole), {})
        assert len(calls) == 1 + (item.kind != "ForQuestionAnswering")
    assert accelerated.config.to_dict() == model.config.to_dict()  # transformers keeps what labels say of the loss


@pytest.mark.parametrize("item", [item for item in CLASSES if item.is_bare or item.kind in DECODERS], ids=str)
def test_gradients_are_those_of_the_untouched_model(item: ModelClass) -> None:
    """In fp64, where only rounding is left; of texts of one length, as padding makes transformers' own NaN."""
    model, accelerated, _ = pair(item)
    model.double()
    accelerated.double()
    calls = count_calls(accelerated)
    call = {name: value[:2, :9] for name, value in call_of(item).items() if not name.endswith("mask")}
    for one in (model, accelerated):
        one(**call)[0].square().sum().backward()
    assert len(calls) == 1
    for (name, ours), theirs in zip(accelerated.named_parameters(), model.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        # transformers takes the mean square of mT5's norms, and turns ModernBERT's queries and keys, in fp32.
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1), name
