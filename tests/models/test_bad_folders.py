"""Folders no model can be loaded from: one typed error of one line, and exit code 2 from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.bench.workloads import default_model
from padless.engine.cli.app import run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM cut down to its first layer: real weights, and quick to copy."""
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(default_model(), folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    tensors = load_file(default_model() / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if ".layer." not in n or ".layer.0." in n}, folder / "model.safetensors"
    )
    change_config(folder, num_hidden_layers=1)
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """Of its own but for the weights, which are another name of one file: `own_weights` before they are written."""
    copied = Path(shutil.copytree(small, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    (copied / "model.safetensors").hardlink_to(small / "model.safetensors")
    return copied


def own_weights(folder: Path) -> Path:
    """Where a test may write weights: this name is gone, and the file of the others stays as it is."""
    path = folder / "model.safetensors"
    path.unlink()
    return path


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    held = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, own_weights(folder))


def refusal(folder: Path | str, kind: type[padless.PadlessError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        padless.load(folder, device="cpu", dtype="float32", **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_the_small_folder_itself_loads(folder: Path) -> None:
    assert padless.load(folder, device="cpu").encode(["a", "b"]).shape == (2, 384)


def test_no_such_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere", padless.ModelNotFoundError)


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert str(folder / "config.json") in refusal(folder, padless.ConfigError)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    content = (folder / "model.safetensors").read_bytes()[:kept]
    path = own_weights(folder)
    path.write_bytes(content)
    assert str(path) in refusal(folder, padless.WeightsError)


def test_unknown_model_type(folder: Path) -> None:
    change_config(folder, model_type="gpt17")
    message = refusal(folder, padless.ConfigError)
    assert str(folder / "config.json") in message
    assert "'gpt17'" in message
    assert "bert" in message


def test_missing_tensor(folder: Path) -> None:
    change_weights(folder, encoder__layer__0__attention__self__key__bias=None)
    assert "encoder.layer.0.attention.self.key.bias" in refusal(folder, padless.WeightsError)


def test_misshapen_tensor(folder: Path) -> None:
    change_weights(folder, encoder__layer__0__intermediate__dense__bias=torch.zeros(7))
    message = refusal(folder, padless.WeightsError)
    assert "encoder.layer.0.intermediate.dense.bias" in message
    assert "7" in message
    assert "1536" in message


def test_unexpected_tensor(folder: Path) -> None:
    change_weights(folder, encoder__layer__9__surprise=torch.zeros(3))
    assert "encoder.layer.9.surprise" in refusal(folder, padless.WeightsError)


def test_tokenizer_larger_than_the_embedding_table(folder: Path) -> None:
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    change_weights(folder, embeddings__word_embeddings__weight=words[:30_000].clone())
    change_config(folder, vocab_size=30_000)
    message = refusal(folder, padless.TokenizerError)
    assert "30521" in message.replace(",", "")
    assert "30000" in message.replace(",", "")


def test_heads_that_do_not_divide_the_hidden_size(folder: Path) -> None:
    change_config(folder, num_attention_heads=7)
    assert "hidden_size" in refusal(folder, padless.ConfigError)


@pytest.mark.parametrize("field", ["relative_key", "relative_key_query"])
def test_position_embeddings_padless_does_not_compute(folder: Path, field: str) -> None:
    change_config(folder, position_embedding_type=field)
    assert "position_embedding_type" in refusal(folder, padless.ConfigError)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("dtype", "int8", "float32"),
        ("device", "tpu", "'cuda'"),
        ("device", "cuda:63", "cuda:63"),
        ("backend", "fast", "triton"),
        ("task", "poetry", "embedding"),
    ],
)
def test_options_out_of_range(folder: Path, option: str, value: str, expected: str) -> None:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", option: value}
    with pytest.raises(padless.OptionError) as caught:
        padless.load(folder, **options)
    assert f"{option}: expected" in str(caught.value) or value in str(caught.value)
    assert expected in str(caught.value)


def test_triton_on_a_cpu_raises_with_every_reason(folder: Path) -> None:
    message = refusal(folder, padless.BackendError, backend="triton")
    assert "needs device cuda, got cpu" in message
    assert "needs sm_80 or newer, got no GPU" in message


def test_the_bits_of_a_text_are_not_promised_by_rows_that_cannot(folder: Path) -> None:
    with pytest.raises(padless.BackendError, match=r"linear.*deterministic"):
        padless.load(folder, device="cpu", backend="eager", deterministic=True)


@pytest.mark.parametrize("spoil", ["folder", "config", "weights", "type"])
def test_the_command_line_says_one_line_and_exits_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    if spoil == "folder":
        shutil.rmtree(folder)
    elif spoil == "config":
        (folder / "config.json").write_text("{")
    elif spoil == "weights":
        own_weights(folder).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    else:
        change_config(folder, model_type="gpt17")
    if spoil == "weights":  # the last to be found out; the others in this process, which has torch loaded already
        command = [sys.executable, "-m", "padless", "explain", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        code = run(["explain", str(folder)])
        shown = capsys.readouterr()
        done = subprocess.CompletedProcess([], code, shown.out, shown.err)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("padless: ")
    assert str(folder) in done.stderr
