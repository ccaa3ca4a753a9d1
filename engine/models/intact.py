"""Whether modules are still what they were when an op took over for all of them at once."""

from __future__ import annotations

from itertools import starmap
from operator import eq
from typing import Any

import torch
from torch import nn

__all__ = ["Intact", "make_of"]


class Intact:
    """What an op that computes for a whole tree of modules has to know before each call: that none of them was
    replaced, has a hook or a `forward` of its own, since none of that would be called.

    Asked once a layer and batch, so that what is looked at is found beforehand: the modules' own dictionaries.
    """

    def __init__(self, root: nn.Module, *, called: bool) -> None:
        """Look at the modules as they are now.

        Args:
            root: the module whose parts the op takes over for.
            called: whoever asks was called by way of `root` itself, whose own hooks have their turn anyway.
        """
        modules = list(root.modules())
        self._children = [(module._modules, dict(module._modules)) for module in modules if module._modules]
        silent = modules[1:] if called else modules
        self._hooks = [hooks for module in silent for hooks in _hooks(module)]
        self._attributes = [vars(module) for module in silent]

    @torch.compiler.assume_constant_result
    def __call__(self) -> bool:
        """True where all is as it was. While a compiler traces, this is asked once for all."""
        return (
            not any(self._hooks)
            and all(starmap(eq, self._children))
            and not any("forward" in attributes for attributes in self._attributes)
        )


def make_of(root: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What the modules of a tree are made of: by name their `forward`, and shape and type of each parameter.

    A tree of the same make computes the same from its weights; adapters and quantised layers are of another.
    """
    return {
        name: (
            type(module).forward,
            *((key, p.shape, type(p.data)) for key, p in module._parameters.items() if p is not None),
        )
        for name, module in root.named_modules()
    }


def _hooks(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
