"""`top_predictions`: the highest of the logits that the same model gives, whatever stands in its head."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from padless.engine.errors import InputError, OptionError

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from parity_models import TINY, ModelClass, model_classes

CLASSES = [item for item in model_classes() if item.kind in ("ForMaskedLM", "ForPreTraining")]
HEADS = [item for item in CLASSES if item.kind == "ForMaskedLM"]
IDS = torch.tensor([[5, 9, 2, 17, 3], [4, 8, 0, 0, 0]])
MASK = (IDS != 0).long()
ASKED = torch.tensor([[False, True, False, False, True], [True, False, False, False, False]])


def model(item: ModelClass, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(3)
    made = item.ours(item.ours.config_class(**TINY[item.family]))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.to(dtype).eval().requires_grad_(False)


def logits(made: Any) -> Tensor:
    """Of the asked positions, in fp32 at least."""
    out = made(IDS, MASK)
    found = getattr(out, "logits", None)
    found = (out.prediction_logits if found is None else found)[ASKED]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def check(made: Any, k: int = 4) -> None:
    expected = logits(made)
    values, ids = expected.topk(k, dim=1)
    found = made.top_predictions(IDS, MASK, positions=ASKED, k=k)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.lse, expected.logsumexp(dim=1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.probabilities, expected.softmax(dim=1).gather(1, ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_they_are_the_highest_logits_of_the_same_model(item: ModelClass) -> None:
    check(model(item))


@pytest.mark.parametrize("item", HEADS, ids=str)
def test_all_of_them_where_the_vocabulary_has_no_more(item: ModelClass) -> None:
    made = model(item)
    found = made.top_predictions(IDS, MASK, positions=ASKED, k=1000)
    assert found.ids.shape == (3, 61)
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("item", HEADS, ids=str)
def test_of_equal_logits_the_lower_id_is_first(item: ModelClass) -> None:
    made = model(item)
    decoder = made.get_output_embeddings()
    rows = [7, 20, 41]
    for parameter in (decoder.weight, decoder.bias):
        parameter[rows] = parameter[rows[0]].clone()
    decoder.bias[rows] += 1000
    if item.family == "mobilebert":
        own = made.cls["predictions"].dense.weight
        own[:, rows] = own[:, rows[:1]].clone()
    assert made.top_predictions(IDS, MASK, positions=ASKED, k=3).ids.tolist() == [rows] * 3


def test_positions_are_given_as_for_the_logits() -> None:
    made = model(HEADS[0])
    expected = made.top_predictions(IDS, MASK, positions=ASKED).ids
    assert expected.shape == (3, 5)
    assert torch.equal(made.top_predictions(IDS, MASK, positions=torch.tensor([1, 4, 5])).ids, expected)
    assert torch.equal(made.top_predictions(IDS, MASK, positions=[5, 1]).ids, expected[[2, 0]])
    assert torch.equal(made.top_predictions(IDS, MASK, positions=ASKED.tolist()).ids, expected)
    none = made.top_predictions(IDS, MASK, positions=[])
    assert (none.values.shape, none.ids.shape, none.lse.shape) == ((0, 5), (0, 5), (0,))
    with pytest.raises(InputError, match="positions: expected 0 to 6, got 7"):
        made.top_predictions(IDS, MASK, positions=[7])


@pytest.mark.parametrize("k", [0, -1, True, 2.0, None])
def test_a_number_that_cannot_be_is_refused(k: Any) -> None:
    with pytest.raises(OptionError, match="k: expected a whole number from 1"):
        model(HEADS[0]).top_predictions(IDS, MASK, positions=[0], k=k)


def parts(item: ModelClass) -> list[str]:
    if item.family == "modernbert":
        return ["head", "head.dense", "decoder"]
    return [f"cls.predictions{name}" for name in ("", ".transform", ".transform.dense", ".decoder")]


@pytest.mark.parametrize(("item", "name"), [(item, name) for item in HEADS for name in parts(item)], ids=str)
def test_a_hook_in_the_head_is_called_and_what_it_returns_counts(item: ModelClass, name: str) -> None:
    made = model(item)
    part = made.get_submodule(name)
    seen = []

    def reversed_rows(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(name)
        return out.flip(1)

    before = logits(made)
    part.register_forward_hook(reversed_rows)
    assert (logits(made) - before).abs().max() > 1e-3
    seen.clear()
    check(made)
    assert len(seen) == 2


class Reversed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flip(1)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("item", "name"), [(item, name) for item in HEADS for name in parts(item)], ids=str)
def test_a_part_replaced_by_another_is_called(item: ModelClass, name: str, again: bool) -> None:
    made = model(item)
    before = logits(made)
    owner, _, attribute = name.rpartition(".")
    part = Reversed(made.get_submodule(name))
    setattr(made.get_submodule(owner), attribute, part) if attribute != "predictions" else made.cls.update(
        {"predictions": part}
    )
    if again:
        made.bind()
    assert (logits(made) - before).abs().max() > 1e-3
    check(made)


@pytest.mark.parametrize("item", HEADS, ids=str)
def test_a_resized_vocabulary_and_another_decoder(item: ModelClass) -> None:
    made = model(item)
    check(made)
    made.resize_token_embeddings(70, mean_resizing=False)
    made.get_output_embeddings().bias[65] = 1e3
    check(made)
    assert made.top_predictions(IDS, MASK, positions=ASKED, k=1).ids.tolist() == [[65]] * 3
    decoder = made.get_output_embeddings()
    made.set_output_embeddings(nn.Linear(decoder.in_features, 70).double().requires_grad_(False))
    check(made)
    made.bind()
    check(made)
    assert "mlm_head" not in made.explain()


@pytest.mark.parametrize("item", HEADS, ids=str)
def test_copies_have_weights_of_their_own(item: ModelClass) -> None:
    made = model(item)
    other = copy.deepcopy(made)
    other.get_output_embeddings().weight.mul_(-1)
    check(made)
    check(other)
    assert "mlm_head" in other.explain()


@pytest.mark.parametrize("item", HEADS, ids=str)
def test_values_carry_a_gradient_to_the_weights(item: ModelClass) -> None:
    made = model(item).requires_grad_(True)
    found = made.top_predictions(IDS, MASK, positions=ASKED, k=3)
    (found.values.sum() - found.lse.sum()).backward()
    gradient = made.get_output_embeddings().weight.grad.clone()
    made.zero_grad()
    expected = logits(made)
    (expected.gather(1, found.ids).sum() - expected.logsumexp(dim=1).sum()).backward()
    torch.testing.assert_close(gradient, made.get_output_embeddings().weight.grad, rtol=0, atol=1e-10)
