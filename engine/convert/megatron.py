"""A BERT trained by Megatron-LM: where its tensors are in the checkpoint, and under which names they go on.

Query, key and value are one matrix there, and the order of its rows changed twice; `checkpoint_version` says which it
is. Layout: megatron/checkpointing.py and megatron/model/{bert_model,language_model,transformer}.py of Megatron-LM 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..models.megatron_bert import MegatronBertConfig
from ..weights.files import listed, shown
from ..weights.pickle_tree import TensorPiece, Unknown
from ..weights.torch_file import TYPES, TorchFile
from ..weights.writing import Outgoing
from .megatron_config import megatron_config
from .tensors import outgoing, sent

__all__ = ["MegatronModel", "is_megatron", "read_megatron", "split_qkv"]

QKV_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class MegatronModel:
    """A checkpoint, understood.

    Attributes:
        config: of the model.
        architecture: the largest class that the checkpoint fills.
        tensors: under their new names.
    """

    config: MegatronBertConfig
    architecture: str
    tensors: tuple[Outgoing, ...]


@dataclass(frozen=True)
class Place:
    """One tensor of the checkpoint.

    Attributes:
        source: its dotted name; without what comes before it where it is of the layers.
        shape: expected.
        target: its new name; with "{}" it is query, key and value as one.
        of_vocabulary: the first size is that of the vocabulary; there may be more rows, of padding.
    """

    source: str
    shape: tuple[int, ...]
    target: str
    of_vocabulary: bool = False


def is_megatron(root: Any) -> bool:
    """Whether what was saved is a checkpoint of Megatron-LM."""
    return isinstance(root, dict) and isinstance(root.get("model"), dict) and "language_model" in root["model"]


def read_megatron(file: TorchFile, config_file: Path | None, dtype: torch.dtype | None) -> MegatronModel:
    """Find every tensor of a BERT in a checkpoint of Megatron-LM.

    Args:
        file: of which `is_megatron(file.root)` holds.
        config_file: see `megatron_config`.
        dtype: of the tensors that come of it; None keeps each as it is.

    Raises:
        WeightsError: a tensor is missing, misshapen or one too many, or the version is unknown.
        ConfigError: as of `megatron_config`.
    """
    root = file.root
    version = _version(root.get("checkpoint_version", 0), file.label)
    held, paired = _held(root["model"], file.label)
    bias = held.get("model.lm_head.bias")
    rows = bias.shape[0] if isinstance(bias, TensorPiece) and bias.shape else MegatronBertConfig.vocab_size
    arguments = root.get("args")
    if arguments is not None and not isinstance(arguments, dict):
        raise WeightsError(f"{file.label}: args: expected a namespace, got {_kind(arguments)}")
    config = megatron_config(arguments, config_file, vocabulary_rows=rows, source=file.label)
    found = _found(file, held, list(_places(config, paired)))
    tensors: list[Outgoing] = []
    for place, tensor in found.items():
        if "{}" in place.target:
            read = partial(_part, file, tensor, version, config.num_attention_heads)
            stored = TYPES[tensor.storage.dtype]
            shape = (config.hidden_size, *tensor.shape[1:])
            for number, part in enumerate(QKV_PARTS):
                made: Callable[[], Iterator[Tensor]] = partial(read, number)
                tensors.append(sent(place.target.format(part), file.label, stored, shape, made, dtype))
        else:
            tensors.append(outgoing(place.target, file, tensor, dtype))
    if not paired:
        shape = (config.type_vocab_size, config.hidden_size)
        zeros = torch.zeros(shape, dtype=tensors[0].dtype)
        name = "bert.embeddings.token_type_embeddings.weight"
        tensors.insert(1, Outgoing(name, zeros.dtype, shape, lambda: [zeros.reshape(-1)]))
    architecture = "MegatronBertForPreTraining" if paired else "MegatronBertForMaskedLM"
    widest = tensors[0].dtype
    for tensor in tensors:
        widest = torch.promote_types(widest, tensor.dtype)
    config.extra = {**config.extra, "architectures": [architecture], "dtype": str(widest).removeprefix("torch.")}
    return MegatronModel(config, architecture, tuple(tensors))


def split_qkv(fused: Tensor, version: int, heads: int) -> tuple[Tensor, ...]:
    """Query, key and value of a fused matrix or bias.

    Args:
        fused: `[3 * hidden, ...]`; its rows are, from the outside in, (part, head, channel) in version 0,
            (head, channel, part) in version 1 and (head, part, channel) since version 2.
        version: the checkpoint's.
        heads: that divide the hidden size.

    Returns:
        `[hidden, ...]` each, whose rows are (head, channel).
    """
    channels, rest = fused.shape[0] // (3 * heads), fused.shape[1:]
    if version == 0:
        parts = fused.reshape(3, heads, channels, *rest)
    elif version == 1:
        parts = fused.reshape(heads, channels, 3, *rest).movedim(2, 0)
    else:
        parts = fused.reshape(heads, 3, channels, *rest).movedim(1, 0)
    return tuple(part.reshape(heads * channels, *rest) for part in parts)


def _part(file: TorchFile, tensor: TensorPiece, version: int, heads: int, number: int) -> Iterator[Tensor]:
    yield split_qkv(file.values(tensor), version, heads)[number].reshape(-1)


def _version(value: Any, path: Path) -> int:
    if isinstance(value, bool) or value not in (0, 1, 2, 3):
        raise WeightsError(f"{path}: checkpoint_version: expected 0, 1, 2 or 3, got {shown(value)}")
    return int(value)


def _held(model: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """What the tables of a BERT hold, by dotted name, and whether there is the head that pairs of texts train.

    Megatron's --bert-no-binary-head leaves out that head, its pooler, and the table that tells two texts apart.
    """

    def table(owner: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = owner.get(where.rpartition(".")[2])
        if not isinstance(found, dict):
            kind = "nothing" if found is None else _kind(found)
            raise WeightsError(f"{path}: {where}: expected a table of a BERT, found {kind}")
        return found

    language = table(model, "model.language_model")
    place = "model.language_model.embedding"
    embedding = table(language, place)
    paired = model.get("binary_head") is not None
    kinds = ("word_embeddings", "position_embeddings", *(("tokentype_embeddings",) if paired else ()))
    tables = {f"{place}.{kind}": table(embedding, f"{place}.{kind}") for kind in kinds}
    tables["model.lm_head"] = table(model, "model.lm_head")
    if paired:
        tables["model.binary_head"] = table(model, "model.binary_head")
        tables["model.language_model.pooler"] = table(language, "model.language_model.pooler")
    held = {f"{where}.{name}": value for where, found in tables.items() for name, value in found.items()}
    layers = table(language, f"model.language_model.{'transformer' if 'transformer' in language else 'encoder'}")
    for name, value in layers.items():
        older = str(name).replace(".self_attention.", ".attention.")  # another name since version 3
        held[older if older not in layers else str(name)] = value
    return held, paired


def _places(config: MegatronBertConfig, paired: bool) -> Iterator[Place]:
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    language, embeddings = "model.language_model", "bert.embeddings"

    def weight_and_bias(source: str, shape: tuple[int, ...], target: str) -> Iterator[Place]:
        yield Place(f"{source}.weight", shape, f"{target}.weight")
        yield Place(f"{source}.bias", shape[:1], f"{target}.bias")

    def embedding(kind: str, rows: int, target: str) -> Place:
        source = f"{language}.embedding.{kind}.weight"
        return Place(source, (rows, hidden), f"{embeddings}.{target}.weight", kind == "word_embeddings")

    yield embedding("word_embeddings", vocabulary, "word_embeddings")
    if paired:
        yield embedding("tokentype_embeddings", config.type_vocab_size, "token_type_embeddings")
    yield embedding("position_embeddings", config.max_position_embeddings, "position_embeddings")
    for number in range(config.num_hidden_layers):
        theirs, ours = f"layers.{number}", f"bert.encoder.layer.{number}"
        yield from weight_and_bias(f"{theirs}.input_layernorm", (hidden,), f"{ours}.attention.ln")
        qkv = f"{ours}.attention.self.{{}}"
        yield from weight_and_bias(f"{theirs}.attention.query_key_value", (3 * hidden, hidden), qkv)
        yield from weight_and_bias(f"{theirs}.attention.dense", (hidden, hidden), f"{ours}.attention.output.dense")
        yield from weight_and_bias(f"{theirs}.post_attention_layernorm", (hidden,), f"{ours}.ln")
        yield from weight_and_bias(f"{theirs}.mlp.dense_h_to_4h", (inner, hidden), f"{ours}.intermediate.dense")
        yield from weight_and_bias(f"{theirs}.mlp.dense_4h_to_h", (hidden, inner), f"{ours}.output.dense")
    yield from weight_and_bias("final_layernorm", (hidden,), "bert.encoder.ln")
    if paired:
        yield from weight_and_bias(f"{language}.pooler.dense", (hidden, hidden), "bert.pooler.dense")
    yield Place("model.lm_head.bias", (vocabulary,), "cls.predictions.bias", of_vocabulary=True)
    yield from weight_and_bias("model.lm_head.dense", (hidden, hidden), "cls.predictions.transform.dense")
    yield from weight_and_bias("model.lm_head.layernorm", (hidden,), "cls.predictions.transform.LayerNorm")
    if paired:
        yield from weight_and_bias("model.binary_head", (2, hidden), "cls.seq_relationship")


def _found(file: TorchFile, held: Mapping[str, Any], places: list[Place]) -> dict[Place, TensorPiece]:
    """The tensor of each place, cut to the vocabulary; WeightsError where one is missing, misshapen or left over."""
    found: dict[Place, TensorPiece] = {}
    missing, misshapen, mistyped = [], [], []
    for place in places:
        tensor = held.get(place.source)
        if not isinstance(tensor, TensorPiece):
            missing.append(place.source)
            continue
        padded = place.of_vocabulary and tensor.shape[:1] > place.shape[:1]
        if tensor.shape != (*(tensor.shape[:1] if padded else place.shape[:1]), *place.shape[1:]):
            misshapen.append(f"{place.source} (found {list(tensor.shape)}, expected {list(place.shape)})")
        elif not TYPES[tensor.storage.dtype].is_floating_point:
            mistyped.append(f"{place.source} (found {tensor.storage.dtype})")
        else:
            found[place] = replace(tensor, shape=place.shape)
    expected = {place.source for place in places}
    left = [
        name
        for name, value in held.items()
        if isinstance(value, TensorPiece) and name not in expected and not name.startswith("model.")
    ]
    kinds = {"missing": missing, "unexpected": left, "wrong shape": misshapen, "wrong dtype": mistyped}
    if faults := [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]:
        hint = "; --config can give its sizes" if misshapen or left else ""
        raise WeightsError(f"{file.label}: tensors do not fit a Megatron BERT: {'; '.join(faults)}{hint}")
    for names in file.check({place.target: tensor for place, tensor in found.items()}).values():
        if len(names) > 1:
            raise WeightsError(f"{file.label}: {listed(names)}: the same bytes, expected tensors of their own")
    return found


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Unknown) else type(value).__name__
