"""Activations behind a GEMM, for CPUs with AVX-512: in place, or with the gate of a GLU in one pass.

Computed in fp32 and rounded once. A GELU is about 27 instructions for 16 numbers, 1.15 cycles a number on a Zen 4 core,
1.15 to 1.4 times as fast as torch's; gated it also saves the pass that multiplies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .code import LANES, Code, Value
from .compiled import compiled_once
from .functions import gelu, gelu_tanh
from .host import in_parts

__all__ = ["ACTIVATIONS", "activate", "activation_code"]

ACTIVATIONS: dict[str, Callable[..., Value]] = {"gelu": gelu, "gelu_tanh": gelu_tanh}
"""By the names of `engine/ops/linear.py`."""


def activate(x: Tensor, name: str, *, gated: bool) -> Tensor:
    """`activation(x)` in place; gated, the activation of the first half of each row times the second, anew.

    Args:
        x: `[tokens, features]` in bf16 or fp32, contiguous; features, of each half where gated, a multiple of 16.
        name: a key of `ACTIVATIONS`.
        gated: whether the second half of a row is a gate.

    Returns:
        x, or `[tokens, features / 2]`.
    """
    features = x.shape[1] // 2 if gated else x.shape[1]
    out = x.new_empty(len(x), features) if gated else x
    run = _kernel(name, features, x.dtype == torch.bfloat16, gated)
    x_row, out_row = (tensor.stride(0) * tensor.element_size() for tensor in (x, out))

    def of_rows(first: int, end: int) -> None:
        run(x.data_ptr() + first * x_row, out.data_ptr() + first * out_row, end - first)

    in_parts(len(x), x.numel(), of_rows)
    return out


def activation_code(name: str, features: int, *, bf16: bool, gated: bool) -> Code:
    """The kernel: contiguous rows of `features` numbers, or of twice as many where gated."""
    code = Code(name, {"x": "pointer", "out": "pointer", "rows": "integer"})
    size = 2 if bf16 else 4
    load, store = (code.load_bf16, code.store_bf16) if bf16 else (code.load, code.store)
    unrolled = next(count for count in (4, 3, 2, 1) if features // LANES % count == 0)
    with code.range(0, code.rows) as row:
        x = code.x + row * (features * size * (2 if gated else 1))
        out = code.out + row * (features * size)
        with code.range(0, features, unrolled * LANES) as first:
            for step in range(unrolled):
                offset = (first + step * LANES) * size
                value = ACTIVATIONS[name](code, load(x + offset), exact=not bf16)
                store(value * load(x + features * size + offset) if gated else value, out + offset)
    return code


@compiled_once
def _kernel(name: str, features: int, bf16: bool, gated: bool) -> Code:
    return activation_code(name, features, bf16=bf16, gated=gated)
