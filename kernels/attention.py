"""Varlen attention in Triton: the row is declared in the dispatch table, its kernel is not built yet.

Until it is, the row names that as its reason, and the next row of the table serves.
"""

from __future__ import annotations

from typing import Any

from ..engine.contract import Call
from ..engine.errors import BackendError

__all__ = ["unsupported", "varlen_attention"]


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return ["not built yet"]


def varlen_attention(*args: Any, **options: Any) -> Any:
    """The attention contract of `engine/ops/attention.py`.

    Raises:
        BackendError: always; the kernel is not built yet.
    """
    raise BackendError("the Triton row of attention is not built yet: bind it through the dispatch table")
