"""Varlen attention over packed texts, forward: softmax(scale * Q K^T + bias) V, tile by tile, never written in between.

Maths. A program owns BLOCK_M queries of one head of one text and walks over that text's keys, BLOCK_N at a time. It
keeps the running maximum `peak`, the running sum `total` and the weighted values `acc` of each query in fp32, rescaled
when the maximum moves: online softmax (Milakov & Gimelshein 2018, section 3), blocked as in FlashAttention-2 (Dao
2023, section 3.1). Exponentials are base 2, the factor log2(e) is part of the scale.

Tiling.                 keys of the text, BLOCK_N a column
            0          lo        inside from      inside to        hi      length
            |  skipped  |  masked  |  no mask at all  |   masked   | skipped |
   BLOCK_M  |...........|xxxx------|------------------|-------xxxxx|.........|   x: loaded, seen by some of the queries
Only the blocks that one of the queries sees are visited, so a window costs the same at every length; only those that
one of them does not see build a mask. A block starts at a multiple of BLOCK_N from the start of its text: what a query
adds up, and in which order, depends on its text and on BLOCK_N, and on nothing else.

T5's bias is read by distance (`relative_bias.py`): gathered for blocks near the queries, one number for the others.
Q, K and V are read where they are, as strided views of the fused projection. Grouped heads read their K and V head.
Programs take their tiles from a list, long texts first (`schedule.py`); where all texts have one length, or none is
longer than a tile, the number of the program says it all. Heads run fastest, so that those that share K and V, and the
rows of memory they lie in, are in flight together.

Bytes and FLOPs of a text of L tokens, per head: `4 L d itemsize` and `4 L^2 d` (window: `4 L d (left + right + 1)`).
Above some 300 tokens at d = 64 the tensor cores are the bound, below it memory; see docs/kernels.md.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

__all__ = ["attention_kernel"]

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))


@triton.jit
def _load_rows(
    rows, stride_t, row, length, head, offs_d, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    UNIT: tl.constexpr, EDGE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows `row … row + BLOCK_N` of a text's keys or values; zeros beyond `length` where EDGE says there may be some.

    `rows` points at the text's first row of the head; under TMA it is a descriptor, and `row` counts from the batch.
    """
    if TMA:
        tile = rows.load([row, head, 0]).reshape(BLOCK_N, BLOCK_D)  # [BLOCK_N, BLOCK_D]
    else:
        offs_n = row + tl.arange(0, BLOCK_N)
        pointers = rows + offs_n.to(tl.int64)[:, None] * stride_t * UNIT + offs_d[None, :]
        if EDGE:
            mask = (offs_n < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
            tile = tl.load(pointers, mask=mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        elif HEAD_DIM == BLOCK_D:
            tile = tl.load(pointers)  # [BLOCK_N, BLOCK_D]
        else:
            tile = tl.load(pointers, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)  # [BLOCK_N, BLOCK_D]
    return tile


@triton.jit
def _over_keys(
    acc, total, peak, q, k_rows, v_rows, bias_ptr, far_bias, stride_kt, stride_vt, begin_k, length_k, head_k, offs_d,
    places, earliest, latest, from_n, to_n, scale, reach,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr, EDGE: tl.constexpr,
    BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, SCALE_FIRST: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the keys from `from_n` to `to_n`, BLOCK_N at a time.

    EDGE: some query may not see some key. BIAS: "none", "near" (gathered) or "far" (`far_bias` for all).
    """
    for start in range(from_n, to_n, BLOCK_N):
        row = start
        if TMA:
            row += begin_k
        k = _load_rows(
            k_rows, stride_kt, row, length_k, head_k, offs_d, HEAD_DIM, BLOCK_N, BLOCK_D, UNIT, EDGE, TMA
        )  # [BLOCK_N, BLOCK_D]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        offs_n = start + tl.arange(0, BLOCK_N)
        if SCALE_FIRST:
            scores = scores * scale
        if BIAS == "near":
            distance = offs_n[None, :] - places[:, None]
            column = tl.minimum(tl.maximum(distance, -reach), reach) + reach
            near = tl.load(bias_ptr + column).to(tl.float32)  # [BLOCK_M, BLOCK_N]
            scores = tl.fma(near, LOG2_E, scores)
        elif BIAS == "far":
            scores = scores + far_bias
        if EDGE:
            seen = (offs_n < length_k)[None, :]
            if HAS_LEFT:
                seen = seen & (offs_n[None, :] >= earliest[:, None])
            if HAS_RIGHT:
                seen = seen & (offs_n[None, :] <= latest[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        highest = tl.max(scores, 1)
        if not SCALE_FIRST:
            highest = highest * scale
        new_peak = tl.maximum(peak, highest)
        # A query that has seen no key yet has -inf here, and -inf - -inf is NaN.
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        # One rounding where the scale is still to be applied, in every path alike.
        exponents = scores - safe[:, None] if SCALE_FIRST else tl.fma(scores, scale, -safe[:, None])
        p = tl.exp2(exponents)
        rescale = tl.exp2(peak - safe)
        total = tl.fma(total, rescale, tl.sum(p, 1))
        acc = acc * rescale[:, None]
        v = _load_rows(
            v_rows, stride_vt, row, length_k, head_k, offs_d, HEAD_DIM, BLOCK_N, BLOCK_D, UNIT, EDGE, TMA
        )  # [BLOCK_N, BLOCK_D]
        if EDGE and TMA:
            # What the descriptor reads beyond the text is another text's, and 0 * inf would be NaN.
            v = tl.where((offs_n < length_k)[:, None], v, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        peak = new_peak
    return acc, total, peak


# What changes from batch to batch: compiled once, not anew for 1, for multiples of 16 and for the rest.
@triton.jit(do_not_specialize=["stride_lh", "blocks_per_text"])
def attention_kernel(
    q_ptr, k_rows, v_rows, out_ptr, lse_ptr, bias_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh, stride_lh, stride_bh,
    num_heads, group, blocks_per_text, scale, left, right, reach,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr,
    HAS_TILES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_INSIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LSE: tl.constexpr, SCALE_FIRST: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of one head. Strides of q, k, v and out count UNIT channels; what the tile reads, see above."""
    program = tl.program_id(0)
    head = program % num_heads
    tile = program // num_heads
    if HAS_TILES:
        entry = tiles_ptr + 2 * tile.to(tl.int64)
        text = tl.load(entry)
        block = tl.load(entry + 1)
        if text < 0:
            return
    else:
        text = tile // blocks_per_text
        block = tile % blocks_per_text

    begin_q = tl.load(cu_seqlens_q_ptr + text)
    length_q = tl.load(cu_seqlens_q_ptr + text + 1) - begin_q
    begin_k = tl.load(cu_seqlens_k_ptr + text)
    length_k = tl.load(cu_seqlens_k_ptr + text + 1) - begin_k
    if HAS_RIGHT and not HAS_LEFT:
        # Late queries see the most keys: theirs first.
        block = (length_q + BLOCK_M - 1) // BLOCK_M - 1 - block
    if block < 0 or block * BLOCK_M >= length_q:
        return
    # No more than was just seen; the gate takes it as proof that 32 bits hold the product.
    tl.assume((block >= 0) & (block < (1 << 31) // BLOCK_M))

    start_m = block * BLOCK_M
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < length_q
    rows_m = begin_q.to(tl.int64) + block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    q = tl.load(
        q_ptr + (rows_m[:, None] * stride_qt + head.to(tl.int64) * stride_qh) * UNIT + offs_d[None, :],
        mask=mask,
        other=0.0,
    )  # [BLOCK_M, BLOCK_D]
    head_k = head // group
    if not TMA:
        k_rows += (begin_k.to(tl.int64) * stride_kt + head_k.to(tl.int64) * stride_kh) * UNIT
        v_rows += (begin_k.to(tl.int64) * stride_vt + head_k.to(tl.int64) * stride_vh) * UNIT
    far_left = 0.0
    far_right = 0.0
    if HAS_BIAS:
        bias_ptr += head.to(tl.int64) * stride_bh
        far_left = tl.load(bias_ptr).to(tl.float32) * LOG2_E
        far_right = tl.load(bias_ptr + reach + reach).to(tl.float32) * LOG2_E

    # Where the queries stand among the keys: the last query beside the last key.
    places = offs_m + (length_k - length_q)
    earliest = places - left
    latest = places + right
    first = start_m + (length_k - length_q)
    last = first + BLOCK_M - 1
    lo = 0
    hi = length_k
    if HAS_LEFT:
        lo = tl.maximum(first - left, 0) // BLOCK_N * BLOCK_N
    if HAS_RIGHT:
        hi = tl.minimum(hi, tl.minimum(last, length_k - 1) + right + 1)
    # Blocks from `inside` to `outside` are seen whole by every query. A tile may have none.
    inside = lo
    outside = length_k
    if HAS_LEFT:
        inside = (tl.maximum(last - left, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    if HAS_RIGHT:
        outside = tl.minimum(outside, first + right + 1)
    outside = tl.maximum(tl.maximum(outside, 0) // BLOCK_N * BLOCK_N, inside)
    if not HAS_INSIDE:
        inside = lo
        outside = lo

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    NEAR: tl.constexpr = "near" if HAS_BIAS else "none"
    if HAS_LEFT and HAS_INSIDE:
        acc, total, peak = _over_keys(
            acc, total, peak, q, k_rows, v_rows, bias_ptr, 0.0, stride_kt, stride_vt, begin_k, length_k, head_k, offs_d,
            places, earliest, latest, lo, tl.minimum(inside, hi), scale, reach, HEAD_DIM, BLOCK_N, BLOCK_D, UNIT, True,
            NEAR, HAS_LEFT, HAS_RIGHT, SCALE_FIRST, TMA, PRECISION,
        )  # fmt: skip
    if HAS_INSIDE:
        near = inside
        beyond = outside
        if HAS_BIAS:
            # Blocks before `near` lie further left of every query than the bias reaches, those from `beyond` right.
            near = tl.maximum(first - reach + 1, 0) // BLOCK_N * BLOCK_N
            near = tl.minimum(tl.maximum(near, inside), outside)
            beyond = (tl.maximum(last + reach, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            beyond = tl.minimum(tl.maximum(beyond, near), outside)
            acc, total, peak = _over_keys(
                acc, total, peak, q, k_rows, v_rows, bias_ptr, far_left, stride_kt, stride_vt, begin_k, length_k,
                head_k, offs_d, places, earliest, latest, inside, near, scale, reach, HEAD_DIM, BLOCK_N, BLOCK_D,
                UNIT, False, "far", HAS_LEFT, HAS_RIGHT, SCALE_FIRST, TMA, PRECISION,
            )  # fmt: skip
        acc, total, peak = _over_keys(
            acc, total, peak, q, k_rows, v_rows, bias_ptr, 0.0, stride_kt, stride_vt, begin_k, length_k, head_k, offs_d,
            places, earliest, latest, near, beyond, scale, reach, HEAD_DIM, BLOCK_N, BLOCK_D, UNIT, False, NEAR,
            HAS_LEFT, HAS_RIGHT, SCALE_FIRST, TMA, PRECISION,
        )  # fmt: skip
        if HAS_BIAS:
            acc, total, peak = _over_keys(
                acc, total, peak, q, k_rows, v_rows, bias_ptr, far_right, stride_kt, stride_vt, begin_k, length_k,
                head_k, offs_d, places, earliest, latest, beyond, outside, scale, reach, HEAD_DIM, BLOCK_N, BLOCK_D,
                UNIT, False, "far", HAS_LEFT, HAS_RIGHT, SCALE_FIRST, TMA, PRECISION,
            )  # fmt: skip
    acc, total, peak = _over_keys(
        acc, total, peak, q, k_rows, v_rows, bias_ptr, 0.0, stride_kt, stride_vt, begin_k, length_k, head_k, offs_d,
        places, earliest, latest, outside, hi, scale, reach, HEAD_DIM, BLOCK_N, BLOCK_D, UNIT, True, NEAR,
        HAS_LEFT, HAS_RIGHT, SCALE_FIRST, TMA, PRECISION,
    )  # fmt: skip

    # A query that saw nothing has a sum of 0 and gives zeros.
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out_ptr + (rows_m[:, None] * stride_ot + head.to(tl.int64) * stride_oh) * UNIT + offs_d[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=mask,
    )
    if HAS_LSE:
        lse = tl.where(total == 0.0, float("-inf"), (peak + tl.log2(total)) * LN_2)
        tl.store(lse_ptr + head.to(tl.int64) * stride_lh + rows_m, lse, mask=mask_m)
