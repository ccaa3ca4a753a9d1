"""Every class that the seed pages document is there, with the parameters, arguments and output fields they give it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from seed_folders import SEED, write_model
from seed_pages import Parameter, Section, require_seeds, sections
from seed_runs import differences

import padless

require_seeds()

TENSORFLOW = "TensorFlow: removed from transformers, too"
LEFT_OUT = {
    "TFMobileBertForMaskedLM": TENSORFLOW,
    "TFMobileBertForMultipleChoice": TENSORFLOW,
    "TFMobileBertForNextSentencePrediction": TENSORFLOW,
    "TFMobileBertForPreTraining": TENSORFLOW,
    "TFMobileBertForQuestionAnswering": TENSORFLOW,
    "TFMobileBertForSequenceClassification": TENSORFLOW,
    "TFMobileBertForTokenClassification": TENSORFLOW,
    "TFMobileBertModel": TENSORFLOW,
}
CLASSES_PER_PAGE = {"000": 11, "001": 19, "002": 7, "003": 10, "004": 7}
CONFIG_PARAMETERS = {"MobileBertConfig": 24, "ModernBertConfig": 34, "MegatronBertConfig": 19, "MT5Config": 15}
# The page names no default for these, since it follows from other fields.
DERIVED = {"layer_types", "num_decoder_layers", "rope_parameters"}

BATCH, CHOICES, SEQUENCE = 2, 3, 7
SHAPE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 28, "vocab_size": 37}
SPECIAL_IDS = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
TINY: dict[str, dict[str, Any]] = {
    "MobileBert": {**SHAPE, "embedding_size": 12, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "ModernBert": {
        **SHAPE,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "MegatronBert": SHAPE,
    "MT5": {"d_model": 24, "d_kv": 6, "d_ff": 28, "num_layers": 3, "num_heads": 4, "vocab_size": 37},
}
DOCUMENTED = [section for section in sections() if section.text and "[[autodoc]]" not in section.text]
NAMES = sorted({section.name for section in sections()})
CONFIGS = [section for section in DOCUMENTED if section.name.endswith("Config")]
TOKENIZERS = [section for section in DOCUMENTED if "Tokenizer" in section.name]
MODELS = [s for s in DOCUMENTED if s.forward_arguments and s.name not in LEFT_OUT]


def by_name(section: Section) -> str:
    return section.name


def family(name: str) -> str:
    """Which of the configurations above a class takes."""
    return next(prefix for prefix in TINY if name.startswith(prefix))


@dataclass(frozen=True)
class ConfigField:
    """One documented parameter of a configuration class."""

    owner: str
    parameter: Parameter

    def __str__(self) -> str:
        return f"{self.owner}.{self.parameter.name}"


CONFIG_FIELDS = [ConfigField(section.name, parameter) for section in CONFIGS for parameter in section.parameters]


def literal(text: str) -> Any:
    """A default as the pages write it: a Python literal, or a bare word for a string."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def test_the_pages_are_read_completely() -> None:
    found = {page: sum(section.page == page for section in sections()) for page in CLASSES_PER_PAGE}
    assert found == CLASSES_PER_PAGE
    assert {section.name: len(section.parameters) for section in CONFIGS} == CONFIG_PARAMETERS
    assert len(MODELS) == 8 + 6 + 9 + 6
    assert all(section.output_fields for section in MODELS)


def test_what_is_left_out_is_documented_and_not_there_yet() -> None:
    assert LEFT_OUT.keys() <= set(NAMES)
    assert [name for name in sorted(LEFT_OUT) if hasattr(padless, name)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEFT_OUT])
def test_a_class_of_the_pages_is_there(name: str) -> None:
    found = getattr(padless, name)
    assert inspect.isclass(found)
    assert found.__name__ == name or "Tokenizer" in name  # tokenizers have one class under several names
    assert name in padless.__all__
    assert name in dir(padless)


@pytest.mark.parametrize("field", CONFIG_FIELDS, ids=str)
def test_a_configuration_has_the_documented_default_and_takes_the_field(field: ConfigField) -> None:
    config_class = getattr(padless, field.owner)
    name, text = field.parameter.name, field.parameter.default
    value = getattr(config_class(), name)
    if text is not None:
        expected = literal(text)
        assert value == expected
        assert isinstance(value, type(expected)) or isinstance(expected, int)
    elif name in DERIVED:
        assert value == getattr(getattr(transformers, field.owner)(), name)
    else:
        assert value is None
    assert getattr(config_class(**{name: value}), name) == value
    assert config_class().to_dict()[name] == value


@pytest.mark.parametrize("section", MODELS, ids=by_name)
def test_forward_names_every_documented_argument(section: Section) -> None:
    parameters = inspect.signature(getattr(padless, section.name).forward).parameters
    assert [name for name in section.forward_arguments if name not in parameters] == []


@pytest.mark.parametrize("section", MODELS, ids=by_name)
def test_forward_takes_every_documented_argument_and_no_other(section: Section) -> None:
    model = tiny_model(section).eval()
    inputs = {name: value for name, value in inputs_of(section, 37).items() if name.endswith("input_ids")}
    plain = model(**inputs)
    given = model(**{**dict.fromkeys(section.forward_arguments), **inputs})
    assert differences(given, plain, "outputs", tolerance=0.0) == []
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert differences(as_tuple, plain.to_tuple(), "outputs", tolerance=0.0) == []
    with pytest.raises(padless.PadlessError, match="attention_masks"):
        model(**inputs, attention_masks=torch.ones_like(inputs["input_ids"]))


def tiny_model(section: Section) -> Any:
    """The class of the section from a tiny configuration, with weights drawn from a seed."""
    labels = {} if "QuestionAnswering" in section.name else {"num_labels": 5}  # that head's labels are start and end
    causal = {"is_decoder": True} if section.name.endswith("ForCausalLM") else {}
    config = getattr(padless, f"{family(section.name)}Config")(**TINY[family(section.name)], **labels, **causal)
    torch.manual_seed(SEED)
    model = getattr(padless, section.name)(config)
    assert model.config is config
    return model


@pytest.mark.parametrize("section", MODELS, ids=by_name)
def test_a_model_constructs_and_returns_the_documented_fields(section: Section) -> None:
    model = tiny_model(section)
    outputs = model(**inputs_of(section, 37), output_hidden_states=True, output_attentions=True)

    sizes = {"batch_size": BATCH, "sequence_length": SEQUENCE, "hidden_size": 24, "num_choices": CHOICES, "2": 2}
    sizes |= {"config.vocab_size": 37, "config.num_labels": 5}
    for name, shape in section.output_fields.items():
        value = getattr(outputs, name)
        if name == "past_key_values" or (name == "cross_attentions" and "MT5" not in section.name):
            # Only a decoder computes them, and with labels no cache is kept except where transformers keeps one.
            assert value is None or "MT5" in section.name
        elif name == "loss":  # the pages give it one axis, transformers none
            assert value.shape == ()
            assert torch.isfinite(value)
        elif name.endswith("hidden_states"):
            assert len(value) == 1 + 3
            assert {state.shape[-2:] for state in value} == {(SEQUENCE, 24)}
        elif name.endswith("attentions"):
            assert len(value) == 3
            assert {weights.shape[-3:] for weights in value} == {(4, SEQUENCE, SEQUENCE)}
        else:
            assert list(value.shape) == [sizes[axis.strip()] for axis in shape.split(",")]
    assert list(outputs.keys()) == [name for name in section.output_fields if getattr(outputs, name) is not None]


def inputs_of(section: Section, vocab_size: int) -> dict[str, torch.Tensor]:
    """Texts without padding and every label that the class takes, drawn from a seed."""
    random = torch.Generator().manual_seed(SEED)
    choices = (CHOICES,) if "MultipleChoice" in section.name else ()

    def draw(high: int, *shape: int) -> torch.Tensor:
        return (
            torch.randint(3, high, shape, generator=random)
            if high > 5
            else torch.randint(high, shape, generator=random)
        )

    taken = section.forward_arguments
    inputs = {"input_ids": draw(vocab_size, BATCH, *choices, SEQUENCE)}
    if section.name in ("MT5Model", "MT5ForConditionalGeneration"):
        inputs["decoder_input_ids"] = draw(vocab_size, BATCH, SEQUENCE)
    if section.name == "MT5ForSequenceClassification":
        inputs["input_ids"][:, -1] = 1  # its end token
    if "labels" in taken:
        of_words = ("ForPreTraining", "ForMaskedLM", "ForCausalLM", "ForConditionalGeneration")
        per_token = section.name.endswith((*of_words, "ForTokenClassification"))
        classes = vocab_size if section.name.endswith(of_words) else 5
        classes = {"ForNextSentencePrediction": 2, "ForMultipleChoice": CHOICES}.get(_task(section.name), classes)
        inputs["labels"] = draw(classes, BATCH, SEQUENCE) if per_token else draw(classes, BATCH)
    for name, high in (("next_sentence_label", 2), ("start_positions", 5), ("end_positions", 5)):
        if name in taken:
            inputs[name] = draw(high, BATCH)
    return inputs


def _task(name: str) -> str:
    return name.removeprefix(family(name))


def test_the_output_of_pretraining_has_the_documented_fields() -> None:
    """MobileBertForPreTrainingOutput, for which a page has a heading of its own."""
    (section,) = (section for section in MODELS if section.name == "MobileBertForPreTraining")
    fields = ["loss", "prediction_logits", "seq_relationship_logits", "hidden_states", "attentions"]
    assert list(section.output_fields) == fields
    config = padless.MobileBertConfig(**TINY["MobileBert"])
    outputs = padless.MobileBertForPreTraining(config)(input_ids=torch.tensor([[3, 4, 5]]))
    assert [name for name in fields if not hasattr(outputs, name)] == []


@pytest.mark.parametrize("section", TOKENIZERS, ids=by_name)
def test_a_tokenizer_gives_the_ids_of_transformers_and_takes_the_documented_parameters(
    section: Section, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, "google/mobilebert-uncased")
    texts = ["The capital of France is [MASK].", "Héllo, my DOG is\tcute 東京", ""]
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    tokenizer_class = getattr(padless, section.name)
    assert tokenizer_class.from_pretrained(folder)(texts).input_ids == theirs(texts).input_ids

    assert len(section.parameters) == 9
    defaults = {p.name: literal(p.default) if p.default else None for p in section.parameters}
    built = tokenizer_class(**{**defaults, "vocab": theirs.get_vocab()})
    assert built(texts).input_ids == theirs(texts).input_ids
    cased = tokenizer_class(**{**defaults, "vocab": theirs.get_vocab(), "do_lower_case": False})
    assert cased("The dog").input_ids[1] == theirs.unk_token_id
    assert cased("The dog").input_ids[2] == theirs.convert_tokens_to_ids("dog")
