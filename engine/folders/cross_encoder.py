"""A folder of a CrossEncoder of sentence-transformers, read: prompts, lengths, and what its scores go through.

Every vintage is understood, as sentence-transformers 6.2 reads it: since version 5.5 with `modules.json`; before that a
plain folder whose `config.json` may name the activation. Names are read and never imported.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CONFIG_NAME, read_json
from ..errors import ConfigError
from .sentence_transformer import (
    ACTIVATIONS,
    module_entries,
    module_folder,
    read_model_settings,
    read_transformer_settings,
)

__all__ = ["MODULES_NAME", "CrossEncoderFolder", "is_cross_encoder", "read_cross_encoder_folder"]

MODULES_NAME = "modules.json"
SETTINGS_NAME = "config_sentence_transformers.json"
NAME_BEFORE_4 = "sbert_ce_default_activation_function"
"""Of the activation, in `config.json`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossEncoderFolder:
    """What the folder says.

    Attributes:
        transformer_folder: where config.json, weights and tokenizer are.
        max_seq_length: tokens of a pair; None where only the tokenizer and the model limit them.
        do_lower_case: texts are lower-cased before the tokenizer's own normalisation.
        activation: a value of `ACTIVATIONS`; None where the folder names none.
        prompts: name -> text put before each query.
        default_prompt_name: the prompt used when the caller names none, or None.
    """

    transformer_folder: Path
    max_seq_length: int | None
    do_lower_case: bool
    activation: str | None
    prompts: dict[str, str]
    default_prompt_name: str | None


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder was saved by a CrossEncoder."""
    path = folder / SETTINGS_NAME
    if (folder / MODULES_NAME).exists():
        return path.exists() and read_json(path, what="settings").get("model_type") == "CrossEncoder"
    raw = _config(folder)
    return NAME_BEFORE_4 in raw or "sentence_transformers" in raw


def read_cross_encoder_folder(folder: Path) -> CrossEncoderFolder:
    """Read the settings of a CrossEncoder, or of any folder with a classifier of one label.

    Raises:
        ConfigError: a file or field is malformed, there is a module that padless does not compute, or an activation.
    """
    settings = folder / SETTINGS_NAME
    modules = folder / MODULES_NAME
    transformer, limit, lowercase = folder, None, False
    if modules.exists():
        first, *others = module_entries(modules)
        if others:
            raise ConfigError(f"{modules}: expected a Transformer alone, got also {others[0]['type']!r:.80}")
        transformer = module_folder(folder, first, modules)
        limit, lowercase = read_transformer_settings(transformer, task="sequence-classification", output="scores")
    prompts, default_prompt_name, _ = read_model_settings(settings, "CrossEncoder")
    activation = _activation(read_json(settings, what="settings") if settings.exists() else {}, _config(transformer))
    return CrossEncoderFolder(
        transformer_folder=transformer,
        max_seq_length=limit,
        do_lower_case=lowercase,
        activation=activation,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    return read_json(path, what="model configuration") if path.exists() else {}


def _activation(settings: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The first activation that is named by a class of torch; others would be code of the folder's own."""
    inner = config.get("sentence_transformers")
    inner = inner if isinstance(inner, dict) else {}
    in_config = inner["activation_fn"] if "activation_fn" in inner else config.get(NAME_BEFORE_4)
    for named in (settings.get("activation_fn"), in_config):
        if named is None:
            continue
        if not isinstance(named, str) or not named.startswith("torch."):
            logger.warning("activation_fn %r is no class of torch: the default is taken", named)
            continue
        name = named.rpartition(".")[2]
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation_fn: expected one of {known} in torch.nn, got {named!r:.80}")
        return ACTIVATIONS[name]
    return None
