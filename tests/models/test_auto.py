"""Classes that choose by config.json, the options of from_pretrained, and saving, both ways with transformers."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

import padless
from padless import BackendError, ConfigError, InputError, ModelNotFoundError, OptionError, WeightsError
from padless.engine.models import CLASSES, FAMILIES

BERT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.3,
}
IDS = dict.fromkeys(("bos_token_id", "cls_token_id"), 1) | dict.fromkeys(("eos_token_id", "sep_token_id"), 2)
TINY: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "megatron-bert": BERT,
    "mobilebert": {
        **BERT,
        "initializer_range": 0.05,
        "num_attention_heads": 4,
        "embedding_size": 12,
        "intra_bottleneck_size": 20,
    },
    "modernbert": {**BERT, **IDS, "pad_token_id": 0, "num_hidden_layers": 4, "local_attention": 6},
    "mt5": {"vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 2, "num_heads": 3},
}
ALL = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds if kind != "Config"]
INPUT = torch.tensor([[5, 9, 33, 60, 7, 1], [44, 7, 8, 17, 18, 1]])


def name_of(family: str, kind: str) -> str:
    return FAMILIES[family][1] + kind


def random_model(library: Any, family: str, kind: str, **fields: Any) -> Any:
    """A class of either library, seeded."""
    causal = {"is_decoder": True} if kind == "ForCausalLM" else {}
    config = getattr(library, name_of(family, "Config"))(**{**TINY[family], **causal, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return getattr(library, name_of(family, kind))(config).eval()


AUTO = {"ForConditionalGeneration": "ForSeq2SeqLM", "Model": ""}
"""What the name of the auto class ends with, where that is not the task's own."""


def decoder_of(model: Any, kind: str) -> dict[str, torch.Tensor]:
    """What a decoder is given beside the text."""
    takes = kind in ("Model", "ForConditionalGeneration") and model.config.model_type == "mt5"
    return {"decoder_input_ids": INPUT.flip(1)[:, :4]} if takes else {}


def inputs_of(kind: str) -> torch.Tensor:
    return INPUT[:, None].repeat(1, 3, 1) if kind == "ForMultipleChoice" else INPUT


def outputs_of(model: Any, kind: str) -> list[torch.Tensor]:
    with torch.no_grad():
        ids = inputs_of(kind)
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_of(model, kind))
    return [value for value in outputs.values() if isinstance(value, torch.Tensor)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes of a BertForMaskedLM."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    random_model(transformers, "bert", "ForMaskedLM").save_pretrained(folder)
    return folder


# Choosing.


@pytest.mark.parametrize(("family", "kind"), [item for item in ALL if item[1] != "EncoderModel"])
def test_the_auto_class_of_a_task_gives_the_class_of_the_family(family: str, kind: str, tmp_path: Path) -> None:
    theirs = random_model(transformers, family, kind)
    theirs.save_pretrained(tmp_path)
    auto = getattr(padless, f"AutoModel{AUTO.get(kind, kind)}")
    model = auto.from_pretrained(tmp_path)
    assert type(model) is getattr(padless, name_of(family, kind))
    assert not model.training
    assert_same(outputs_of(model, kind), outputs_of(theirs, kind))
    fresh = auto.from_config(model.config)
    assert type(fresh) is type(model)
    assert fresh.config is model.config


@pytest.mark.parametrize("family", CLASSES)
def test_the_auto_configuration_is_that_of_the_family(family: str, tmp_path: Path) -> None:
    theirs = getattr(transformers, name_of(family, "Config"))(**TINY[family])
    theirs.save_pretrained(tmp_path)
    config = padless.AutoConfig.from_pretrained(tmp_path, num_labels=7)
    assert type(config) is getattr(padless, name_of(family, "Config"))
    assert config.num_labels == 7
    for field, value in TINY[family].items():
        assert getattr(config, field) == value
    config.save_pretrained(tmp_path / "again")
    assert padless.AutoConfig.from_pretrained(tmp_path / "again") == config
    # transformers reads what was written, and means the same by it.
    read = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    for field, value in TINY[family].items():
        assert getattr(read, field) == value
    assert read.num_labels == 7


def test_a_family_without_the_task_is_refused_by_name(tmp_path: Path) -> None:
    theirs = random_model(transformers, "modernbert", "Model")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"ForNextSentencePrediction needs one of bert, .*got 'modernbert'"):
        padless.AutoModelForNextSentencePrediction.from_pretrained(tmp_path)


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for auto in (padless.AutoModel, padless.AutoConfig, padless.AutoModelForMaskedLM):
        with pytest.raises(ConfigError, match=r"model_type: expected one of bert, .*got 'gpt2'"):
            auto.from_pretrained(tmp_path)


def test_a_class_of_another_family_is_refused(bert_folder: Path) -> None:
    with pytest.raises(ConfigError, match="MegatronBertModel expects 'megatron-bert', got 'bert'"):
        padless.MegatronBertModel.from_pretrained(bert_folder)


def test_auto_classes_are_not_built_directly() -> None:
    with pytest.raises(OptionError, match="from_pretrained"):
        padless.AutoModel()


def test_a_configuration_of_another_family_is_refused() -> None:
    with pytest.raises(OptionError, match="expected a BertConfig, got MegatronBertConfig"):
        padless.BertModel(padless.MegatronBertConfig(**BERT))


# Options.


@pytest.mark.parametrize("name", ["bfloat16", torch.bfloat16, "float64", torch.float16, "float32"])
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_the_dtype_that_is_asked_for(bert_folder: Path, name: Any, keyword: str) -> None:
    model = padless.BertForMaskedLM.from_pretrained(bert_folder, **{keyword: name})
    expected = getattr(torch, name) if isinstance(name, str) else name
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.dtype == expected
    assert model(input_ids=INPUT).logits.dtype == expected


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_auto_is_the_dtype_that_the_checkpoint_names(tmp_path: Path, stored: torch.dtype, key: str | None) -> None:
    random_model(transformers, "bert", "Model").to(stored).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    name = raw.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(raw if key is None else {**raw, key: name}))
    expected = torch.float32 if key is None else stored
    assert padless.BertModel.from_pretrained(tmp_path).dtype == expected
    assert padless.AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == expected


@pytest.mark.parametrize("dtype", ["int8", "fp32", torch.int64, ""])
def test_a_dtype_that_is_none_is_refused(bert_folder: Path, dtype: Any) -> None:
    with pytest.raises(OptionError, match="dtype: expected"):
        padless.BertModel.from_pretrained(bert_folder, dtype=dtype)


@pytest.mark.parametrize(
    "option",
    [{"device": "cpu"}, {"device": 0}, {"device": "auto"}, {"device_map": "auto"}, {"device_map": "cpu"}, {}],
    ids=str,
)
def test_the_device_that_is_asked_for(bert_folder: Path, option: dict[str, Any]) -> None:
    model = padless.BertModel.from_pretrained(bert_folder, **option)
    wants_gpu = torch.cuda.is_available() and option and "cpu" not in option.values()
    assert model.device.type == ("cuda" if wants_gpu else "cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(bert_folder: Path, device: str) -> None:
    with pytest.raises(OptionError, match="device: "):
        padless.BertModel.from_pretrained(bert_folder, device=device)


def test_the_backend_that_is_asked_for_serves_or_raises(bert_folder: Path) -> None:
    expected = outputs_of(padless.BertForMaskedLM.from_pretrained(bert_folder), "ForMaskedLM")
    for backend in ("eager", "cpu"):
        model = padless.BertForMaskedLM.from_pretrained(bert_folder, backend=backend)
        assert_same(outputs_of(model, "ForMaskedLM"), expected)
    with pytest.raises(BackendError):
        padless.BertForMaskedLM.from_pretrained(bert_folder, backend="no such row")


def test_determinism_that_no_row_promises_is_refused_with_reasons(bert_folder: Path) -> None:
    with pytest.raises(BackendError, match=r"needs a row that promises deterministic=True"):
        padless.BertForMaskedLM.from_pretrained(bert_folder, deterministic=True, backend="cpu")


def test_the_implementation_of_attention_is_accepted_with_one_line(
    bert_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="padless"):
        padless.BertModel.from_pretrained(bert_folder, attn_implementation="sdpa")
    lines = [record for record in caplog.records if "attn_implementation" in record.getMessage()]
    assert len(lines) == 1


def test_fields_of_the_configuration_can_be_given(bert_folder: Path) -> None:
    model = padless.BertForSequenceClassification.from_pretrained(
        bert_folder, num_labels=5, problem_type="regression", hidden_dropout_prob=0.25, output_hidden_states=True
    )
    assert model.config.num_labels == model.classifier.out_features == 5
    assert model.config.id2label == {index: f"LABEL_{index}" for index in range(5)}
    assert model.classifier_dropout == 0.25
    output = model(input_ids=INPUT, labels=torch.zeros(2, 5))
    assert len(output.hidden_states) == 3
    assert abs(output.loss - output.logits.square().mean()) < 1e-6


def test_names_of_labels_decide_their_number(bert_folder: Path) -> None:
    model = padless.BertForTokenClassification.from_pretrained(
        bert_folder, id2label={0: "O", 1: "PER", 2: "LOC"}, label2id={"O": 0, "PER": 1, "LOC": 2}
    )
    assert model.config.num_labels == model.classifier.out_features == 3


def test_a_configuration_can_be_given_whole(bert_folder: Path) -> None:
    config = padless.BertConfig.from_pretrained(bert_folder, num_labels=4)
    for auto in (padless.BertForSequenceClassification, padless.AutoModelForSequenceClassification):
        model = auto.from_pretrained(bert_folder, config=config)
        assert model.config is config
        assert model.classifier.out_features == 4
    with pytest.raises(OptionError, match="num_labels: given beside config"):
        padless.BertForSequenceClassification.from_pretrained(bert_folder, config=config, num_labels=2)


def test_a_field_that_is_none_is_refused(bert_folder: Path) -> None:
    with pytest.raises(OptionError, match="num_lables: no field of BertConfig"):
        padless.BertModel.from_pretrained(bert_folder, num_lables=3)
    with pytest.raises(ConfigError, match="hidden_dropout_prob: expected a number"):
        padless.BertModel.from_pretrained(bert_folder, hidden_dropout_prob="much")


def test_a_field_that_changes_shapes_does_not_fit_the_weights(bert_folder: Path) -> None:
    with pytest.raises(WeightsError, match="word_embeddings"):
        padless.BertModel.from_pretrained(bert_folder, vocab_size=62)


def test_tuples_where_they_are_asked_for(bert_folder: Path) -> None:
    model = padless.BertForMaskedLM.from_pretrained(bert_folder, return_dict=False)
    (logits,) = model(input_ids=INPUT)
    assert torch.equal(logits, model(input_ids=INPUT, return_dict=True).logits)
    loss, again = model(input_ids=INPUT, labels=INPUT)
    assert loss.shape == ()
    assert torch.equal(again, logits)


# Where a model is.


def test_a_name_is_looked_up_under_the_models_folder(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(bert_folder)
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path))
    model = padless.AutoModelForMaskedLM.from_pretrained("org/name", revision="main", local_files_only=True)
    assert type(model) is padless.BertForMaskedLM
    assert padless.AutoConfig.from_pretrained("org/name") == model.config


@pytest.mark.parametrize("revision", ["../../etc", "a b", "-x/../y"])
def test_a_revision_that_is_a_path_is_refused(bert_folder: Path, revision: str) -> None:
    for auto in (padless.BertModel, padless.AutoModel):
        with pytest.raises(ModelNotFoundError, match="revision"):
            auto.from_pretrained(bert_folder, revision=revision)


def test_a_model_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path))
    for auto in (padless.BertModel, padless.AutoModel, padless.AutoConfig, padless.BertConfig):
        with pytest.raises(ModelNotFoundError, match="org/name"):
            auto.from_pretrained("org/name")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    padless.BertConfig(**BERT).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        padless.BertModel.from_pretrained(tmp_path)


# Heads that are missing, or too many.


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_a_head_that_the_checkpoint_lacks_is_drawn_with_a_warning_that_names_it(
    bert_folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = getattr(padless, f"Bert{kind}").from_pretrained(bert_folder)
    head = "qa_outputs" if kind == "ForQuestionAnswering" else "classifier"
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(head in line and "random" in line for line in warned)
    layer = getattr(model, head)
    assert 0.1 < layer.weight.std() < 0.6  # the configuration says 0.3
    assert not layer.bias.any()


def test_the_encoder_of_a_head_is_that_of_the_checkpoint(bert_folder: Path) -> None:
    bare = padless.BertModel.from_pretrained(bert_folder)
    classifier = padless.BertForTokenClassification.from_pretrained(bert_folder)
    state = bare.state_dict()
    for name, value in classifier.base_model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_head_in_part_is_an_error(tmp_path: Path) -> None:
    model = random_model(padless, "bert", "ForMaskedLM")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lost = "cls.predictions.transform.dense.weight"
    from safetensors.torch import save_file

    save_file({name: value for name, value in values.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="transform"):
        padless.BertForMaskedLM.from_pretrained(tmp_path)


# Saving.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "kind"), ALL)
def test_what_is_saved_is_read_by_both_and_is_the_same(
    family: str, kind: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(padless, family, kind).to(dtype)
    model.save_pretrained(tmp_path)
    again = getattr(padless, name_of(family, kind)).from_pretrained(tmp_path)
    assert again.dtype == dtype
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())

    transformers.logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        caplog.clear()
        theirs, report = getattr(transformers, name_of(family, kind)).from_pretrained(
            tmp_path, output_loading_info=True, dtype=dtype
        )
    transformers.logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not any(report.get(field) for field in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    if dtype == torch.float32:
        assert_same(outputs_of(again, kind), outputs_of(theirs.eval(), kind))


def test_saving_what_was_loaded_keeps_names_values_and_fields(bert_folder: Path, tmp_path: Path) -> None:
    padless.BertForMaskedLM.from_pretrained(bert_folder).save_pretrained(tmp_path)
    files = [folder / "model.safetensors" for folder in (bert_folder, tmp_path)]
    with safe_open(files[0], "pt") as before, safe_open(files[1], "pt") as after:
        assert set(after.keys()) == set(before.keys())
        assert all(torch.equal(after.get_tensor(name), before.get_tensor(name)) for name in before.keys())  # noqa: SIM118
    raw, written = (json.loads((folder / "config.json").read_text()) for folder in (bert_folder, tmp_path))
    assert written["architectures"] == raw["architectures"] == ["BertForMaskedLM"]
    lost = {name: value for name, value in raw.items() if written.get(name) != value}
    assert lost == {}


def test_a_model_in_several_files(tmp_path: Path) -> None:
    model = random_model(padless, "bert", "ForPreTraining")
    model.save_pretrained(tmp_path, max_shard_size=8_000)
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) >= 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected = outputs_of(model, "ForPreTraining")
    assert_same(outputs_of(padless.BertForPreTraining.from_pretrained(tmp_path), "ForPreTraining"), expected)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path)
    assert_same(expected, outputs_of(theirs.eval(), "ForPreTraining"))


# Of every model.


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_what_every_model_knows_of_itself(family: str, kind: str) -> None:
    model = random_model(padless, family, kind)
    theirs = random_model(transformers, family, kind)
    assert model.num_parameters() == theirs.num_parameters()
    model.get_input_embeddings().weight.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) < model.num_parameters()
    assert model.get_input_embeddings().weight.shape == theirs.get_input_embeddings().weight.shape
    assert type(model.base_model).__name__ == type(theirs.base_model).__name__
    assert model.base_model_prefix == theirs.base_model_prefix
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32


def test_ids_beyond_the_vocabulary_are_refused(bert_folder: Path) -> None:
    model = padless.BertModel.from_pretrained(bert_folder)
    for ids, message in (
        ([[5, 61]], "input_ids: expected 0 to 60, got 61"),
        ([[-1, 5]], "input_ids: expected 0 to 60, got -1"),
        ([[5] * 24], "24 tokens, the model takes at most 23"),
    ):
        with pytest.raises(InputError, match=message):
            model(input_ids=torch.tensor(ids))
    with pytest.raises(InputError, match="token_type_ids: expected 0 to 1, got 2"):
        model(input_ids=torch.tensor([[5, 6]]), token_type_ids=torch.tensor([[0, 2]]))
    with pytest.raises(InputError, match="position_ids: expected 0 to 22, got 23"):
        model(input_ids=torch.tensor([[5, 6]]), position_ids=torch.tensor([[0, 23]]))
    # What padding holds does not matter.
    mask = torch.tensor([[1, 1, 0]])
    model(input_ids=torch.tensor([[5, 6, 9_999]]), attention_mask=mask, token_type_ids=torch.tensor([[0, 1, 77]]))


def test_an_argument_that_is_none_is_refused(bert_folder: Path) -> None:
    model = padless.BertModel.from_pretrained(bert_folder)
    with pytest.raises(OptionError, match="unknown argument encoder_hidden_states"):
        model(input_ids=INPUT, encoder_hidden_states=torch.zeros(2, 6, 24))


def test_every_public_name_is_there_and_most_are_those_of_transformers() -> None:
    classes = [name_of(family, kind) for family, kinds in CLASSES.items() for kind in kinds]
    assert set(classes) <= set(padless.__all__)
    assert sorted(padless.__all__) == padless.__all__
    autos = [name for name in padless.__all__ if name.startswith("Auto")]
    assert len(autos) >= 9
    for name in padless.__all__:
        assert getattr(padless, name) is not None
    for name in (*classes, *autos):
        assert getattr(transformers, name).__name__ == name == getattr(padless, name).__name__
        assert getattr(padless, name).__doc__
