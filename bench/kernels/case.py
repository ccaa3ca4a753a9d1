"""One call of one op: its inputs, its weights, what the dispatch table is told about it, and what it costs at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...engine.ops.bind import BoundOp
from ..gpu.problem import Inputs
from ..lengths import Lengths
from .cost import Cost

__all__ = ["Case", "Draw", "Ready", "Results", "bound", "results"]

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """Arguments of one op, made once and handed to every system: `fn(*inputs, *weights, **options)`.

    Attributes:
        op: a key of the dispatch table.
        name: whose shape it is and what it computes: "BERT-base up, gelu".
        lengths: the texts of the batch.
        dtype: of the activations and weights.
        device: where all of it is.
        facts: what the dispatch table is told beside device and dtype, as a model tells it.
        inputs: positional arguments in front of the weights.
        weights: positional arguments behind them, which a row of the table may prepare.
        options: keyword arguments.
        cost: FLOPs, and bytes that must cross the memory bus once.
        by_row: places in `inputs` and names in `options` whose tensors have a row for each row of the result; empty
            where a row of the result depends on its neighbours. Of a tuple the first tensor has.
        attention: the same call as a problem of attention, for peers that want it so.
    """

    op: str
    name: str
    lengths: Lengths
    dtype: torch.dtype
    device: torch.device
    facts: Mapping[str, Any]
    inputs: tuple[Any, ...]
    weights: tuple[Tensor | None, ...]
    options: Mapping[str, Any]
    cost: Cost
    by_row: frozenset[int | str] = field(default_factory=frozenset)
    attention: Inputs | None = None

    @property
    def label(self) -> str:
        return f"{self.op} {self.name}, {self.lengths.name}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def rows(self) -> int:
        """Rows of the result, of a case whose rows are independent."""
        return len(self.inputs[0])

    def narrowed(self, at: Tensor) -> Case:
        """The same work for some rows of the result alone; its cost is that of all.

        Args:
            at: int64, which rows.
        """
        inputs = tuple(_at(x, at) if place in self.by_row else x for place, x in enumerate(self.inputs))
        options = {name: _at(x, at) if name in self.by_row else x for name, x in self.options.items()}
        return replace(self, inputs=inputs, options=options)

    def widened(self) -> Case:
        """The same work in fp64."""
        return replace(
            self,
            dtype=torch.float64,
            inputs=_wide(self.inputs),
            weights=_wide(self.weights),
            options={name: _wide(x) for name, x in self.options.items()},
        )


@dataclass(frozen=True)
class Ready:
    """A system that is ready to be timed on a case.

    Attributes:
        call: what is timed.
        results: what `call` returned as the eager op returns it; not timed.
        against: the case it computes, where that is only a part of the one that is measured: a product alone.
    """

    call: Callable[[], Any]
    results: Callable[[Any], Results]
    against: Case | None = None


class Draw:
    """Seeded tensors: rows as a norm leaves them, weights that keep their size."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(11)
        self._dtype, self._device = dtype, device

    def rows(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self._device)
        return drawn.mul_(scale).to(self._dtype)

    def weight(self, out_features: int, in_features: int) -> Tensor:
        return self.rows(out_features, in_features, scale=in_features**-0.5)

    def ids(self, count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=self._generator, device=self._device)


def bound(case: Case, row: str) -> BoundOp:
    """The op, bound to the row of this name of the dispatch table, as a model binds it.

    Raises:
        BackendError: the row cannot serve.
    """
    op = BoundOp(case.op, facts=dict(case.facts))
    op.bind(case.device, case.dtype, backend=row, deterministic=False)
    return op


def results(returned: Any) -> Results:
    """What an op returned, as a tuple."""
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def _at(x: Any, at: Tensor) -> Any:
    return (x[0][at], *x[1:]) if isinstance(x, tuple) else x[at]


def _wide(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_wide(part) for part in x)
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
