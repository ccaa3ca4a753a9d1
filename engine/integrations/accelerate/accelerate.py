"""`padless.accelerate(model)`, and `padless.restore(model)`, which takes it back."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import OptionError, PadlessError
from .families import our_class
from .forward import Forward
from .generate import Generate
from .refusals import check_model, check_weights, unsupported_class
from .sentence_models import accelerate_sentence_model, restore_sentence_model
from .sentence_modules import kind_of
from .twin import Twin

__all__ = ["accelerate", "restore"]

Model = TypeVar("Model")

logger = logging.getLogger(__name__)


def accelerate(
    model: Model, *, dtype: str | torch.dtype | None = None, backend: str = "auto", deterministic: bool = False
) -> Model:
    """Have padless compute what a model of transformers or sentence-transformers is called for, without padding.

    The model stays what it is: its class, configuration, parameters, outputs, `save_pretrained` and `generate`. Calls
    that padless does not serve go to transformers, with one log line for each reason. docs/accelerate.md says which.

    Args:
        model: a model of transformers in evaluation mode, a SentenceTransformer or a CrossEncoder; changed in place.
        dtype: what to compute in, "float32", "bfloat16", "float16" or "auto" for the fastest here; None is what the
            weights are, which are then shared. Another one keeps a copy; outputs have the model's own dtype all the
            same.
        backend: "auto", or the name of a row of the dispatch table, which then serves or raises.
        deterministic: only rows that promise the same bits for a text whatever its neighbours.

    Returns:
        The model that was handed in.

    Raises:
        OptionError: a class padless does not have, a model in training mode, with hooks, quantised, on the meta device
            or split over devices; says what to do.
        BackendError: `backend` or `deterministic` cannot be served.
    """
    if kind_of(model) is not None:
        return accelerate_sentence_model(model, dtype=dtype, backend=backend, deterministic=deterministic)
    if not isinstance(model, nn.Module) or our_class(model) is None:
        raise unsupported_class(model)
    name = type(model).__name__
    if _forward_of(model) is not None:
        logger.warning("accelerate: %s is accelerated already; to change how, restore it first", name)
        return model
    check_weights(model)
    check_model(model)
    twin = Twin(model, dtype, backend, deterministic)
    try:
        twin.make()
    except PadlessError:
        twin.leave()
        raise
    vars(model)["forward"] = Forward(twin)
    if hasattr(twin.ours, "generate"):
        vars(model)["generate"] = Generate(twin)
    weights = "the model's own weights" if twin.shares else "a copy of the weights"
    megabytes = twin.copied() / 1e6
    logger.info("accelerate: %s: %s, %.1f MB beside them for other layouts and dtypes", name, weights, megabytes)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: the model computes as it did before, from the same values.

    Returns:
        The model that was handed in.

    Raises:
        OptionError: it is not accelerated.
    """
    if kind_of(model) is not None:
        return restore_sentence_model(model)
    forward = _forward_of(model)
    if forward is None:
        raise OptionError(f"restore: expected a model that was accelerated, got a {type(model).__name__} that was not")
    for name in ("forward", "generate"):
        vars(model).pop(name, None)
    forward.twin.leave()
    return model


def _forward_of(model: Any) -> Forward | None:
    found = vars(model).get("forward") if isinstance(model, nn.Module) else None
    return found if isinstance(found, Forward) else None
