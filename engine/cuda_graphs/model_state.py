"""What a recording of a model's work depends on beside its input: noticed when it changes, kept alive until then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..ops.bind import BoundOp

__all__ = ["ModelState"]


class ModelState:
    """Modules, weights and chosen implementations as they are now.

    A recording reads weights at their addresses: those of the parameters, and of what `BoundOp`s prepared from them. A
    state holds on to both, so that a recording that is out of date reads old numbers and never memory of others.

    Modules are looked through as lists of dictionaries, not with `modules()`, which takes milliseconds: what must be
    looked at is looked at in about a tenth of a microsecond each (one CPU core).
    """

    def __init__(self, modules: Iterable[nn.Module], ops: Iterable[BoundOp]) -> None:
        """Take down what is there.

        Args:
            modules: those whose parts are looked at, with all inside them.
            ops: those that they call.
        """
        found = [part for module in modules for part in module.modules()]
        self._parts = [(module._modules, tuple(module._modules.items())) for module in found if module._modules]
        self._hooks = [(module, _hooks(module)) for module in found]
        self._weights = [
            (table, name, weight, _place(weight))
            for module in found
            for table in (module._parameters, module._buffers)
            for name, weight in table.items()
        ]
        self._ops = [(op, op.resolution, op._prepared) for op in ops]

    @property
    def recordable(self) -> bool:
        """Whether ops alone say what is computed: no layer was replaced or has hooks, and nothing is in training."""
        return all(op.plain for op, _, _ in self._ops) and not any(module.training for module, _ in self._hooks)

    def holds(self) -> bool:
        """True unless a module, a weight, a hook or the implementation of an op is another one than it was."""
        return (
            all(op.resolution is resolution and op._prepared is prepared for op, resolution, prepared in self._ops)
            and all(_place(weight) == place for _, _, weight, place in self._weights)
            and all(table.get(name) is weight for table, name, weight, _ in self._weights)
            and all(tuple(table.items()) == parts for table, parts in self._parts)
            and all(_hooks(module) == hooks for module, hooks in self._hooks)
        )


def _place(weight: Tensor | None) -> tuple[int, int] | None:
    if weight is None:
        return None
    # Tensors made in inference mode count no writes.
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    state = module.__dict__
    hooks = len(state["_forward_hooks"]), len(state["_forward_pre_hooks"])
    return (*hooks, state["training"], "forward" in state)
