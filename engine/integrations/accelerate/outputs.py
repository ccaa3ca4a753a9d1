"""What our models return in the classes of transformers."""

from __future__ import annotations

import sys
from typing import Any, get_args

import torch
from torch import Tensor

__all__ = ["as_theirs", "output_class"]


def output_class(model: Any) -> Any | None:
    """The class that a model's `forward` says it returns; None where it names none."""
    if type(model).__name__.endswith("EncoderModel"):
        # It passes on what its stack returns, whatever it says of itself.
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions
    found = type(model).forward.__annotations__.get("return")
    names = vars(sys.modules[type(model).__module__])
    if isinstance(found, str):
        parts = [names.get(part.strip()) for part in found.split("|")]
    else:
        parts = [found, *get_args(found)]
    outputs = [part for part in parts if isinstance(part, type) and hasattr(part, "to_tuple")]
    return outputs[0] if outputs else None


def as_theirs(output: Any, wanted: Any, dtype: torch.dtype | None, **others: Any) -> Any:
    """Our output as one of transformers.

    Args:
        output: of our model, with fields of the same names.
        wanted: the class.
        dtype: what floating tensors become; None leaves them.
        others: values of fields that ours do not have, where the class has them.
    """
    found = {name: getattr(output, name, None) for name in wanted.__dataclass_fields__}
    found |= {name: value for name, value in others.items() if name in found}
    return wanted(**{name: _cast(value, dtype) for name, value in found.items()})


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(one, dtype) for one in value)
    floating = dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
