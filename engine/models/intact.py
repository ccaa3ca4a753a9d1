"""Ops that compute for several modules at once, as long as those are what they were found to be."""

from __future__ import annotations

from itertools import starmap
from operator import eq
from typing import Any, ClassVar

from torch import nn

from ..ops.bind import BoundOp
from .blocks import Block

__all__ = ["Intact", "TakingOver", "WholeOp"]


class WholeOp(BoundOp):
    """An op with the weights of a tree of modules. Its owner asks before each call whether they are `Intact`, and
    declares it anew where others stand in their places: it need not follow them.
    """

    def follow(self) -> None:
        """Nothing."""


class Intact:
    """Whether none of the modules was replaced, has a hook or a `forward` of its own, since an op that stands in for
    them calls none of that.

    Asked once a layer and batch, so that what is looked at is found beforehand: the modules' own dictionaries.
    """

    def __init__(self, owner: nn.Module, names: tuple[str, ...], *, called: bool) -> None:
        """Look at the modules as they are now.

        Args:
            owner: the module that has the op.
            names: the children that the op stands in for.
            called: the op is used where `owner` is called itself, so that its own hooks have their turn.
        """
        inside = [module for name in names for module in owner.get_submodule(name).modules()]
        self._children = [(module._modules, dict(module._modules)) for module in (owner, *inside) if module._modules]
        silent = inside if called else [owner, *inside]
        self._hooks = [hooks for module in silent for hooks in _hooks(module)]
        self._attributes = [vars(module) for module in silent]

    def __call__(self) -> bool:
        """True where all is as it was. While a compiler traces, this is asked once for all."""
        return (
            not any(self._hooks)
            and all(starmap(eq, self._children))
            and not any("forward" in attributes for attributes in self._attributes)
        )

    # What `torch.compiler.assume_constant_result` sets: that imports all of the compiler, two seconds and 160 MB.
    __call__._dynamo_marked_constant = True  # type: ignore[attr-defined]


class TakingOver(Block):
    """A block some of whose ops stand in for modules inside it.

    A class defines `_stand_in`, and calls `_take_over` once it has its modules. Where `intact` is false its ops must
    not be called; where a module of another make stands among them, there are none.
    """

    taken_over: ClassVar[tuple[str, ...]] = ()
    """Names of the children whose modules the ops stand in for."""
    itself_called: ClassVar[bool] = True
    """Whether the ops are used where this module is called."""
    may_resize: ClassVar[bool] = False
    """Whether weights of other shapes are as good."""

    _make: dict[str, tuple[Any, ...]] | None = None
    _intact: Intact | None = None

    @property
    def intact(self) -> bool:
        """Whether the ops compute what the modules would, if they were called."""
        return self._intact is not None and self._intact()

    def _stand_in(self) -> dict[str, BoundOp]:
        """The ops, by the attribute they become, on the modules that stand here now."""
        raise NotImplementedError

    def _take_over(self) -> None:
        made = self._made()
        self._make = self._make or made
        ours = made == self._make
        self._look()
        for name in self.__dict__.get("_standing_in", ()):
            setattr(self, name, None)
        ops = self._stand_in() if ours else {}
        self._standing_in = tuple(ops)
        for name, op in ops.items():
            setattr(self, name, op)

    def _look(self) -> None:
        ours = self._make is not None and self._made() == self._make
        self._intact = Intact(self, self.taken_over, called=self.itself_called) if ours else None

    def _made(self) -> dict[str, tuple[Any, ...]]:
        """What the modules are made of: by name their `forward`, and type and, unless that may change, shape of each
        parameter. Modules of one make compute the same from their weights; adapters and quantised layers are of
        another.
        """
        return {
            f"{child}.{name}": (
                type(module).forward,
                *((key, type(p.data), None if self.may_resize else p.shape)
                  for key, p in module._parameters.items() if p is not None),
            )
            for child in self.taken_over
            for name, module in self.get_submodule(child).named_modules()
        }  # fmt: skip

    def _bind_own(self) -> None:
        self._take_over()
        super()._bind_own()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied or unpickled module has dictionaries of its own.
        super().__setstate__(state)
        self._look()


def _hooks(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
