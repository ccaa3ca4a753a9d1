"""Kernels that keep every rule of the gate, and kernels that each break one: what the gate's own tests compile."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["branching_kernel", "matmul_kernel", "rows_kernel", "types_kernel"]


@triton.jit
def types_kernel(a_ptr, b_ptr, nothing, one, many, odd, wide, flag, scale, out_ptr, BLOCK: tl.constexpr):
    """One parameter of each type."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(a_ptr + offs).to(tl.float32) + tl.load(b_ptr + offs).to(tl.float32)
    tl.store(out_ptr + offs, x * scale + one + many + odd + wide + flag)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, out_ptr, stride_a, stride_b, stride_out, inner,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = a b, one tile."""
    offs_m = tl.arange(0, BLOCK_M).to(tl.int64)[:, None]
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        a = tl.load(a_ptr + offs_m * stride_a + (start + offs_k)[None, :])  # [BLOCK_M, BLOCK_K]
        b = tl.load(b_ptr + (start + offs_k).to(tl.int64)[:, None] * stride_b + offs_n)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(out_ptr + offs_m * stride_out + offs_n, acc)


@triton.jit
def rows_kernel(
    x_ptr, out_ptr, cu_seqlens_ptr, stride, limit, HOW: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """The sum of each text's rows. HOW names where 32 bits multiply, see the tests."""
    text = tl.program_id(0)
    begin = tl.load(cu_seqlens_ptr + text)
    length = tl.load(cu_seqlens_ptr + text + 1) - begin
    offs_d = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    first = begin
    if HOW == "an assumed number":
        tl.assume((begin >= 0) & (begin < 4096))
        first = begin * BLOCK
    elif HOW == "half an assumption":
        tl.assume(begin < 4096)
        first = begin * BLOCK
    elif HOW == "rounded down":
        first = begin // BLOCK * BLOCK
    elif HOW == "a number of the second axis":
        first = begin + tl.program_id(1) * 16
    elif HOW == "a number of the first axis":
        first = begin + text * 16
    elif HOW == "a shift":
        first = begin << 4
    elif HOW == "a selection":
        first = tl.where(length > limit, begin * limit, begin)
    elif HOW == "a condition":
        first = tl.where(length * limit > 7, begin + 1, begin)
    elif HOW == "the end of a loop":
        length = length * limit
    offset = first.to(tl.int64) * stride
    if HOW == "before the cast":
        offset = (first * stride).to(tl.int64)
    elif HOW == "narrowed again":
        offset = (first.to(tl.int64) * stride).to(tl.int32)
    for start in range(0, length, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        columns = tl.arange(0, WIDTH) * 2 if HOW == "small constants" else offs_d
        places = offset + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        if HOW == "inside a loop":
            places = offset + rows[:, None] * stride + columns[None, :]
        x = tl.load(x_ptr + places, mask=(rows < length)[:, None], other=0.0)  # [BLOCK, WIDTH]
        acc += tl.sum(x, 0)
        if HOW == "carried through a loop":
            offset += BLOCK * stride
    mask = offs_d * length < limit if HOW == "a mask" else offs_d < WIDTH
    tl.store(out_ptr + text.to(tl.int64) * WIDTH + offs_d, acc, mask=mask)


@triton.jit
def branching_kernel(x_ptr, out_ptr, n, stride, HOW: tl.constexpr):
    """A return before the end, an `if` and a `while`, with a product in 32 bits in one of them."""
    row = tl.program_id(0)
    if row >= n:
        return
    place = row
    if n > 100:
        place = row * stride if HOW == "if" else row + 1
    step = 0
    total = 0.0
    while step < n:
        total += tl.load(x_ptr + place + step)
        step = step + stride * stride if HOW == "while" else step + 1
    tl.store(out_ptr + row, total)
