"""Checkpoints as Megatron-LM saves them, tiny and with random values, and the zip in which they are published."""

from __future__ import annotations

import argparse
import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HIDDEN, HEADS, LAYERS, INNER, POSITIONS, VOCABULARY = 24, 3, 2, 40, 19, 61
MEMBER = "release/mp_rank_00/model_optim_rng.pt"

CONFIG: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "vocab_size": VOCABULARY,
}


def training_arguments(**changes: Any) -> argparse.Namespace:
    """What training leaves in `args`, as far as it is read, and a few that are not."""
    fields = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "ffn_hidden_size": INNER,
        "max_position_embeddings": POSITIONS,
        "padded_vocab_size": VOCABULARY,
        "tokenizer_type": "BertWordPieceLowerCase",
        "tensor_model_parallel_size": 1,
        "params_dtype": torch.float16,
        "data_path": ["a", "b"],
        "lr": 1e-4,
    }
    return argparse.Namespace(**{**fields, **changes})


def megatron_checkpoint(
    version: float | None,
    *,
    newer_names: bool = False,
    arguments: argparse.Namespace | None = None,
    dtype: torch.dtype = torch.float16,
    rows: int = VOCABULARY,
    binary_head: bool = True,
) -> dict[str, Any]:
    """What is handed to torch.save; no two values of a tensor need be the same."""
    generator = torch.Generator().manual_seed(7)

    def values(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.3).to(dtype)

    def both(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}.weight": values(*shape), f"{name}.bias": values(shape[0])}

    attention = "self_attention" if newer_names else "attention"
    layers: dict[str, Tensor] = {}
    for number in range(LAYERS):
        place = f"layers.{number}"
        layers |= both(f"{place}.input_layernorm", HIDDEN)
        layers |= both(f"{place}.{attention}.query_key_value", 3 * HIDDEN, HIDDEN)
        layers |= both(f"{place}.{attention}.dense", HIDDEN, HIDDEN)
        layers |= both(f"{place}.post_attention_layernorm", HIDDEN)
        layers |= both(f"{place}.mlp.dense_h_to_4h", INNER, HIDDEN)
        layers |= both(f"{place}.mlp.dense_4h_to_h", HIDDEN, INNER)
    layers |= both("final_layernorm", HIDDEN)
    embedding = {
        "word_embeddings": {"weight": values(rows, HIDDEN)},
        "position_embeddings": {"weight": values(POSITIONS, HIDDEN)},
        "tokentype_embeddings": {"weight": values(2, HIDDEN)},
    }
    language = {
        "embedding": embedding,
        "encoder" if newer_names else "transformer": layers,
        "pooler": both("dense", HIDDEN, HIDDEN),
    }
    model: dict[str, Any] = {
        "language_model": language,
        "lm_head": {"bias": values(rows), **both("dense", HIDDEN, HIDDEN), **both("layernorm", HIDDEN)},
        "binary_head": {"weight": values(2, HIDDEN), "bias": values(2)},
    }
    if not binary_head:
        del model["binary_head"], language["pooler"], embedding["tokentype_embeddings"]
    saved: dict[str, Any] = {
        "iteration": 2_000_000,
        "model": model,
        "optimizer": {"state": {0: {"exp_avg": values(5)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "random_rng_state": random.Random(3).getstate(),
        "np_rng_state": np.random.RandomState(3).get_state(),
        "torch_rng_state": torch.Generator().manual_seed(3).get_state(),
        "rng_tracker_states": {},
    }
    if version is not None:
        saved["checkpoint_version"] = version
    if arguments is not None:
        saved["args"] = arguments
    return saved


def saved_bytes(value: Any, *, legacy: bool = False) -> bytes:
    """What torch.save makes of it; `legacy` as before torch 1.6."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def archive_of(
    folder: Path,
    content: bytes,
    *,
    member: str = MEMBER,
    compression: int = zipfile.ZIP_DEFLATED,
    name: str = "ngc.zip",
) -> Path:
    """The zip of a checkpoint, in a folder that is made."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("latest_checkpointed_iteration.txt", "release")
        archive.writestr(member, content)
    return path
