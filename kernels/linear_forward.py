"""The kernel behind `linear.py`: a persistent GEMM that finishes each tile of its product before it is written."""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .row_statistics import merged_statistics, store_statistics

__all__ = ["linear_kernel"]


@triton.jit
def _product(
    x_rows, weight_rows, pid_m, pid_n, tokens,
    stride_xt: tl.constexpr, stride_wn: tl.constexpr, IN_FEATURES: tl.constexpr, OUT_FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of `x @ weight^T`, fp32 `[BLOCK_M, BLOCK_N]`, summed from the first input feature to the last."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if TMA:
        for k in range(0, IN_FEATURES, BLOCK_K):
            x = x_rows.load([pid_m * BLOCK_M, k])  # [BLOCK_M, BLOCK_K]
            weight = weight_rows.load([pid_n * BLOCK_N, k])  # [BLOCK_N, BLOCK_K]
            acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    else:
        offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        offs_k = tl.arange(0, BLOCK_K)
        mask_m = (offs_m < tokens)[:, None]
        mask_n = (offs_n < OUT_FEATURES)[:, None]
        x_tile = x_rows + offs_m[:, None] * stride_xt + offs_k[None, :]
        weight_tile = weight_rows + offs_n[:, None] * stride_wn + offs_k[None, :]
        for k in range(0, IN_FEATURES, BLOCK_K):
            if IN_FEATURES % BLOCK_K == 0:
                x = tl.load(x_tile + k, mask=mask_m, other=0.0)  # [BLOCK_M, BLOCK_K]
                weight = tl.load(weight_tile + k, mask=mask_n, other=0.0)  # [BLOCK_N, BLOCK_K]
            else:
                mask_k = (offs_k < IN_FEATURES - k)[None, :]
                x = tl.load(x_tile + k, mask=mask_m & mask_k, other=0.0)  # [BLOCK_M, BLOCK_K]
                weight = tl.load(weight_tile + k, mask=mask_n & mask_k, other=0.0)  # [BLOCK_N, BLOCK_K]
            acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _halves(acc, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """The left and the right half of the columns; no thread needs what another one holds for it."""
    return acc.reshape(BLOCK_M, 2, BLOCK // 2).permute(0, 2, 1).split()


@triton.jit
def _turn_and_store(
    acc, rows_ptr, cos_ptr, sin_ptr, out_ptr, offs_m, mask_m, begin,
    stride_cos: tl.constexpr, stride_sin: tl.constexpr, OUT_FEATURES: tl.constexpr, TURNED: tl.constexpr,
    HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn the pairs of adjacent columns, and write each channel where it belongs in its head."""
    first, second = acc.reshape(BLOCK_M, BLOCK // 2, 2).split()
    pair = begin // 2 + tl.arange(0, BLOCK // 2)
    head = pair // HALF
    channel = pair % HALF
    turns = (pair < TURNED // 2)[None, :]
    mask = mask_m[:, None] & (pair < OUT_FEATURES // 2)[None, :]
    rows = tl.load(rows_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)[:, None]  # [BLOCK_M, 1]
    cosine = tl.load(cos_ptr + rows * stride_cos + channel[None, :], mask=mask & turns, other=1.0)  # [BLOCK_M, pairs]
    sine = tl.load(sin_ptr + rows * stride_sin + channel[None, :], mask=mask & turns, other=0.0)  # [BLOCK_M, pairs]
    out = out_ptr + offs_m[:, None] * OUT_FEATURES + (head * (2 * HALF) + channel)[None, :]
    # Not by a turn of 0: 0 times what is not finite in the partner would be NaN.
    turned = tl.where(turns, first * cosine - second * sine, first)
    tl.store(out, turned.to(out_ptr.dtype.element_ty), mask=mask)
    turned = tl.where(turns, second * cosine + first * sine, second)
    tl.store(out + HALF, turned.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activate_and_store(
    acc, residual_ptr, out_ptr, found_ptr, offs_m, mask_m, begin,
    stride_rt: tl.constexpr, OUT_FEATURES: tl.constexpr, EPILOGUE: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Activate, gate, add the residual, and write; and the statistics of what was written."""
    OF_EACH: tl.constexpr = 1 + GATED  # columns of the product for one of the result
    if GATED:
        value, gate = acc.reshape(BLOCK_M, BLOCK // 2, 2).split()
        out = activate(value, EPILOGUE) * gate
    else:
        out = activate(acc, EPILOGUE)
    offs_n = (begin // OF_EACH + tl.arange(0, BLOCK // OF_EACH))[None, :]
    mask = mask_m[:, None] & (offs_n < OUT_FEATURES // OF_EACH)
    if residual_ptr is not None:
        residual = residual_ptr + offs_m[:, None] * stride_rt + offs_n
        out += tl.load(residual, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, outputs]
    out_tile = out_ptr + offs_m[:, None] * (OUT_FEATURES // OF_EACH) + offs_n
    rounded = out.to(out_ptr.dtype.element_ty)
    tl.store(out_tile, rounded, mask=mask)
    if found_ptr is not None:
        store_statistics(rounded.to(tl.float32), found_ptr, offs_m, mask_m, begin, OUT_FEATURES, BLOCK)


@triton.jit
def _normalised(
    acc, mean, scale, sums_ptr, begin, OUT_FEATURES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The product of the rows less their mean, times their scale: `acc` is that of the rows as they are."""
    if sums_ptr is not None:
        columns = begin + tl.arange(0, BLOCK)
        sums = tl.load(sums_ptr + columns, mask=columns < OUT_FEATURES, other=0.0)  # [BLOCK]
        acc = tl.fma(-mean[:, None], sums[None, :], acc)
    return acc * scale[:, None]


@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
    x_rows, weight_rows, bias_ptr, residual_ptr, rows_ptr, cos_ptr, sin_ptr, statistics_ptr, sums_ptr, out_ptr,
    found_ptr, tokens, eps,
    stride_xt: tl.constexpr, stride_wn: tl.constexpr, stride_rt: tl.constexpr, stride_cos: tl.constexpr,
    stride_sin: tl.constexpr, IN_FEATURES: tl.constexpr, OUT_FEATURES: tl.constexpr, TURNED: tl.constexpr,
    HALF: tl.constexpr, EPILOGUE: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PARTS: tl.constexpr,
    TMA: tl.constexpr, FLATTEN: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, RUNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Tiles `program, program + programs, …` of the product; `out` is contiguous. Parts that are missing are None.

    OUT_FEATURES are those of the product. `x_rows` and `weight_rows` point at the first row; under TMA both are
    descriptors, which give zeros beyond the last row and feature as the masks do.

    With `statistics_ptr`, fp32 [tokens, RUNS, 2] of runs of RUN features, the rows of x are normalised: layer norm
    where there are `sums_ptr`, fp32 [OUT_FEATURES], of the weight's rows, otherwise rms norm. `found_ptr`, fp32
    [tokens, runs, 2], takes the statistics of the results, a part of a tile a run.
    """
    TILES_N: tl.constexpr = (OUT_FEATURES + BLOCK_N - 1) // BLOCK_N
    GROUP: tl.constexpr = GROUP_M * TILES_N
    BLOCK: tl.constexpr = BLOCK_N // PARTS
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    for tile in tl.range(
        tl.program_id(0),
        tiles_m * TILES_N,
        tl.num_programs(0),
        flatten=FLATTEN,
        warp_specialize=WARP_SPECIALIZE,
    ):
        # GROUP_M bands of rows are in flight together: their rows of x and all of the weight stay in L2.
        group = tile // GROUP
        tl.assume((group >= 0) & (group < (1 << 31) // GROUP_M))
        first_m = group * GROUP_M
        bands = tl.minimum(tiles_m - first_m, GROUP_M)
        pid_m = first_m + tile % GROUP % bands
        pid_n = tile % GROUP // bands
        # No more than follows from the lines above; the gate takes it as proof that 32 bits hold its products.
        tl.assume((pid_n >= 0) & (pid_n < TILES_N))
        if statistics_ptr is not None:
            # In front of the product: beside its sums there is room for two numbers a row, but not for all runs.
            rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
            mean, scale = merged_statistics(
                statistics_ptr, rows, rows < tokens, eps, IN_FEATURES, RUNS, RUN, sums_ptr is not None, BLOCK_M
            )  # fmt: skip
        acc = _product(
            x_rows, weight_rows, pid_m, pid_n, tokens, stride_xt, stride_wn, IN_FEATURES, OUT_FEATURES, BLOCK_M,
            BLOCK_N, BLOCK_K, TMA, PRECISION,
        )  # fmt: skip
        offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_m = offs_m < tokens
        # A part of the columns after the other, so that few numbers are held beside the sums.
        if PARTS == 1:
            parts = (acc,)
        else:
            left, right = _halves(acc, BLOCK_M, BLOCK_N)
            if PARTS == 2:
                parts = (left, right)
            else:
                parts = _halves(left, BLOCK_M, BLOCK_N // 2) + _halves(right, BLOCK_M, BLOCK_N // 2)
        for part in tl.static_range(PARTS):
            out = parts[part]
            begin = pid_n * BLOCK_N + part * BLOCK
            if statistics_ptr is not None:
                out = _normalised(out, mean, scale, sums_ptr, begin, OUT_FEATURES, BLOCK)
            if bias_ptr is not None:
                offs_n = begin + tl.arange(0, BLOCK)
                bias = tl.load(bias_ptr + offs_n, mask=offs_n < OUT_FEATURES, other=0.0)  # [BLOCK]
                out += bias.to(tl.float32)[None, :]
            if cos_ptr is not None:
                _turn_and_store(
                    out, rows_ptr, cos_ptr, sin_ptr, out_ptr, offs_m, mask_m, begin, stride_cos, stride_sin,
                    OUT_FEATURES, TURNED, HALF, BLOCK_M, BLOCK,
                )  # fmt: skip
            else:
                _activate_and_store(
                    out, residual_ptr, out_ptr, found_ptr, offs_m, mask_m, begin, stride_rt, OUT_FEATURES, EPILOGUE,
                    GATED, BLOCK_M, BLOCK,
                )  # fmt: skip
