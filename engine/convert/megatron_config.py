"""The sizes of a Megatron-LM BERT: from what the checkpoint says of its training, from a file, or those of the 345M."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import LARGEST_CONFIG, read_json
from ..errors import ConfigError, WeightsError
from ..models.megatron_bert import MegatronBertConfig
from ..weights.files import shown

__all__ = ["megatron_config"]

SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "padded_vocab_size": "vocab_size",
}
"""Argument of the training -> field of the configuration."""

PARALLEL = ("model_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size")


def megatron_config(
    arguments: Mapping[str, Any] | None, given: Path | None, *, vocabulary_rows: int, source: Path
) -> MegatronBertConfig:
    """The configuration of a checkpoint.

    Sizes are those of the training's arguments; checkpoints of 2020 have none, and theirs are those of `given` or of
    the 345M model. All else is from `given` or by default, as in transformers' own conversion.

    Args:
        arguments: the checkpoint's `args`.
        given: a `config.json`, whose sizes must be the checkpoint's; only its vocabulary may be smaller.
        vocabulary_rows: rows of the checkpoint's head.
        source: for messages.

    Raises:
        ConfigError: a field is missing or wrong, or the two disagree.
        WeightsError: the checkpoint is one part of several.
    """
    fields: dict[str, Any] = {"vocab_size": vocabulary_rows}
    told = {} if arguments is None else _of_training(arguments, source)
    if given is not None:
        from_file = read_json(given, what="model configuration", largest=LARGEST_CONFIG)
        kind = from_file.get("model_type", MegatronBertConfig.model_type)
        if kind != MegatronBertConfig.model_type:
            raise ConfigError(f"{given}: model_type: expected {MegatronBertConfig.model_type!r}, got {shown(kind)}")
        checked = MegatronBertConfig.from_dict(from_file, source=str(given))
        for name, value in told.items():
            smaller = name == "vocab_size" and checked.vocab_size <= value
            if name in from_file and from_file[name] != value and not smaller:
                raise ConfigError(f"{given}: {name}: {from_file[name]!r}, the checkpoint says {shown(value)}")
        fields = {**fields, **told, **from_file}
    else:
        fields = {**fields, **told}
    label = f"{source}: args" if given is None else f"{given}, {source}: args"
    return MegatronBertConfig.from_dict(fields, source=label if told else str(given or source))


def _of_training(arguments: Mapping[str, Any], source: Path) -> dict[str, Any]:
    for name in PARALLEL:
        parts = arguments.get(name, 1)
        if parts != 1 and parts is not None:
            raise WeightsError(
                f"{source}: args: {name}: {shown(parts)}, expected 1: merge the parts with Megatron-LM first"
            )
    told: dict[str, Any] = {}
    for name, ours in SIZES.items():
        if name not in arguments:
            raise ConfigError(f"{source}: args: {name}: missing")
        told[ours] = _integer(arguments[name], f"{source}: args: {name}")
    inner = arguments.get("ffn_hidden_size")
    if inner is None:
        inner = 4 * told["hidden_size"]
    told["intermediate_size"] = _integer(inner, f"{source}: args: ffn_hidden_size")
    if isinstance(kind := arguments.get("tokenizer_type"), str):
        told["tokenizer_type"] = kind
    return told


def _integer(value: Any, where: str) -> int:
    """Seen to here, since a stranger's value can be nested so that writing it into a message never ends."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where}: expected an integer, got {shown(value)}")
    return value
