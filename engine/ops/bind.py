"""From an op and its weights to a plain callable: the one caller of `resolve`.

A block declares its ops once (`BoundOp`), and binds them when its weights are in place: after construction, after
loading, after `.to()` or `.half()`. From then on a call goes straight to the chosen function; nothing is looked up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..contract import Call
from ..dispatch import Resolution, resolve

__all__ = ["BoundOp", "joined", "share_storage"]

Weight = Tensor | tuple[Tensor, ...] | None
"""A parameter, several whose rows are taken as one, or an absent one (a layer without bias)."""


class BoundOp:
    """One op of one block, with its weights and the function that serves it.

    Holds two plain functions, without and with gradient. The first takes the weights as its row prepared them (fused,
    prepacked), at the first call that needs no gradient; that copy is dropped when a parameter changes.
    """

    def __init__(self, op: str, *weights: Weight, facts: dict[str, Any] | None = None, **options: Any) -> None:
        """Declare the op; it cannot be called before `bind`.

        Args:
            op: a key of the dispatch table.
            weights: passed behind the inputs, in the order of the op's signature.
            facts: what the dispatch table needs to know beside device and dtype; see `Call`.
            options: keyword arguments of every call.
        """
        self.op = op
        self.resolution: Resolution | None = None
        self._facts = facts or {}
        self._options = options
        self._weights = weights
        self._parameters = tuple(_flat(weights))
        self._forward: Callable[..., Any] = _unbound
        self._gradient: Callable[..., Any] = _unbound
        self._prepared: tuple[Any, ...] | None = None
        self._versions: tuple[int, ...] = ()

    def bind(self, device: torch.device, dtype: torch.dtype, *, backend: str, deterministic: bool) -> None:
        """Choose the implementation for where the weights are now.

        Raises:
            BackendError: if `backend` is a name and cannot serve; see `resolve`.
        """
        call = Call(
            self.op,
            device=device.type,
            dtype=dtype,
            sm=_compute_capability(device),
            deterministic=deterministic,
            **self._facts,
        )
        self.resolution = resolve(call, backend)
        self._forward, self._gradient = self.resolution.fn, self.resolution.gradient
        self._prepared = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and self._needs_gradient(inputs):
            weights = tuple(joined(weight) for weight in self._weights)
            return self._gradient(*inputs, *weights, **self._options, **options)
        return self._forward(*inputs, *self._current_weights(), **self._options, **options)

    def _needs_gradient(self, inputs: Iterable[Any]) -> bool:
        if any(parameter.requires_grad for parameter in self._parameters):
            return True
        return any(isinstance(value, Tensor) and value.requires_grad for value in inputs)

    def _current_weights(self) -> tuple[Any, ...]:
        versions = tuple(parameter._version for parameter in self._parameters)
        if self._prepared is None or versions != self._versions:
            with torch.no_grad():
                weights = tuple(joined(weight) for weight in self._weights)
                resolution = self.resolution
                if resolution is not None and resolution.prepare is not None:
                    weights = resolution.prepare(*weights, call=resolution.call)
            self._prepared, self._versions = weights, versions
        return self._prepared


def share_storage(parameters: tuple[Tensor, ...]) -> None:
    """Make the parameters consecutive views of one buffer, values kept, so that `joined` need not copy.

    Args:
        parameters: `[rows_i, …]` each, alike in all but rows, dtype and device.
    """
    if _adjacent(parameters):
        return
    buffer = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, buffer.split([len(p) for p in parameters]), strict=True):
        parameter.data = part


def joined(weight: Weight) -> Tensor | None:
    """The weight as one tensor, `[sum of rows, …]`: a view where storage is shared and no gradient is wanted."""
    if not isinstance(weight, tuple):
        return weight
    if not torch.is_grad_enabled() and _adjacent(weight):
        first = weight[0]
        rows = sum(len(parameter) for parameter in weight)
        return first.as_strided((rows, *first.shape[1:]), first.stride())
    return torch.cat(weight)


def _adjacent(parameters: tuple[Tensor, ...]) -> bool:
    pairs = itertools.pairwise(parameters)
    return all(
        a.is_contiguous() and b.is_contiguous() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and b.storage_offset() == a.storage_offset() + a.numel()
        for a, b in pairs
    )  # fmt: skip


def _flat(weights: Iterable[Weight]) -> Iterable[Tensor]:
    for weight in weights:
        if isinstance(weight, tuple):
            yield from weight
        elif weight is not None:
            yield weight


def _compute_capability(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _unbound(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this op was called before Block.bind()")
