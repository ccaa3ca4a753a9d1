"""Which device and which dtype: "auto" resolved, names checked."""

from __future__ import annotations

import torch

from ..autotune.device import identify
from .errors import OptionError

__all__ = ["resolve_device", "resolve_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
BF16_FEATURES = {"amx_bf16", "avx512_bf16", "arm_bf16"}
"""Instruction sets that multiply bf16 at a higher rate than fp32."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device; "auto" is the GPU where there is one, else the CPU.

    Raises:
        OptionError: a device torch does not know, or one this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
