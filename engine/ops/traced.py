"""Attention that is written in Python as operators `padless::…`, so that torch.compile and torch.export see one node.

The eager and the CPU row look at the lengths of texts, which a tracer cannot. Run as usual they are called straight;
while something is traced their operator goes into the graph, which then serves all batches, whatever their lengths.
The kernels have the same in `kernels/registration.py`.

`max_seqlen` is not handed over: a number of the caller's would be part of the graph, and each new one a new graph. The
operator finds it in `cu_seqlens`, for which a CPU need not wait.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["traceable_attention"]

LIBRARY = torch.library.Library("padless", "FRAGMENT")

_OPERANDS = (
    "Tensor q, Tensor k, Tensor v, Tensor? position_bias, Tensor cu_seqlens, Tensor? cu_seqlens_k, SymInt window_left, "
    "SymInt window_right, bool causal, float? softmax_scale, int bias_max_distance, bool bias_bidirectional"
)

Attention = Callable[..., Any]


def traceable_attention(name: str, *, differentiable: bool = False) -> Callable[[Attention], Attention]:
    """Let a tracer see the attention function below as the operator `padless::name`.

    Args:
        name: of the operator; registered once in a process, also where this package is imported under two names.
        differentiable: it has a gradient, which computes the function once more in the backward pass.
    """

    def decorated(function: Attention) -> Attention:
        if not hasattr(torch.ops.padless, name):
            _register(name, function)
            if differentiable:
                _register_gradient(name, function)
        overload = getattr(torch.ops.padless, name).default

        @functools.wraps(function)
        def either(
            q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, **options: Any
        ) -> Tensor | tuple[Tensor, Tensor]:
            if not torch.compiler.is_compiling():
                return function(q, k, v, cu_seqlens, max_seqlen, **options)
            out, lse = overload(*_operands(q, k, v, cu_seqlens, **options))
            return (out, lse) if options.get("return_lse", False) else out

        return either

    return decorated


def _operands(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = True,
    return_lse: bool = False,
    memo: Any = None,
) -> tuple[Any, ...]:
    left, right = window
    return (
        q, k, v, position_bias, cu_seqlens, cu_seqlens_k, left, right, causal, softmax_scale, bias_max_distance,
        bias_bidirectional, return_lse,
    )  # fmt: skip


def _call(function: Attention, operands: Sequence[Any], return_lse: bool) -> Any:
    """The function with what its operator was given."""
    q, k, v, bias, cu_seqlens, cu_seqlens_k, left, right, causal, scale, distance, both_ways = operands
    return function(
        q, k, v, cu_seqlens, _longest(cu_seqlens), cu_seqlens_k=cu_seqlens_k,
        max_seqlen_k=None if cu_seqlens_k is None else _longest(cu_seqlens_k), window=(left, right), causal=causal,
        softmax_scale=scale, position_bias=bias, bias_max_distance=distance, bias_bidirectional=both_ways,
        return_lse=return_lse,
    )  # fmt: skip


def _longest(cu_seqlens: Tensor) -> int:
    return int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0


def _statistics(q: Tensor, return_lse: bool) -> Tensor:
    heads, tokens = (q.shape[1], q.shape[0]) if return_lse else (0, 0)
    return q.new_empty(heads, tokens, dtype=torch.promote_types(q.dtype, torch.float32))


def _register(name: str, function: Attention) -> None:
    def run(*operands: Any) -> tuple[Tensor, Tensor]:
        *given, return_lse = operands
        found = _call(function, given, return_lse)
        return found if return_lse else (found, _statistics(operands[0], False))

    def fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape), _statistics(q, others[-1])

    LIBRARY.define(f"{name}({_OPERANDS}, bool return_lse) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
    _implement(name, run, fake)


def _register_gradient(name: str, function: Attention) -> None:
    backward = f"{name}_backward"

    def run(of_out: Tensor, of_lse: Tensor | None, *operands: Any) -> tuple[Tensor, ...]:
        inputs = [None if x is None else x.detach().requires_grad_() for x in operands[:4]]
        with torch.enable_grad():
            found = _call(function, (*inputs, *operands[4:]), of_lse is not None)
        results, gradients = ((found,), (of_out,)) if of_lse is None else (found, (of_out, of_lse))
        present = [x for x in inputs if x is not None]
        # A batch without tokens leads from nothing to nothing.
        made = torch.autograd.grad(results, present, gradients, allow_unused=True, materialize_grads=True)
        made = [x.contiguous() for x in made]
        return (*made, operands[0].new_empty(0)) if inputs[3] is None else tuple(made)

    def fake(
        of_out: Tensor, of_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *_: Any
    ) -> Any:
        return tuple(x.new_empty(x.shape) for x in (q, k, v, q.new_empty(0) if bias is None else bias))

    results = ", ".join(["Tensor"] * 4)
    LIBRARY.define(f"{backward}(Tensor of_out, Tensor? of_lse, {_OPERANDS}) -> ({results})")
    _implement(backward, run, fake)
    gradients_of = getattr(torch.ops.padless, backward).default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.numbers, ctx.return_lse = inputs[6:-1], inputs[-1]

    def back(ctx: Any, of_out: Tensor, of_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = (*ctx.saved_tensors, *ctx.numbers)
        *gradients, of_bias = gradients_of(of_out, of_lse if ctx.return_lse else None, *operands)
        return (*gradients, None if operands[3] is None else of_bias, *([None] * 9))

    torch.library.register_autograd(f"padless::{name}", back, setup_context=keep, lib=LIBRARY)


def _implement(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"padless::{name}", fake, lib=LIBRARY)
