"""Megatron checkpoints: each version against transformers' own conversion, and against both libraries' models."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron_checkpoints import (
    CONFIG,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    archive_of,
    megatron_checkpoint,
    saved_bytes,
    training_arguments,
)
from safetensors.torch import load_file
from their_converter import convert_as_they_do
from torch import Tensor

import padless
from padless.engine.convert import convert

DECODER, WORDS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
TEXT = {"input_ids": torch.tensor([[2, 40, 7, 60, 3]]), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1]])}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


def theirs_of(folder: Path) -> dict[str, Tensor]:
    """What their conversion wrote, with the decoder under its one name."""
    tensors: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin")
    assert torch.equal(tensors.pop(DECODER), tensors[WORDS])
    return tensors


def config_of(folder: Path) -> dict[str, Any]:
    """Every field as transformers reads it, but for those that say who wrote the file."""
    fields = transformers.MegatronBertConfig.from_pretrained(folder).to_dict()
    return {name: value for name, value in fields.items() if name not in ("architectures", "dtype", "_name_or_path")}


@pytest.mark.parametrize("version", [None, 0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("told", [True, False], ids=["with args", "without args"])
def test_every_version_is_what_transformers_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: float | None, told: bool
) -> None:
    """3.0 with the names of its time; without args in the format of torch before 1.6, as a file of 2020 is."""
    arguments = training_arguments() if told else None
    checkpoint = megatron_checkpoint(version, newer_names=version == 3.0, arguments=arguments)
    archive = archive_of(tmp_path / "theirs", saved_bytes(checkpoint, legacy=not told))
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(CONFIG))
    theirs = convert_as_they_do(archive, tmp_path, monkeypatch, *(() if told else ("--config_file", str(sizes))))
    done = convert(archive, tmp_path / "ours", config=None if told else sizes)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert_same(ours, theirs_of(theirs))
    assert config_of(tmp_path / "ours") == config_of(theirs)
    assert (done.tensors, done.nbytes) == (len(ours), sum(values.nbytes for values in ours.values()))
    assert done.dtypes == ("float16",)


def test_the_versions_differ(tmp_path: Path) -> None:
    """Else the test above could not tell one order from another."""
    queries = set()
    for version in (0, 1.0, 2.0):
        path = tmp_path / f"{version}.pt"
        path.write_bytes(saved_bytes(megatron_checkpoint(version, arguments=training_arguments())))
        convert(path, tmp_path / str(version))
        weights = load_file(tmp_path / str(version) / "model.safetensors")
        queries.add(weights["bert.encoder.layer.1.attention.self.key.weight"].numpy().tobytes())
    assert len(queries) == 3


@pytest.mark.parametrize("kind", ["MegatronBertForPreTraining", "MegatronBertForMaskedLM"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_both_libraries_load_it_and_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, dtype: str
) -> None:
    checkpoint = megatron_checkpoint(2.0, arguments=training_arguments())
    archive = archive_of(tmp_path / "zip", saved_bytes(checkpoint))
    out = tmp_path / "out"
    convert(archive, out, dtype=dtype)
    raw = json.loads((out / "config.json").read_text())
    stored = "float16" if dtype == "auto" else "float32"
    assert (raw["model_type"], raw["architectures"]) == ("megatron-bert", ["MegatronBertForPreTraining"])
    assert raw["dtype"] == stored
    assert str(getattr(padless, kind).from_pretrained(out).dtype) == f"torch.{stored}"
    loaded: Any = getattr(transformers, kind).from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    theirs, report = loaded
    unused = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    unused |= {f"cls.seq_relationship.{name}" for name in ("weight", "bias")}
    assert set(report.pop("unexpected_keys")) <= (unused if kind.endswith("MaskedLM") else set())
    assert not any(report.values()), report
    ours = getattr(padless, kind).from_pretrained(out, dtype="float32")
    with torch.no_grad():
        expected, found = theirs.eval()(**TEXT), ours(**TEXT)
    for field in ("prediction_logits", "seq_relationship_logits") if kind.endswith("PreTraining") else ("logits",):
        assert found[field].std() > 0.1
        torch.testing.assert_close(found[field], expected[field], rtol=1e-4, atol=1e-5)
    assert "no weights for" not in caplog.text


def test_rows_that_only_pad_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    checkpoint = megatron_checkpoint(3.0, arguments=training_arguments(padded_vocab_size=64), rows=64)
    (tmp_path / "a.pt").write_bytes(saved_bytes(checkpoint))
    (tmp_path / "sizes.json").write_text(json.dumps({**CONFIG, "vocab_size": 57}))
    convert(tmp_path / "a.pt", tmp_path / "all")
    convert(tmp_path / "a.pt", tmp_path / "cut", config=tmp_path / "sizes.json")
    for name, rows in (("all", 64), ("cut", 57)):
        weights = load_file(tmp_path / name / "model.safetensors")
        model = checkpoint["model"]
        words = model["language_model"]["embedding"]["word_embeddings"]["weight"]
        assert torch.equal(weights[WORDS], words[:rows])
        assert torch.equal(weights["cls.predictions.bias"], model["lm_head"]["bias"][:rows])
        padless.MegatronBertForMaskedLM.from_pretrained(tmp_path / name)


def test_other_fields_of_a_given_configuration_count(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved_bytes(megatron_checkpoint(3.0, arguments=training_arguments())))
    (tmp_path / "more.json").write_text(json.dumps({"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}))
    convert(tmp_path / "a.pt", tmp_path / "out", config=tmp_path / "more.json")
    config = transformers.MegatronBertConfig.from_pretrained(tmp_path / "out")
    assert (config.layer_norm_eps, config.hidden_act, config.hidden_size) == (1e-5, "gelu_new", HIDDEN)


def test_a_training_without_pairs_of_texts(tmp_path: Path) -> None:
    """Its model adds nothing for the kind of text: the table that says so is of zeros."""
    checkpoint = megatron_checkpoint(3.0, arguments=training_arguments(), binary_head=False)
    (tmp_path / "a.pt").write_bytes(saved_bytes(checkpoint))
    done = convert(tmp_path / "a.pt", tmp_path / "out")
    assert "MegatronBertForMaskedLM" in done.how
    model = padless.MegatronBertForMaskedLM.from_pretrained(tmp_path / "out", dtype="float32")
    with torch.no_grad():
        both = [model(**{**TEXT, "token_type_ids": torch.full((1, 5), kind)}).logits for kind in (0, 1)]
    assert torch.equal(*both)


def test_types_that_are_not_here_are_not_needed(tmp_path: Path) -> None:
    """Later versions keep enumerations of Megatron's own modules in their arguments."""
    import sys
    import types

    gone = types.ModuleType("megatron_gone")
    sys.modules["megatron_gone"] = gone
    exec("import enum\nclass Kind(enum.Enum):\n    ENCODER = 1\n", gone.__dict__)
    try:
        arguments = training_arguments(model_type=gone.Kind.ENCODER, nested=argparse.Namespace(kind=gone.Kind))
        (tmp_path / "a.pt").write_bytes(saved_bytes(megatron_checkpoint(3.0, arguments=arguments)))
    finally:
        del sys.modules["megatron_gone"]
    convert(tmp_path / "a.pt", tmp_path / "out")
    assert "megatron_gone" not in sys.modules


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "member", ["release/mp_rank_00/model_optim_rng.pt", "iter_0050000/mp_rank_00/model_optim_rng.pt"]
)
def test_how_the_zip_is_packed_changes_nothing(tmp_path: Path, compression: int, member: str) -> None:
    content = saved_bytes(megatron_checkpoint(1.0, arguments=training_arguments()))
    (tmp_path / "bare.pt").write_bytes(content)
    convert(tmp_path / "bare.pt", tmp_path / "bare")
    convert(archive_of(tmp_path / "zip", content, member=member, compression=compression), tmp_path / "out")
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("out", "bare")))
    assert {path.name for path in tmp_path.iterdir()} == {"bare.pt", "bare", "zip", "out"}


@pytest.mark.parametrize(("word", "lower"), [("Sun", False), ("sun", True)])
def test_a_vocabulary_makes_a_tokenizer(tmp_path: Path, word: str, lower: bool) -> None:
    (tmp_path / "a.pt").write_bytes(saved_bytes(megatron_checkpoint(3.0, arguments=training_arguments())))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", word]
    (tmp_path / "words.txt").write_text("\n".join(tokens) + "\n")
    convert(tmp_path / "a.pt", tmp_path / "out", vocab=tmp_path / "words.txt")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = padless.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("Sun", "sun"):
        expected = [2, 5 if text == word or lower else 1, 3]
        assert theirs(text)["input_ids"] == ours(text)["input_ids"] == expected
    assert theirs.model_max_length == 19
    assert padless.load(tmp_path / "out", device="cpu").encode(["sun"]).shape == (1, HIDDEN)


def test_a_narrower_dtype_is_the_cast_of_every_value(tmp_path: Path) -> None:
    checkpoint = megatron_checkpoint(2.0, arguments=training_arguments(), dtype=torch.float32)
    (tmp_path / "a.pt").write_bytes(saved_bytes(checkpoint))
    convert(tmp_path / "a.pt", tmp_path / "wide")
    convert(tmp_path / "a.pt", tmp_path / "narrow", dtype="bfloat16")
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    assert wide[WORDS].dtype == torch.float32
    assert wide[WORDS].shape == (VOCABULARY, HIDDEN)
    assert len(wide) == 5 + 16 * LAYERS + 2 + 2 + 4 + 2 - 1
    assert_same(narrow, {name: values.bfloat16() for name, values in wide.items()})
