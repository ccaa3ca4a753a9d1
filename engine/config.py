"""Model configurations: `config.json` read with suspicion.

A configuration comes from a stranger and decides how much memory is allocated, so every field is checked for its type
and its range before anything is built from it. Unknown fields are kept in `extra`: checkpoints carry many, and most
mean nothing here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import types
from collections.abc import Mapping
from dataclasses import MISSING, InitVar, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError, OptionError
from .hub import resolve_folder

__all__ = ["CONFIG_NAME", "LIMITS", "ModelConfig", "model_type", "read_json"]

CONFIG_NAME = "config.json"

LARGEST_JSON = 100 * 2**20
"""Bytes. The largest real one, a tokenizer, has some tens of megabytes."""

LARGEST_CONFIG = 6 * 2**20
"""Bytes of a `config.json`; names for 22,000 labels take one megabyte."""

LIMITS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 2**24),
    "type_vocab_size": (0, 2**16),
    "hidden_size": (1, 65_536),
    "embedding_size": (1, 65_536),
    "intermediate_size": (1, 2**20),
    "intra_bottleneck_size": (1, 65_536),
    "num_feedforward_networks": (1, 1_000),
    "num_hidden_layers": (0, 1_000),
    "num_attention_heads": (1, 4_096),
    "num_key_value_heads": (1, 4_096),
    "head_dim": (1, 8_192),
    "max_position_embeddings": (1, 2**24),
    "num_labels": (1, 2**20),
    "layer_norm_eps": (0, 1),
    "norm_eps": (0, 1),
    "initializer_range": (0, 100),
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
    "classifier_dropout": (0, 1),
    "d_model": (1, 65_536),
    "d_kv": (1, 8_192),
    "d_ff": (1, 2**20),
    "num_layers": (0, 1_000),
    "num_decoder_layers": (0, 1_000),
    "num_heads": (1, 4_096),
    "relative_attention_num_buckets": (4, 2**16),
    "relative_attention_max_distance": (2, 2**24),
    "dropout_rate": (0, 1),
    "initializer_factor": (0, 1e4),
}
"""Field -> smallest and largest value, both allowed; far beyond any model, far below a harmful one."""

MEANINGLESS = frozenset({"low_cpu_mem_usage", "return_unused_kwargs", "trust_remote_code"})
"""Arguments of loading that change nothing here: memory is always low, and no code beside weights is run."""

logger = logging.getLogger(__name__)


def read_json(path: Path, *, what: str, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Args:
        path: the file.
        what: what the file is to the reader, such as "model configuration"; begins the error message.
        largest: bytes; what is parsed takes some twenty times as many.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, not JSON, or not an object.
    """
    value = read_json_value(path, what=what, largest=largest)
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {path}: expected a JSON object, got {_describe(value)}")
    return value


def read_json_value(path: Path, *, what: str, largest: int = LARGEST_JSON) -> Any:
    """Like `read_json`, for a file whose top level need not be an object."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{what} {path}: cannot be read (not a regular file)")
        if found.st_size > largest:
            raise ConfigError(f"{what} {path}: {found.st_size:,} bytes, expected at most {largest:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}: not UTF-8 text (byte {error.start})") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{what} {path}: not JSON ({error.msg}, line {error.lineno})") from None
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or brackets nested thousands deep.
        raise ConfigError(f"{what} {path}: not JSON that can be read ({type(error).__name__})") from None


def model_type(folder: Path) -> str:
    """The `model_type` field of the folder's `config.json`, such as "bert".

    Raises:
        ConfigError: there is no readable `config.json`, or the field is missing or not a string.
    """
    path = folder / CONFIG_NAME
    found = read_json(path, what="model configuration", largest=LARGEST_CONFIG).get("model_type")
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{path}: model_type: expected a name such as 'bert', got {_describe(found)}")
    return found


class _Spellings(type):
    """Lets a configuration be constructed with any spelling of its fields."""

    # Not annotated: type checkers then see the constructor that the dataclass has.
    def __call__(cls, **values):
        aliases: Mapping[str, str] = getattr(cls, "aliases", {})
        return super().__call__(**{aliases.get(name, name): value for name, value in values.items()})


@dataclass(kw_only=True)
class ModelConfig(metaclass=_Spellings):
    """Base of every model's configuration: a dataclass whose fields are the ones its model reads.

    A subclass declares fields under the names of the checkpoint's `config.json`, with types made of
    int, float, bool, str, None, Literal, list, tuple, dict and unions of them. A field without a default must be in
    the file. Fields may be assigned until a model is built from them.

    Attributes:
        num_labels: outputs of a classification head; follows `id2label` where that is given.
        id2label: index -> name; "LABEL_0" and so on where the file has none. Assigning it sets the other two.
        label2id: name -> index; the inverse of `id2label` unless the file says otherwise.
        problem_type: the loss of sequence classification; None: by the labels of each call.
        output_hidden_states: what `forward` returns unless it is told otherwise.
        output_attentions: the same.
        return_dict: False returns tuples.
        tie_word_embeddings: whether output and input embeddings are one tensor.
        extra: the file's other fields, unchecked; they read and assign as attributes too, and are saved.
        source: where the values came from, for messages.
    """

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spelling -> field, which it reads and assigns; the field's own name wins where a file has both."""
    model_type: ClassVar[str] = ""
    """As in `config.json`."""

    num_labels: int = 2
    id2label: dict[Any, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    tie_word_embeddings: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    source: InitVar[str | None] = None

    def __post_init__(self, source: str | None) -> None:
        source = source or type(self).__name__
        hints = _hints(type(self))
        for item in fields(self):
            if item.name != "extra":
                value = _checked(getattr(self, item.name), hints[item.name], f"{source}: {item.name}", item.name)
                object.__setattr__(self, item.name, value)
        self._name_labels(source)
        self.check(source)

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.aliases.get(name, name)
        built = "extra" in self.__dict__
        known = name in self.__dataclass_fields__ or hasattr(type(self), name)
        if built and not known and not name.startswith("_"):
            self.extra = {**self.extra, name: value}
            return
        object.__setattr__(self, name, value)
        if name == "id2label" and value is not None and built:
            self.label2id = None
            self._name_labels(type(self).__name__)
        if name == "num_labels" and self.__dict__.get("id2label") is not None and len(self.id2label or ()) != value:
            self.id2label = self.label2id = None
            self._name_labels(type(self).__name__)

    def __getattr__(self, name: str) -> Any:
        # Only names that are no field arrive here.
        extra = self.__dict__.get("extra", {})
        if name in self.aliases:
            return getattr(self, self.aliases[name])
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def _name_labels(self, source: str) -> None:
        named = self.id2label
        if named is None:
            named = {index: f"LABEL_{index}" for index in range(self.num_labels)}
        try:
            labels = {int(index): name for index, name in named.items()}
        except (TypeError, ValueError):
            raise ConfigError(
                f"{source}: id2label: expected whole numbers as keys, got {_describe(self.id2label)}"
            ) from None
        object.__setattr__(self, "id2label", labels)
        object.__setattr__(self, "num_labels", len(labels))
        if self.label2id is None:
            self.label2id = {name: index for index, name in labels.items()}

    def to_dict(self) -> dict[str, Any]:
        """The fields as `config.json` has them, `extra` and `model_type` included."""
        known = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        derived = {"num_labels", "return_dict", "output_hidden_states", "output_attentions"}
        written = {name: value for name, value in known.items() if name not in derived}
        return {**self.extra, **written, "model_type": self.model_type}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` into `folder`, which is made where it is missing; transformers reads it.

        Raises:
            ConfigError: a value was assigned that JSON does not have; torch's dtypes are written by their names.
        """
        target = Path(folder)
        text = self.to_json_string()
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG_NAME).write_text(text, encoding="utf-8")

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of a `config.json` with all fields, whatever `use_diff`; errors as of `save_pretrained`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=_written) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string` to a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Assign all of these; what is no field goes to `extra`.

        Raises:
            ConfigError: a field of the wrong type or out of range; then nothing is assigned.
        """
        hints, where = _hints(type(self)), type(self).__name__
        values = {self.aliases.get(name, name): value for name, value in config_dict.items() if name != "model_type"}
        for name in ({item.name for item in fields(self)} - {"extra"}) & {*values}:
            values[name] = _checked(values[name], hints[name], f"{where}: {name}", name)
        derived = {name for name in values if isinstance(getattr(type(self), name, None), property)}
        self.extra = {**self.extra, **{name: values.pop(name) for name in derived}}
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False, **others: Any
    ) -> Self:
        """Read `config.json` of a model folder or an id such as "org/name"; see `from_folder` and `resolve_folder`."""
        folder = resolve_folder(path, revision=revision, local_files_only=local_files_only)
        return cls.from_folder(folder, **others)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """Read the folder's `config.json`.

        Args:
            folder: holds the file.
            overrides: fields whose value in the file does not count; other arguments where they ask for nothing.

        Raises:
            ConfigError: naming the file and the field.
            OptionError: an override that is no field of this configuration.
        """
        path = folder / CONFIG_NAME
        raw = read_json(path, what="model configuration", largest=LARGEST_CONFIG)
        if "auto_map" in raw:
            logger.warning("%s: auto_map names code beside the weights; it is ignored, padless runs its own", path)
        return cls.from_dict(raw, source=str(path), **overrides)

    @classmethod
    def asked_for(cls, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides without those that are no fields and ask for nothing."""
        known = {item.name for item in fields(cls)} | set(cls.aliases)
        idle = {name for name, value in overrides.items() if name in MEANINGLESS or value in (None, False, "")} - known
        return {name: value for name, value in overrides.items() if name not in idle}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str | None = None, **overrides: Any) -> Self:
        """Build a configuration from the fields of a `config.json`.

        Args:
            raw: the parsed file.
            source: where it came from, for messages; None: the name of the class.
            overrides: as of `from_folder`.

        Raises:
            ConfigError: a field is missing, of the wrong type or out of range.
            OptionError: an override that is no field of this configuration.
        """
        source = source or cls.__name__
        overrides = cls.asked_for(overrides)
        for name in {*overrides} - {item.name for item in fields(cls)} - set(cls.aliases):
            raise OptionError(f"{name}: no field of {cls.__name__}")
        overrides = {cls.aliases.get(name, name): value for name, value in overrides.items()}
        if "num_labels" in overrides and overrides["num_labels"] != len(raw.get("id2label") or ()):
            raw = {name: value for name, value in raw.items() if name not in ("id2label", "label2id")}
        raw = {name: value for name, value in {**raw, **overrides}.items() if name != "model_type"}
        hints = _hints(cls)
        known = {item.name: item for item in fields(cls) if item.init and item.name != "extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in raw.items():
            target = name if name in known else cls.aliases.get(name)
            if target is None or target not in known:
                extra[name] = value
            elif target == name or target not in raw:
                values[target] = _checked(value, hints[target], f"{source}: {name}", target)
        for name, item in known.items():
            if name not in values and item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(f"{source}: {name}: missing")
        return cls(**values, extra=extra, source=source)

    def check(self, source: str) -> None:
        """Hook for what one field alone cannot show, such as a hidden size that the heads do not divide.

        Raises:
            ConfigError: naming `source` and the fields.
        """


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(value: Any, hint: Any, where: str, name: str) -> Any:
    limits = LIMITS.get(name)
    if not _fits(value, hint):
        raise ConfigError(f"{where}: expected {_spell(hint)}, got {_describe(value)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: expected a finite number, got {value}")
        if limits is not None and not limits[0] <= value <= limits[1]:
            raise ConfigError(f"{where}: expected {limits[0]:g} to {limits[1]:g}, got {_describe(value)}")
    return tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin in (list, tuple):
        return f"a list of {_spell(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return names.get(hint, "an object")


def _written(value: Any) -> str:
    kind = type(value)
    if (kind.__module__, kind.__name__) == ("torch", "dtype"):
        return str(value).removeprefix("torch.")
    raise ConfigError(f"{CONFIG_NAME}: expected values that JSON has, got a {kind.__name__}")


def _describe(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
