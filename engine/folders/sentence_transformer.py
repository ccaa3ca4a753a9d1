"""A sentence-transformers folder, read: which modules follow the transformer, and how texts are prepared for it.

Every vintage since 2019 is understood, with the defaults of sentence-transformers 6.2. Classes are recognised by their
name and never imported: a folder cannot make padless run code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from ..config import CONFIG_NAME, read_json, read_json_value
from ..errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "POOLING_MODES",
    "DenseSpec",
    "NormalizeSpec",
    "PoolingSpec",
    "SentenceFolder",
    "module_entries",
    "module_folder",
    "read_model_settings",
    "read_sentence_folder",
    "read_transformer_settings",
]

# Keys of the first Pooling configurations, in the order in which several modes are concatenated.
LEGACY_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(LEGACY_POOLING_KEYS.values())

ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
"""Class in `torch.nn` -> name of the activation in a DenseSpec."""

TRANSFORMER_CONFIG_NAMES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# transformers writes int(1e30) for "no limit"; any real limit is far below this.
NO_LIMIT = 1e20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolingSpec:
    """How token vectors become one vector.

    Attributes:
        modes: of `POOLING_MODES`; the results of several are concatenated in this order.
        include_prompt: false leaves the prompt's tokens out.
        dimension: width of a token vector as the file states it; None where there is no file.
    """

    modes: tuple[str, ...]
    include_prompt: bool = True
    dimension: int | None = None


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer on the pooled vector; weights `linear.weight` and `linear.bias` are in `folder`/model.safetensors.

    Attributes:
        folder: where the weights are.
        in_features: width of the input.
        out_features: width of the output.
        bias: whether `linear.bias` exists.
        activation: a value of `ACTIVATIONS`.
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "tanh"


@dataclass(frozen=True)
class NormalizeSpec:
    """Scale the vector to unit length."""


@dataclass(frozen=True)
class SentenceFolder:
    """What a sentence-transformers folder says.

    Attributes:
        transformer_folder: where the transformer's config.json, weights and tokenizer are.
        max_seq_length: tokens kept per text, special tokens included; None where nothing limits them.
        do_lower_case: texts are lower-cased before the tokenizer's own normalisation.
        modules: what follows the transformer, in order; exactly one PoolingSpec.
        prompts: name -> text put before each input; "query" and "document" always exist, empty unless configured.
        default_prompt_name: the prompt used when the caller names none, or None.
        similarity: "cosine", "dot", "euclidean" or "manhattan", or None where the folder does not say.
    """

    transformer_folder: Path
    max_seq_length: int | None
    do_lower_case: bool
    modules: tuple[PoolingSpec | DenseSpec | NormalizeSpec, ...]
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str | None

    @property
    def pooling(self) -> PoolingSpec:
        """The one pooling module."""
        return next(module for module in self.modules if isinstance(module, PoolingSpec))

    @property
    def dense(self) -> tuple[DenseSpec, ...]:
        """The Dense modules, in order."""
        return tuple(module for module in self.modules if isinstance(module, DenseSpec))

    @property
    def normalize(self) -> bool:
        """Whether any Normalize module is present."""
        return any(isinstance(module, NormalizeSpec) for module in self.modules)


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """Read `modules.json` and the files it leads to.

    A plain transformers folder, without `modules.json`, gets mean pooling and no normalisation, as in
    sentence-transformers.

    Raises:
        ConfigError: a file or field is missing or wrong, or a module is one that padless does not compute.
    """
    path = folder / "modules.json"
    if not path.exists():
        logger.info("%s has no modules.json: mean pooling, no normalisation", folder)
        limit = _limit_of_model(folder)
        return SentenceFolder(folder, limit, False, (PoolingSpec(("mean",)),), _prompts({}, path), None, None)

    entries = module_entries(path)
    transformer = module_folder(folder, entries[0], path)
    modules = tuple(spec for entry in entries[1:] if (spec := _read_module(folder, entry, path)) is not None)
    _check_order(modules, path)
    max_seq_length, do_lower_case = read_transformer_settings(transformer)
    prompts, default_prompt_name, similarity = read_model_settings(folder / "config_sentence_transformers.json")
    return SentenceFolder(
        transformer_folder=transformer,
        max_seq_length=max_seq_length,
        do_lower_case=do_lower_case,
        modules=modules,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        similarity=similarity,
    )


def module_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a `modules.json`, checked; the first of them is a Transformer.

    Raises:
        ConfigError: an entry is malformed, or names a class that is not part of sentence-transformers.
    """
    entries = read_json_value(path, what="module list")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"module list {path}: expected a list of modules, got {type(entries).__name__}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: module {number}: expected an object, got {type(entry).__name__}")
        for key in ("type", "path"):
            if not isinstance(entry.get(key), str):
                raise ConfigError(f"{path}: module {number}: {key}: expected a string, got {entry.get(key)!r:.60}")
        if not entry["type"].startswith("sentence_transformers."):
            raise ConfigError(
                f"{path}: module {number}: type {entry['type']!r} is not part of sentence-transformers, "
                f"and padless runs no code from a model folder"
            )
    first = _class_name(entries[0])
    if first != "Transformer":
        raise ConfigError(f"{path}: module 0: expected a Transformer, got {first!r:.60}, which is not supported")
    return entries


def _class_name(entry: dict[str, Any]) -> str:
    return entry["type"].rpartition(".")[2]


def module_folder(folder: Path, entry: dict[str, Any], source: Path) -> Path:
    """Where the files of a module are.

    Raises:
        ConfigError: that is outside the model folder.
    """
    relative = entry["path"]
    # The Windows reading also refuses "C:\..." and "\\host\...", whatever system this runs on.
    reading = PureWindowsPath(relative)
    if reading.anchor or ".." in reading.parts or "\0" in relative:
        raise ConfigError(f"{source}: path {relative!r}: expected a folder inside the model folder")
    target = folder / relative
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{source}: path {relative!r}: leads out of the model folder")
    return target


def _read_module(folder: Path, entry: dict[str, Any], source: Path) -> PoolingSpec | DenseSpec | NormalizeSpec | None:
    target = module_folder(folder, entry, source)
    kind = _class_name(entry)
    if kind == "Pooling":
        return _read_pooling(target / CONFIG_NAME)
    if kind == "Dense":
        return _read_dense(target)
    if kind == "Normalize":
        return _read_normalize(target / CONFIG_NAME)
    if kind == "Dropout":
        # The identity outside training.
        return None
    supported = "Transformer, Pooling, Dense, Normalize, Dropout"
    raise ConfigError(f"{source}: module {entry['path']!r}: expected one of {supported}, got {kind!r:.60}")


def _check_order(modules: tuple[PoolingSpec | DenseSpec | NormalizeSpec, ...], source: Path) -> None:
    poolings = sum(isinstance(module, PoolingSpec) for module in modules)
    if poolings != 1:
        raise ConfigError(f"{source}: expected one Pooling module, got {poolings}")
    if not isinstance(modules[0], PoolingSpec):
        raise ConfigError(f"{source}: expected the Pooling module right after the Transformer")


def _read_pooling(path: Path) -> PoolingSpec:
    raw = read_json(path, what="pooling configuration")
    dimension = raw.get("embedding_dimension", raw.get("word_embedding_dimension"))
    if not _is_size(dimension):
        raise ConfigError(f"{path}: word_embedding_dimension: expected a positive integer, got {dimension!r:.60}")
    for key, value in raw.items():
        if key.startswith("pooling_mode_") and value and key not in LEGACY_POOLING_KEYS:
            raise ConfigError(f"{path}: {key}: unknown pooling mode, expected one of {', '.join(LEGACY_POOLING_KEYS)}")
    if "pooling_mode" in raw:
        found = raw["pooling_mode"]
        modes = (found,) if isinstance(found, str) else found
    else:
        modes = [mode for key, mode in LEGACY_POOLING_KEYS.items() if raw.get(key)] or ["mean"]
    if not isinstance(modes, (list, tuple)) or not modes or any(mode not in POOLING_MODES for mode in modes):
        known = ", ".join(POOLING_MODES)
        raise ConfigError(f"{path}: pooling_mode: expected one or more of {known}, got {modes!r:.60}")
    return PoolingSpec(tuple(modes), _flag(raw, "include_prompt", True, path), dimension)


def _read_dense(folder: Path) -> DenseSpec:
    path = folder / CONFIG_NAME
    raw = read_json(path, what="dense configuration")
    for key in ("in_features", "out_features"):
        if not _is_size(raw.get(key)):
            raise ConfigError(f"{path}: {key}: expected a positive integer, got {raw.get(key)!r:.60}")
    _check_feature_names(raw, path)
    if raw.get("use_residual"):
        raise ConfigError(f"{path}: use_residual: true is not supported")
    activation = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rpartition(".")[2] if isinstance(activation, str) and activation.startswith("torch.nn.") else ""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"{path}: activation_function: expected one of {known} in torch.nn, got {activation!r:.80}")
    return DenseSpec(folder, raw["in_features"], raw["out_features"], _flag(raw, "bias", True, path), ACTIVATIONS[name])


def _read_normalize(path: Path) -> NormalizeSpec:
    # Folders written before version 6 have no file for it, often not even the folder.
    if path.exists():
        _check_feature_names(read_json(path, what="normalize configuration"), path)
    return NormalizeSpec()


def _check_feature_names(raw: dict[str, Any], path: Path) -> None:
    for key in ("module_input_name", "module_output_name"):
        name = raw.get(key)
        if name not in (None, "sentence_embedding"):
            raise ConfigError(f"{path}: {key}: expected 'sentence_embedding', got {name!r:.60}, which is not supported")


def read_transformer_settings(
    folder: Path, *, task: str = "feature-extraction", output: str = "token_embeddings"
) -> tuple[int | None, bool]:
    """The most tokens of a text, None where nothing limits them, and whether texts are lower-cased.

    Args:
        folder: of the transformer.
        task: what it must be made for.
        output: name of what it must give.

    Raises:
        ConfigError: it is made for something else, or a field is malformed.
    """
    raw: dict[str, Any] = {}
    path = folder / TRANSFORMER_CONFIG_NAMES[0]
    for name in TRANSFORMER_CONFIG_NAMES:
        path = folder / name
        if path.exists() and (raw := read_json(path, what="sentence-transformers configuration")):
            break
    for key, expected in (("transformer_task", task), ("module_output_name", output)):
        if raw.get(key, expected) != expected:
            raise ConfigError(f"{path}: {key}: expected {expected!r}, got {raw[key]!r:.60}")
    # Older files say tokenizer_args, newer ones processor_kwargs; a limit there wins over max_seq_length.
    arguments = raw.get("tokenizer_args", raw.get("processor_kwargs")) or {}
    limit = arguments.get("model_max_length") if isinstance(arguments, dict) else None
    limit = raw.get("max_seq_length") if limit is None else limit
    if limit is None:
        limit = _limit_of_model(folder)
    elif not _is_size(limit):
        raise ConfigError(f"{path}: max_seq_length: expected a positive integer, got {limit!r:.60}")
    else:
        limit = _capped(limit, folder)
    return limit, _flag(raw, "do_lower_case", False, path)


def _limit_of_model(folder: Path) -> int | None:
    """The smaller of what the tokenizer states and what the position table holds."""
    limit = None
    path = folder / "tokenizer_config.json"
    if path.exists():
        raw = read_json(path, what="tokenizer configuration")
        found = raw.get("model_max_length", raw.get("max_len"))
        if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 < found < NO_LIMIT:
            limit = int(found)
    return _capped(limit, folder)


def _capped(limit: int | None, folder: Path) -> int | None:
    positions = read_json(folder / CONFIG_NAME, what="model configuration").get("max_position_embeddings")
    # XLNet writes -1 for "any number".
    return min((size for size in (limit, positions) if _is_size(size)), default=None)


def read_model_settings(path: Path, kind: str = "SentenceTransformer") -> tuple[dict[str, str], str | None, str | None]:
    """Prompts by name, the name of the default prompt, and the similarity.

    Args:
        path: `config_sentence_transformers.json`, which need not exist.
        kind: the class it must be of.

    Raises:
        ConfigError: it is of another class, or a field is malformed.
    """
    raw = read_json(path, what="sentence-transformers configuration") if path.exists() else {}
    found = raw.get("model_type", kind)
    if found != kind:
        raise ConfigError(f"{path}: model_type: expected {kind!r}, got {found!r:.60}")
    prompts = _prompts(raw.get("prompts") or {}, path)
    default = raw.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ConfigError(f"{path}: default_prompt_name: expected one of {list(prompts)}, got {default!r:.60}")
    similarity = raw.get("similarity_fn_name")
    return prompts, default, similarity if similarity in SIMILARITIES else None


def _prompts(raw: Any, path: Path) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: prompts: expected an object, got {type(raw).__name__}")
    for name, text in raw.items():
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"{path}: prompts: {name!r:.60}: expected a string, got {type(text).__name__}")
    return {"query": "", "document": "", **{name: text or "" for name, text in raw.items()}}


def _flag(raw: dict[str, Any], key: str, default: bool, path: Path) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key}: expected true or false, got {value!r:.60}")
    return value


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
