"""What the kernels can serve: reasons for the dispatch table, and what a launcher refuses before it starts anything.

A kernel reads addresses. What it is handed wrongly it reads as something else, or reads memory of something else, and
says nothing; so a launcher looks at all that the host knows without waiting for the GPU: dtypes, shapes, devices. Each
check takes a few hundred nanoseconds. Values that lie on the GPU (lengths, ids) are trusted.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError

__all__ = [
    "DTYPES",
    "MAX_HEAD_DIM",
    "MAX_HIDDEN",
    "dtype_reasons",
    "head_dim_reasons",
    "hidden_reasons",
    "require_bias",
    "require_count",
    "require_dtype",
    "require_heads",
    "require_indices",
    "require_lengths",
    "require_no_gradient",
    "require_same_device",
    "require_scale",
    "require_shape",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MAX_HIDDEN = 8192
"""Widest row that one program holds whole, for its norm, without spilling registers to memory."""

INTEGERS = (torch.int32, torch.int64)


def dtype_reasons(call: Call) -> list[str]:
    """A reason if the dtype has no kernel."""
    return [] if call.dtype in DTYPES else [f"needs dtype {_dtypes()}, got {_short(call.dtype)}"]


def head_dim_reasons(call: Call) -> list[str]:
    """A reason if a head has more channels than a program can hold; a size that is not known passes."""
    if call.head_dim is None or call.head_dim <= MAX_HEAD_DIM:
        return []
    return [f"needs head_dim up to {MAX_HEAD_DIM}, got {call.head_dim}"]


def hidden_reasons(call: Call) -> list[str]:
    """A reason if rows are wider than a program can hold; a width that is not known passes."""
    if call.hidden is None or call.hidden <= MAX_HIDDEN:
        return []
    return [f"needs hidden up to {MAX_HIDDEN}, got {call.hidden}"]


def require_dtype(op: str, **tensors: Tensor) -> None:
    """Refuse tensors that are not all of one dtype that has a kernel.

    Args:
        op: name for the message.
        tensors: by the names of the op's arguments, one at least.

    Raises:
        InputError: naming each tensor's dtype.
    """
    dtypes = [x.dtype for x in tensors.values()]
    if dtypes[0] in DTYPES and dtypes.count(dtypes[0]) == len(dtypes):
        return
    found = ", ".join(f"{name} {_short(x.dtype)}" for name, x in tensors.items())
    raise InputError(f"{op}: expected {'one dtype of ' if len(tensors) > 1 else ''}{_dtypes()}, got {found}")


def require_same_device(op: str, **tensors: Tensor | None) -> None:
    """Refuse tensors on several devices; None is on all.

    Args:
        op: name for the message.
        tensors: by the names of the op's arguments, the first of them not None.

    Raises:
        InputError: naming the first tensor that lies elsewhere than the first of all.
    """
    devices = [(name, x.device) for name, x in tensors.items() if x is not None]
    first, device = devices[0]
    for name, found in devices:
        if found != device:
            raise InputError(f"{op}: {name}: expected device {device}, that of {first}, got {found}")


def require_no_gradient(op: str, *tensors: Tensor | None) -> None:
    """Refuse tensors whose gradient is recorded: a kernel has no backward, and would cut them off in silence.

    Raises:
        InputError: saying what to do.
    """
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                raise InputError(
                    f"{op}: expected no input that requires a gradient, as the kernel has none, got one: use no_grad"
                )


def require_shape(op: str, name: str, x: Tensor, *sizes: int | None) -> None:
    """Refuse a tensor of another shape; None is any size.

    Raises:
        InputError: naming both shapes.
    """
    shape = x.shape
    if len(shape) == len(sizes):
        for size, found in zip(sizes, shape, strict=True):
            if size is not None and size != found:
                break
        else:
            return
    expected = ", ".join("any" if size is None else str(size) for size in sizes)
    raise InputError(f"{op}: {name}: expected shape [{expected}], got {list(shape)}")


def require_heads(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what is not queries `[…, heads, head_dim]` and keys and values `[…, heads_k, head_dim]`.

    Raises:
        InputError: naming all three shapes.
    """
    shape, shape_k = q.shape, k.shape
    if len(shape) == 3 and len(shape_k) == 3 and shape_k == v.shape:
        _, heads, head_dim = shape
        _, heads_k, channels = shape_k
        if channels == head_dim and 1 <= head_dim <= MAX_HEAD_DIM and heads_k >= 1 and heads % heads_k == 0:
            return
    found = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
    raise InputError(
        f"{op}: expected q [rows, heads, head_dim], k and v alike, their heads a divisor of q's, head_dim 1 to "
        f"{MAX_HEAD_DIM}; got {found}"
    )


def require_lengths(op: str, name: str, cu_seqlens: Tensor, device: torch.device, texts: int | None = None) -> Tensor:
    """Refuse what is not the edges of packed texts: int32 `[texts + 1]` on `device`. Their values are trusted.

    Args:
        op: name for the message.
        name: of the argument.
        cu_seqlens: the edges.
        device: where the op's other tensors are.
        texts: how many texts there must be; None for any number.

    Returns:
        The edges, contiguous.

    Raises:
        InputError: naming dtype, shape and device.
    """
    if (
        cu_seqlens.dtype == torch.int32 and cu_seqlens.ndim == 1 and cu_seqlens.device == device
        and (cu_seqlens.shape[0] >= 1 if texts is None else cu_seqlens.shape[0] == texts + 1)
    ):  # fmt: skip
        return cu_seqlens.contiguous()
    count = "texts + 1, at least 1" if texts is None else texts + 1
    raise InputError(f"{op}: {name}: expected int32 [{count}] on {device}, got {_described(cu_seqlens)}")


def require_indices(op: str, name: str, indices: Tensor, device: torch.device, count: int) -> Tensor:
    """Refuse what is not `count` integers, int32 or int64, on `device`. Their values are trusted.

    Returns:
        The integers, contiguous.

    Raises:
        InputError: naming dtype, shape and device.
    """
    if indices.ndim == 1 and indices.shape[0] == count and indices.dtype in INTEGERS and indices.device == device:
        return indices.contiguous()
    raise InputError(f"{op}: {name}: expected int32 or int64 [{count}] on {device}, got {_described(indices)}")


def require_bias(op: str, position_bias: Tensor, heads: int, device: torch.device) -> None:
    """Refuse what is not a bias `[buckets, heads]` of floating numbers on `device`.

    Raises:
        InputError: naming dtype, shape and device.
    """
    if (
        position_bias.ndim == 2 and position_bias.shape[1] == heads and position_bias.shape[0] >= 1
        and position_bias.is_floating_point() and position_bias.device == device
    ):  # fmt: skip
        return
    raise InputError(
        f"{op}: position_bias: expected floating [buckets, {heads}] on {device}, got {_described(position_bias)}"
    )


def require_count(op: str, name: str, value: Any) -> int:
    """`value` as an int from 0 on; integers of other libraries are taken, tensors are not: reading them would wait.

    Raises:
        InputError: it is something else.
    """
    try:
        count = -1 if isinstance(value, Tensor) else operator.index(value)
    except TypeError:
        count = -1
    if count < 0:
        found = value if isinstance(value, int) else f"{type(value).__name__} {value!r}"
        raise InputError(f"{op}: {name}: expected an integer from 0 on, got {' '.join(str(found).split())}")
    return count


def require_scale(op: str, softmax_scale: float | None, head_dim: int) -> float:
    """The factor on the scores as a float; None is `head_dim ** -0.5`.

    Raises:
        InputError: it is no number.
    """
    if softmax_scale is None:
        return head_dim**-0.5
    if isinstance(softmax_scale, Tensor):
        raise InputError(f"{op}: softmax_scale: expected a number, got a tensor")
    try:
        return float(softmax_scale)
    except (TypeError, ValueError):
        raise InputError(f"{op}: softmax_scale: expected a number, got {softmax_scale!r}") from None


def _described(x: Tensor) -> str:
    return f"{_short(x.dtype)} {list(x.shape)} on {x.device}"


def _dtypes() -> str:
    return ", ".join(map(_short, DTYPES))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
