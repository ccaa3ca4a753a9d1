"""Rotation of queries and keys where they lie, for CPUs with AVX-512: the maths of `engine/ops/rope.py` in one pass.

Bytes: each turned number is read and written once; the tables' rows stay in the cache from head to head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .code import LANES, Code
from .compiled import compiled_once
from .host import in_parts

__all__ = ["rope_code", "rotate"]


def rotate(x: Tensor, turned: int, rows: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn the first channels of each row, in place.

    Args:
        x: `[tokens, features]` in bf16 or fp32; channels side by side, rows may be strided.
        turned: of these, heads of `2 * cos.shape[1]` channels.
        rows: int64 `[tokens]`, each token's row of the tables, contiguous.
        cos: fp32 `[table rows, head_dim / 2]`, contiguous; head_dim / 2 is a multiple of 16.
        sin: the same for the sine.
    """
    half = cos.shape[1]
    run = _kernel(half, x.dtype == torch.bfloat16)
    x_row = x.stride(0) * x.element_size()

    def of_rows(first: int, end: int) -> None:
        places = (x.data_ptr() + first * x_row, rows.data_ptr() + first * 8, cos.data_ptr(), sin.data_ptr())
        run(*places, x_row, end - first, turned // (2 * half))

    in_parts(len(x), len(x) * turned, of_rows)


def rope_code(half: int, *, bf16: bool) -> Code:
    """The kernel, for heads of twice `half` channels."""
    kinds = dict.fromkeys(["x", "rows", "cos", "sin"], "pointer") | dict.fromkeys(
        ["x_row", "tokens", "heads"], "integer"
    )
    code = Code("rope", kinds)
    size = 2 if bf16 else 4
    load, store = (code.load_bf16, code.store_bf16) if bf16 else (code.load, code.store)
    with code.range(0, code.tokens) as token:
        angles = code.load_integer(code.rows + token * 8, bits=64) * (4 * half)
        row = code.x + token * code.x_row
        for part in range(0, half, LANES):
            cosine, sine = (code.load(table + angles + part * 4) for table in (code.cos, code.sin))
            with code.range(0, code.heads) as head:
                low = row + head * (2 * half * size) + part * size
                high = low + half * size
                first, second = load(low), load(high)
                store(code.fma(first, cosine, second * sine * -1.0), low)
                store(code.fma(second, cosine, first * sine), high)
    return code


@compiled_once
def _kernel(half: int, bf16: bool) -> Code:
    return rope_code(half, bf16=bf16)
