"""What cannot be accelerated is refused in one line that says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from accelerated import HAS_DECODER, untouched
from parity_models import TINY, ModelClass, their_config
from torch import nn

import padless
from padless import OptionError

BERT = ModelClass("bert", "ForMaskedLM")


class Derived(transformers.BertForMaskedLM):
    """Somebody's own."""


class Quantised(nn.Parameter):
    """As a library keeps packed weights."""


def other_family() -> Any:
    config = transformers.DistilBertConfig(vocab_size=61, dim=24, n_layers=1, n_heads=2, hidden_dim=36)
    return transformers.DistilBertModel(config).eval()


def other_class() -> Any:
    return transformers.BertLMHeadModel(their_config(BERT, {**TINY["bert"], "is_decoder": True})).eval()


def on_meta() -> Any:
    with torch.device("meta"):
        return transformers.BertForMaskedLM(their_config(BERT, TINY["bert"])).eval()


def changed(change: Callable[[Any], Any]) -> Callable[[], Any]:
    def make() -> Any:
        model = untouched(BERT)
        found = change(model)
        return model if found is None else found

    return make


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def with_hook(model: Any) -> None:
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: None)


def with_forward(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    layer.forward = layer.forward


def with_packed_weights(model: Any) -> None:
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.weight = Quantised(layer.weight.to(torch.int8), requires_grad=False)


def with_adapter(model: Any) -> None:
    layer = model.bert.encoder.layer[0].intermediate
    layer.dense = nn.Sequential(layer.dense, nn.Linear(36, 36)).eval()


def over_devices(model: Any) -> None:
    model.hf_device_map = {"bert.embeddings": 0, "bert.encoder": "cpu"}


def partly_narrow(model: Any) -> None:
    model.bert.encoder.bfloat16()


def a_decoder(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    config.is_decoder = True
    return type(model)(config).eval()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a family we lack": (other_family, "DistilBertModel is not supported; supported are those of transformers: Be"),
    "a class we lack": (other_class, "BertLMHeadModel is not supported; supported are"),
    "a class derived": (lambda: Derived(their_config(BERT, TINY["bert"])), "Derived is derived from one of"),
    "no model": (lambda: "bert-base-uncased", "str is not supported"),
    "a compiled model": (changed(compiled), "torch.compile made of one: pass model._orig_mod"),
    "a wrapped model": (changed(nn.DataParallel), "got a DataParallel around one: pass model.module"),
    "training": (changed(lambda model: model.train()), "in training mode: call model.eval() first"),
    "meta": (on_meta, "on the meta device, without weights: load them first"),
    "hooks": (changed(with_hook), "bert.encoder.layer.0 has hooks, which would not be called: remove them first"),
    "another forward": (changed(with_forward), "bert.encoder.layer.0: its forward was replaced"),
    "quantised": (changed(with_packed_weights), "got a Quantised: load the model without quantization_config"),
    "an adapter": (changed(with_adapter), "merge or remove adapters first, such as by merge_and_unload()"),
    "several devices": (changed(over_devices), "the model is split by device_map: load it on one device"),
    "several dtypes": (changed(partly_narrow), "weights of bfloat16 and float32, expected one: call model.to(dtype)"),
    "a configuration we lack": (changed(a_decoder), "is_decoder: expected False, got true: not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_each_refusal_is_one_line_that_says_what_to_do(case: str) -> None:
    make, message = REFUSED[case]
    model = make()
    before = dict(vars(model)) if isinstance(model, nn.Module) else {}
    with pytest.raises(OptionError) as error:
        padless.accelerate(model)
    assert message in str(error.value)
    assert str(error.value).startswith("accelerate: ")
    assert "\n" not in str(error.value)
    if before:
        assert vars(model) == before


def test_options_are_refused_as_everywhere() -> None:
    with pytest.raises(OptionError, match="dtype: expected 'auto' or one of"):
        padless.accelerate(untouched(BERT), dtype="int8")
    with pytest.raises(OptionError, match="float16: MobileBERT's activations reach"):
        padless.accelerate(untouched(ModelClass("mobilebert", "Model")), dtype="float16")
    model = untouched(BERT)
    with pytest.raises(padless.BackendError, match="triton"):
        padless.accelerate(model, backend="triton")
    assert not {"forward", "generate"} & {*vars(model)}
    parameters = list(model.parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)


@pytest.mark.skipif(HAS_DECODER, reason="this transformers has a causal mask for MegatronBERT")
def test_a_decoder_that_sees_ahead_is_refused() -> None:
    with pytest.raises(OptionError, match="upgrade transformers"):
        padless.accelerate(untouched(ModelClass("megatron-bert", "ForCausalLM")))
