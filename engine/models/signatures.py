"""What code that inspects a model class is told of its `forward`.

The task classes share one `forward`, which knows the targets of all tasks and refuses those of another. transformers'
Trainer reads from the signature which inputs are labels, and evaluates no loss where one of them is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any

__all__ = ["taking"]

TARGETS = ("labels", "next_sentence_label", "start_positions", "end_positions", "positions")


def taking(forward: Callable[..., Any], targets: Collection[str]) -> Callable[..., Any]:
    """The same function, whose signature shows these targets alone.

    Args:
        forward: of a class, which other classes may share.
        targets: of the class.
    """
    assert isinstance(forward, FunctionType)
    own = FunctionType(
        forward.__code__, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__
    )
    own.__kwdefaults__, own.__qualname__ = forward.__kwdefaults__, forward.__qualname__
    own.__doc__, own.__annotations__ = forward.__doc__, forward.__annotations__
    # A class above may have had fewer.
    whole = own.whole_signature = getattr(forward, "whole_signature", None) or inspect.signature(forward)  # pyright: ignore[reportFunctionMemberAccess]
    shown = [p for name, p in whole.parameters.items() if name not in TARGETS or name in targets]
    own.__signature__ = whole.replace(parameters=shown)  # pyright: ignore[reportFunctionMemberAccess]
    return own
