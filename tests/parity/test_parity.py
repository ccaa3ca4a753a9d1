"""Every class against transformers, in tiny: the part of docs/parity.md that runs with the tests, and more precisely.

transformers computes each text alone; ours is given the same texts alone, padded on either side, and packed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from parity_compare import COSINE, LOSS, difference, lowest_cosine, relative
from parity_inputs import (
    FORMS,
    Texts,
    alone_call,
    draw_texts,
    loss_by_definition,
    padded_call,
    run_alone,
    run_form,
    values_at_padding,
)
from parity_models import TINY, ModelClass, model_classes, our_model, their_model

LENGTHS = (23, 1, 9, 40, 2, 9)
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
CLASSES = model_classes()
ROUNDING = {"mt5": 1e-6, "modernbert": 1e-6}
"""transformers takes the mean square of mT5's norms, and turns ModernBERT's queries and keys, in fp32 at most."""


@cache
def pair(item: ModelClass, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Texts]:
    """transformers' model, ours with its weights, and texts for both."""
    theirs = their_model(item, TINY[item.family], dtype=dtype)
    ours = our_model(theirs, item).requires_grad_(False)
    return theirs.requires_grad_(False), ours, draw_texts(item, LENGTHS, TINY[item.family]["vocab_size"])


@cache
def reference(item: ModelClass, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    theirs, _, texts = pair(item, dtype)
    return run_alone(theirs, item, texts, **EVERYTHING)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_every_output_is_that_of_transformers_on_each_text_alone(item: ModelClass, form: str) -> None:
    _, ours, texts = pair(item)
    expected = reference(item)
    found = run_form(ours, item, texts, form, **EVERYTHING)
    assert list(found) == list(expected)
    for name in expected:
        gap, bound = difference(found[name], expected[name], item.family)
        assert gap <= bound, name
    # Without weights to keep, another implementation of attention serves.
    fast = run_form(ours, item, texts, form)
    for name in fast:
        gap, bound = difference(fast[name], expected[name], item.family)
        assert gap <= bound, name


@pytest.mark.parametrize("form", ["left", "packed"])
@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_in_fp64_only_rounding_is_left(item: ModelClass, form: str) -> None:
    """A mistake that hides below the fp32 bound, such as another epsilon, does not hide here."""
    _, ours, texts = pair(item, torch.float64)
    expected = reference(item, torch.float64)
    found = run_form(ours, item, texts, form, **EVERYTHING)
    for name in expected:
        gap = (found[name] - expected[name]).abs().max()
        assert gap <= ROUNDING.get(item.family, 1e-9) * expected[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize("form", ["right", "packed"])
@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_bf16_is_as_near_to_fp32_as_that_of_transformers(item: ModelClass, form: str) -> None:
    _, _, texts = pair(item)
    low = their_model(item, TINY[item.family], dtype=torch.bfloat16)
    # The reference has the weights that bf16 has, so that what differs is the computing.
    exact = their_model(item, TINY[item.family], dtype=torch.bfloat16).float()
    ours = our_model(low, item)
    with torch.no_grad():
        expected = run_alone(exact, item, texts)
        theirs_apart = 1 - lowest_cosine(run_alone(low, item, texts), expected)
        found = run_form(ours, item, texts, form)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert 1 - lowest_cosine(found, expected) <= max(1 - COSINE, 2 * theirs_apart)


@pytest.mark.parametrize("item", [item for item in CLASSES if not item.is_bare], ids=str)
def test_the_loss_of_each_text_alone_is_that_of_transformers(item: ModelClass) -> None:
    theirs, ours, texts = pair(item)
    exact, ours_exact, _ = pair(item, torch.float64)
    compared = 0
    for row in range(len(texts)):
        call = alone_call(item, texts, row, with_targets=True)
        if item.kind == "ForMultipleChoice":
            call["labels"] = torch.zeros(1, dtype=torch.long)
        expected, found = theirs(**call).loss, ours(**call).loss
        assert found.shape == ()
        assert found.dtype == torch.float32
        if torch.isnan(expected):  # no label in this text
            assert torch.isnan(found)
        elif expected == 0:  # the only choice
            assert found == 0
        else:
            # In fp64 a mistake has nowhere to hide. In fp32 a loss of large logits of few tokens is no further from the
            # truth than twice what transformers is; behind two stacks a loss below 1 is as near as one of 1.
            truth = exact(**call).loss
            # transformers takes the loss of a causal model in fp32 whatever its logits are.
            rounding = LOSS if truth.dtype == torch.float32 else ROUNDING.get(item.family, 1e-9)
            assert relative(ours_exact(**call).loss, truth) <= rounding
            near = LOSS * max(1.0, 1 / expected.item()) if item.has_decoder else LOSS
            assert relative(found, expected) <= max(near, 2 * relative(expected, truth))
            compared += 1
    assert compared >= 3 or item.kind == "ForMultipleChoice"


@pytest.mark.parametrize("form", ["right", "left", "packed"])
@pytest.mark.parametrize("item", [item for item in CLASSES if not item.is_bare], ids=str)
def test_the_loss_of_a_batch_is_the_mean_over_the_tokens_or_texts_that_are_there(item: ModelClass, form: str) -> None:
    _, ours, texts = pair(item)
    found = run_form(ours, item, texts, form, with_targets=True)["loss"]
    assert relative(found, loss_by_definition(item, reference(item), texts)) <= LOSS


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("item", [item for item in CLASSES if item.kind != "ForMultipleChoice"], ids=str)
def test_outputs_at_padding_are_zero_and_spans_as_low_as_can_be(item: ModelClass, side: str) -> None:
    _, ours, texts = pair(item)
    outputs = ours(**padded_call(item, texts, side), output_hidden_states=True)
    found = values_at_padding(outputs, item, texts, side)
    assert found
    for name, values in found.items():
        fill = torch.finfo(values.dtype).min if name in ("start_logits", "end_logits") else 0.0
        assert len(values) > 0, name
        assert bool((values == fill).all()), name


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_gradients_of_every_parameter_are_those_of_transformers(item: ModelClass) -> None:
    theirs = their_model(item, TINY[item.family], dtype=torch.float64)
    ours = our_model(theirs, item)
    texts = draw_texts(item, LENGTHS, TINY[item.family]["vocab_size"])
    expected, found = run_alone(theirs, item, texts), run_form(ours, item, texts, "left")
    draw = torch.Generator().manual_seed(3)
    for outputs in (expected, found):
        draw.manual_seed(3)
        parts = [(x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum() for x in outputs.values()]
        torch.stack(parts).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(wanted) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        theirs_gradient = wanted[name]
        if theirs_gradient is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        scale = theirs_gradient.abs().max().clamp(min=1)
        assert (parameter.grad - theirs_gradient).abs().max() <= ROUNDING.get(item.family, 1e-9) * scale, name


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_the_names_and_the_number_of_parameters_are_those_of_transformers(item: ModelClass) -> None:
    theirs, ours, _ = pair(item)
    assert ours.num_parameters() == theirs.num_parameters()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert {name: tuple(p.shape) for name, p in ours.state_dict().items()} == {
        name: tuple(p.shape) for name, p in theirs.state_dict().items()
    }
