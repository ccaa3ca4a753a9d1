"""What the kernels that move rows can serve, as reasons for the dispatch table."""

from __future__ import annotations

import torch

from ..engine.contract import Call

__all__ = ["DTYPES", "MAX_HIDDEN", "dtype_reasons", "hidden_reasons"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HIDDEN = 8192
"""Widest row that one program holds whole, for its norm, without spilling registers to memory."""


def dtype_reasons(call: Call) -> list[str]:
    """A reason if the dtype has no kernel."""
    if call.dtype in DTYPES:
        return []
    *names, found = (str(dtype).removeprefix("torch.") for dtype in (*DTYPES, call.dtype))
    return [f"needs dtype {', '.join(names)}, got {found}"]


def hidden_reasons(call: Call) -> list[str]:
    """A reason if rows are wider than a program can hold; a width that is not known passes."""
    if call.hidden is None or call.hidden <= MAX_HIDDEN:
        return []
    return [f"needs hidden up to {MAX_HIDDEN}, got {call.hidden}"]
