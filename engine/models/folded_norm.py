"""A norm folded into the product behind it. Where a row of the table does that, the normalised rows are never written:
the residual stream is read as it is, and its statistics come with it from the product that wrote it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..memo import Memo
from ..ops.bind import BoundOp
from .intact import Intact

__all__ = ["FoldedNorm"]


class FoldedNorm(BoundOp):
    """The `norm_linear` op on the weights of a norm and of the linear op behind it, which keep them.

    Whoever owns it asks `folds` before each call, and calls the two parts where it does not.
    """

    def __init__(self, norm: BoundOp, product: BoundOp, owner: nn.Module, children: tuple[str, ...]) -> None:
        """Declare the op.

        Args:
            norm: a `norm` or `rms_norm` op.
            product: a `linear` op without residual, called with what `norm` returns.
            owner: the module that has the norm's module and the product's inside it.
            children: their names there.
        """
        self._of = norm, product
        self._seen = norm._weights, product._weights
        kind = "layer_norm" if norm.op == "norm" else "rms_norm"
        options = {**product.options, **norm.options}
        super().__init__("norm_linear", *self._both(), facts={**product._facts, "norm": kind}, norm=kind, **options)
        self.parts = self._of
        self._intact = Intact(owner, children, called=True)

    def watch(self, children: dict[str, nn.Module | None]) -> None:
        """Nothing: what it follows are its parts."""

    def bind(self, device: torch.device, dtype: torch.dtype, *, backend: str, deterministic: bool) -> None:
        """As `BoundOp.bind`, for rows of the product's dtype: a norm's weights may be wider than the model."""
        weight = self._of[1]._sources[0].tensor
        dtype = dtype if weight is None else weight.dtype
        super().bind(device, dtype, backend=backend, deterministic=deterministic)

    def follow(self) -> None:
        """Take the weights that the parts have now."""
        norm, product = self._of
        norm.follow()
        product.follow()
        if self._seen[0] is not norm._weights or self._seen[1] is not product._weights:
            self._seen = norm._weights, product._weights
            self._take_weights(*self._both())
            self.options = {**self.options, **norm.options}

    def folds(self, x: Tensor) -> bool:
        """Whether a call with these rows, `[tokens, hidden]`, may stand for the parts' calls now."""
        if self.resolution is None or not self.fused or x.dtype != self.resolution.call.dtype:
            return False
        self.follow()
        return all(part.plain for part in self._of) and self._intact() and not self.wants_gradient(x)

    def product(self, x: Tensor, memo: Memo, **options: Any) -> Tensor:
        """`linear(norm(x))`, with the statistics of x where they were handed on with it."""
        return self(x, statistics=memo.handed(x), **options)

    def asks(self, memo: Memo, *writers: nn.Module) -> Memo | None:
        """The memo in which to hand on the statistics of the rows that it reads next; None where nobody would ask.

        Args:
            memo: of the pass.
            writers: the modules that return those rows one after the other. What a hook of theirs writes to rows that
                were made in inference mode leaves no trace, so their statistics are not handed on.
        """
        return memo if self.fused and not any(module._forward_hooks for module in writers) else None

    def _both(self) -> tuple[Any, ...]:
        (scale, *shift), product = self._seen
        return (scale, *(shift or (None,)), *product)
