"""What every model class shares: built from a configuration, loaded from a folder, saved to one."""

from __future__ import annotations

import inspect
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ..config import CONFIG_NAME, ModelConfig, model_type
from ..errors import ConfigError, OptionError
from ..hub import resolve_folder
from ..ops.bind import explain_ops
from ..precision import resolve_checkpoint_dtype, resolve_device
from ..weights import NameRules, load_weights, save_weights
from .checkpointing import WithCheckpointing
from .parameters import initialise
from .resizing import WithVocabulary

__all__ = ["PreTrainedModel", "parameters_left_empty"]

LARGEST_SHARD = 5_000_000_000
"""Bytes of one weights file; what the hub recommends."""

logger = logging.getLogger(__name__)


class _Construction(threading.local):
    """How deep this thread is inside constructors of models, and whether their parameters are to stay as they are."""

    depth = 0
    empty = False


_construction = _Construction()


@contextmanager
def parameters_left_empty() -> Iterator[None]:
    """Models built inside leave their parameters unfilled: a checkpoint is about to be read into them."""
    before, _construction.empty = _construction.empty, True
    try:
        yield
    finally:
        _construction.empty = before


class _ModelType(type):
    """Calling a model class builds the whole model, then ties, fills and binds it once, whatever it is nested in."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        _construction.depth += 1
        try:
            model = super().__call__(*args, **kwargs)
        finally:
            _construction.depth -= 1
        if _construction.depth == 0:
            model.tie_weights()
            if not _construction.empty:
                model.initialise()
            model.bind()
        return model


class PreTrainedModel(WithVocabulary, WithCheckpointing, metaclass=_ModelType):
    """Base of every model class.

    A class defines:
        config_class: the configuration it is built from.
        base_model_prefix: attribute that holds the bare model inside a class with a head; also the names' prefix.
        name_rules: from a checkpoint's names to the parameters' names.
        tied: name -> name of the parameter it is, where the configuration ties word embeddings.
        refused_dtypes: dtype -> why this family cannot compute in it.
        vocabulary: which of its parameters have a row for every token.
    """

    config_class: ClassVar[type[ModelConfig]]
    base_model_prefix: ClassVar[str] = ""
    name_rules: ClassVar[NameRules] = NameRules()
    tied: ClassVar[Mapping[str, str]] = {}
    refused_dtypes: ClassVar[Mapping[torch.dtype, str]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            expected, found = self.config_class, type(config)
            others = f" of {found.__module__.split('.')[0]}" if found.__name__ == expected.__name__ else ""
            raise OptionError(f"{type(self).__name__}: expected a {expected.__name__}, got {found.__name__}{others}")
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        config: Any = None,
        dtype: str | torch.dtype | None = "auto",
        torch_dtype: str | torch.dtype | None = None,
        device: str | int | torch.device | None = None,
        backend: str = "auto",
        deterministic: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        device_map: Any = None,
        attn_implementation: str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """Build the model that a folder describes and fill it with the folder's weights; in evaluation mode.

        A task head or pooler that the checkpoint lacks as a whole is initialised, with a warning that names it.

        Args:
            path: a model folder, or an id such as "org/name"; see `engine/hub.py`.
            config: used instead of the folder's `config.json`.
            dtype: "auto" is the checkpoint's own; else "float32", "bfloat16", "float16", "float64" or a torch dtype;
                None is "auto".
            torch_dtype: older spelling of `dtype`.
            device: "auto", "cpu", "cuda", "cuda:N" or N, which is the CPU where there is no GPU; None is the CPU.
            backend: "auto", or the name of a row of the dispatch table, which then serves or raises.
            deterministic: only rows that promise the same bits for a text whatever its neighbours.
            revision: branch, tag or commit on the hub.
            local_files_only: never ask the hub.
            device_map: "auto" means `device="auto"`; a device means that device.
            attn_implementation: accepted, and ignored with one log line: the dispatch table decides.
            use_safetensors: False allows pickled weights (`pytorch_model.bin`), read with torch's restricted unpickler.
            ignore_mismatched_sizes: a task head whose shape is another one in the checkpoint, such as that of another
                number of labels, is initialised as if it were not there.
            overrides: fields of the configuration, such as `num_labels`, and arguments of the class, such as
                `add_pooling_layer`. Others of transformers' are accepted where they are None, False or empty.

        Raises:
            ModelNotFoundError, ConfigError, WeightsError: the folder; one line that names file and field.
            OptionError: an argument is out of range, or an override is no field.
            BackendError: `backend` or `deterministic` cannot be served.
        """
        if attn_implementation is not None:
            logger.info("attn_implementation=%r is ignored: the dispatch table chooses", attn_implementation)
        folder = resolve_folder(path, revision=revision, local_files_only=local_files_only)
        parameters = inspect.signature(cls.__init__).parameters
        arguments = {name: overrides.pop(name) for name in [*overrides] if name in parameters}
        overrides = cls.config_class.asked_for(overrides)
        if config is None:
            config = cls._read_config(folder, overrides)
        elif overrides:
            raise OptionError(f"{', '.join(overrides)}: given beside config, expected one or the other")
        target = resolve_device("cpu" if (wanted := device_map if device is None else device) is None else wanted)
        wanted_dtype = dtype if torch_dtype is None else torch_dtype
        precision = resolve_checkpoint_dtype(
            "auto" if wanted_dtype is None else wanted_dtype, config, cls.refused_dtypes, str(folder)
        )
        with parameters_left_empty():
            model = cls(config, **arguments)
        report = load_weights(
            model,
            folder,
            cls.name_rules,
            dtype=precision,
            device=target,
            optional=model.optional_parts(),
            replaceable=ignore_mismatched_sizes,
            tied=model.tie_table(),
            pickled=use_safetensors is False,
            progress=True,
        )
        for name in report.initialised:
            if model.fill_missing(name):
                continue
            logger.warning(
                "%s: no weights for %s, which %s needs: initialised at random; train it before use",
                folder, name, cls.__name__,
            )  # fmt: skip
        model.read_beside(folder)
        return model.eval().bind(backend, deterministic)

    def read_beside(self, folder: Path) -> None:
        """Take what a folder holds for this class beside configuration and weights."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        max_shard_size: int | str = LARGEST_SHARD,
        safe_serialization: bool = True,
        is_main_process: bool = True,
    ) -> None:
        """Write `config.json` and safetensors files that this class and transformers' class of that name read.

        Args:
            folder: made where it is missing.
            max_shard_size: bytes, or a text such as "5GB"; larger models are cut into several files and an index.
            safe_serialization: True; nothing else is written.
            is_main_process: False writes nothing, where several processes hold the same model.

        Raises:
            WeightsError: a file cannot be written.
            OptionError: an argument is out of range.
        """
        if not safe_serialization:
            raise OptionError("safe_serialization: expected True, padless writes no pickles")
        limit = _bytes(max_shard_size)
        if not is_main_process:
            return
        self.config.extra = {
            **self.config.extra,
            "architectures": [type(self).__name__],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        self.config.save_pretrained(folder)
        save_weights(self, Path(folder), max_shard_size=limit)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @property
    def base_model(self) -> Any:
        """The bare model inside a class with a head; the model itself where it has none."""
        return getattr(self, self.base_model_prefix, self)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many values the parameters hold, of tables of embeddings too unless excluded; tied ones count once."""
        tables = [module.weight for module in self.modules() if isinstance(module, nn.Embedding)]
        left_out = {id(weight) for weight in tables} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in left_out)
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def explain(self) -> str:
        """What serves each op of this model here, and why the other implementations do not."""
        return explain_ops(self.bound_ops())

    def tie_table(self) -> dict[str, str]:
        """Name -> name of the parameter that it is, in this model."""
        return dict(self.tied) if self.config.tie_word_embeddings else {}

    def tie_weights(self) -> None:
        """Make every tied name the same parameter as its source."""
        for name, source in self.tie_table().items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    def optional_parts(self) -> tuple[str, ...]:
        """Submodules that a checkpoint may lack as a whole: the head, and the pooler."""
        base = self.base_model
        inside = "" if base is self else f"{self.base_model_prefix}."
        heads = [] if base is self else [name for name, _ in self.named_children() if name != self.base_model_prefix]
        poolers = [f"{inside}pooler"] if getattr(base, "pooler", None) is not None else []
        return (*heads, *poolers)

    def initialise(self, part: nn.Module | None = None) -> None:
        """Fill the parameters of the model, or of one part of it, by the rule of the configuration."""
        initialise(self if part is None else part, self.config.initializer_range)

    def fill_missing(self, name: str) -> bool:
        """Fill an optional part that the checkpoint lacks; True where other weights say what belongs there."""
        self._initialise_part(name)
        return False

    def _initialise_part(self, name: str) -> None:
        """Fill one submodule; what it shares with the rest of the model, which is loaded, stays as it is."""
        for tied in self.tie_table():
            owner, _, attribute = tied.rpartition(".")
            if tied.startswith(f"{name}."):
                setattr(self.get_submodule(owner), attribute, nn.Parameter(torch.empty(0)))
        self.initialise(self.get_submodule(name))
        self.tie_weights()

    def _bind_own(self) -> None:
        reason = self.refused_dtypes.get(self.dtype)
        if reason is not None:
            raise OptionError(f"{type(self).__name__}: {str(self.dtype).removeprefix('torch.')}: {reason}")
        super()._bind_own()

    @classmethod
    def _read_config(cls, folder: Path, overrides: Mapping[str, Any]) -> Any:
        found = model_type(folder)
        if found != cls.config_class.model_type:
            expected = cls.config_class.model_type
            raise ConfigError(f"{folder / CONFIG_NAME}: model_type: {cls.__name__} expects {expected!r}, got {found!r}")
        return cls.config_class.from_folder(folder, **overrides)


def _bytes(size: int | str) -> int:
    """A size such as "5GB" or "200MiB" in bytes."""
    found = re.fullmatch(r"(\d+) ?([KMGT]?)(i?)B", size.upper().replace("IB", "iB")) if isinstance(size, str) else None
    if found is not None:
        number, unit, binary = found.groups()
        return int(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " ")
    if not isinstance(size, int) or isinstance(size, bool):
        raise OptionError(f"max_shard_size: expected bytes or a text such as '5GB', got {size!r}")
    return size
