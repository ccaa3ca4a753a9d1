"""What a GPU does not report and the interpreter does not see: stray addresses, races, outputs nobody wrote.

`watched()`: every load and store of an interpreted kernel must lie inside a tensor that the kernel was given, as far as
lanes are active, and no address may be written by two programs of a launch: on a GPU they run in any order.
`poisoned()`: what `torch.empty` and its kin return holds NaN (integers: their lowest value).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.jit import TensorWrapper
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["OutOfBoundsError", "RaceError", "poisoned", "watched"]


class OutOfBoundsError(AssertionError):
    """An active lane loaded or stored outside of the tensors that the kernel was given."""


class RaceError(AssertionError):
    """Two programs, or two lanes with different values, stored to one address."""


class _Launch:
    """The memory that one launch may touch, and what its programs have stored."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.names: dict[int, tuple[int, str]] = {}
        self.starts = np.zeros(0, np.uint64)
        self.ends = np.zeros(0, np.uint64)
        self.stored: list[tuple[np.ndarray, int, int]] = []

    def allow(self, arguments: dict[str, Any]) -> None:
        """The launch may touch the tensors among `arguments`: from the first to the last element of each view."""
        spans = sorted(span for name, value in arguments.items() for span in self._spans(name, value))
        merged: list[list[int]] = []
        for start, end in spans:
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self.starts = np.array([start for start, _ in merged], np.uint64)
        self.ends = np.array([end for _, end in merged], np.uint64)

    def _spans(self, name: str, value: Any) -> Iterator[tuple[int, int]]:
        if isinstance(value, tuple):
            for item in value:
                yield from self._spans(name, item)
        elif isinstance(value, TensorDescriptor | TensorWrapper):
            yield from self._spans(name, value.base)
        elif isinstance(value, Tensor) and value.numel():
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            start = value.data_ptr()
            self.names[start] = (start + (last + 1) * value.element_size(), name)
            yield start, self.names[start][0]

    def check(self, what: str, addresses: np.ndarray, size: int, program: tuple[int, ...]) -> None:
        """Raise unless `size` bytes at each address belong to the launch."""
        if not addresses.size:
            return
        span = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = span >= 0
        if len(self.ends):
            inside &= addresses + np.uint64(size) <= self.ends[np.maximum(span, 0)]
        if not inside.all():
            stray = addresses[~inside]
            raise OutOfBoundsError(
                f"{self.kernel}, program {program}: {what} of {stray.size} of {addresses.size} active lanes out of "
                f"bounds, the first {self._place(int(stray[0]))}"
            )

    def store(self, addresses: np.ndarray, values: np.ndarray, size: int, program: tuple[int, ...], rank: int) -> None:
        """Note what a program stores; raise where lanes of it disagree about an address."""
        unique, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
        if unique.size < addresses.size:
            bits = np.ascontiguousarray(values).view(f"u{size}")
            if not np.array_equal(bits, bits[first][inverse]):
                raise RaceError(f"{self.kernel}, program {program}: lanes store different values to one address")
        self.stored.append((unique, size, rank))

    def check_races(self) -> None:
        """Raise where programs have stored to the same bytes."""
        if not self.stored:
            return
        addresses = np.concatenate([unique for unique, _, _ in self.stored])
        ends = np.concatenate([unique + np.uint64(size) for unique, size, _ in self.stored])
        ranks = np.concatenate([np.full(unique.size, rank) for unique, _, rank in self.stored])
        order = np.argsort(addresses, kind="stable")
        addresses, ends, ranks = addresses[order], ends[order], ranks[order]
        clash = np.flatnonzero((ends[:-1] > addresses[1:]) & (ranks[:-1] != ranks[1:]))
        if clash.size:
            i = clash[0]
            raise RaceError(
                f"{self.kernel}: programs {ranks[i]} and {ranks[i + 1]} (and {clash.size - 1} pairs more) store to one "
                f"address, {self._place(int(addresses[i + 1]))}"
            )

    def _place(self, address: int) -> str:
        for start, (end, name) in self.names.items():
            if start <= address < end:
                return f"at byte {address - start} of {name}"
        before = max((start for start in self.names if start <= address), default=None)
        if before is None:
            return "before every tensor"
        end, name = self.names[before]
        return f"{address - end} bytes behind the end of {name}"


@contextmanager
def watched() -> Iterator[None]:
    """Watch every interpreted launch inside the block."""
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    stock_call, stock_arguments = executor.__call__, executor._init_args_hst
    stock_load, stock_store = builder.create_masked_load, builder.create_masked_store
    stock_swap, stock_update = builder.create_atomic_cas, builder.create_atomic_rmw
    launches: list[_Launch] = []

    def call(self: Any, *arguments: Any, **named: Any) -> None:
        launches.append(_Launch(self.fn.__name__))
        try:
            stock_call(self, *arguments, **named)
            launches[-1].check_races()
        except interpreter.InterpreterError as error:
            raise _own(error) from None
        finally:
            launches.pop()

    def arguments_on_host(self: Any, arguments: Any, named: Any) -> Any:
        found, found_by_name = stock_arguments(self, arguments, named)
        launches[-1].allow({**dict(zip(self.arg_names, found, strict=False)), **found_by_name})
        return found, found_by_name

    def active(self: Any, what: str, pointers: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, int]:
        """The addresses of the active lanes, checked, the mask, and the bytes of an element."""
        addresses = np.asarray(pointers.data)
        lanes = np.broadcast_to(np.asarray(mask.data, dtype=bool), addresses.shape)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        launches[-1].check(what, addresses[lanes], size, self.grid_idx)
        return addresses[lanes], lanes, size

    def load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        active(self, "load", pointers, mask)
        return stock_load(self, pointers, mask, *rest, **named)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        addresses, lanes, size = active(self, "store", pointers, mask)
        values = np.broadcast_to(value.data, lanes.shape)[lanes]
        rank = int(np.ravel_multi_index(self.grid_idx, self.grid_dim))
        launches[-1].store(addresses, values, size, self.grid_idx, rank)
        return stock_store(self, pointers, value, mask, *rest)

    def swap(self: Any, pointers: Any, *rest: Any) -> Any:
        active(self, "atomic", pointers, interpreter.TensorHandle(np.ones(1, bool), interpreter.tl.int1))
        return stock_swap(self, pointers, *rest)

    def update(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        active(self, "atomic", pointers, mask)
        return stock_update(self, operation, pointers, value, mask, *rest)

    with ExitStack() as stack:
        for owner, name, replacement in (
            (executor, "__call__", call),
            (executor, "_init_args_hst", arguments_on_host),
            (builder, "create_masked_load", load),
            (builder, "create_masked_store", store),
            (builder, "create_atomic_cas", swap),
            (builder, "create_atomic_rmw", update),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _own(error: BaseException) -> BaseException:
    """The guard's own error, which the interpreter has wrapped, or `error` itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OutOfBoundsError | RaceError):
        cause = cause.__cause__
    return cause or error


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what is asked for uninitialised inside the block."""
    with ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
            (Tensor, "new_empty_strided"),
        ):
            stack.enter_context(mock.patch.object(owner, name, _filling(getattr(owner, name))))
        yield


def _filling(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(stock)
    def filling(*arguments: Any, **options: Any) -> Tensor:
        tensor = stock(*arguments, **options)
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.fill_(float("nan"))
            return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min)

    return filling
