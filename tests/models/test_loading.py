"""`padless.load`: where models are looked for, which options it takes, and folders that are wrong beyond the obvious.

The plain cases of a bad folder (missing, no config, truncated, unknown type, misfitting tensor, large tokenizer) are in
test_bad_folders.py; these are the ones that people meet after them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

import padless
from padless.autotune.device import identify
from padless.engine.precision import BF16_FEATURES

TENSOR = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def dense_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """Written by sentence-transformers: the tiny transformer, mean pooling, a Dense layer to 10 channels."""
    modules = [Transformer(str(tiny_folder)), Pooling(24), Dense(24, 10)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"))
    return tmp_path / "model"


def load(folder: Any, **options: Any) -> padless.Encoder:
    chosen: dict[str, Any] = {"device": "cpu", "dtype": "float32", **options}
    return padless.load(folder, **chosen)


def refusal(kind: type[padless.PadlessError], folder: Any, **options: Any) -> str:
    with pytest.raises(padless.PadlessError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    return message


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# Where models are looked for.


def test_paths_of_several_kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(folder).encode("moon")
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for path in (str(folder), "model", "./model", Path("model"), "~/model", f"{folder}/"):
        assert np.array_equal(load(path).encode("moon"), expected)


def test_an_id_is_looked_for_under_padless_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "models" / "some-org" / "Tiny.model_v1"
    shutil.copytree(folder, target)
    shutil.copytree(folder, tmp_path / "models" / "alone")
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    assert load("some-org/Tiny.model_v1").folder == target
    assert load("alone").folder == tmp_path / "models" / "alone"
    message = refusal(padless.ModelNotFoundError, "some-org/other")
    assert "'some-org/other'" in message
    assert str(tmp_path / "some-org" / "other") in message
    assert str(tmp_path / "models" / "some-org" / "other") in message


def test_a_folder_in_reach_wins_over_padless_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "models" / "model")
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    assert load("model").folder.resolve() == folder


def test_an_id_without_padless_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PADLESS_MODELS", raising=False)
    assert "PADLESS_MODELS" in refusal(padless.ModelNotFoundError, "some-org/model")


@pytest.mark.parametrize("name", ["../outside", "org/../../outside", "org/sub/../../../outside", "org/.."])
def test_an_id_never_leads_out_of_padless_models(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "org" / "sub").mkdir(parents=True)
    (tmp_path / "some" / "where").mkdir(parents=True)
    folder.rename(tmp_path / "outside")
    shutil.copytree(tmp_path / "outside", tmp_path / "models", dirs_exist_ok=True)
    assert load(tmp_path / "models" / name if name != "org/.." else tmp_path / "models").dimension == 24
    monkeypatch.chdir(tmp_path / "some" / "where")
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    assert repr(name) in refusal(padless.ModelNotFoundError, name)


NAMES = {
    "empty": "",
    "NUL": "\0",
    "two lines": "a\nb",
    "long": "x" * 5000,
    "address": "https://example.org/model",
    "deep": "a/b/c/d",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_that_cannot_be_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path))
    with pytest.raises(padless.ModelNotFoundError) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_not_a_model(folder: Path) -> None:
    assert str(folder / "config.json") in refusal(padless.ModelNotFoundError, folder / "config.json")


# Options.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float64", torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_dtypes_by_name_and_by_object(dtype: Any, expected: torch.dtype, folder: Path) -> None:
    encoder = load(folder, dtype=dtype)
    assert encoder.dtype == expected
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {expected}
    assert encoder.encode(["the moon", ""]).dtype == np.float32
    assert str(expected).removeprefix("torch.") in encoder.explain()


def test_auto_is_the_fastest_this_cpu_has(folder: Path) -> None:
    encoder = load(folder, dtype="auto")
    fast = BF16_FEATURES & identify("cpu").features
    assert encoder.dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(
    "dtype", ["half", "fp32", "", "int8", torch.int8, torch.complex64, torch.bool, None, 32], ids=str
)
def test_dtypes_that_padless_does_not_compute_in(dtype: Any, folder: Path) -> None:
    message = refusal(padless.OptionError, folder, dtype=dtype)
    assert message.startswith("dtype: expected 'auto' or one of float32, bfloat16")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"], ids=str)
def test_the_cpu_by_any_name(device: Any, folder: Path) -> None:
    assert load(folder, device=device).encode("moon").shape == (24,)


@pytest.mark.parametrize(
    "device", ["tpu", "", "mps", "meta", "cuda:99", "cuda:-1", "cuda:x", torch.device("meta"), None], ids=str
)
def test_devices_this_machine_does_not_have(device: Any, folder: Path) -> None:
    assert refusal(padless.OptionError, folder, device=device).startswith("device: ")


@pytest.mark.parametrize("backend", ["", "AUTO", "cuda", None], ids=str)
def test_backends_that_do_not_exist(backend: Any, folder: Path) -> None:
    message = refusal(padless.OptionError, folder, backend=backend)
    assert message.startswith("backend: expected one of auto, ")
    assert repr(backend) in message


@pytest.mark.parametrize("task", ["", "fill_mask", "telepathy", 3], ids=str)
def test_tasks_that_do_not_exist(task: Any, folder: Path) -> None:
    message = refusal(padless.OptionError, folder, task=task)
    assert message.startswith("task: expected one of embedding, text-classification, ")


def test_embeddings_by_name_and_every_backend_of_a_cpu(folder: Path) -> None:
    expected = load(folder).encode("moon")
    assert np.array_equal(load(folder, task="embedding").encode("moon"), expected)
    for backend in ("cpu", "eager"):
        encoder = load(folder, backend=backend)
        np.testing.assert_allclose(encoder.encode("moon"), expected, rtol=0, atol=1e-5)
        used = [line for line in encoder.explain().splitlines() if line.startswith("attention ")]
        assert encoder.model.encoder.layer[0].attention["self"].attention.resolution.impl.name == backend, used


def test_options_are_checked_before_the_folder_is_read(tmp_path: Path) -> None:
    assert refusal(padless.OptionError, tmp_path / "nowhere", dtype="int8").startswith("dtype: ")


# What comes out of a good folder.


def test_a_loaded_model_is_frozen_and_in_eval(folder: Path) -> None:
    encoder = load(folder)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert encoder.folder == folder


def test_the_position_table_bounds_every_text(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", model_max_length=10**6)
    assert load(folder).max_seq_length == 40
    assert load(folder).encode("the " * 1000).shape == (24,)


def test_sharded_weights_give_the_same_vectors(folder: Path) -> None:
    expected = load(folder).encode(["the moon", "stone"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert np.array_equal(load(folder).encode(["the moon", "stone"]), expected)
    (folder / "model-1.safetensors").unlink()
    assert "model-1.safetensors" in refusal(padless.WeightsError, folder)


def test_half_precision_checkpoints_are_loaded_into_fp32(folder: Path) -> None:
    expected = load(folder).encode("the moon")
    change_weights(folder / "model.safetensors", lambda t: t.update({n: v.bfloat16() for n, v in t.items()}))
    np.testing.assert_allclose(load(folder).encode("the moon"), expected, rtol=0, atol=0.15)


# Bad folders.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda tensors: tensors[TENSOR].view(-1)[5:6].fill_(value))
    message = refusal(padless.WeightsError, folder)
    assert str(folder / "model.safetensors") in message
    assert TENSOR in message


def test_weights_that_overflow_the_dtype_asked_for(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda tensors: tensors[TENSOR].view(-1)[5:6].fill_(1e6))
    load(folder)
    assert TENSOR in refusal(padless.WeightsError, folder, dtype="float16")


def test_a_lone_pickled_checkpoint_is_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = refusal(padless.WeightsError, folder)
    assert "pytorch_model.bin" in message
    assert "model.safetensors" in message


def test_a_whole_layer_missing_is_one_line(folder: Path) -> None:
    change_weights(
        folder / "model.safetensors", lambda t: [t.pop(n) for n in list(t) if n.startswith("encoder.layer.1.")]
    )
    message = refusal(padless.WeightsError, folder)
    assert "missing: encoder.layer.1." in message
    assert str(folder / "model.safetensors") in message


def test_fewer_layers_in_the_config_than_in_the_weights(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=1)
    assert "unexpected: encoder.layer.1." in refusal(padless.WeightsError, folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 2**40), ("hidden_size", 10**9), ("num_hidden_layers", 10**6), ("max_position_embeddings", -1)],
)
def test_sizes_of_another_world_are_refused_before_memory_is_taken(field: str, value: int, folder: Path) -> None:
    change_json(folder / "config.json", **{field: value})
    message = refusal(padless.ConfigError, folder)
    assert str(folder / "config.json") in message
    assert field in message
    assert str(value) in message


def test_no_token_types_at_all_is_refused(folder: Path) -> None:
    # Every token is of type 0, so there must be one.
    change_json(folder / "config.json", type_vocab_size=0)
    name = "embeddings.token_type_embeddings.weight"
    change_weights(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.zeros(0, 24)}))
    assert "type_vocab_size" in refusal(padless.ConfigError, folder)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\0", '{"model_type": 3}', '{"model_type": null}'], ids=repr)
def test_configs_that_cannot_be_read(content: str | None, folder: Path) -> None:
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert str(path) in refusal(padless.ConfigError, folder)


def test_a_folder_in_place_of_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert str(folder / "config.json") in refusal(padless.ConfigError, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_links_that_lead_nowhere(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises(padless.PadlessError) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    assert str(folder) in refusal(padless.TokenizerError, folder)


@pytest.mark.parametrize("content", ["", "{}", "junk", '{"model": {"type": "WordPiece"}}'])
def test_a_tokenizer_that_cannot_be_read(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert str(folder / "tokenizer.json") in refusal(padless.TokenizerError, folder)


def test_one_token_more_than_the_embedding_table_has_rows(folder: Path) -> None:
    rows = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    with (folder / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("extra\n")
    message = refusal(padless.TokenizerError, folder)
    assert str(folder) in message
    assert str(rows) in message
    assert str(rows - 1) in message


def test_a_tokenizer_with_fewer_tokens_than_rows_is_fine(folder: Path) -> None:
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(lines[:-3]) + "\n")
    assert load(folder).encode("moon").shape == (24,)


# Heads of sentence-transformers folders.


def test_a_dense_layer_of_the_wrong_width(dense_folder: Path) -> None:
    change_json(dense_folder / "2_Dense" / "config.json", in_features=23)
    message = refusal(padless.ConfigError, dense_folder)
    assert "2_Dense" in message
    assert "in_features: expected 24, got 23" in message


def test_pooling_of_the_wrong_width(dense_folder: Path) -> None:
    path = dense_folder / "1_Pooling" / "config.json"
    width = next(key for key in json.loads(path.read_text()) if key.endswith("embedding_dimension"))
    change_json(path, **{width: 25})
    message = refusal(padless.ConfigError, dense_folder)
    assert "24" in message
    assert "25" in message


@pytest.mark.parametrize("fault", ["missing file", "missing tensor", "shape", "nan", "truncated"])
def test_dense_weights_are_checked_like_all_others(fault: str, dense_folder: Path) -> None:
    path = dense_folder / "2_Dense" / "model.safetensors"
    if fault == "missing file":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        tensors = load_file(path)
        tensors["linear.bias"] = torch.zeros(11) if fault == "shape" else torch.full((10,), torch.nan)
        if fault == "missing tensor":
            del tensors["linear.bias"]
        save_file(tensors, path)
    message = refusal(padless.WeightsError, dense_folder)
    assert "2_Dense" in message
    assert fault in ("missing file", "truncated") or "linear.bias" in message


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside", "C:\\models"])
def test_modules_outside_the_folder_are_refused(path: str, dense_folder: Path) -> None:
    modules = json.loads((dense_folder / "modules.json").read_text())
    modules[1]["path"] = path
    (dense_folder / "modules.json").write_text(json.dumps(modules))
    message = refusal(padless.ConfigError, dense_folder)
    assert "modules.json" in message
    assert repr(path) in message


def test_a_family_without_a_table_of_positions_is_cut_where_its_training_ended(folder: Path) -> None:
    words = len((folder / "vocab.txt").read_text().splitlines())
    config = transformers.ModernBertConfig(
        vocab_size=words, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=16, local_attention=8, pad_token_id=0,
    )  # fmt: skip
    theirs = transformers.ModernBertModel(config).eval()
    theirs.save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    encoder = load(folder)
    assert encoder.max_seq_length == 16
    ids = torch.tensor(encoder.tokenizer.encode(["moon " * 200]).input_ids.astype("int64"))
    assert len(ids) == 16
    with torch.no_grad():
        expected = theirs(ids[None]).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(encoder.encode("moon " * 200), expected.numpy(), rtol=0, atol=1e-5)


def test_no_compiler_is_imported_before_one_is_asked_for(tiny_folder: Path) -> None:
    """torch's would cost every start two seconds and 160 MB; some of torch's own decorators import it."""
    code = (
        "import sys, padless\n"
        f"vectors = padless.load({str(tiny_folder)!r}, device='cpu').encode(['the sun', 'a river'])\n"
        "assert vectors.shape == (2, 24)\n"
        "found = {'torch._dynamo', 'torch._inductor', 'sympy', 'triton', 'transformers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
