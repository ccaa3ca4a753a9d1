"""The CPU row of `linear`: oneDNN GEMMs on weights that were laid out for them once, when the model was loaded.

`torch.nn.functional.linear` hands fp32 to MKL and reorders bf16 weights inside every call. Prepacked oneDNN weights
save both: on two Zen 4 cores at MiniLM's shapes 225 against 199 GFLOP/s in fp32 and 447 against 427 in bf16. The
residual is added while the tile is still in registers; gelu is not fused, because oneDNN's fused form gained nothing
there and lost on AMX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...contract import Call
from ..linear import ACTIVATIONS, Rotation, finish
from ..rope import rotated

__all__ = ["linear", "prepare", "product", "unsupported"]

LONGEST_SUM = 384
"""Input features that oneDNN may add up in one go in fp32. It keeps a single running sum, whose error grows with its
length: at 512 it is beyond twice that of MKL's for some inputs, at 1,536 it is 2.8 times that."""

_IN_PLACE = {
    "gelu": torch.ops.aten.gelu_.default,
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "silu": torch.ops.aten.silu_,
}


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ["needs a torch built with oneDNN, this one is not"]
    if call.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ["needs AVX-512 for bfloat16, this CPU has none"]
    if call.dtype not in (torch.float32, torch.bfloat16):
        return [f"needs dtype float32 or bfloat16, got {str(call.dtype).removeprefix('torch.')}"]
    return []


def prepare(weight: Tensor, bias: Tensor | None, *, call: Call) -> tuple[Tensor | tuple[Tensor, ...], Tensor | None]:
    """Weights in oneDNN's blocked layout, an opaque copy; `weight` is `[out_features, in_features]`.

    Of a long fp32 sum several, as even as can be, of at most `LONGEST_SUM` input features each.
    """
    reorder = torch.ops.mkldnn._reorder_linear_weight
    if weight.dtype != torch.float32 or weight.shape[1] <= LONGEST_SUM:
        return reorder(weight.detach()), bias
    parts = weight.detach().split(_part(weight.shape[1]), dim=1)
    return tuple(reorder(part.contiguous()) for part in parts), bias


def linear(
    x: Tensor,
    weight: Tensor | tuple[Tensor, ...],
    bias: Tensor | None,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    rope: Rotation | None = None,
    turned: int = 0,
    wide: bool = False,
    statistics: bool = False,
) -> Any:
    """As `engine/ops/linear.py`, with the weight from `prepare`; it has no statistics."""
    parts = weight if isinstance(weight, tuple) else (weight,)
    out = _finished(x, parts, bias, epilogue, gated, residual, rope, turned, wide)
    return (out, None) if statistics else out


def product(x: Tensor, weight: Tensor | tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    """`x @ weight^T + bias`, `[tokens, out_features]` of its own, with the weight from `prepare`; tokens are not 0."""
    return _sum_of_products(x, weight if isinstance(weight, tuple) else (weight,), bias, None)


def _finished(
    x: Tensor,
    parts: tuple[Tensor, ...],
    bias: Tensor | None,
    epilogue: str,
    gated: bool,
    residual: Tensor | None,
    rope: Rotation | None,
    turned: int,
    wide: bool,
) -> Tensor:
    if x.shape[0] == 0:
        out = x.new_empty(0, parts[0].shape[0])
        return finish(out, epilogue=epilogue, gated=gated, residual=residual, rope=rope, turned=turned, wide=wide)
    if rope is not None:
        # The product is nobody else's, so what is turned can go back to where it was.
        out = _sum_of_products(x, parts, bias, None)
        heads = out[:, :turned].unflatten(1, (-1, 2 * rope[1].shape[1]))
        heads.copy_(rotated(heads, *rope))
        return out
    if wide or (residual is not None and residual.dtype != x.dtype):
        out = _sum_of_products(x, parts, bias, None)
        return finish(out, epilogue=epilogue, gated=gated, residual=residual, rope=rope, turned=turned, wide=wide)
    if gated:
        activated, gate = _sum_of_products(x, parts, bias, None).chunk(2, dim=-1)
        out = ACTIVATIONS[epilogue](activated).mul_(gate)
        return out if residual is None else out.add_(residual)
    if residual is not None and epilogue == "none":
        return _sum_of_products(x, parts, bias, residual)
    out = _sum_of_products(x, parts, bias, None)
    if epilogue in _IN_PLACE:
        _IN_PLACE[epilogue](out)
    elif epilogue != "none":
        out = ACTIVATIONS[epilogue](out)
    return out if residual is None else out.add_(residual)


def _part(features: int) -> int:
    """Input features of each of several sums, a multiple of 16."""
    count = -(-features // LONGEST_SUM)
    return -(-features // (16 * count)) * 16


def _sum_of_products(x: Tensor, parts: tuple[Tensor, ...], bias: Tensor | None, addend: Tensor | None) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise
    slices = x.split(_part(x.shape[1]), dim=1) if len(parts) > 1 else (x,)
    for columns, weight in zip(slices, parts, strict=True):
        if addend is None:
            addend = product(columns, weight, bias, "none", [], "")
        else:
            addend = product.binary(columns, addend, weight, bias, "add")
        bias = None
    assert addend is not None
    return addend
