"""Pickled checkpoints, where they are asked for: what torch.save writes arrives value by value; nothing runs."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from padless.engine.errors import WeightsError
from padless.engine.weights import LoadReport, NameRules, load_weights, pickled


def model_like(tensors: dict[str, Tensor]) -> nn.Module:
    """A module of one parameter per tensor; dots in names become levels; every value is NaN."""
    model = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = model
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        filled = torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)
        module.register_parameter(leaf, nn.Parameter(filled))
    return model


def random_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"dense.weight": (3, 5), "dense.bias": (3,), "scale": (), "none": (0, 4), "wide": (1, 7, 1)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def check(folder: Path, expected: dict[str, Tensor]) -> None:
    model = model_like(expected)
    assert load_weights(model, folder, NameRules(), pickled=True) == LoadReport()
    for name, values in model.state_dict().items():
        assert torch.equal(values, expected[name]), name


def refusal(folder: Path, expected: dict[str, Tensor]) -> str:
    with pytest.raises(WeightsError) as error:
        load_weights(model_like(expected), folder, NameRules(), pickled=True)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_table_of_tensors(tmp_path: Path, dtype: torch.dtype, kind: type) -> None:
    tensors = {name: values.to(dtype) for name, values in random_tensors().items()}
    torch.save(kind(tensors), tmp_path / "pytorch_model.bin")
    check(tmp_path, tensors)


def test_the_state_of_a_module_with_parameters_kept(tmp_path: Path) -> None:
    """Its `_metadata` comes along, and with keep_vars its values are parameters."""
    model = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    state = model.state_dict(keep_vars=True)
    torch.save(state, tmp_path / "pytorch_model.bin")
    check(tmp_path, {name: values.detach() for name, values in state.items()})


def test_slices_of_one_storage_that_do_not_overlap(tmp_path: Path) -> None:
    fused = torch.randn(9, 4)
    tensors = {"q": fused[:3], "k": fused[3:6], "v": fused[6:]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    check(tmp_path, tensors)


def test_more_bytes_than_are_mapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MOST_MAPPED_BYTES", 1_000)
    tensors = {f"t{number}": torch.randn(1_000_003) for number in range(3)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    check(tmp_path, tensors)


def test_shards(tmp_path: Path) -> None:
    tensors = random_tensors()
    weight_map = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == shard}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(tmp_path, tensors)
    (tmp_path / "pytorch_model-1.bin").unlink()
    assert "pytorch_model-1.bin: no such file" in refusal(tmp_path, tensors)


def test_tied_parameters_are_one_piece_of_the_file_under_two_names(tmp_path: Path) -> None:
    """As transformers 4 wrote every masked-LM model."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=10,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        source = BertForMaskedLM(config)
    state = source.state_dict()
    words, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert state[words].data_ptr() == state[decoder].data_ptr()
    torch.save(state, tmp_path / "pytorch_model.bin")
    target = BertForMaskedLM(config)
    load_weights(target, tmp_path, NameRules(), pickled=True)
    for name, values in target.state_dict().items():
        assert torch.equal(values, state[name]), name


def test_safetensors_win_where_both_are_there(tmp_path: Path) -> None:
    tensors = random_tensors()
    torch.save({name: values + 1 for name, values in tensors.items()}, tmp_path / "pytorch_model.bin")
    save_file(tensors, tmp_path / "model.safetensors")
    check(tmp_path, load_file(tmp_path / "model.safetensors"))


def test_a_folder_with_neither(tmp_path: Path) -> None:
    names = "model.safetensors or model.safetensors.index.json or pytorch_model.bin or pytorch_model.bin.index.json"
    assert refusal(tmp_path, random_tensors()) == f"{tmp_path}: holds no weights; expected {names}"


def test_misfits_are_told_as_for_safetensors(tmp_path: Path) -> None:
    tensors = random_tensors()
    stored = {**tensors, "dense.bias": torch.ones(4), "scale": torch.tensor(1), "more": torch.ones(1, dtype=torch.bool)}
    del stored["wide"]
    torch.save(stored, tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path, tensors)
    assert "missing: wide; unexpected: more; wrong shape: dense.bias (found [4], expected [3])" in message
    assert "wrong dtype: scale (found I64, " in message


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["dense.weight"][1, 1] = torch.nan
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert "tensor 'dense.weight': 1 of 15 values are NaN or infinite" in refusal(tmp_path, tensors)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([torch.ones(1)], "EMPTY_LIST"),
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict': expected a tensor, got dict"),
        ({1: torch.ones(1)}, "1: expected a tensor"),
        ({"a": torch.ones(2, 3).t()}, "strides [1, 3] for shape [3, 2]"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "asks for 'torch ComplexFloatStorage'"),
        ({"a": torch.eye(2).to_sparse()}, "asks for 'torch._utils _rebuild_sparse_tensor'"),
        ({"a": torch.ones(1), "epoch": 3}, "'epoch': expected a tensor, got int"),
        ({"a": torch.ones(1), "date": Path("x")}, "asks for 'pathlib"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(tmp_path: Path, value: object, why: str) -> None:
    torch.save(value, tmp_path / "pytorch_model.bin")
    assert why in refusal(tmp_path, {"a": torch.ones(1)})


def test_a_file_cut_short_anywhere(tmp_path: Path) -> None:
    tensors = random_tensors()
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path)
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        assert refusal(tmp_path, tensors).startswith(f"{path}: ")
