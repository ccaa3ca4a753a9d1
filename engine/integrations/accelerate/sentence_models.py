"""SentenceTransformer and CrossEncoder in place: `encode` and `predict` packed from text to vector and score."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...errors import OptionError
from .forward import Forward
from .sentence_loop import SentenceLoop, loop_name, loop_of
from .sentence_modules import SentenceModules
from .transformers_model import accelerate_transformers_model, restore_transformers_model

__all__ = ["accelerate_sentence_model", "restore_sentence_model"]

logger = logging.getLogger(__name__)


def accelerate_sentence_model(
    model: Any, *, dtype: str | torch.dtype | None = None, backend: str = "auto", deterministic: bool = False
) -> Any:
    """Have padless encode and predict; the model is changed in place, and returned.

    Its transformer is accelerated as by itself, for calls that are no `encode` or `predict`.

    Args:
        model: a SentenceTransformer or a CrossEncoder.
        dtype, backend, deterministic: as of `accelerate`.

    Raises:
        OptionError: it has a module that padless does not compute, or one that cannot be accelerated; names it.
        BackendError: `backend` or `deterministic` cannot be served.
    """
    try:
        modules = SentenceModules.of(model)
    except OptionError as error:
        raise OptionError(f"accelerate: {error}") from None
    if loop_of(model) is not None:
        name = type(model).__name__
        logger.warning("accelerate: %s is accelerated already; to change how, restore it first", name)
        return model
    accelerate_transformers_model(modules.hf_model, dtype=dtype, backend=backend, deterministic=deterministic)
    setattr(model, loop_name(model), SentenceLoop(model, backend=backend, deterministic=deterministic))
    return model


def restore_sentence_model(model: Any) -> Any:
    """Undo `accelerate_sentence_model`.

    Raises:
        OptionError: the model is not accelerated.
    """
    if loop_of(model) is None:
        found = type(model).__name__
        raise OptionError(f"restore: expected a model that padless.accelerate was called on, got a {found}")
    delattr(model, loop_name(model))
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Forward):
            restore_transformers_model(module)
    return model
