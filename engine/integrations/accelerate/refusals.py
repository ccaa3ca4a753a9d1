"""What cannot be accelerated, each in one line that says what to do instead."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from ...errors import OptionError
from .families import is_from_transformers, supported

__all__ = ["check_model", "check_weights", "foreign_hooks", "unsupported_class"]


def unsupported_class(model: Any) -> OptionError:
    """Why this object cannot be accelerated: what it is, and what could be."""
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        return OptionError("accelerate: expected a model, got what torch.compile made of one: pass model._orig_mod")
    if isinstance(getattr(model, "module", None), nn.Module):
        return OptionError(f"accelerate: expected a model, got a {name} around one: pass model.module")
    if callable(getattr(model, "merge_and_unload", None)):
        return OptionError(f"accelerate: expected a model, got a {name}: pass what model.merge_and_unload() returns")
    derived = any(base.__module__.startswith("transformers.models.") for base in type(model).__mro__)
    why = " is derived from one of transformers, whose forward may be another" if derived else " is not supported"
    if is_from_transformers(model):
        why = " is not supported"
    return OptionError(f"accelerate: {name}{why}; supported are those of transformers: {supported()}")


def check_weights(model: Any) -> None:
    """Refuse weights that our modules cannot share.

    Raises:
        OptionError: they are quantised, without memory, in several dtypes or on several devices; says what to do.
    """
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise OptionError("accelerate: the model is on the meta device, without weights: load them first")
    quantised = getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False)
    strange = [p for p in parameters if type(p) is not nn.Parameter or type(p.data) is not torch.Tensor]
    if quantised or strange or not all(parameter.is_floating_point() for parameter in parameters):
        found = f", got a {type(strange[0]).__name__}" if strange else ""
        raise OptionError(f"accelerate: expected plain weights{found}: load the model without quantization_config")
    devices = sorted({str(parameter.device) for parameter in parameters})
    if len(devices) > 1:
        raise OptionError(f"accelerate: the model is split over {', '.join(devices)}: load it on one device")
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    if len(dtypes) > 1:
        raise OptionError(f"accelerate: weights of {' and '.join(dtypes)}, expected one: call model.to(dtype) first")


def check_model(model: Any) -> None:
    """Refuse a model on which something is set that ours would pass by; what `check_weights` refuses is not asked.

    Raises:
        OptionError: it trains, has hooks, or modules whose `forward` was replaced; says what to do.
    """
    places = getattr(model, "hf_device_map", None) or {}
    if len({*map(str, places.values())}) > 1:
        raise OptionError("accelerate: the model is split by device_map: load it on one device, such as device_map=0")
    for name, module in model.named_modules():
        where = name or type(model).__name__
        if "forward" in vars(module):
            raise OptionError(
                f"accelerate: {where}: its forward was replaced, by hooks of device_map or by another tool: undo that "
                "first, or load the model on one device"
            )
        if name and foreign_hooks(module):
            raise OptionError(f"accelerate: {where} has hooks, which would not be called: remove them first")
    if _sees_ahead(model):
        raise OptionError(
            f"accelerate: {type(model).__name__} with is_decoder: in this version of transformers a token sees those "
            "behind it, here it does not: upgrade transformers"
        )
    if any(module.training for module in model.modules()):
        raise OptionError("accelerate: the model is in training mode: call model.eval() first")


def _sees_ahead(model: Any) -> bool:
    """Whether this is a decoder whose causal mask transformers forgot, as it did for MegatronBERT for a while."""
    decodes = model.config.model_type == "megatron-bert" and getattr(model.config, "is_decoder", False)
    return decodes and not hasattr(sys.modules[type(model).__module__], "create_causal_mask")


def foreign_hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module but those that transformers keeps there, with which it records hidden states."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    found = [hook for each in hooks for hook in each.values()]
    return [hook for hook in found if not getattr(hook, "__module__", "").startswith("transformers.utils.")]
