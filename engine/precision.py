"""Which device and which dtype: "auto" resolved, names checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..autotune.device import identify
from .errors import OptionError

__all__ = ["resolve_checkpoint_dtype", "resolve_device", "resolve_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
BF16_FEATURES = {"amx_bf16", "avx512_bf16", "arm_bf16"}
"""Instruction sets that multiply bf16 at a higher rate than fp32."""


logger = logging.getLogger(__name__)


def resolve_device(device: str | int | torch.device) -> torch.device:
    """The torch device; "auto" is the GPU where there is one, else the CPU, and so is a bare GPU number.

    Raises:
        OptionError: a device torch does not know, or one this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}" if device >= 0 and torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise OptionError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise OptionError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device: {chosen} was asked for, this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype; "auto" is the fastest the hardware computes in: bf16 on a GPU and on CPUs with bf16 instructions.

    Raises:
        OptionError: not a floating dtype that padless computes in.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16
        return torch.bfloat16 if BF16_FEATURES & identify(device).features else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise OptionError(f"dtype: expected 'auto' or one of {', '.join(DTYPES)}, got {str(dtype)!r}")
    return chosen


def resolve_checkpoint_dtype(
    dtype: str | torch.dtype, config: Any, refused: Mapping[torch.dtype, str], source: str
) -> torch.dtype:
    """The dtype of a model that is loaded to be used as the checkpoint has it: "auto" is what its configuration names.

    Args:
        dtype: "auto", a name or a torch dtype.
        config: its `dtype` or `torch_dtype` field counts for "auto"; float32 where there is none.
        refused: dtype -> why the family cannot compute in it; "auto" then takes float32, with a warning.
        source: the folder, for messages.

    Raises:
        OptionError: not a floating dtype that padless computes in, or one that is refused.
    """
    if dtype == "auto":
        named = str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or "float32")
        chosen = DTYPES.get(named.removeprefix("torch."), torch.float32)
        if chosen in refused:
            logger.warning("%s: stored in %s, loaded in float32: %s", source, named, refused[chosen])
            return torch.float32
        return chosen
    chosen = resolve_dtype(dtype, torch.device("cpu"))
    if chosen in refused:
        raise OptionError(f"dtype: {str(chosen).removeprefix('torch.')} for {source}: {refused[chosen]}")
    return chosen
