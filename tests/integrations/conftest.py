"""Seeded small models for the tests of integrations; the vector of a text with the word "bomb" is not finite."""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

WORDS = ("the", "sun", "stood", "still", "and", "moon", "river", "stone", "bread", "night", "bomb")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread is only waited for by models this small, and what is tested here sets their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, 32 wide, that takes 64 tokens."""
    return _saved(tmp_path_factory.mktemp("embedding"), "BertModel", 2)


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of 3 labels."""
    return _saved(tmp_path_factory.mktemp("classifier"), "BertForSequenceClassification", 3)


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head that marks the answer to a question."""
    return _saved(tmp_path_factory.mktemp("reader"), "BertForQuestionAnswering", 2)


def _saved(folder: Path, model_class: str, labels: int) -> Path:
    letters = [*string.ascii_lowercase, *string.digits]
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_labels": labels}
    config = transformers.BertConfig(vocab_size=len(vocabulary), **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(20261122)
        model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.index("bomb")] = 3e38 * torch.tensor([1.0, -1.0]).repeat(16)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64})
    )
    return folder
