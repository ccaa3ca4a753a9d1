"""The options matrix: every field of the seeds' configurations that changes what is computed, set to something else.

`TOGGLES` lists them. `test_no_documented_field_is_forgotten` reads the seed pages and fails where a documented field is
neither there, nor among the dropouts of test_dropout.py, nor in `UNCHANGED` with the reason.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_compare import difference
from parity_inputs import draw_texts, run_alone, run_form
from parity_models import TINY, ModelClass, bare_class, model_classes, our_model, their_model
from test_dropout import DROPOUTS

from padless import MT5Config

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (23, 1, 9, 40)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")


@dataclass(frozen=True)
class Toggle:
    """One field set to something else.

    Attributes:
        family: its `model_type`.
        name: the field.
        value: what it is set to.
        kind: the class that shows it; "" is the bare model.
        beside: other fields that go with it, on both sides of the change.
    """

    family: str
    name: str
    value: Any
    kind: str = ""
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def item(self) -> ModelClass:
        return ModelClass(self.family, self.kind) if self.kind else bare_class(self.family)

    def __str__(self) -> str:
        beside = "".join(f",{name}={value}" for name, value in self.beside.items())
        return f"{self.item}({self.name}={self.value}{beside})"


def bert_toggles(family: str) -> list[Toggle]:
    """What BERT, MegatronBERT and MobileBERT have in common."""
    values: list[tuple[str, Any, str]] = [
        ("vocab_size", 97, "ForMaskedLM"),
        ("hidden_size", 36, ""),
        ("num_hidden_layers", 1, ""),
        ("num_hidden_layers", 5, ""),
        ("num_attention_heads", 1, ""),
        ("num_attention_heads", 4, ""),
        ("intermediate_size", 51, ""),
        ("max_position_embeddings", 40, ""),
        ("type_vocab_size", 5, ""),
        ("tie_word_embeddings", False, "ForMaskedLM"),
        ("tie_word_embeddings", False, "ForPreTraining"),
        ("num_labels", 1, "ForSequenceClassification"),
        ("num_labels", 3, "ForTokenClassification"),
        *[("hidden_act", name, kind) for name in ACTIVATIONS for kind in ("", "ForMaskedLM")],
    ]
    default = {**TINY[family], "hidden_act": "relu" if family == "mobilebert" else "gelu"}
    return [Toggle(family, *value) for value in values if value[1] != default.get(value[0])]


LAYER_NORM = {"normalization_type": "layer_norm"}
MOBILEBERT = [
    Toggle("mobilebert", "embedding_size", 17),
    Toggle("mobilebert", "embedding_size", 17, "ForMaskedLM"),
    Toggle("mobilebert", "embedding_size", 32, "ForMaskedLM", {"hidden_size": 32}),
    Toggle("mobilebert", "trigram_input", False),
    Toggle("mobilebert", "trigram_input", False, "", {"embedding_size": 32}),
    Toggle("mobilebert", "use_bottleneck", False),
    Toggle("mobilebert", "use_bottleneck", False, "", LAYER_NORM),
    Toggle("mobilebert", "use_bottleneck", False, "ForMaskedLM", {"num_feedforward_networks": 1}),
    Toggle("mobilebert", "intra_bottleneck_size", 8),
    Toggle("mobilebert", "intra_bottleneck_size", 48),
    Toggle("mobilebert", "use_bottleneck_attention", True),
    Toggle("mobilebert", "use_bottleneck_attention", True, "", LAYER_NORM),
    Toggle("mobilebert", "key_query_shared_bottleneck", False, "", {"intra_bottleneck_size": 32}),
    Toggle("mobilebert", "key_query_shared_bottleneck", False, "", {"use_bottleneck_attention": True}),
    Toggle("mobilebert", "num_feedforward_networks", 1),
    Toggle("mobilebert", "num_feedforward_networks", 2),
    Toggle("mobilebert", "num_feedforward_networks", 4),
    Toggle("mobilebert", "normalization_type", "layer_norm"),
    Toggle("mobilebert", "normalization_type", "layer_norm", "ForPreTraining"),
    Toggle("mobilebert", "layer_norm_eps", 0.3, "", LAYER_NORM),
    Toggle("mobilebert", "layer_norm_eps", 0.3, "ForMaskedLM"),
    Toggle("mobilebert", "classifier_activation", False),
    Toggle("mobilebert", "classifier_activation", False, "ForSequenceClassification"),
    Toggle("mobilebert", "classifier_activation", False, "ForNextSentencePrediction"),
]

FULL, SLIDING = "full_attention", "sliding_attention"


def rope(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    return {FULL: {"rope_theta": 160_000.0, **full}, SLIDING: {"rope_theta": 10_000.0, **sliding}}


DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODERNBERT = [
    Toggle("modernbert", "vocab_size", 97, "ForMaskedLM"),
    Toggle("modernbert", "hidden_size", 36),
    Toggle("modernbert", "intermediate_size", 51),
    Toggle("modernbert", "num_hidden_layers", 1),
    Toggle("modernbert", "num_hidden_layers", 7),
    Toggle("modernbert", "num_attention_heads", 1),
    Toggle("modernbert", "num_attention_heads", 4),
    *[Toggle("modernbert", "hidden_activation", name) for name in ACTIVATIONS if name != "gelu"],
    *[Toggle("modernbert", "classifier_activation", name, "ForMaskedLM") for name in ACTIVATIONS if name != "gelu"],
    Toggle("modernbert", "classifier_activation", "silu", "ForTokenClassification"),
    Toggle("modernbert", "max_position_embeddings", 16, "", {"rope_parameters": rope(DYNAMIC, DYNAMIC)}),
    Toggle("modernbert", "norm_eps", 0.3),
    Toggle("modernbert", "norm_eps", 0.3, "ForMaskedLM"),
    Toggle("modernbert", "norm_bias", True, "ForMaskedLM"),
    Toggle("modernbert", "attention_bias", True),
    Toggle("modernbert", "mlp_bias", True),
    Toggle("modernbert", "decoder_bias", False, "ForMaskedLM"),
    Toggle("modernbert", "classifier_bias", True, "ForMaskedLM"),
    Toggle("modernbert", "classifier_bias", True, "ForQuestionAnswering"),
    Toggle("modernbert", "classifier_pooling", "mean", "ForSequenceClassification"),
    Toggle("modernbert", "classifier_pooling", "mean", "ForMultipleChoice"),
    Toggle("modernbert", "layer_types", [SLIDING, SLIDING, FULL, SLIDING]),
    Toggle("modernbert", "layer_types", [FULL] * 4),
    Toggle("modernbert", "layer_types", [SLIDING] * 4),
    Toggle("modernbert", "local_attention", 2),
    Toggle("modernbert", "local_attention", 9),
    Toggle("modernbert", "local_attention", 64),
    *[
        Toggle("modernbert", "rope_parameters", rope(full, sliding))
        for full, sliding in (
            ({"rope_theta": 50.0}, {"rope_theta": 7.0}),
            (LINEAR, DEFAULT),
            (DEFAULT, LINEAR),
            (YARN, LLAMA),
            (LLAMA, YARN),
        )
    ],
    Toggle("modernbert", "tie_word_embeddings", False, "ForMaskedLM"),
    Toggle("modernbert", "num_labels", 3, "ForTokenClassification"),
]
MEGATRON = [
    Toggle("megatron-bert", "layer_norm_eps", 0.3),
    Toggle("megatron-bert", "layer_norm_eps", 0.3, "ForMaskedLM"),
]
BERT = [Toggle("bert", "layer_norm_eps", 0.3), Toggle("bert", "layer_norm_eps", 0.3, "ForMaskedLM")]
MT5 = [
    Toggle("mt5", "vocab_size", 97),
    Toggle("mt5", "d_model", 36),
    Toggle("mt5", "d_kv", 8),
    Toggle("mt5", "d_ff", 51),
    Toggle("mt5", "num_layers", 1),
    Toggle("mt5", "num_layers", 5),
    Toggle("mt5", "num_heads", 1),
    Toggle("mt5", "num_heads", 4),
    Toggle("mt5", "relative_attention_num_buckets", 32),
    Toggle("mt5", "relative_attention_num_buckets", 6),
    Toggle("mt5", "relative_attention_max_distance", 8),
    Toggle("mt5", "relative_attention_max_distance", 128),
    Toggle("mt5", "layer_norm_epsilon", 0.3),
    *[
        Toggle("mt5", "feed_forward_proj", name)
        for name in ("relu", "gelu", "gelu_new", "silu", "gated-relu", "gated-silu")
    ],
    Toggle("mt5", "num_labels", 3, "ForTokenClassification"),
]

TOGGLES = [
    toggle
    for toggle in [
        *[toggle for family in ("bert", "megatron-bert", "mobilebert") for toggle in bert_toggles(family)],
        *BERT,
        *MOBILEBERT,
        *MODERNBERT,
        *MEGATRON,
        *MT5,
    ]
    if toggle.family in {item.family for item in model_classes()}
]

SPECIAL_ID = "an id that callers and tokenizers use; no layer reads it (a mask says where padding is)"
INITIAL = "how fresh weights are drawn: test_initial_weights.py"
DECODER = "of decoders and generation, which have an issue of their own"
HARDWARE = "how transformers runs its kernels, not what they compute"
LOSS_ONLY = "which labels count and which logits are returned: tests/models/test_losses.py"
UNCHANGED = {
    "MobileBertConfig": {"initializer_range": INITIAL, "pad_token_id": SPECIAL_ID},
    "ModernBertConfig": {
        "initializer_range": INITIAL,
        "initializer_cutoff_factor": INITIAL,
        "pad_token_id": SPECIAL_ID,
        "eos_token_id": SPECIAL_ID,
        "bos_token_id": SPECIAL_ID,
        "cls_token_id": SPECIAL_ID,
        "sep_token_id": SPECIAL_ID,
        "deterministic_flash_attn": HARDWARE,
        "reference_compile": HARDWARE,
        "repad_logits_with_grad": HARDWARE,
        "sparse_prediction": LOSS_ONLY,
        "sparse_pred_ignore_index": LOSS_ONLY,
    },
    "MegatronBertConfig": {
        "initializer_range": INITIAL,
        "pad_token_id": SPECIAL_ID,
        "bos_token_id": SPECIAL_ID,
        "eos_token_id": SPECIAL_ID,
        "use_cache": DECODER,
        "is_decoder": DECODER,
        "add_cross_attention": DECODER,
    },
    "MT5Config": {"initializer_factor": INITIAL, "num_decoder_layers": DECODER, "use_cache": DECODER},
}
SPELLED_OTHERWISE = {("MT5Config", "layer_norm_eps"): "layer_norm_epsilon"}
"""Documented name -> the name that checkpoints have and transformers reads."""

FAMILY_OF = {
    "MobileBertConfig": "mobilebert",
    "ModernBertConfig": "modernbert",
    "MegatronBertConfig": "megatron-bert",
    "MT5Config": "mt5",
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of transformers
@pytest.mark.parametrize("toggle", TOGGLES, ids=str)
def test_a_field_set_to_something_else_gives_what_transformers_gives(toggle: Toggle) -> None:
    item = toggle.item
    before = {**TINY[toggle.family], **toggle.beside}
    theirs = their_model(item, {**before, toggle.name: toggle.value})
    ours = our_model(theirs, item)
    texts = draw_texts(item, LENGTHS, TINY[toggle.family]["vocab_size"])
    with torch.no_grad():
        expected = run_alone(theirs, item, texts)
        for form in ("packed", "left"):
            found = run_form(ours, item, texts, form)
            assert list(found) == list(expected)
            for name in expected:
                gap, bound = difference(found[name], expected[name], toggle.family)
                assert gap <= bound, (form, name)

        # A toggle must do something: with the same weights, where they fit, the results are others.
        unchanged = their_model(item, before)
        shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (theirs, unchanged)]
        if shapes[0] == shapes[1]:
            unchanged.load_state_dict(theirs.state_dict())
            other = run_alone(unchanged, item, texts)
            assert max(float((other[name] - expected[name]).abs().max()) for name in expected) > 1e-4


def documented_fields() -> dict[str, list[str]]:
    """{configuration class: its parameters}, from the seed pages; skips the test where there are none."""
    folder = Path(os.environ.get("PADLESS_SEEDS") or ROOT.parent / "shared" / "seeds")
    found: dict[str, list[str]] = {}
    for page in sorted(folder.glob("*.txt")):
        for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            name = re.match(r"\w+Config(?=\[\[transformers\.)", section)
            listed = section.partition("\n**Parameters:**\n")[2].partition("\n**Returns:**\n")[0]
            if name and listed:
                found[name[0]] = re.findall(r"^(\w+) \(.*?\) : ", listed, re.MULTILINE)
    if not found:
        pytest.skip(f"no seed pages in {folder} (PADLESS_SEEDS names another folder)")
    return found


def test_no_documented_field_is_forgotten() -> None:
    fields = documented_fields()
    assert {name: len(listed) for name, listed in fields.items()} == {
        "MobileBertConfig": 24,
        "ModernBertConfig": 34,
        "MegatronBertConfig": 19,
        "MT5Config": 15,
    }
    every_toggle = [*bert_toggles("mobilebert"), *bert_toggles("megatron-bert"), *MOBILEBERT, *MODERNBERT, *MEGATRON]
    toggled = {(toggle.family, toggle.name) for toggle in [*every_toggle, *MT5]}
    toggled |= {(family, name) for family, _, name in DROPOUTS}
    for config, listed in fields.items():
        for name in listed:
            spelled = SPELLED_OTHERWISE.get((config, name), name)
            unchanged = name in UNCHANGED[config]
            assert unchanged != ((FAMILY_OF[config], spelled) in toggled), f"{config}.{name}"
        assert set(UNCHANGED[config]) <= set(listed)


@pytest.mark.parametrize("name", ["layer_norm_eps", "layer_norm_epsilon"])
def test_both_spellings_of_the_epsilon_of_mt5_mean_the_same(name: str) -> None:
    config = MT5Config(**{**TINY["mt5"], name: 0.3})
    item = bare_class("mt5")
    theirs = their_model(item, {**TINY["mt5"], "layer_norm_epsilon": 0.3})
    ours = item.ours(config).eval()
    ours.load_state_dict(theirs.state_dict())
    texts = draw_texts(item, LENGTHS, 61)
    with torch.no_grad():
        gap, bound = difference(
            run_form(ours, item, texts, "packed")["last_hidden_state"],
            run_alone(theirs, item, texts)["last_hidden_state"],
            "mt5",
        )
    assert gap <= bound
