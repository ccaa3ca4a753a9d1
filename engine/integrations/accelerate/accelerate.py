"""`padless.accelerate(model)`, and `padless.restore(model)`, which takes it back."""

from __future__ import annotations

from typing import TypeVar

import torch

from .sentence_models import accelerate_sentence_model, restore_sentence_model
from .sentence_modules import kind_of
from .transformers_model import accelerate_transformers_model, restore_transformers_model

__all__ = ["accelerate", "restore"]

Model = TypeVar("Model")


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
    chosen = accelerate_transformers_model if kind_of(model) is None else accelerate_sentence_model
    return chosen(model, dtype=dtype, backend=backend, deterministic=deterministic)


def restore(model: Model) -> Model:
    """Undo `accelerate`: the model computes as it did before, from the same values.

    Returns:
        The model that was handed in.

    Raises:
        OptionError: it is not accelerated.
    """
    return restore_transformers_model(model) if kind_of(model) is None else restore_sentence_model(model)
