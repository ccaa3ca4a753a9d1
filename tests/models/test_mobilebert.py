"""MobileBERT: every class against transformers', each text alone: in a padded batch of transformers the last token's
neighbour is [PAD], so its padded outputs are not what its own model says of a text.

Differences are measured as a ratio to the largest value, because nothing in MobileBERT bounds the activations.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import padless
from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.errors import ConfigError, OptionError
from padless.engine.models import CLASSES

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
VOCABULARY = 61
LENGTHS = (5, 1, 11, 2)

TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "embedding_size": 10,
    "intra_bottleneck_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 23,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_feedforward_networks": 2,
}
TASKS = [f"MobileBert{kind}" for kind in CLASSES["mobilebert"] if kind.startswith("For")]
EVERY = ["MobileBertModel", *TASKS]

SWITCHES: dict[str, tuple[Any, ...]] = {
    "use_bottleneck": (True, False),
    "use_bottleneck_attention": (True, False),
    "key_query_shared_bottleneck": (True, False),
    "normalization_type": ("no_norm", "layer_norm"),
    "num_feedforward_networks": (1, 2, 3, 4),
    "trigram_input": (True, False),
}
"""The options that change what a layer is: all combinations are compared."""

FIELDS: dict[str, dict[str, Any]] = {
    "vocab_size": {"vocab_size": 7},
    "hidden_size": {"hidden_size": 33},
    "num_hidden_layers": {"num_hidden_layers": 3},
    "no layers": {"num_hidden_layers": 0},
    "num_attention_heads": {"num_attention_heads": 1},
    "heads of one channel": {"num_attention_heads": 12},
    "intermediate_size": {"intermediate_size": 5},
    "hidden_act gelu": {"hidden_act": "gelu"},
    "hidden_act gelu_new": {"hidden_act": "gelu_new"},
    "hidden_act silu": {"hidden_act": "silu"},
    "hidden_act tanh": {"hidden_act": "tanh"},
    "max_position_embeddings": {"max_position_embeddings": 11},
    "type_vocab_size": {"type_vocab_size": 1},
    "layer_norm_eps": {"layer_norm_eps": 0.1, "normalization_type": "layer_norm"},
    "layer_norm_eps without bottlenecks": {
        "layer_norm_eps": 0.1,
        "normalization_type": "layer_norm",
        "use_bottleneck": False,
    },
    "embedding_size": {"embedding_size": 17},
    "embeddings that need no transformation": {"embedding_size": 24, "trigram_input": False},
    "trigrams of full width": {"embedding_size": 24},
    "trigrams as wide as the hidden states": {"embedding_size": 8},
    "intra_bottleneck_size": {"intra_bottleneck_size": 30},
    "heads that divide the bottleneck alone": {"intra_bottleneck_size": 30, "num_attention_heads": 5},
    "classifier_activation": {"classifier_activation": False},
}
"""Field by field, what else changes the maths of the bare model; `num_labels`, `problem_type`, `tie_word_embeddings`,
`classifier_dropout` and the probabilities of dropout have tests of their own below."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(name: str = "MobileBertModel", dtype: torch.dtype = torch.float32, **fields: Any) -> tuple[Any, Any]:
    """Transformers' model with random weights, and ours with the same; the names must agree to the last one."""
    torch.manual_seed(5)
    theirs = getattr(transformers, name)(transformers.MobileBertConfig(**{**TINY, **fields}))
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        # Fresh biases are 0 and fresh norms the identity: a mistake there would not show.
        for parameter_name, parameter in theirs.named_parameters():
            if "bias" in parameter_name or "LayerNorm" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    config = padless.MobileBertConfig.from_dict(theirs.config.to_dict(), source="transformers")
    ours = getattr(padless, name)(config)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.nn.Module.to(theirs, dtype)
    return theirs.eval(), ours.to(dtype).eval()


def texts(lengths: Sequence[int] = LENGTHS, vocabulary: int = VOCABULARY, types: int = 2) -> list[dict[str, Tensor]]:
    """Of each text, ids and types `[1, length]`. [PAD] is left out: transformers gives its embedding no gradient."""
    draw = torch.Generator().manual_seed(sum(lengths))
    return [
        {
            "input_ids": torch.randint(1, vocabulary, (1, length), generator=draw),
            "token_type_ids": torch.randint(0, types, (1, length), generator=draw),
        }
        for length in lengths
    ]


def packed(parts: Sequence[dict[str, Tensor]]) -> PackedBatch:
    flat = {name: torch.cat([part[name][0] for part in parts]).numpy().astype(np.int32) for name in parts[0]}
    lengths = np.array([part["input_ids"].shape[1] for part in parts], dtype=np.int32)
    flags = np.zeros(len(parts), dtype=bool)
    tokenised = TokenizedTexts(flat["input_ids"], lengths, flat["token_type_ids"], flags, flags)
    return pack(tokenised, np.arange(len(parts)))


def padded(parts: Sequence[dict[str, Tensor]], side: str) -> tuple[dict[str, Tensor], Tensor]:
    """A batch with whatever at padding, and its mask as booleans. "both" pads left, right and inside."""
    longest = max(part["input_ids"].shape[1] for part in parts) + (3 if side == "both" else 0)
    draw = torch.Generator().manual_seed(7)
    batch = {
        "input_ids": torch.randint(0, VOCABULARY, (len(parts), longest), generator=draw),
        "token_type_ids": torch.randint(0, 2, (len(parts), longest), generator=draw),
    }
    mask = torch.zeros(len(parts), longest, dtype=torch.bool)
    for row, part in enumerate(parts):
        length = part["input_ids"].shape[1]
        places = {
            "right": torch.arange(length),
            "left": torch.arange(longest - length, longest),
            "both": torch.randperm(longest, generator=draw)[:length].sort().values,
        }[side]
        mask[row, places] = True
        for name, values in part.items():
            batch[name][row, places] = values[0]
    return {**batch, "attention_mask": mask.long()}, mask


def alone(model: Any, parts: Sequence[dict[str, Tensor]], **options: Any) -> list[Any]:
    """What the model says of each text without the others."""
    with torch.no_grad():
        return [model(**part, **options) for part in parts]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def as_choices(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in batch.items()}


# The bare model.


@pytest.mark.parametrize("trigram", SWITCHES["trigram_input"])
@pytest.mark.parametrize("normalisation", SWITCHES["normalization_type"])
@pytest.mark.parametrize("networks", SWITCHES["num_feedforward_networks"])
def test_every_combination_of_options(networks: int, normalisation: str, trigram: bool) -> None:
    parts = texts()
    inside = ("use_bottleneck", "use_bottleneck_attention", "key_query_shared_bottleneck")
    for values in itertools.product(*(SWITCHES[name] for name in inside)):
        fields: dict[str, Any] = dict(zip(inside, values, strict=True))
        if values == (True, False, False):
            fields["intra_bottleneck_size"] = 24  # any other width is refused below
        theirs, ours = pair(
            dtype=torch.float64,
            num_feedforward_networks=networks,
            normalization_type=normalisation,
            trigram_input=trigram,
            **fields,
        )
        expected = alone(theirs, parts, output_hidden_states=True)
        with torch.no_grad():
            out = ours(packed(parts), output_hidden_states=True)
            single = ours.float()(packed(parts)).last_hidden_state
        assert len(out.hidden_states) == 3
        for layer, state in enumerate(out.hidden_states):
            assert_close(state, torch.cat([one.hidden_states[layer][0] for one in expected]), 1e-11)
        assert_close(out.pooler_output, torch.cat([one.pooler_output for one in expected]), 1e-11)
        assert_close(single, torch.cat([one.last_hidden_state[0] for one in expected]), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_every_other_field(fields: dict[str, Any], dtype: torch.dtype) -> None:
    theirs, ours = pair(dtype=dtype, **fields)
    parts = texts(vocabulary=theirs.config.vocab_size, types=theirs.config.type_vocab_size)
    expected = alone(theirs, parts)
    with torch.no_grad():
        out = ours(packed(parts))
    assert out.last_hidden_state.dtype == dtype
    for field in ("last_hidden_state", "pooler_output"):
        rows = [one[field][0] if field == "last_hidden_state" else one[field] for one in expected]
        assert_close(out[field], torch.cat(rows), TOLERANCE[dtype])


@pytest.mark.parametrize("lengths", [(1,), (23,), (1, 1, 1), (7, 23, 7, 1, 7)], ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_batches_of_many_shapes(lengths: tuple[int, ...], backend: str) -> None:
    theirs, ours = pair()
    parts = texts(lengths)
    with torch.no_grad():
        out = ours.bind(backend).run(packed(parts))
    assert_close(out, torch.cat([one.last_hidden_state[0] for one in alone(theirs, parts)]), 1e-5)


def test_a_batch_of_no_texts_and_a_text_of_no_tokens() -> None:
    theirs, ours = pair()
    parts = texts((4, 3))
    batch, mask = padded(parts, "right")
    mask[1] = False
    with torch.no_grad():
        out = ours(batch["input_ids"], mask.long(), batch["token_type_ids"])
        empty = ours(torch.zeros(0, 5, dtype=torch.int64))
        nothing = ours(torch.zeros(2, 0, dtype=torch.int64))
    assert_close(out.last_hidden_state[:1], alone(theirs, parts)[0].last_hidden_state, 1e-5)
    assert not out.last_hidden_state[1].any()
    assert empty.last_hidden_state.shape == (0, 5, 24)
    assert nothing.last_hidden_state.shape == (2, 0, 24)


def test_the_edges_of_a_text_are_where_its_tokens_end() -> None:
    theirs, ours = pair(dtype=torch.float64)
    parts = texts((6, 9))
    batch, mask = padded(parts, "right")
    batch["input_ids"][~mask] = 0
    # A fresh model of transformers has zeros in the row of [PAD], the published weights have not.
    theirs.embeddings.word_embeddings.weight.data[0] = 1.0
    ours.load_state_dict(theirs.state_dict())
    reference = alone(theirs, parts)[0].last_hidden_state[0]
    with torch.no_grad():
        assert_close(ours(**batch).last_hidden_state[0, :6], reference, 1e-11)
        in_their_batch = theirs(**batch).last_hidden_state[0, :6]
    assert (in_their_batch[-1] - reference[-1]).abs().max().item() > 1e-3


@pytest.mark.parametrize("trigram", [True, False])
@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_embeddings_given_in_place_of_ids(side: str, trigram: bool) -> None:
    theirs, ours = pair(dtype=torch.float64, trigram_input=trigram)
    parts = texts()
    batch, mask = padded(parts, side)
    embeds = torch.full((*mask.shape, 10), float("nan"), dtype=torch.float64)
    embeds[mask] = theirs.embeddings.word_embeddings(batch["input_ids"][mask]) * 1.5
    given = [{"inputs_embeds": embeds[row][mask[row]][None]} for row in range(len(parts))]
    with torch.no_grad():
        out = ours(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state
    assert_close(out[mask], torch.cat([one.last_hidden_state[0] for one in alone(theirs, given)]), 1e-11)


@pytest.mark.parametrize("rows", [1, 4])
def test_positions_given_by_the_caller(rows: int) -> None:
    theirs, ours = pair(dtype=torch.float64)
    parts = texts((7,) * 4)
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    positions = torch.randint(0, 23, (rows, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(**batch, position_ids=positions).last_hidden_state
        assert_close(ours(**batch, position_ids=positions).last_hidden_state, expected, 1e-11)
        batch.pop("token_type_ids")
        assert_close(ours(**batch).last_hidden_state, theirs(**batch).last_hidden_state, 1e-11)


# The classes.


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("name", EVERY)
def test_padded_texts_are_what_they_are_alone(name: str, side: str) -> None:
    theirs, ours = pair(name, torch.float64)
    parts = texts()
    batch, mask = padded(parts, side)
    choice = name.endswith("MultipleChoice")
    options = {"output_hidden_states": True, "output_attentions": True}
    expected = alone(theirs, [as_choices(part) for part in parts] if choice else parts, **options)
    with torch.no_grad():
        out = ours(**(as_choices(batch) if choice else batch), **options)
        of_packed = ours(packed(parts), **options)
    assert list(out) == list(expected[0]) == list(of_packed)
    for field in set(out) - {"hidden_states", "attentions"}:
        if per_token(field, name):
            tokens = torch.cat([one[field][0] for one in expected])
            assert_close(out[field][mask], tokens, 1e-11)
            assert_close(of_packed[field], tokens, 1e-11)
            lowest = torch.finfo(torch.float64).min if name.endswith("QuestionAnswering") else 0
            assert (out[field][~mask] == lowest).all()
        else:
            values = torch.cat([one[field] for one in expected], dim=1 if choice else 0)
            assert_close(out[field], values, 1e-11)
            assert_close(of_packed[field], values, 1e-11)
    for layer, state in enumerate(out.hidden_states):
        tokens = torch.cat([one.hidden_states[layer][0] for one in expected])
        assert_close(state[mask], tokens, 1e-11)
        assert_close(of_packed.hidden_states[layer], tokens, 1e-11)
        assert not state[~mask].any()
    for layer, weights in enumerate(out.attentions):
        for row, one in enumerate(expected):
            places = mask[row].nonzero().flatten()
            assert_close(weights[row][:, places][:, :, places], one.attentions[layer][0], 1e-11)
            length = len(places)
            assert_close(of_packed.attentions[layer][row, :, :length, :length], one.attentions[layer][0], 1e-11)


def per_token(field: str, name: str) -> bool:
    """Whether an output has a value for every token, not for every text."""
    if field in ("last_hidden_state", "prediction_logits", "start_logits", "end_logits"):
        return True
    return field == "logits" and name.endswith(("MaskedLM", "TokenClassification"))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TASKS},
    "one label": ("MobileBertForSequenceClassification", {"num_labels": 1}),
    "five labels": ("MobileBertForSequenceClassification", {"num_labels": 5}),
    "several at once": (
        "MobileBertForSequenceClassification",
        {"num_labels": 5, "problem_type": "multi_label_classification"},
    ),
    "several numbers": ("MobileBertForSequenceClassification", {"num_labels": 5, "problem_type": "regression"}),
    "seven kinds of token": ("MobileBertForTokenClassification", {"num_labels": 7}),
    "output embeddings of their own": ("MobileBertForMaskedLM", {"tie_word_embeddings": False}),
    "embeddings as wide as the hidden states": ("MobileBertForMaskedLM", {"embedding_size": 24}),
    "layer norms": ("MobileBertForPreTraining", {"normalization_type": "layer_norm"}),
    "no bottlenecks": ("MobileBertForPreTraining", {"use_bottleneck": False}),
    "attention to the bottleneck": ("MobileBertForMaskedLM", {"use_bottleneck_attention": True}),
    "no activation in the pooler": ("MobileBertForSequenceClassification", {"classifier_activation": False}),
}
"""Classes and fields whose losses and gradients are compared."""


def labelled(name: str, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Four texts of seven tokens, where transformers needs no padding, with every label the class takes."""
    parts = texts((7,) * 4)
    batch = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    draw = torch.Generator().manual_seed(3)
    labels = fields.get("num_labels", 2)

    def below(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=draw)

    kind = name.removeprefix("MobileBertFor")
    if kind == "MultipleChoice":
        return {**{key: value.view(2, 2, 7) for key, value in batch.items()}, "labels": below(2, 2)}
    if kind in ("MaskedLM", "PreTraining"):
        batch["labels"] = below(VOCABULARY, 4, 7).where(below(2, 4, 7) == 1, -100)
    if kind == "PreTraining":
        batch["next_sentence_label"] = below(2, 4)
    if kind == "QuestionAnswering":
        return {**batch, "start_positions": below(7, 4), "end_positions": below(9, 4)}
    if kind == "TokenClassification":
        batch["labels"] = below(labels, 4, 7)
    if kind == "NextSentencePrediction":
        batch["labels"] = below(2, 4)
    if kind == "SequenceClassification":
        several = fields.get("problem_type") is not None
        numbers = torch.rand(4, labels, generator=draw, dtype=torch.float64)
        batch["labels"] = numbers if several else numbers[:, 0] if labels == 1 else below(labels, 4)
    return batch


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("name", "fields"), CASES.values(), ids=CASES.keys())
def test_losses_and_gradients_are_those_of_transformers(name: str, fields: dict[str, Any]) -> None:
    theirs, ours = pair(name, torch.float64, **fields)
    batch = labelled(name, fields)
    expected, out = theirs.train()(**batch), ours.train()(**batch)
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-12, atol=0)
    expected.loss.backward()
    out.loss.backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        if gradients[key] is None:
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=0, atol=1e-11, msg=key)
    ours.float().eval()
    theirs.float().eval()
    single = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(ours(**single).loss, theirs(**single).loss, rtol=1e-6, atol=0)


def test_labels_at_padding_do_not_count() -> None:
    theirs, ours = pair("MobileBertForMaskedLM", torch.float64)
    parts = texts()
    batch, mask = padded(parts, "both")
    labels = torch.randint(0, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(2))
    logits = torch.cat([one.logits[0] for one in alone(theirs, parts)])
    with torch.no_grad():
        loss = ours(**batch, labels=labels).loss
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels[mask]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["MobileBertForMaskedLM", "MobileBertForPreTraining"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_is_tied_where_the_configuration_says_so(name: str, tied: bool) -> None:
    _, ours = pair(name, tie_word_embeddings=tied)
    head = ours.cls["predictions"]
    assert (head.decoder.weight is ours.get_input_embeddings().weight) == tied
    assert (head.decoder.bias is head.bias) == tied


def test_words_are_predicted_only_where_they_are_asked_for() -> None:
    _, ours = pair("MobileBertForMaskedLM")
    batch, mask = padded(texts(), "left")
    asked = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(4)) < 0.4)
    with torch.no_grad():
        every = ours(**batch).logits
        assert_close(ours(**batch, positions=asked).logits, every[asked], 1e-6)


DROPOUT: dict[str, dict[str, Any]] = {
    "hidden": {"hidden_dropout_prob": 0.4},
    "hidden, without bottlenecks": {"hidden_dropout_prob": 0.4, "use_bottleneck": False},
    "attention": {"attention_probs_dropout_prob": 0.4},
    "classifier": {"classifier_dropout": 0.4},
    "classifier, not hidden": {"classifier_dropout": 0.0, "hidden_dropout_prob": 0.4},
    "all": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.5},
}


@pytest.mark.parametrize("name", ["MobileBertForTokenClassification", "MobileBertForSequenceClassification"])
@pytest.mark.parametrize("fields", DROPOUT.values(), ids=DROPOUT.keys())
def test_dropout_falls_where_transformers_has_it(fields: dict[str, Any], name: str) -> None:
    # One text has as many values in either layout, so the same seed drops the same ones in the same order.
    theirs, ours = pair(name, torch.float64, **fields)
    (part,) = texts((11,))
    (calm,) = alone(ours, [part])
    assert torch.equal(alone(ours, [part])[0].logits, calm.logits)
    for seed in range(3):
        outputs = []
        for model in (theirs.train(), ours.train()):
            torch.manual_seed(seed)
            outputs.append(alone(model, [part])[0].logits)
        assert_close(outputs[1], outputs[0], 1e-11)
        assert (outputs[1] - calm.logits).abs().max().item() > 1e-3
    (again,) = alone(ours.eval(), [part])
    assert torch.equal(again.logits, calm.logits)


# Folders.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_a_saved_model_is_one_of_transformers_and_back(name: str, tied: bool, tmp_path: Path) -> None:
    _, ours = pair(name, tie_word_embeddings=tied, use_bottleneck_attention=True, num_labels=2)
    ours.save_pretrained(tmp_path / "ours")
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    theirs.eval().set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path / "theirs")
    again = getattr(padless, name).from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())
    assert set(load_file(tmp_path / "ours/model.safetensors")) == set(load_file(tmp_path / "theirs/model.safetensors"))
    parts = texts((5,))
    given = as_choices(parts[0]) if name.endswith("MultipleChoice") else parts[0]
    assert_close(alone(again, [given])[0][0], alone(theirs, [given])[0][0], 1e-5)


def test_a_configuration_of_transformers_and_back(tmp_path: Path) -> None:
    given = {**TINY, "use_bottleneck": False, "classifier_dropout": 0.25, "num_labels": 3}
    theirs = transformers.MobileBertConfig(**given)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["true_hidden_size"] == 24
    ours = padless.MobileBertConfig.from_pretrained(tmp_path)
    assert ours.true_hidden_size == 24
    changed = padless.MobileBertConfig.from_pretrained(tmp_path, use_bottleneck=True)
    assert changed.true_hidden_size == 12
    changed.save_pretrained(tmp_path / "changed")
    read = transformers.MobileBertConfig.from_pretrained(tmp_path / "changed")
    assert (read.true_hidden_size, read.use_bottleneck, read.classifier_dropout) == (12, True, 0.25)


def test_the_defaults_are_those_of_transformers() -> None:
    theirs, ours = transformers.MobileBertConfig().to_dict(), padless.MobileBertConfig().to_dict()
    names = (set(ours) & set(theirs)) - {"id2label", "label2id"}
    assert {*TINY, *SWITCHES, "true_hidden_size", "classifier_activation", "classifier_dropout"} <= names
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_old_names_and_a_missing_prefix_are_read(tmp_path: Path) -> None:
    theirs, _ = pair("MobileBertForMaskedLM")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("mobilebert.")
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[name] = tensor
    old["embeddings.position_ids"] = torch.arange(23)[None]
    save_file(old, tmp_path / "model.safetensors")
    parts = texts()
    expected = alone(theirs, parts)
    for out, wanted in zip(alone(padless.AutoModelForMaskedLM.from_pretrained(tmp_path), parts), expected, strict=True):
        assert_close(out.logits, wanted.logits, 1e-5)
    bare = alone(padless.AutoModel.from_pretrained(tmp_path), parts)
    for out, wanted in zip(bare, alone(theirs.mobilebert, parts), strict=True):
        assert_close(out.last_hidden_state, wanted.last_hidden_state, 1e-5)


@pytest.mark.parametrize("activation", [True, False])
def test_a_pooler_that_a_checkpoint_lacks_is_named_where_it_has_weights(
    activation: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, _ = pair("MobileBertForMaskedLM", classifier_activation=activation)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        padless.MobileBertForSequenceClassification.from_pretrained(tmp_path)
    warned = [record.getMessage() for record in caplog.records if "initialised at random" in record.getMessage()]
    assert any("no weights for classifier," in message for message in warned)
    assert any("no weights for mobilebert.pooler," in message for message in warned) == activation


# Magnitudes and dtypes.


def planted(theirs: Any, ours: Any, large: float) -> None:
    """One channel in three of every layer's output is scaled and shifted far away, as in the published weights."""
    for layer in theirs.encoder.layer:
        norm = layer.output.bottleneck.LayerNorm
        norm.weight.data[::3] *= large
        norm.bias.data[::3] += large
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_ten_millions_stay_right(dtype: torch.dtype) -> None:
    theirs, ours = pair(num_hidden_layers=3)
    planted(theirs, ours, 200.0)
    parts = texts()
    expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs, parts)])
    assert 1e7 < expected.abs().max().item() < 1e10
    ours.to(dtype)
    theirs.to(dtype)
    with torch.no_grad():
        out = ours.run(packed(parts))
    assert out.dtype == dtype
    assert out.isfinite().all()
    if dtype == torch.float32:
        assert_close(out, expected, 1e-5)
        channels = expected.abs().amax(dim=0)
        assert ((out - expected).abs().amax(dim=0) <= 1e-4 * channels.clamp(min=1.0)).all()
    else:
        half = torch.cat([one.last_hidden_state[0] for one in alone(theirs, parts)])
        ours_off, theirs_off = (1 - F.cosine_similarity(x.double(), expected.double(), dim=1) for x in (out, half))
        assert theirs_off.max().item() < 1e-3
        assert ours_off.max().item() < 1e-3


def test_in_bfloat16_the_residual_stream_is_in_float32() -> None:
    """The first layer shifts everything far away, the second shifts it back and adds nothing of its own."""
    theirs, ours = pair(type_vocab_size=1)
    first, second = theirs.encoder.layer
    first.output.bottleneck.LayerNorm.bias.data.fill_(2.0**14)
    second.output.bottleneck.LayerNorm.bias.data.fill_(-(2.0**14))
    second.output.bottleneck.LayerNorm.weight.data.fill_(1.0)
    second.output.bottleneck.dense.weight.data.zero_()
    ours.load_state_dict(theirs.state_dict())
    parts = texts(types=1)
    expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs.double(), parts)])
    ours.bfloat16()
    dtypes = []
    for layer in ours.encoder.layer:
        layer.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    with torch.no_grad():
        out = ours.run(packed(parts))
    half = torch.cat([one.last_hidden_state[0] for one in alone(theirs.bfloat16(), parts)])
    assert dtypes == [torch.float32] * 2
    assert out.dtype == torch.bfloat16
    assert F.cosine_similarity(out.double(), expected, dim=1).min().item() > 0.999
    assert F.cosine_similarity(half.double(), expected, dim=1).min().item() < 0.9


@pytest.mark.parametrize("normalisation", SWITCHES["normalization_type"])
@pytest.mark.parametrize("name", TASKS)
def test_every_class_in_bfloat16(name: str, normalisation: str) -> None:
    theirs, ours = pair(name, normalization_type=normalisation)
    (part,) = texts((11,))
    given = as_choices(part) if name.endswith("MultipleChoice") else part
    (expected,) = alone(theirs, [given], output_hidden_states=True)
    (out,) = alone(ours.bfloat16(), [given], output_hidden_states=True)
    for field in expected:
        if field != "hidden_states":
            assert out[field].dtype == torch.bfloat16
            assert_close(out[field], expected[field], 0.05)
    for state, wanted in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert state.dtype == torch.bfloat16
        assert F.cosine_similarity(state.double(), wanted.double(), dim=-1).min().item() > 0.999


def test_float16_is_refused_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = pair()
    with pytest.raises(OptionError, match=r"2\.5e7") as error:
        ours.half()
    assert "\n" not in str(error.value)
    theirs.half().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=r"float16.*2\.5e7.*bfloat16"):
        padless.MobileBertModel.from_pretrained(tmp_path, dtype="float16")
    with caplog.at_level(logging.WARNING):
        assert padless.MobileBertModel.from_pretrained(tmp_path).dtype == torch.float32
    assert "2.5e7" in caplog.text


def test_the_real_shape() -> None:
    torch.manual_seed(1)
    theirs = transformers.MobileBertModel(transformers.MobileBertConfig(vocab_size=99)).eval()
    ours = padless.MobileBertModel(padless.MobileBertConfig(vocab_size=99)).eval()
    ours.load_state_dict(theirs.state_dict())
    parts = texts((9,), vocabulary=99)
    expected = alone(theirs, parts)[0].last_hidden_state
    assert_close(alone(ours, parts)[0].last_hidden_state, expected, 1e-5)
    half = alone(ours.bfloat16(), parts)[0].last_hidden_state
    assert F.cosine_similarity(half.double(), expected.double(), dim=-1).min().item() > 0.999


# The module.


def test_queries_and_keys_share_a_gemm_and_a_buffer_and_values_join_where_they_may() -> None:
    widths = {}
    cases: dict[str, dict[str, Any]] = {
        "apart": {},
        "bottleneck": {"use_bottleneck_attention": True},
        "full width": {"use_bottleneck": False},
    }
    for case, fields in cases.items():
        _, ours = pair(**fields)
        attention = ours.encoder.layer[0].attention["self"]
        widths[case] = attention.qkv(torch.zeros(1, attention.query.in_features)).shape[1]
        query, key = attention.query.weight, attention.key.weight
        assert key.data_ptr() == query.data_ptr() + query.numel() * query.element_size()
    assert widths == {"apart": 24, "bottleneck": 36, "full width": 72}


@pytest.mark.parametrize("used", [False, True])
def test_a_deep_copy_is_independent(used: bool) -> None:
    _, ours = pair()
    batch = packed(texts())
    with torch.no_grad():
        if used:
            ours.run(batch)
        other = copy.deepcopy(ours)
        before = ours.run(batch)
        assert torch.equal(other.run(batch), before)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert torch.equal(ours.run(batch), before)
        assert (other.run(batch) - before).abs().max().item() > 0.1


def test_random_weights_follow_the_configuration() -> None:
    torch.manual_seed(0)
    ours = padless.MobileBertForPreTraining(padless.MobileBertConfig(**{**TINY, "vocab_size": 997}))
    words = ours.get_input_embeddings().weight
    assert abs(words.std().item() - 0.2) < 0.01
    norm = ours.mobilebert.encoder.layer[0].attention["output"].LayerNorm
    with torch.no_grad():
        norm.weight.fill_(3.0)
        norm.bias.fill_(3.0)
    ours.initialise()
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 8}, "intra_bottleneck_size: expected a multiple of num_attention_heads"),
        ({"num_attention_heads": 5, "use_bottleneck": False}, "hidden_size: expected a multiple"),
        ({"key_query_shared_bottleneck": False}, "key_query_shared_bottleneck: expected true, or"),
        ({"num_feedforward_networks": 0}, "num_feedforward_networks: expected 1 to"),
        ({"intra_bottleneck_size": 0}, "intra_bottleneck_size: expected 1 to"),
        ({"normalization_type": "rms_norm"}, "normalization_type: expected 'no_norm' or 'layer_norm'"),
        ({"hidden_act": "erf"}, "hidden_act"),
        ({"type_vocab_size": 0}, "type_vocab_size"),
        ({"trigram_input": 3}, "trigram_input: expected true or false"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^here.json: {message}") as error:
        padless.MobileBertConfig.from_dict({**TINY, **fields}, source="here.json")
    assert "\n" not in str(error.value)


def test_embeddings_wider_than_the_hidden_states_encode_but_predict_no_words() -> None:
    theirs, ours = pair(embedding_size=30)
    parts = texts()
    with torch.no_grad():
        out = ours.run(packed(parts))
    assert_close(out, torch.cat([one.last_hidden_state[0] for one in alone(theirs, parts)]), 1e-5)
    with pytest.raises(ConfigError, match="embedding_size: expected at most hidden_size"):
        padless.MobileBertForMaskedLM(padless.MobileBertConfig(**{**TINY, "embedding_size": 30}))
