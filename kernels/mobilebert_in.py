"""From MobileBERT's layer input to its attention in one kernel: `engine/ops/mobilebert.py`, `mobilebert_in`.

Maths, of x rounded to the weights' dtype:
    narrow = norm(x N^T + n)                 [tokens, width], the residual stream between the bottlenecks
    shared = norm(x S^T + s)                 [tokens, width], rounded to the weights' dtype, never written
    q, k   = shared Q^T + q, shared K^T + k
    v      = x V^T + v                       from the full width
where norm is `x * scale + shift` (no_norm) or layer_norm. Sums, biases and norms are fp32.

Tiling: a program owns BLOCK_M tokens. It walks over x once, BLOCK_K channels a step, each for three products.

    x [BLOCK_M, BLOCK_K] --+--N--> narrow [BLOCK_M, BLOCK_W] fp32 --> stored
                           +--V--> v      [BLOCK_M, BLOCK_W] fp32 --> stored behind q and k
                           +--S--> shared [BLOCK_M, BLOCK_W] fp32 --> rounded, stays on chip
                                     +--> Q and K, BLOCK_N columns a step --> stored

BLOCK_W is `width` up to the next power of two; its last channels are kept at 0. `hidden` may be anything.

Few tokens are few programs, and each would read all the weights, one after the other. So the columns of the weights are
split as well: of PARTS = 4 programs with the same rows one makes `narrow`, one v, one q and one k, the last two from a
`shared` of their own. No sum is split, so that the bits of a row are those of the schedule for many tokens; the longest
way is one bottleneck and one projection, 164 kB of weights in place of 459, and x is read four times from L2.

What is fused: five products, biases, norms, the cast of x, and the copy that puts q, k and v side by side. Bytes a
token at the published sizes (width 128, hidden 512) in bf16 with an fp32 stream: 2,048 read, 512 + 768 written. FLOPs:
459 thousand a token, 138 a byte. Weights, 459 kB, stay in L2: 3.6 kB a token and 128 FLOPs a byte of L2 at 128 rows.
Memory, L2 and the tensor cores are all near; none was measured.

Tried by compiling alone: on sm_90 three sums of 128 rows leave registers for eight warps with tiles of 32 columns (253
registers, no spill); with BLOCK_N or, under layer_norm, BLOCK_K of 64 a few are spilled.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["mobilebert_in_kernel", "normalised", "per_column", "tile"]


@triton.jit
def tile(
    x_ptr, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """`[BLOCK_ROWS, BLOCK_COLUMNS]` of a contiguous `[ROWS, COLUMNS]`, 0 beyond it; without masks where it has none."""
    pointers = x_ptr + rows.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    if ROWS % BLOCK_ROWS == 0 and COLUMNS % BLOCK_COLUMNS == 0:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    return x


@triton.jit
def per_column(x_ptr, columns, COLUMNS: tl.constexpr):
    """`[1, columns]` in fp32 of a bias, scale or shift, 0 beyond its end."""
    return tl.load(x_ptr + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normalised(
    x, scale_ptr, shift_ptr, columns, eps, LAYER_NORM: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """`no_norm` or `layer_norm` of whole rows `[rows, BLOCK]` in fp32, 0 behind the last of COLUMNS."""
    inside = (columns < COLUMNS)[None, :]
    if LAYER_NORM:
        mean = tl.div_rn(tl.sum(tl.where(inside, x, 0.0), 1), COLUMNS * 1.0)
        x -= mean[:, None]
        variance = tl.div_rn(tl.sum(tl.where(inside, x * x, 0.0), 1), COLUMNS * 1.0)
        x *= tl.div_rn(1.0, tl.sqrt_rn(variance + eps))[:, None]
    x = x * per_column(scale_ptr, columns, COLUMNS) + per_column(shift_ptr, columns, COLUMNS)
    if COLUMNS < BLOCK:
        # What an infinite number of the row makes of the zeros behind it is NaN, and would spread.
        x = tl.where(inside, x, 0.0)
    return x


@triton.jit
def _rows(x_ptr, offs_m, mask_m, offs_k, dtype, STRIDE: tl.constexpr, HIDDEN: tl.constexpr):
    """`[rows, columns]` of x as it enters a product, 0 beyond its end."""
    mask = mask_m[:, None] & (offs_k < HIDDEN)[None, :]
    return tl.load(x_ptr + offs_m[:, None] * STRIDE + offs_k[None, :], mask=mask, other=0.0).to(dtype)


@triton.jit
def _product(
    x_ptr, weight_ptr, offs_m, mask_m, offs_w,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`x @ weight^T` alone, `[BLOCK_M, BLOCK_W]` in fp32, summed as where three are made together."""
    acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for k in tl.range(0, HIDDEN, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        x = _rows(x_ptr, offs_m, mask_m, offs_k, weight_ptr.dtype.element_ty, STRIDE, HIDDEN)  # [BLOCK_M, BLOCK_K]
        weight = tile(weight_ptr, offs_w, offs_k, WIDTH, HIDDEN, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    return acc


@triton.jit
def _store_narrow(
    narrow, narrow_ptr, bias_ptr, scale_ptr, shift_ptr, offs_m, mask, offs_w, eps,
    LAYER_NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    narrow += per_column(bias_ptr, offs_w, WIDTH)
    narrow = normalised(narrow, scale_ptr, shift_ptr, offs_w, eps, LAYER_NORM, WIDTH, BLOCK_W)
    pointers = narrow_ptr + offs_m[:, None] * WIDTH + offs_w[None, :]
    tl.store(pointers, narrow.to(narrow_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_v(v, qkv_ptr, bias_ptr, offs_m, mask, offs_w, WIDTH: tl.constexpr):
    v += per_column(bias_ptr, offs_w, WIDTH)
    pointers = qkv_ptr + offs_m[:, None] * (3 * WIDTH) + (2 * WIDTH + offs_w)[None, :]
    tl.store(pointers, v.to(qkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_queries_and_keys(
    shared, qkv_ptr, bias_ptr, scale_ptr, shift_ptr, qk_weight_ptr, qk_bias_ptr, offs_m, mask_m, offs_w, first, last,
    eps, LAYER_NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """From `first` to `last` of the columns; queries begin at 0, keys at BLOCK_W, and each has WIDTH."""
    shared += per_column(bias_ptr, offs_w, WIDTH)
    shared = normalised(shared, scale_ptr, shift_ptr, offs_w, eps, LAYER_NORM, WIDTH, BLOCK_W)
    shared = shared.to(qk_weight_ptr.dtype.element_ty)
    for n in tl.range(first, last, BLOCK_N):
        half = tl.cast(n // BLOCK_W, tl.int64)
        offs_n = n % BLOCK_W + tl.arange(0, BLOCK_N)
        weight_ptr = qk_weight_ptr + half * (WIDTH * WIDTH)
        weight = tile(weight_ptr, offs_n, offs_w, WIDTH, WIDTH, BLOCK_N, BLOCK_W)  # [BLOCK_N, BLOCK_W]
        out = tl.dot(shared, tl.trans(weight), input_precision="ieee")
        out += per_column(qk_bias_ptr + half * WIDTH, offs_n, WIDTH)
        pointers = qkv_ptr + offs_m[:, None] * (3 * WIDTH) + (half * WIDTH + offs_n)[None, :]
        tl.store(pointers, out.to(qkv_ptr.dtype.element_ty), mask=mask_m[:, None] & (offs_n < WIDTH)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def mobilebert_in_kernel(
    x_ptr, narrow_ptr, qkv_ptr,
    narrow_weight_ptr, narrow_bias_ptr, narrow_scale_ptr, narrow_shift_ptr,
    shared_weight_ptr, shared_bias_ptr, shared_scale_ptr, shared_shift_ptr,
    qk_weight_ptr, qk_bias_ptr, v_weight_ptr, v_bias_ptr,
    tokens, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, LAYER_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BLOCK_M tokens; by the grid's second axis all of them, or of four PARTS narrow rows, values, queries or keys."""
    dtype = qk_weight_ptr.dtype.element_ty
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    offs_w = tl.arange(0, BLOCK_W)
    mask = mask_m[:, None] & (offs_w < WIDTH)[None, :]
    if PARTS == 1:
        narrow = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        shared = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        v = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        for k in tl.range(0, HIDDEN, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            x = _rows(x_ptr, offs_m, mask_m, offs_k, dtype, STRIDE, HIDDEN)  # [BLOCK_M, BLOCK_K]
            weight = tile(narrow_weight_ptr, offs_w, offs_k, WIDTH, HIDDEN, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
            narrow = tl.dot(x, tl.trans(weight), narrow, input_precision="ieee")
            weight = tile(shared_weight_ptr, offs_w, offs_k, WIDTH, HIDDEN, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
            shared = tl.dot(x, tl.trans(weight), shared, input_precision="ieee")
            weight = tile(v_weight_ptr, offs_w, offs_k, WIDTH, HIDDEN, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
            v = tl.dot(x, tl.trans(weight), v, input_precision="ieee")
        _store_v(v, qkv_ptr, v_bias_ptr, offs_m, mask, offs_w, WIDTH)
        _store_narrow(
            narrow, narrow_ptr, narrow_bias_ptr, narrow_scale_ptr, narrow_shift_ptr, offs_m, mask, offs_w, eps,
            LAYER_NORM, WIDTH, BLOCK_W,
        )  # fmt: skip
        _store_queries_and_keys(
            shared, qkv_ptr, shared_bias_ptr, shared_scale_ptr, shared_shift_ptr, qk_weight_ptr, qk_bias_ptr, offs_m,
            mask_m, offs_w, 0, 2 * BLOCK_W, eps, LAYER_NORM, WIDTH, BLOCK_W, BLOCK_N,
        )  # fmt: skip
    else:
        tl.static_assert(PARTS == 4, "PARTS: expected 1 or 4")
        part = tl.program_id(1)
        weight_ptr = shared_weight_ptr
        if part == 0:
            weight_ptr = narrow_weight_ptr
        elif part == 1:
            weight_ptr = v_weight_ptr
        acc = _product(
            x_ptr, weight_ptr, offs_m, mask_m, offs_w, STRIDE, WIDTH, HIDDEN, BLOCK_M, BLOCK_W, BLOCK_K
        )  # fmt: skip
        if part == 0:
            _store_narrow(
                acc, narrow_ptr, narrow_bias_ptr, narrow_scale_ptr, narrow_shift_ptr, offs_m, mask, offs_w, eps,
                LAYER_NORM, WIDTH, BLOCK_W,
            )  # fmt: skip
        elif part == 1:
            _store_v(acc, qkv_ptr, v_bias_ptr, offs_m, mask, offs_w, WIDTH)
        else:
            first = (part - 2) * BLOCK_W
            _store_queries_and_keys(
                acc, qkv_ptr, shared_bias_ptr, shared_scale_ptr, shared_shift_ptr, qk_weight_ptr, qk_bias_ptr,
                offs_m, mask_m, offs_w, first, first + BLOCK_W, eps, LAYER_NORM, WIDTH, BLOCK_W, BLOCK_N,
            )  # fmt: skip
