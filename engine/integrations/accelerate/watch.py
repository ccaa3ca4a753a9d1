"""Whether a model of transformers is still what our model was made of."""

from __future__ import annotations

from itertools import chain, repeat
from operator import contains, is_, itemgetter
from typing import Any

from torch import Tensor, nn

from .refusals import foreign_hooks

__all__ = ["Watch"]


class Watch:
    """A model's modules and parameters as they are now, and what was done to them since.

    Asked at every call, so that what is looked at is found beforehand: the modules' own dictionaries.
    """

    def __init__(self, model: nn.Module, *, writes: bool) -> None:
        """Look at the model as it is now.

        Args:
            model: with all its modules.
            writes: values that are written to a parameter count as a change too.
        """
        modules = list(model.modules())
        self._inside = modules[1:]
        self._attributes = [vars(module) for module in modules]
        self._parts = [part for m in modules for part in (m._parameters, m._modules) if part]
        self._hooks = [hooks for m in self._inside for hooks in _hooks(m)]
        self._writes = writes
        self._held = self._objects()
        self._tensors = [held for held in self._held if isinstance(held, Tensor)]
        self._places = self._found()

    @property
    def training(self) -> bool:
        """A module is in training mode."""
        return any(map(itemgetter("training"), self._attributes))

    @property
    def hooked(self) -> bool:
        """A module inside has a hook, or a `forward` of its own, which our model would pass by."""
        if any(self._hooks) and any(map(foreign_hooks, self._inside)):
            return True
        return any(map(contains, self._attributes[1:], repeat("forward")))

    @property
    def unchanged(self) -> bool:
        """All modules and parameters are the same objects, and no parameter was moved or given other memory."""
        objects = self._objects()
        return len(objects) == len(self._held) and all(map(is_, objects, self._held)) and self._found() == self._places

    def _objects(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._parts)))

    def _found(self) -> list[Any]:
        if not self._writes:
            return list(map(Tensor.data_ptr, self._tensors))
        # Tensors made in inference mode count no writes.
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors]


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
