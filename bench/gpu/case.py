"""What the parts of a GPU report have in common: a case, what it is told, and the words for how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["BAD", "Case", "Context", "Figures", "context", "first_line"]

Figures = dict[str, Any]
"""What a case found, ready for JSON. `status` is one of:

    ok             everything that was checked held
    failed         it ran and was wrong; `reason` says in which way
    error          it raised, died or took too long; `reason` says how
    left out       it cannot run here; `reason` says why
"""

BAD = ("failed", "error")


@dataclass(frozen=True)
class Context:
    """Where the cases run.

    Attributes:
        device: the first GPU; the CPU in a dry run.
        dry: tiny sizes through the interpreter, nothing timed.
        memory: bytes of the device's memory that one case may plan with.
        warm: only compile: call everything once, check and time nothing.
    """

    device: torch.device
    dry: bool
    memory: int
    warm: bool = False


@dataclass(frozen=True)
class Case:
    """One line of the report.

    Attributes:
        name: unique within its part; "group/what".
        run: measures or checks; what it raises becomes the case's `error`.
        heavy: takes so much memory that no other heavy case may run beside it.
    """

    name: str
    run: Callable[[Context], Figures]
    heavy: bool = False


def context(dry: bool, warm: bool = False) -> Context:
    """The context of this process; a dry run never looks for a GPU."""
    if dry:
        return Context(torch.device("cpu"), True, 1 << 28, warm)
    # Half: several processes check at the same time, and a case's own tensors need room beside the oracle's.
    memory = torch.cuda.get_device_properties(0).total_memory // 2
    return Context(torch.device("cuda", 0), False, memory, warm)


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, as far as it fits into a line of the report."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:most] for line in lines if line), "no message")
