"""ModernBERT against transformers on random weights: every class, option and vintage; a text alone is the rule."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.errors import ConfigError, InputError, OptionError, WeightsError
from padless.engine.models import modernbert

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "local_attention": 8,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "num_labels": 3,
}

TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Those of one text a row; multiple choice has tests of its own."""

LENGTHS = (9, 1, 33, 4, 10)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name: str, *, seed: int = 0, scale: float = 0.25, **overrides: Any) -> tuple[Any, Any]:
    """Theirs and ours, in evaluation mode, with the same parameters, none of them at its initial value."""
    labels = {"num_labels": 2} if name == "ForQuestionAnswering" else {}
    config = transformers.ModernBertConfig(**{**BASE, **labels, **copy.deepcopy(overrides)})
    theirs = getattr(transformers, f"ModernBert{name}")(config).eval()
    theirs.set_attn_implementation("eager")
    randomise(theirs, seed, scale)
    our_config = modernbert.ModernBertConfig.from_dict(config.to_dict(), source="config.json")
    ours = getattr(modernbert, f"ModernBert{name}")(our_config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.25) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.2 * values if norm else scale * values)


def texts_of(lengths: Sequence[int] = LENGTHS, *, seed: int = 1, vocab: int = 61) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor], side: str, fill: float = 0) -> Tensor:
    """One row a text; "holes" spreads every text over the row."""
    width = max(len(row) for row in rows) + (3 if side == "holes" else 0)
    out = torch.full((len(rows), width, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for row, text in enumerate(rows):
        out[row, slots(len(text), width, side)] = text
    return out


def slots(length: int, width: int, side: str) -> Tensor:
    if side == "holes":
        return torch.linspace(1, width - 1, length).long()
    return torch.arange(length) + (width - length if side == "left" else 0)


def mask_of(rows: Sequence[Tensor], side: str) -> Tensor:
    return padded([torch.ones(len(row), dtype=torch.long) for row in rows], side)


def packed(rows: Sequence[Tensor]) -> PackedBatch:
    lengths = np.asarray([len(row) for row in rows], dtype=np.int32)
    ids = torch.cat(list(rows)).numpy().astype(np.int32)
    flags = np.zeros(len(rows), dtype=bool)
    return pack(TokenizedTexts(ids, lengths, None, flags, flags), np.arange(len(rows)))


def assert_close(found: Tensor, expected: Tensor, name: str = "") -> None:
    """The rule of the project: max|a - b| <= 1e-5 max(1, max|b|)."""
    assert found.shape == expected.shape, name
    if expected.numel():
        worst = (found.double() - expected.double()).abs().max().item()
        assert worst <= 1e-5 * max(1.0, expected.abs().max().item()), f"{name}: {worst}"


def assert_loss(found: Tensor, expected: Tensor) -> None:
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def alone(model: Any, rows: Iterable[Tensor], **options: Any) -> list[Any]:
    with torch.no_grad():
        return [model(input_ids=row[None], **options) for row in rows]


def assert_texts_as_alone(theirs: Any, ours: Any, rows: Sequence[Tensor], side: str) -> None:
    """Every output of every text of a padded batch is that of transformers for the text alone."""
    references = alone(theirs, rows)
    ids, mask = padded(rows, side), mask_of(rows, side)
    with torch.no_grad():
        outputs = ours(input_ids=ids, attention_mask=mask)
    assert list(outputs.keys()) == list(references[0].keys())
    for name in outputs:
        for index, (row, reference) in enumerate(zip(rows, references, strict=True)):
            expected, found = reference[name][0], outputs[name][index]
            if name != "logits" or expected.dim() > 1:
                found = found[slots(len(row), ids.shape[1], side)]
            assert_close(found, expected, name)


# A text alone, padded, packed.


@pytest.mark.parametrize("name", ["Model", *TASKS])
def test_a_text_alone_is_that_of_transformers(name: str) -> None:
    theirs, ours = build(name)
    rows = texts_of((1, 2, 5, 9, 10, 48, 49, 70))
    for row, reference in zip(rows, alone(theirs, rows), strict=True):
        with torch.no_grad():
            found = ours(row[None])
        assert list(found.keys()) == list(reference.keys())
        for field in reference:
            assert_close(found[field], reference[field], field)


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("name", ["Model", *TASKS])
def test_padding_changes_no_text(name: str, side: str) -> None:
    theirs, ours = build(name)
    assert_texts_as_alone(theirs, ours, texts_of(), side)


@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_padding_gives_zeros_and_no_answers(side: str) -> None:
    rows = texts_of()
    ids, mask = padded(rows, side), mask_of(rows, side)
    _, model = build("Model")
    _, answers = build("ForQuestionAnswering")
    with torch.no_grad():
        hidden = model(ids, mask).last_hidden_state
        spans = answers(ids, mask)
    assert bool((hidden[mask == 0] == 0).all())
    for logits in (spans.start_logits, spans.end_logits):
        assert bool((logits[mask == 0] == torch.finfo(torch.float32).min).all())
        assert bool((mask.gather(1, logits.argmax(dim=1, keepdim=True)) == 1).all())


@pytest.mark.parametrize("name", ["Model", *TASKS])
def test_a_packed_batch_needs_no_padding(name: str) -> None:
    theirs, ours = build(name)
    rows = texts_of()
    with torch.no_grad():
        outputs = ours(packed(rows))
    for field, found in outputs.items():
        expected = torch.cat([reference[field][0].reshape(-1, *reference[field].shape[2:])
                              if field != "logits" or reference[field].dim() == 3 else reference[field]
                              for reference in alone(theirs, rows)])  # fmt: skip
        assert_close(found, expected, field)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_multiple_choice(pooling: str, side: str) -> None:
    theirs, ours = build("ForMultipleChoice", classifier_pooling=pooling)
    rows = texts_of((7, 12, 3, 9, 9, 1))
    ids, mask = padded(rows, side).view(2, 3, -1), mask_of(rows, side).view(2, 3, -1)
    labels = torch.tensor([2, 0])
    # With a mask transformers takes the first token that is there, so the whole batch may be compared.
    with torch.no_grad():
        expected, found = (model(input_ids=ids, attention_mask=mask, labels=labels) for model in (theirs, ours))
        from_packed = ours(packed(rows), labels=labels)
    single = [theirs(input_ids=row[None, None], attention_mask=torch.ones(1, 1, len(row))).logits for row in rows]
    assert_close(found.logits, torch.cat(single).view(2, 3))
    assert_close(found.logits, expected.logits)
    assert_loss(found.loss, expected.loss)
    assert_close(from_packed.logits, expected.logits)
    assert_loss(from_packed.loss, expected.loss)


def test_embeddings_positions_and_types_that_are_given() -> None:
    theirs, ours = build("ForTokenClassification")
    embeds = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(4))
    positions = torch.stack([torch.arange(11) + 5, torch.randperm(11, generator=torch.Generator().manual_seed(5))])
    with torch.no_grad():
        for options in (
            {"inputs_embeds": embeds},
            {"inputs_embeds": embeds, "position_ids": positions},
            {"input_ids": torch.stack(texts_of((11, 11))), "position_ids": positions[1:]},
            {"input_ids": torch.stack(texts_of((11, 11))), "position_ids": positions * 400 - 7},
            {"input_ids": torch.stack(texts_of((11, 11))), "token_type_ids": torch.ones(2, 11, dtype=torch.long)},
        ):
            assert_close(ours(**options).logits, theirs(**options).logits)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_given_positions_decide_how_far_a_text_reaches(rope_type: str) -> None:
    theirs, ours = build("Model", rope_parameters=rotations(rope_type))
    row, positions = texts_of((5,))[0][None], torch.tensor([[0, 3, 90, 7, 11]])
    short = texts_of((5,), seed=7)[0][None]
    with torch.no_grad():
        expected = theirs(input_ids=row, position_ids=positions).last_hidden_state
        # Their module remembers the longest text, ours must not.
        fresh, _ = build("Model", rope_parameters=rotations(rope_type))
        expected_short = fresh(input_ids=short).last_hidden_state
        both = torch.cat([positions, torch.arange(5)[None]])
        found = ours(input_ids=torch.cat([row, short]), position_ids=both).last_hidden_state
    assert_close(found[:1], expected)
    assert_close(found[1:], expected_short)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    _, ours = build("Model")
    for wrong in (61, -1):
        with pytest.raises(InputError, match="input_ids: expected 0 to 60"):
            ours(torch.tensor([[3, wrong]]))


# Windows.


@pytest.mark.parametrize("length", [64, 65, 66, 128, 129, 130])
def test_windows_of_the_real_size(length: int) -> None:
    theirs, ours = build("Model", local_attention=128, layer_types=["sliding_attention"] * 2, num_hidden_layers=2)
    row = texts_of((length,))[0][None]
    with torch.no_grad():
        assert_close(ours(row).last_hidden_state, theirs(row).last_hidden_state)


@pytest.mark.parametrize(("local", "side"), [(128, 64), (8, 4), (9, 4), (2, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("model", [0, 1], ids=["theirs", "ours"])
def test_a_key_is_seen_at_the_windows_end_and_not_beyond(local: int, side: int, model: int) -> None:
    encoder = build("Model", local_attention=local, layer_types=["sliding_attention"], num_hidden_layers=1)[model]
    row = texts_of((140,))[0][None]
    planted = row.clone()
    planted[0, 70] = 60 if row[0, 70] != 60 else 59
    with torch.no_grad():
        changed = (encoder(row).last_hidden_state != encoder(planted).last_hidden_state).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(70 - side, 70 + side + 1))


def test_full_layers_see_everything() -> None:
    _, ours = build("Model", layer_types=["full_attention"], num_hidden_layers=1)
    row = texts_of((40,))[0][None]
    planted = row.clone()
    planted[0, 39] = 60 if row[0, 39] != 60 else 59
    with torch.no_grad():
        changed = (ours(row).last_hidden_state != ours(planted).last_hidden_state).any(dim=-1)[0]
    assert bool(changed.all())


# Options.


def rotations(rope_type: str) -> dict[str, dict[str, Any]]:
    """`rope_parameters` of both kinds, with values of their own; heads of 8 channels."""
    values: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 2.5},
        "dynamic": {"factor": 3.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 12},
        "longrope": {
            "short_factor": [1.0, 1.5, 2.0, 3.0],
            "long_factor": [2.0, 3.5, 5.0, 8.0],
            "original_max_position_embeddings": 20,
        },
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 0.5,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 24,
        },
        "proportional": {"partial_rotary_factor": 0.5},
    }
    entry = {"rope_type": rope_type, **values[rope_type]}
    return {"full_attention": {**entry, "rope_theta": 900.0}, "sliding_attention": {**entry, "rope_theta": 70.0}}


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("ForMaskedLM", {"vocab_size": 67}),
    ("ForMaskedLM", {"hidden_size": 30, "num_attention_heads": 5}),
    ("ForMaskedLM", {"intermediate_size": 7}),
    ("ForMaskedLM", {"num_hidden_layers": 1}),
    ("ForMaskedLM", {"num_hidden_layers": 7}),
    ("ForMaskedLM", {"num_attention_heads": 1}),
    ("ForMaskedLM", {"hidden_activation": "silu"}),
    ("ForMaskedLM", {"hidden_activation": "relu"}),
    ("ForMaskedLM", {"hidden_activation": "gelu_pytorch_tanh"}),
    ("ForMaskedLM", {"norm_eps": 0.3}),
    ("ForMaskedLM", {"norm_bias": True}),
    ("ForMaskedLM", {"attention_bias": True}),
    ("ForMaskedLM", {"mlp_bias": True}),
    ("ForMaskedLM", {"decoder_bias": False}),
    ("ForMaskedLM", {"tie_word_embeddings": False}),
    ("ForMaskedLM", {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}),
    ("ForMaskedLM", {"classifier_bias": True}),
    ("ForMaskedLM", {"classifier_activation": "tanh"}),
    ("ForMaskedLM", {"local_attention": 3}),
    ("ForMaskedLM", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    ("ForMaskedLM", {"layer_types": ["full_attention"] * 4}),
    ("ForMaskedLM", {"sparse_prediction": True}),
    ("ForMaskedLM", {"max_position_embeddings": 16}),
    ("ForSequenceClassification", {"classifier_pooling": "mean"}),
    ("ForSequenceClassification", {"classifier_activation": "relu", "classifier_bias": True}),
    ("ForSequenceClassification", {"num_labels": 1}),
    ("ForTokenClassification", {"num_labels": 5}),
    ("ForTokenClassification", {"classifier_pooling": "mean"}),
    *[("ForTokenClassification", {"rope_parameters": rotations(kind)}) for kind in (
        "default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")],
    ("ForTokenClassification", {"rope_parameters": {
        "full_attention": rotations("yarn")["full_attention"], "sliding_attention": {"rope_type": "default"}}}),
    ("Model", {"embedding_dropout": 0.3, "mlp_dropout": 0.3, "attention_dropout": 0.3}),
    ("ForSequenceClassification", {"classifier_dropout": 0.7}),
    ("Model", {"deterministic_flash_attn": True}),
]  # fmt: skip
"""Every field of the seed that changes what is computed, toggled at least once."""


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: json.dumps(value)[:60])
def test_options(name: str, options: dict[str, Any]) -> None:
    _, ours = build(name, **options)
    rows = texts_of((33, 9, 60, 1, 12))
    # Theirs is made anew for every text: under `dynamic` rotations it remembers the longest it has seen.
    references = [alone(build(name, **options)[0], [row])[0] for row in rows]
    for side in ("right", "left"):
        ids, mask = padded(rows, side), mask_of(rows, side)
        with torch.no_grad():
            outputs = ours(input_ids=ids, attention_mask=mask)
        for index, (row, reference) in enumerate(zip(rows, references, strict=True)):
            for field, expected in reference.items():
                found = outputs[field][index]
                if field != "logits" or expected.dim() == 3:
                    found = found[slots(len(row), ids.shape[1], side)]
                assert_close(found, expected[0], field)


def test_the_options_are_all_the_fields_that_change_maths() -> None:
    toggled = {field for _, options in OPTIONS for field in options}
    # What initialisation, tokenizers and older kernels read, and what has tests of its own above and below.
    others = {
        "initializer_range", "initializer_cutoff_factor",
        "pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id",
        "sparse_pred_ignore_index", "reference_compile", "repad_logits_with_grad",
    }  # fmt: skip
    seed = set(transformers.ModernBertConfig.__dataclass_fields__) - set(
        transformers.PreTrainedConfig.__dataclass_fields__
    )
    assert seed | {"reference_compile", "repad_logits_with_grad"} <= toggled | others
    assert seed <= set(modernbert.ModernBertConfig.__dataclass_fields__)


def test_the_defaults_are_those_of_the_seed() -> None:
    ours, theirs = modernbert.ModernBertConfig(), transformers.ModernBertConfig()
    for name in set(transformers.ModernBertConfig.__dataclass_fields__) - {"transformers_version", "dtype"}:
        if name in modernbert.ModernBertConfig.__dataclass_fields__:
            assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.reference_compile, ours.repad_logits_with_grad) == (None, False)
    assert ours.sliding_window == theirs.sliding_window == 64


# Vintages of the configuration.

VINTAGES: list[dict[str, Any]] = [
    {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0},
    {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50.0},
    {"global_attn_every_n_layers": 1},
    {"global_rope_theta": 77.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "global_rope_theta": 500.0},
    {"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "rope_theta": 800.0}},
    {"layer_types": ["sliding_attention"] * 4},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 321.0}}},
    {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2.0}}, "local_rope_theta": 40.0},
    {"rope_parameters": rotations("linear"), "rope_scaling": {"factor": 9.0}},
]


@pytest.mark.parametrize("vintage", VINTAGES, ids=lambda value: json.dumps(value)[:70])
def test_every_vintage_means_what_transformers_reads(vintage: dict[str, Any]) -> None:
    given = copy.deepcopy(vintage)
    theirs = transformers.ModernBertConfig(**{**BASE, **copy.deepcopy(vintage)})
    raw = {**BASE, **vintage, "model_type": "modernbert"}
    for ours in (
        modernbert.ModernBertConfig.from_dict(raw, source="config.json"),
        modernbert.ModernBertConfig(**{**BASE, **vintage}),
    ):
        assert ours.layer_types == theirs.layer_types
        assert theirs.rope_parameters is not None
        expected = {kind: dict(theirs.rope_parameters[kind]) for kind in ("full_attention", "sliding_attention")}
        found = copy.deepcopy(ours.rope_parameters)
        assert found is not None
        for kind in expected:
            # Filled in by them when read, by us when computed.
            for entry in (found, expected):
                entry[kind].pop("original_max_position_embeddings", None)
        assert found == expected
        again = modernbert.ModernBertConfig.from_dict(ours.to_dict(), source="again")
        assert again.to_dict() == ours.to_dict()
        assert not set(ours.to_dict()) & {"global_rope_theta", "local_rope_theta", "rope_scaling"}
    assert vintage == given


@pytest.mark.parametrize("vintage", VINTAGES[:5], ids=lambda value: json.dumps(value)[:70])
def test_every_vintage_computes_what_transformers_does(vintage: dict[str, Any]) -> None:
    theirs = transformers.ModernBertModel(transformers.ModernBertConfig(**{**BASE, **copy.deepcopy(vintage)})).eval()
    randomise(theirs, 3)
    ours = modernbert.ModernBertModel(modernbert.ModernBertConfig(**{**BASE, **vintage})).eval()
    ours.load_state_dict(theirs.state_dict())
    assert_texts_as_alone(theirs, ours, texts_of(), "left")


def test_the_configuration_of_the_first_published_checkpoints() -> None:
    """As the files of ModernBERT-base were written by transformers 4.48."""
    raw = {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "classifier_pooling": "mean",
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "layer_norm_eps": 1e-05,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "position_embedding_type": "absolute",
        "reference_compile": None,
        "repad_logits_with_grad": False,
        "torch_dtype": "float32",
        "transformers_version": "4.48.0.dev0",
    }
    config = modernbert.ModernBertConfig.from_dict(raw, source="config.json")
    assert config.layer_types is not None
    assert [index for index, kind in enumerate(config.layer_types) if kind == "full_attention"] == list(range(0, 22, 3))
    assert (config.rope("full_attention").rope_theta, config.rope("sliding_attention").rope_theta) == (160_000, 10_000)
    assert (config.classifier_pooling, config.sliding_window) == ("mean", 64)


def test_a_local_theta_of_null_is_the_global_one() -> None:
    config = modernbert.ModernBertConfig(**BASE, local_rope_theta=None, global_rope_theta=300.0)
    assert config.rope("sliding_attention").rope_theta == config.rope("full_attention").rope_theta == 300.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 25}, "hidden_size"),
        ({"hidden_size": 27, "num_attention_heads": 3}, "rope_parameters: full_attention"),
        ({"hidden_activation": "softsign"}, "hidden_activation"),
        ({"classifier_activation": "x"}, "classifier_activation"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"local_attention": -2}, "local_attention"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ({"mlp_dropout": 1.5}, "mlp_dropout"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["causal"] * 4}, "layer_types"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters: full_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "axial"}}}, "rope_type"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"local_rope_theta": -1.0}, "rope_theta"),
        ({"norm_bias": "yes"}, "norm_bias"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        modernbert.ModernBertConfig.from_dict({**BASE, **fields}, source="config.json")
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_fields_assigned_later_are_checked_when_a_model_is_built() -> None:
    config = modernbert.ModernBertConfig(**BASE)
    config.local_attention = 2
    assert modernbert.ModernBertModel(config).layers[1].attn.attention.options["window"] == (1, 1)
    config.num_hidden_layers = 9
    with pytest.raises(ConfigError, match="layer_types"):
        modernbert.ModernBertModel(config)


# Hidden states and attentions.


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["Model", *TASKS])
def test_hidden_states_and_attentions(name: str, side: str) -> None:
    theirs, ours = build(name)
    rows = texts_of((9, 1, 14))
    references = alone(theirs, rows, output_hidden_states=True, output_attentions=True)
    ids, mask = padded(rows, side), mask_of(rows, side)
    with torch.no_grad():
        outputs = ours(ids, mask, output_hidden_states=True, output_attentions=True)
    for index, (row, reference) in enumerate(zip(rows, references, strict=True)):
        place = slots(len(row), ids.shape[1], side)
        # As many as layers, and one; the last is the normalised one.
        assert len(outputs.hidden_states) == len(reference.hidden_states) == 5
        for found, expected in zip(outputs.hidden_states, reference.hidden_states, strict=True):
            assert_close(found[index, place], expected[0], "hidden_states")
        assert len(outputs.attentions) == len(reference.attentions) == 4
        for found, expected in zip(outputs.attentions, reference.attentions, strict=True):
            assert_close(found[index][:, place][:, :, place], expected[0], "attentions")
            assert found[index].sum().item() == pytest.approx(3 * len(row), rel=1e-5)
    if name == "Model":
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)


def test_what_is_kept_by_configuration_and_tuples() -> None:
    _, ours = build("ForTokenClassification", output_hidden_states=True)
    row = texts_of((6,))[0][None]
    with torch.no_grad():
        whole, short = ours(row, return_dict=False), ours(row, return_dict=False, output_hidden_states=False)
    assert len(whole) == 2
    assert len(whole[1]) == 5
    assert len(short) == 1
    assert torch.equal(whole[0], short[0])


# Losses and gradients.


def labelled(name: str, rows: Sequence[Tensor], side: str, seed: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "ForSequenceClassification":
        return {"labels": torch.randint(0, 3, (len(rows),), generator=generator)}
    if name == "ForQuestionAnswering":
        width = max(map(len, rows))
        first = [int(slots(len(row), width, side)[0]) for row in rows]
        return {
            "start_positions": torch.tensor([start + len(row) // 3 for start, row in zip(first, rows, strict=True)]),
            "end_positions": torch.tensor([start + len(row) // 2 for start, row in zip(first, rows, strict=True)]),
        }
    classes = 61 if name == "ForMaskedLM" else 3
    labels = [torch.randint(0, classes, (len(row),), generator=generator) for row in rows]
    for label in labels:
        label[::3] = -100
    return {"labels": padded(labels, side, fill=-100)}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_training_is_that_of_transformers(name: str, side: str) -> None:
    """Loss and every gradient, at dropout 0, where padding does not reach what transformers computes either."""
    pooling = "mean" if side == "left" else "cls"
    theirs, ours = build(name, classifier_pooling=pooling, norm_bias=True, mlp_bias=True, attention_bias=True)
    rows = texts_of()
    ids, mask = padded(rows, side), mask_of(rows, side)
    targets = labelled(name, rows, side)
    for model in (theirs.train(), ours.train()):
        model.loss = model(input_ids=ids, attention_mask=mask, **targets).loss
        model.loss.backward()
    assert_loss(ours.loss, theirs.loss)
    gradients = dict(ours.named_parameters())
    assert set(gradients) == {name for name, _ in theirs.named_parameters()}
    for parameter_name, parameter in theirs.named_parameters():
        assert_close(gradients[parameter_name].grad, parameter.grad, parameter_name)
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_question_answering_leaves_padding_out_of_its_loss(side: str) -> None:
    theirs, ours = build("ForQuestionAnswering")
    rows = texts_of((9, 33, 14))
    ids, mask = padded(rows, side), mask_of(rows, side)
    found = ours.train()(ids, mask, **labelled("ForQuestionAnswering", rows, side)).loss
    found.backward()
    losses = []
    for row in rows:
        target = labelled("ForQuestionAnswering", [row], side)
        losses.append(theirs.train()(row[None], **target).loss)
    expected = torch.stack(losses).mean()
    expected.backward()
    assert_loss(found, expected)
    assert_loss(ours(packed(rows), **labelled_packed(rows)).loss, expected)
    for parameter_name, parameter in theirs.named_parameters():
        assert_close(ours.get_parameter(parameter_name).grad, parameter.grad, parameter_name)


def labelled_packed(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    return {
        "start_positions": torch.tensor([len(row) // 3 for row in rows]),
        "end_positions": torch.tensor([len(row) // 2 for row in rows]),
    }


@pytest.mark.parametrize("position", [0, 8, 9, 40, -3])
def test_answers_that_point_outside_do_not_count(position: int) -> None:
    theirs, ours = build("ForQuestionAnswering")
    row = texts_of((9,))[0][None]
    targets = {"start_positions": torch.tensor([position]), "end_positions": torch.tensor([4])}
    with torch.no_grad():
        expected, found = (model(row, **targets).loss for model in (theirs, ours))
    if expected.isnan():
        assert found.isnan()
    else:
        assert_loss(found, expected)


@pytest.mark.parametrize(
    ("problem", "count", "labels"),
    [
        (None, 3, torch.tensor([0, 2, 1])),
        (None, 1, torch.tensor([0.5, -1.0, 2.0])),
        (None, 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])),
        ("regression", 3, torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 0.0], [2.0, 0.5, 0.1]])),
        ("single_label_classification", 3, torch.tensor([2, 2, 0])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])),
    ],
)
def test_losses_of_sequence_classification(problem: str | None, count: int, labels: Tensor) -> None:
    theirs, ours = build("ForSequenceClassification", scale=0.1, num_labels=count, problem_type=problem)
    rows = texts_of((5, 9, 3))
    ids, mask = padded(rows, "right"), mask_of(rows, "right")
    with torch.no_grad():
        expected, found = (model(input_ids=ids, attention_mask=mask, labels=labels) for model in (theirs, ours))
    assert_close(found.logits, expected.logits)
    assert_loss(found.loss, expected.loss)


@pytest.mark.parametrize("ignored", [-100, -1])
def test_sparse_prediction(ignored: int) -> None:
    theirs, ours = build("ForMaskedLM", sparse_prediction=True, sparse_pred_ignore_index=ignored)
    rows = texts_of((9, 12, 4))
    ids, mask = padded(rows, "right"), mask_of(rows, "right")
    labels = labelled("ForMaskedLM", rows, "right")["labels"]
    labels[labels == -100] = ignored
    labels[0, 1] = -100
    with torch.no_grad():
        expected, found = (model(input_ids=ids, attention_mask=mask, labels=labels) for model in (theirs, ours))
        assert_close(found.logits, expected.logits)
        assert_loss(found.loss, expected.loss)
        assert_close(ours(ids, mask).logits[0, :9], theirs(input_ids=ids[:1, :9]).logits[0])


def test_logits_only_where_they_are_asked_for() -> None:
    theirs, ours = build("ForMaskedLM")
    rows = texts_of((9, 12, 4))
    ids, mask = padded(rows, "left"), mask_of(rows, "left")
    asked = (ids % 3 == 0) & (mask == 1)
    with torch.no_grad():
        found = ours(ids, mask, positions=asked).logits
        expected = torch.cat([theirs(input_ids=row[None]).logits[0, row % 3 == 0] for row in rows])
        from_packed = ours(packed(rows), positions=(torch.cat(rows) % 3 == 0).nonzero().flatten()).logits
    assert_close(found, expected)
    assert_close(from_packed, expected)


# Dropout.


def test_dropout_acts_in_training_only() -> None:
    row = texts_of((12,))[0][None]
    for field in ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"):
        options: dict[str, Any] = {field: 0.5}
        _, ours = build("ForSequenceClassification", **options)
        _, plain = build("ForSequenceClassification")
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            assert torch.equal(ours(row).logits, plain(row).logits)
            ours.train()
            assert not torch.equal(ours(row).logits, ours(row).logits), field


def test_dropout_leaves_the_mean_as_it_is() -> None:
    """Each block is linear in what is dropped, so its mean over many draws is its value without dropout."""
    _, ours = build(
        "ForSequenceClassification",
        embedding_dropout=0.4,
        attention_dropout=0.3,
        mlp_dropout=0.3,
        classifier_dropout=0.3,
    )
    batch = packed(texts_of((12, 5)))
    model = ours.model
    turn = model.tables["full_attention"].lookup(batch)
    x = torch.randn(17, 24, generator=torch.Generator().manual_seed(2))
    blocks = {
        "embedding": lambda: model.embeddings(batch),
        "attention": lambda: model.layers[0].attn(x, x, batch, turn, None),
        "mlp": lambda: model.layers[1].mlp(x, x),
        "classifier": lambda: ours.classifier(ours._dropped(x)),
    }
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(11)
        for name, block in blocks.items():
            ours.eval()
            expected = block()
            ours.train()
            draws = torch.stack([block() for _ in range(400)])
            error = (draws.mean(dim=0) - expected).abs()
            assert draws.std(dim=0).max() > 0, name
            assert bool((error <= 6 * draws.std(dim=0) / 400**0.5 + 1e-6).all()), name
        ours.train()
        embedded = torch.stack([model.embeddings(batch) for _ in range(100)])
        assert (embedded == 0).double().mean().item() == pytest.approx(0.4, abs=0.01)


def test_attention_drops_weights_and_then_outputs() -> None:
    # A text of one token has one weight a head: it goes with p, and what is left of the output goes with p again.
    _, ours = build("Model", attention_dropout=0.4)
    layer = ours.train().layers[0].attn
    batch = packed([torch.tensor([5])] * 3000)
    x = torch.randn(3000, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        kept = layer(x, x, batch, ours.tables["full_attention"].lookup(batch), None) != x
    assert 1 - kept.double().mean().item() == pytest.approx(0.4 + 0.6 * 0.4**3, abs=0.015)


# Precision and determinism.


@pytest.mark.parametrize("name", ["Model", "ForMaskedLM"])
def test_bf16_is_as_near_as_that_of_transformers(name: str) -> None:
    theirs, ours = build(name, scale=0.05, hidden_size=64, num_attention_heads=4, intermediate_size=48)
    rows = texts_of((33, 60, 12, 60))
    wide = torch.cat([output[0][0] for output in alone(theirs, rows)])
    narrow = torch.cat([output[0][0] for output in alone(theirs.bfloat16(), rows)])
    ours.bfloat16()
    with torch.no_grad():
        found = ours(packed(rows))[0]
    assert found.dtype == torch.bfloat16
    mine, reference = (torch.cosine_similarity(x.double(), wide.double(), dim=-1) for x in (found, narrow))
    assert bool((reference >= 0.999).all())
    assert bool((mine >= 0.999).all())
    # And on the whole no worse.
    assert (1 - mine).mean() <= 1.1 * (1 - reference).mean()


def test_fp64_is_that_of_transformers_in_fp64() -> None:
    theirs, ours = build("ForTokenClassification")
    rows = texts_of((33, 12))
    theirs.double()
    ours.double()
    for row, reference in zip(rows, alone(theirs, rows), strict=True):
        with torch.no_grad():
            # They turn queries and keys in fp32 whatever the dtype.
            torch.testing.assert_close(ours(row[None]).logits, reference.logits, rtol=1e-5, atol=1e-5)


def test_neighbours_and_order_change_nothing() -> None:
    _, ours = build("Model", rope_parameters=rotations("dynamic"))
    rows = texts_of((9, 60, 33, 1, 60))
    with torch.no_grad():
        single = [ours(packed([row])).last_hidden_state for row in rows]
        for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 3]):
            found = ours(packed([rows[index] for index in order])).last_hidden_state
            assert_close(found, torch.cat([single[index] for index in order]))


def test_an_empty_text_and_an_empty_batch() -> None:
    theirs, ours = build("ForTokenClassification")
    rows = texts_of((5, 3))
    ids, mask = padded(rows, "right"), mask_of(rows, "right")
    mask[1] = 0
    with torch.no_grad():
        assert_close(ours(ids, mask).logits[0], theirs(input_ids=rows[0][None]).logits[0])
        assert ours(ids[:0], mask[:0]).logits.shape == (0, 5, 3)


def test_copies_compute_the_same() -> None:
    _, ours = build("ForMaskedLM")
    row = texts_of((20,))[0][None]
    with torch.no_grad():
        expected = ours(row).logits
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(other(row).logits, expected)
            assert other.decoder.weight is other.model.embeddings.tok_embeddings.weight


# Loading and saving.


@pytest.mark.parametrize("name", ["Model", *TASKS, "ForMultipleChoice"])
def test_checkpoints_go_both_ways(name: str, tmp_path: Path) -> None:
    theirs, ours = build(name, norm_bias=True)
    shape = (1, 2, 12) if name == "ForMultipleChoice" else (1, 12)
    row = torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(8))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = getattr(modernbert, f"ModernBert{name}").from_pretrained(tmp_path / "theirs")
    again, info = getattr(transformers, f"ModernBert{name}").from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        expected = theirs(row)[0]
        assert_close(loaded(row)[0], expected)
        assert_close(again(row)[0], expected)
    assert not loaded.training


def test_a_bare_model_from_a_checkpoint_with_a_head_and_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, _ = build("ForMaskedLM")
    theirs.save_pretrained(tmp_path / "mlm")
    theirs.model.save_pretrained(tmp_path / "bare")
    row = texts_of((12,))[0][None]
    with torch.no_grad():
        expected = theirs.model(row).last_hidden_state
        for folder in ("mlm", "bare"):
            bare = modernbert.ModernBertModel.from_pretrained(tmp_path / folder)
            assert_close(bare(row).last_hidden_state, expected)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="padless"):
            fine_tuned = modernbert.ModernBertForSequenceClassification.from_pretrained(tmp_path / "mlm", num_labels=7)
        assert fine_tuned(row).logits.shape == (1, 7)
    # The head of masked LM is the head of every task; only the classifier is new.
    assert torch.equal(fine_tuned.head.dense.weight, theirs.head.dense.weight)
    warned = [record.message for record in caplog.records if "initialised at random" in record.message]
    assert len(warned) == 1
    assert "classifier" in warned[0]
    assert fine_tuned.classifier.weight.std().item() == pytest.approx(24**-0.5, rel=0.3)


def test_an_old_checkpoint_folder(tmp_path: Path) -> None:
    theirs, _ = build("ForMaskedLM", global_attn_every_n_layers=2, global_rope_theta=500.0, local_rope_theta=50.0)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    del raw["layer_types"], raw["rope_parameters"]
    raw |= {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50.0}
    raw |= {"position_embedding_type": "absolute", "reference_compile": None}
    path.write_text(json.dumps(raw))
    ours = modernbert.ModernBertForMaskedLM.from_pretrained(tmp_path)
    assert_texts_as_alone(theirs, ours, texts_of(), "right")


def test_missing_weights_are_listed(tmp_path: Path) -> None:
    theirs, _ = build("Model", num_hidden_layers=2)
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"attention_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsError, match=r"layers\.0\.attn\.Wqkv\.bias"):
        modernbert.ModernBertModel.from_pretrained(tmp_path)
    with pytest.raises(OptionError, match="no field"):
        modernbert.ModernBertModel.from_pretrained(tmp_path, is_decoder=True)


# Initialisation.


def test_initial_values_follow_the_rule_of_transformers() -> None:
    sizes = {"vocab_size": 400, "hidden_size": 96, "intermediate_size": 150, "num_hidden_layers": 3, "num_labels": 40}
    options = {**BASE, **sizes, "norm_bias": True, "mlp_bias": True, "attention_bias": True, "initializer_range": 0.05}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name in ("ForMaskedLM", "ForTokenClassification"):
            for cutoff in (2.0, 0.5):
                fields = {**options, "initializer_cutoff_factor": cutoff}
                theirs = getattr(transformers, f"ModernBert{name}")(transformers.ModernBertConfig(**fields))
                ours = getattr(modernbert, f"ModernBert{name}")(modernbert.ModernBertConfig(**fields))
                for parameter_name, expected in theirs.named_parameters():
                    found = ours.get_parameter(parameter_name)
                    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=3e-3), parameter_name
                    assert found.std().item() == pytest.approx(expected.std().item(), rel=0.06), parameter_name
                    largest = expected.abs().max().item()
                    assert found.abs().max().item() == pytest.approx(largest, rel=0.06), parameter_name


def test_older_arguments_and_targets_of_other_tasks() -> None:
    theirs, ours = build("ForTokenClassification")
    rows = texts_of((6, 0, 9))
    row, starts = rows[0][None], torch.tensor([0, 6, 6, 15], dtype=torch.int32)
    expected = torch.cat([theirs(input_ids=rows[index][None]).logits[0] for index in (0, 2)])
    positions = torch.cat([torch.arange(6) + 3, torch.arange(9) * 5])
    with torch.no_grad():
        nothing = dict.fromkeys(("sliding_window_mask", "indices", "cu_seqlens", "max_seqlen", "batch_size", "seq_len"))
        assert_close(ours(row, **nothing).logits[0], expected[:6])
        # Tokens that come without padding.
        older = {"cu_seqlens": starts, "max_seqlen": 9, "batch_size": 3, "seq_len": 9, "indices": torch.arange(15)}
        assert_close(ours(torch.cat(rows), **older).logits, expected)
        moved = ours(torch.cat(rows), position_ids=positions, **older).logits
        assert_close(moved[6:], theirs(input_ids=rows[2][None], position_ids=positions[None, 6:]).logits[0])
        hidden = ours.model(torch.cat(rows), cu_seqlens=starts).last_hidden_state
        assert_close(hidden, torch.cat([theirs.model(rows[index][None]).last_hidden_state[0] for index in (0, 2)]))
    with pytest.raises(OptionError, match="start_positions"):
        ours(row, start_positions=torch.tensor([0]))
    with pytest.raises(OptionError, match="sliding_window_mask"):
        ours(row, sliding_window_mask=torch.ones(1, 6))
    for ids, wrong in ((row, starts), (rows[0], [0, 5]), (rows[0], [1, 6]), (rows[0], [0, 7, 6]), (rows[0], [])):
        with pytest.raises(InputError, match="cu_seqlens"):
            ours(ids, cu_seqlens=torch.as_tensor(wrong))
    with pytest.raises(InputError, match="position_ids"):
        ours(rows[0], cu_seqlens=torch.tensor([0, 6]), position_ids=torch.arange(5))


@pytest.mark.parametrize("name", ["ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"])
def test_every_classifier_has_its_dropout(name: str) -> None:
    _, ours = build(name, classifier_dropout=0.5)
    row = texts_of((12,))[0].view((1, 1, 12) if name == "ForMultipleChoice" else (1, 12))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(ours(row)[0], ours(row)[0])
        ours.train()
        assert not torch.equal(ours(row)[0], ours(row)[0])
