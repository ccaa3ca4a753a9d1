"""A model of transformers in place: `forward` and `generate` by ours."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ...errors import OptionError, PadlessError
from .families import our_class
from .forward import Forward
from .generate import Generate
from .refusals import check_model, check_weights, unsupported_class
from .twin import Twin

__all__ = ["accelerate_transformers_model", "restore_transformers_model"]

logger = logging.getLogger(__name__)


def accelerate_transformers_model(
    model: Any, *, dtype: str | torch.dtype | None = None, backend: str = "auto", deterministic: bool = False
) -> Any:
    """Have padless compute what the model is called for; it is changed in place, and returned.

    Args:
        model: of a class that padless has.
        dtype, backend, deterministic: as of `accelerate`.

    Raises:
        OptionError: a class padless does not have, or a model that cannot be taken as it is; says what to do.
        BackendError: `backend` or `deterministic` cannot be served.
    """
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


def restore_transformers_model(model: Any) -> Any:
    """Undo `accelerate_transformers_model`.

    Raises:
        OptionError: it is not accelerated.
    """
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
