"""Folders of random weights: everybody loads the same model from them, and its vectors tell texts apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

import padless
from padless.bench.cost import flops_per_token
from padless.bench.models.products import read_config
from padless.bench.models.seeded import MODELS, SEEDED, model_folder, write_seeded
from padless.bench.workloads import default_model

TEXTS = ("rivers run to the sea", "the second", "moon " * 90, "42 prime ministers, entirely different", "x")
FAMILIES = [model_type for model_type, _ in SEEDED.values()]


def by_transformers(folder: Path) -> np.ndarray:
    """Each text alone: the mean of its tokens, of unit length."""
    name = "MT5EncoderModel" if folder.name == "mt5" else "AutoModel"
    model = getattr(transformers, name).from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt", truncation=True)["input_ids"]
            rows.append(model(input_ids=ids).last_hidden_state[0].double().mean(0).numpy())
    vectors = np.stack(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padless_and_transformers_read_the_same_model(small_model: Callable[[str], Path], model_type: str) -> None:
    folder = small_model(model_type)
    expected = by_transformers(folder)
    vectors = padless.load(folder, device="cpu", dtype="float32").encode(list(TEXTS))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    others = (expected @ expected.T)[np.triu_indices(len(TEXTS), 1)]
    # A check at 0.999 would let swapped rows pass where vectors of different texts are nearer than that.
    assert others.max() < 0.99


def test_words_beyond_a_smaller_vocabulary_are_spelt_with_what_is_left(small_model: Callable[[str], Path]) -> None:
    small = AutoTokenizer.from_pretrained(small_model("megatron-bert"), local_files_only=True)
    whole = AutoTokenizer.from_pretrained(default_model(), local_files_only=True)
    assert max(small.get_vocab().values()) < 29056 < max(whole.get_vocab().values())
    assert small("rivers run")["input_ids"] == whole("rivers run")["input_ids"]
    late = whole.convert_ids_to_tokens(29060)
    spelt = small(late)["input_ids"]
    assert len(spelt) > len(whole(late)["input_ids"]) == 3
    assert small.unk_token_id not in spelt


def test_weights_are_the_same_every_time_and_leave_the_caller_s_seed(
    tmp_path: Path, small_fields: dict[str, Any], small_model: Callable[[str], Path]
) -> None:
    torch.manual_seed(7)
    write_seeded("bert", tmp_path / "again", small_fields["bert"])
    following = torch.rand(1)
    torch.manual_seed(7)
    assert following == torch.rand(1)
    first, second = (folder / "model.safetensors" for folder in (small_model("bert"), tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_names_are_those_of_the_five_families_and_minilm(tmp_path: Path) -> None:
    assert MODELS == ("minilm", "bert-base", "modernbert-base", "mobilebert", "megatronbert", "mt5-small")
    assert model_folder("minilm", tmp_path) == default_model()
    assert list(tmp_path.iterdir()) == []
    assert flops_per_token(read_config(default_model()), 128) == pytest.approx(2 * 10_616_832 + 4 * 384 * 128 * 6)
