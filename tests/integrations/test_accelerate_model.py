"""An accelerated model stays what it was: its class, weights, files and copies; and it can be restored."""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerated import CLASSES, assert_same, call_of, count_calls, pair, untouched
from parity_models import ModelClass

import padless
from padless import OptionError

ONE_A_FAMILY = [
    ModelClass("bert", "ForMaskedLM"),
    ModelClass("mobilebert", "ForPreTraining"),
    ModelClass("modernbert", "ForMaskedLM"),
    ModelClass("megatron-bert", "ForSequenceClassification"),
    ModelClass("mt5", "ForConditionalGeneration"),
]
BERT = ModelClass("bert", "ForTokenClassification")


def without_padding(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first columns of all rows, as if nothing there were padding."""
    return {name: value[:, :9] for name, value in call.items() if not name.endswith("mask")}


def files_of(model: Any, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_restored_it_is_what_it_was_bit_for_bit(item: ModelClass) -> None:
    model = untouched(item, attention=None)
    call = call_of(item)
    attributes = set(vars(model))
    values = {name: parameter.clone() for name, parameter in model.named_parameters(remove_duplicate=False)}
    objects = [id(parameter) for parameter in model.parameters()]
    with torch.no_grad():
        before = model(**call)
        assert padless.accelerate(model) is model
        calls = count_calls(model)
        model(**call)
        assert calls
        assert padless.restore(model) is model
        after = model(**call)
    assert len(calls) == 1
    assert set(vars(model)) == attributes
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters(remove_duplicate=False))
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(objects)
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize("item", CLASSES, ids=str)
def test_it_keeps_its_class_signature_and_weights(item: ModelClass) -> None:
    model, accelerated, _ = pair(item)
    assert type(accelerated) is item.theirs
    assert inspect.signature(accelerated.forward) == inspect.signature(model.forward)
    assert accelerated.forward.__doc__ == model.forward.__doc__
    assert list(accelerated.state_dict()) == list(model.state_dict())
    assert [name for name, _ in accelerated.named_modules()] == [name for name, _ in model.named_modules()]
    assert [name for name, _ in accelerated.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(accelerated.parameters(), model.parameters(), strict=True))
    ours = vars(accelerated)["forward"].twin.ours
    assert {id(p) for p in ours.parameters()} == {id(p) for p in accelerated.parameters()}
    assert memory(accelerated) == memory(model)  # views of one buffer, no copy


def memory(model: Any) -> int:
    """Bytes of all storages, each once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("item", ONE_A_FAMILY, ids=str)
def test_what_it_saves_are_the_same_files(item: ModelClass, tmp_path: Path) -> None:
    model, accelerated, _ = pair(item)
    expected = files_of(model, tmp_path / "untouched")
    found = files_of(accelerated, tmp_path / "accelerated")
    assert found == expected
    again = item.theirs.from_pretrained(tmp_path / "accelerated", attn_implementation="eager")
    call = call_of(item)
    with torch.no_grad():
        assert_same(again.eval()(**call), model(**call), {})
    file = io.BytesIO()
    torch.save(accelerated.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("item", ONE_A_FAMILY, ids=str)
def test_copies_compute_from_weights_of_their_own(item: ModelClass) -> None:
    model, accelerated, _ = pair(item)
    call = call_of(item)
    with torch.no_grad():
        expected = accelerated(**call)
        for other in (copy.deepcopy(accelerated), pickle.loads(pickle.dumps(accelerated))):
            calls = count_calls(other)
            assert_same(other(**call), expected, {})
            assert vars(other)["forward"].twin.original is other
            for parameter in other.parameters():
                parameter.mul_(1.5)
            assert (other(**call)[0] - expected[0]).abs().max() > 1e-3
            assert len(calls) == 2
            padless.restore(other)
        assert_same(accelerated(**call), expected, {})
        assert_same(accelerated(**call), model(**call), call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("item", ONE_A_FAMILY, ids=str)
def test_another_dtype_is_taken_at_the_next_call(item: ModelClass, dtype: torch.dtype) -> None:
    model, accelerated, _ = pair(item)
    call = call_of(item)
    with torch.no_grad():
        expected = accelerated(**call)[0]
        found = accelerated.to(dtype)(**call)[0]
        assert count_calls(accelerated) == []
        assert found.dtype == model.to(dtype)(**call)[0].dtype == dtype
        assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float64 else 0.1) * expected.abs().max()
        calls = count_calls(accelerated)
        assert accelerated.float()(**call)[0].dtype == torch.float32
        assert not calls  # made anew: another model of ours served
        calls = count_calls(accelerated)
        accelerated(**call)
        assert len(calls) == 1


def test_steps_loaded_values_and_replaced_weights_are_seen() -> None:
    model, accelerated, _ = pair(BERT)
    call = call_of(BERT, with_targets=True)
    optimisers = [torch.optim.AdamW(one.parameters(), lr=1e-2) for one in (model, accelerated)]
    for _ in range(3):
        for one, optimiser in zip((model, accelerated), optimisers, strict=True):
            optimiser.zero_grad()
            one(**call).loss.backward()
            optimiser.step()
    with torch.no_grad():
        trained = model(**call)
        calls = count_calls(accelerated)
        assert abs(accelerated(**call).loss - trained.loss) <= 1e-4
        other = untouched(BERT, initializer_range=0.3)
        accelerated.load_state_dict(other.state_dict())
        assert_same(accelerated(**call), other(**call), call)
        assert len(calls) == 2
        # Another object where a weight stood, as `assign=True` and resized embeddings leave.
        third = untouched(BERT, initializer_range=0.1)
        accelerated.load_state_dict(third.state_dict(), assign=True)
        calls = count_calls(accelerated)
        assert_same(accelerated(**call), third(**call), call)
        for one in (third, accelerated):
            one.resize_token_embeddings(80, mean_resizing=False)
        third.load_state_dict(accelerated.state_dict())
        call["input_ids"] = call["input_ids"].masked_fill(call["input_ids"] == 7, 75)
        assert_same(accelerated(**call), third(**call), call)
        assert len(calls) == 1
        assert count_calls(accelerated) == []


def test_in_training_mode_transformers_computes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, accelerated, _ = pair(BERT)
    call = call_of(BERT)
    calls = count_calls(accelerated)
    for one in (model, accelerated):
        one.train()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.manual_seed(1)
            found = accelerated(**call).logits
            torch.manual_seed(1)
            assert torch.equal(found, model(**call).logits)
    assert not calls
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [line for line in lines if "model.eval()" in line]
    assert len(lines) == 1
    # One module that drops out is training too.
    accelerated.eval().dropout.train()
    accelerated(**call)
    assert not calls
    accelerated.eval()(**call)
    assert len(calls) == 1


def test_while_it_trains_no_copy_is_made_of_its_weights() -> None:
    accelerated = padless.accelerate(untouched(BERT), dtype="bfloat16")
    call, twin = call_of(BERT), vars(accelerated)["forward"].twin
    first = twin.ours
    for parameter in accelerated.train().parameters():
        parameter.data.mul_(1.1)
    accelerated(**call)
    assert twin.ours is first
    with torch.no_grad():
        accelerated.eval()(**call)
        next(accelerated.parameters()).mul_(1.1)
        accelerated(**call)
    assert twin.ours is not first


def test_twice_is_once_and_what_was_not_accelerated_is_not_restored(caplog: pytest.LogCaptureFixture) -> None:
    model = untouched(BERT)
    with pytest.raises(OptionError, match="expected a model that was accelerated, got a BertForTokenClassification"):
        padless.restore(model)
    with pytest.raises(OptionError, match="expected a model that was accelerated, got a str"):
        padless.restore("bert")
    padless.accelerate(model)
    forward = model.forward
    with caplog.at_level(logging.WARNING):
        assert padless.accelerate(model) is model
    assert model.forward is forward
    assert ["accelerated already" in record.getMessage() for record in caplog.records] == [True]
    padless.restore(model)
    with pytest.raises(OptionError, match="expected a model that was accelerated"):
        padless.restore(model)


@pytest.mark.parametrize("item", ONE_A_FAMILY, ids=str)
def test_another_dtype_keeps_a_copy_and_returns_the_models_own(
    item: ModelClass, caplog: pytest.LogCaptureFixture
) -> None:
    model = untouched(item)
    accelerated = copy.deepcopy(model)
    places = [p.data_ptr() for p in accelerated.parameters()]
    with caplog.at_level(logging.INFO):
        padless.accelerate(accelerated, dtype="bfloat16", backend="eager")
    assert vars(accelerated)["forward"].twin.copied() == sum(p.numel() for p in model.parameters()) * 2
    assert "a copy of the weights" in caplog.text
    calls, call = count_calls(accelerated), without_padding(call_of(item))
    assert {p.dtype for p in vars(accelerated)["forward"].twin.ours.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        found, expected = accelerated(**call)[0], model(**call)[0]
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() <= 0.1 * expected.abs().max()
        for parameter in accelerated.parameters():
            parameter.mul_(0.5)
        changed = accelerated(**call)[0]
    assert (changed - found).abs().max() > 0.01
    assert len(calls) == 1  # the copy was made anew
    assert [p.data_ptr() for p in accelerated.parameters()] == places
    padless.restore(accelerated)
    assert [p.data_ptr() for p in accelerated.parameters()] == places


def test_the_line_says_how_much_is_kept_beside_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU the matrices of linear layers are kept in oneDNN's layout too, where torch has it."""
    model = untouched(BERT, hidden_size=96, intermediate_size=384, num_attention_heads=4)
    matrices = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Linear))
    with caplog.at_level(logging.INFO):
        padless.accelerate(copy.deepcopy(model), backend="eager")
        padless.accelerate(model)
    prepared = "cpu" in {op.resolution.impl.name for op in vars(model)["forward"].twin.ours.bound_ops()}
    lines = [record.getMessage() for record in caplog.records]
    assert matrices > 8e5
    assert [line.partition("weights, ")[2] for line in lines] == [
        f"{size / 1e6:.1f} MB beside them for other layouts and dtypes" for size in (0, matrices * prepared)
    ]


def test_a_configuration_that_is_saved_says_what_labels_said(tmp_path: Path) -> None:
    item = ModelClass("bert", "ForSequenceClassification")
    model, accelerated, _ = pair(item)
    call = call_of(item, with_targets=True)
    for name, one in (("untouched", model), ("accelerated", accelerated)):
        one(**call)
        one.save_pretrained(tmp_path / name)
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("untouched", "accelerated")]
    assert written[0] == written[1]
    assert written[0]["problem_type"] == "single_label_classification"
    # Set on the model, it counts at the next call: these labels alone would ask for another loss.
    call["labels"] = torch.rand(len(call["labels"]), 9, generator=torch.Generator().manual_seed(1))
    for one in (model, accelerated):
        one.config.problem_type = "regression"
    assert abs(accelerated(**call).loss - model(**call).loss) <= 1e-5
