"""Checkpoints that padless writes: read back value by value, by padless and by transformers, whole at every moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from padless.engine.errors import OptionError, WeightsError
from padless.engine.weights import NameRules, load_weights
from padless.engine.weights import writing as weights_writer
from padless.engine.weights.writing import save_weights

CONFIG = transformers.BertConfig(
    vocab_size=61,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=17,
)
LARGE = 10**9


def masked_lm(seed: int = 1) -> Any:
    """A model of transformers: its tied decoder has two names for each of two parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.BertForMaskedLM(CONFIG)


def mixed() -> nn.Module:
    """Views of one buffer, several dtypes, a scalar, an empty tensor, values not one after the other, a buffer."""
    model = nn.Module()
    fused = torch.randn(6, 4)
    parameters = {
        "q": fused[:3],
        "k": fused[3:],
        "short": torch.randn(5).half(),
        "bf16": torch.randn(3, 3).bfloat16(),
        "wide": torch.randn(2).double(),
        "turned": torch.randn(4, 7).t(),
        "scale": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    for name, values in parameters.items():
        model.register_parameter(name, nn.Parameter(values))
    model.register_buffer("positions", torch.arange(9))
    model.register_buffer("mask", torch.tensor([True, False, True]))
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    return model


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {name: values for path in folder.glob("*.safetensors") for name, values in load_file(path).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("piece", [8, 24, 2**20])
def test_every_kind_of_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(weights_writer, "PIECE_BYTES", piece)
    model = mixed()
    save_weights(model, tmp_path, max_shard_size=LARGE)
    assert_same(held(tmp_path), dict(model.state_dict()))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("size", [LARGE, 5_000, 1_000, 1])
def test_the_names_and_files_are_those_of_transformers(tmp_path: Path, size: int) -> None:
    model = masked_lm()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    save_weights(model, ours, max_shard_size=size)
    model.save_pretrained(theirs, max_shard_size=size)
    files = {path.name for path in theirs.iterdir()} - {"config.json", "generation_config.json"}
    assert {path.name for path in ours.iterdir()} == files
    assert len(files) > 1 or size == LARGE
    assert_same(held(ours), held(theirs))
    if size != LARGE:
        indexes = [json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (ours, theirs)]
        assert indexes[0] == indexes[1]


@pytest.mark.parametrize("size", [LARGE, 5_000])
def test_transformers_reads_it_without_a_word(
    tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = masked_lm()
    CONFIG.save_pretrained(tmp_path)
    save_weights(model, tmp_path, max_shard_size=size)
    loaded: Any = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    read, report = loaded
    assert not any(report.values()), report
    assert_same(dict(read.state_dict()), dict(model.state_dict()))
    assert caplog.records == []
    assert "Warning" not in capfd.readouterr().err


@pytest.mark.parametrize("size", [LARGE, 5_000])
def test_padless_reads_it(tmp_path: Path, size: int) -> None:
    model = masked_lm()
    save_weights(model, tmp_path, max_shard_size=size)
    read = masked_lm(seed=2)
    load_weights(read, tmp_path, NameRules())
    assert_same(dict(read.state_dict()), dict(model.state_dict()))


def test_a_table_decides_which_name_of_a_tied_parameter_is_written(tmp_path: Path) -> None:
    class Tied(nn.Module):
        tied = {"alias": "own", "absent": "own", "free": "own"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.alias = nn.Parameter(torch.ones(3))
            self.own = self.alias
            self.free = nn.Parameter(torch.zeros(3))  # in the table, yet not tied in this model

    save_weights(Tied(), tmp_path, max_shard_size=LARGE)
    assert held(tmp_path).keys() == {"own", "free"}


@pytest.mark.parametrize("first", [LARGE, 5_000, 1_000])
@pytest.mark.parametrize("second", [LARGE, 5_000, 1_000])
def test_an_older_checkpoint_is_replaced_whatever_its_shards(tmp_path: Path, first: int, second: int) -> None:
    save_weights(masked_lm(seed=1), tmp_path, max_shard_size=first)
    model = masked_lm(seed=2)
    save_weights(model, tmp_path, max_shard_size=second)
    read = masked_lm(seed=3)
    load_weights(read, tmp_path, NameRules())
    assert_same(dict(read.state_dict()), dict(model.state_dict()))
    alone = tmp_path / "alone"
    alone.mkdir()
    save_weights(model, alone, max_shard_size=second)
    assert {path.name for path in tmp_path.iterdir()} - {"alone"} == {path.name for path in alone.iterdir()}


@pytest.mark.parametrize("first", [LARGE, 5_000])
@pytest.mark.parametrize("second", [LARGE, 5_000])
def test_a_write_that_fails_at_any_step_never_leaves_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    """Each rename and each removal fails once; what is then in the folder is one of the models, or no checkpoint."""
    before, after = masked_lm(seed=1), masked_lm(seed=2)
    outcomes = set()
    refusal = ""
    for step in range(100):
        folder = tmp_path / str(step)
        folder.mkdir()
        save_weights(before, folder, max_shard_size=first)
        left = [step]

        def failing(original: Any, left: list[int] = left, cleans: bool = False) -> Any:
            def call(path: Path, *arguments: Any, **options: Any) -> Any:
                if cleans and path.name.endswith(".tmp"):
                    return original(path, *arguments, **options)
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device", str(path))
                return original(path, *arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing(Path.replace))
            patch.setattr(Path, "unlink", failing(Path.unlink, cleans=True))
            refusal = ""
            try:
                save_weights(after, folder, max_shard_size=second)
            except WeightsError as error:
                refusal = str(error)
        assert refusal == "" or "cannot be written (No space left on device)" in refusal
        assert not list(folder.glob(".*"))
        read = masked_lm(seed=3)
        try:
            load_weights(read, folder, NameRules())
        except WeightsError:
            outcomes.add("none")
        else:
            found = [model for model in (before, after) if same(read, model)]
            assert len(found) == 1
            outcomes.add("before" if found[0] is before else "after")
        if not refusal:
            break
    assert refusal == ""
    assert outcomes >= {"before", "after"}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be written \(No such file or directory\)"):
        save_weights(masked_lm(), tmp_path / "nowhere", max_shard_size=LARGE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a limit on file sizes")
def test_a_disk_that_is_full_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: both make `write` fail."""
    import resource
    import signal

    before = masked_lm(seed=1)
    save_weights(before, tmp_path, max_shard_size=LARGE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(WeightsError, match="cannot be written"):
            save_weights(masked_lm(seed=2), tmp_path, max_shard_size=LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    read = masked_lm(seed=3)
    load_weights(read, tmp_path, NameRules())
    assert same(read, before)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_holds_nothing(tmp_path: Path, size: int) -> None:
    with pytest.raises(OptionError, match="max_shard_size: expected at least 1 byte"):
        save_weights(masked_lm(), tmp_path, max_shard_size=size)
