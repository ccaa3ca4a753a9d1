"""Logits of a vocabulary, and of each row the k highest and the log-sum-exp without writing the logits, in Triton.

Maths, of a row `x` of the head's transform (see `mlm_head.py`), in fp32 from the product on:
    logit[n] = sum_k x[k] weight[n, k] + sum_j x[width + j] own[j, n] + bias[n]
    m = max(logit), lse = m + log(sum(exp(logit - m)))
    the k highest (logit, n) in falling order, of equal ones the lower n first

A logit and its token become one 64-bit number that orders as the pair does: above, the bits of the logit, those below
the sign flipped where it is negative, which makes integers that order as floats do; below, the distance of the token
from the last one there can be. No two are equal, so what is kept does not depend on the order in which it was found.
-0.0 counts as 0.0, as it does in a comparison.

Tiling: a program owns BLOCK_M rows and one of PARTS parts of the vocabulary, tile by tile of BLOCK_N tokens. Rows are
few (masked tokens, or one a sequence), the vocabulary is long, so parts fill the GPU; their number and their edges
depend on the vocabulary alone. Programs of the same part run side by side, and read its weights from L2.

                         part 0             part 1            …
    rows [BLOCK_M] x [tile|tile|tile]  [tile|tile|tile]           a tile: [BLOCK_M, BLOCK_N] fp32 accumulators
                       k pairs, m, s      k pairs, m, s           of each row and part, to memory
                           └────────────────┴───── one program a row ──> k pairs in order, lse

Of a tile the highest pair of each row is taken out and put in the place of the lowest one kept, for as long as any row
gains by it: k rounds in the first tile, few in those after. m and s, the running maximum and the sum of exponentials,
go from tile to tile, and from part to part, in fixed order; nothing is added atomically, and no number above depends on
how many rows there are: neither do the bits of a row.

What is fused: both products of a head whose word embeddings are narrower than its hidden states, the bias, the sum of
the softmax, the selection. Bytes: `element * vocab * hidden` of weights once, `8 * k * PARTS` a row and back. At 30,522
tokens and k = 5 that is 5 kB where fp32 logits are 122 kB; at k = 64 it is half of them. FLOPs: `2 * vocab * hidden` a
row. Below some 200 rows on an H200 the bound is memory, 47 MB in 16 bits at 768 channels; above, the product.
Sorting a tile (28 steps at 128 tokens, each over pairs of 64 bits) was weighed against rounds of maxima: these cost
less up to k = 64 or so, and for k = 5 a tenth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch, next_power_of_2

__all__ = ["MAX_TOP_K", "highest_logits", "logits"]

MAX_TOP_K = 64
"""Beyond, pairs kept for each row take more room than logits would."""

INFINITY = tl.constexpr(float("inf"))
LAST_TOKEN = tl.constexpr(2**31 - 1)
NO_LOGIT = tl.constexpr(-(2**31))
"""Below the ordered bits of every number, -inf as well."""
NO_PAIR = tl.constexpr(-(2**63))
FIRST_PAIR = tl.constexpr(-(2**63) + 2**32)
"""Not above any pair of a logit and a token."""
BELOW_PAIRS = tl.constexpr(-(2**63) + 2**32 - 1)
ABOVE_PAIRS = tl.constexpr(2**63 - 1)
KEYS_A_STEP = 1024


@triton.jit
def _tile(
    rows_ptr, weight_ptr, bias_ptr, own_ptr, offs_m, mask_m, offs_n, mask_n,
    stride_wn: tl.constexpr, stride_ok: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows_ptr += offs_m[:, None] * HIDDEN
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < WIDTH
        x = tl.load(rows_ptr + offs_k[None, :], mask=mask_m[:, None] & mask_k[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        weight = weight_ptr + offs_n[None, :] * stride_wn + offs_k[:, None]
        w = tl.load(weight, mask=mask_k[:, None] & mask_n[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if own_ptr is not None:
        for k in range(WIDTH, HIDDEN, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < HIDDEN
            x = tl.load(rows_ptr + offs_k[None, :], mask=mask_m[:, None] & mask_k[None, :], other=0.0)
            own = own_ptr + (offs_k - WIDTH).to(tl.int64)[:, None] * stride_ok + offs_n[None, :]
            w = tl.load(own, mask=mask_k[:, None] & mask_n[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
            acc = tl.dot(x, w, acc, input_precision="ieee")
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]  # [BLOCK_N]
    return acc


@triton.jit
def _flipped(bits):
    """From the bits of a float to an integer that orders as floats do, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _finite(highest):
    """What to subtract before exponentials: -inf - -inf and inf - inf are no numbers."""
    return tl.where(tl.abs(highest) == INFINITY, 0.0, highest)


@triton.jit
def _nothing_kept(count, BLOCK_C: tl.constexpr):
    """BLOCK_C different numbers: the first `count` below every pair, the others above, where none takes its place."""
    lanes = tl.arange(0, BLOCK_C).to(tl.int64)
    return tl.where(lanes < count, -lanes + BELOW_PAIRS, ABOVE_PAIRS)


@triton.jit
def _best(order, kept, first):
    """Of each row the highest pair left, its place in the tile, and the lowest pair kept."""
    best, place = tl.max(order, 1, return_indices=True)  # type: ignore[misc]
    pair = (best.to(tl.int64) << 32) | ((first + place) ^ LAST_TOKEN)
    return pair, place, tl.min(kept, 1)


@triton.jit(do_not_specialize=["rows", "row_blocks", "count"])
def top_k_parts_kernel(
    rows_ptr, weight_ptr, bias_ptr, own_ptr, pairs_ptr, highest_ptr, sums_ptr,
    rows, row_blocks, count,
    stride_wn: tl.constexpr, stride_ok: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VOCAB: tl.constexpr,
    PARTS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_M rows and SPLIT tokens: `pairs` `[rows, PARTS, count]`, `highest` and `sums` fp32 `[rows, PARTS]`."""
    part = (tl.program_id(0) // row_blocks).to(tl.int64)
    offs_m = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < rows
    highest = tl.full((BLOCK_M,), -INFINITY, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    kept = tl.zeros((BLOCK_M, 1), tl.int64) + _nothing_kept(count, BLOCK_C)[None, :]
    columns = tl.arange(0, BLOCK_N)
    for start in range(0, tl.minimum(VOCAB - part * SPLIT, SPLIT).to(tl.int32), BLOCK_N):
        first = part * SPLIT + start
        offs_n = first + columns
        mask_n = offs_n < VOCAB
        logit = _tile(
            rows_ptr, weight_ptr, bias_ptr, own_ptr, offs_m, mask_m, offs_n, mask_n,
            stride_wn, stride_ok, WIDTH, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        logit = tl.where(mask_n[None, :], logit, -INFINITY)
        higher = tl.maximum(highest, tl.max(logit, 1))
        base = _finite(higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(logit - base[:, None]), 1)
        highest = higher

        order = _flipped(tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True))
        order = tl.where(mask_m[:, None] & mask_n[None, :], order, NO_LOGIT)
        pair, place, lowest = _best(order, kept, first)
        while tl.max((pair > lowest).to(tl.int32), 0) > 0:
            # A row that gains nothing by its highest pair gains nothing by the others either: it may lose it.
            kept = tl.where((kept == lowest[:, None]) & (pair > lowest)[:, None], pair[:, None], kept)
            order = tl.where(columns[None, :] == place[:, None], NO_LOGIT, order)
            pair, place, lowest = _best(order, kept, first)
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    pairs = pairs_ptr + (offs_m * PARTS + part)[:, None] * count + offs_c
    tl.store(pairs, tl.where(kept < FIRST_PAIR, NO_PAIR, kept), mask=mask_m[:, None] & (offs_c < count))
    tl.store(highest_ptr + offs_m * PARTS + part, highest, mask=mask_m)
    tl.store(sums_ptr + offs_m * PARTS + part, total, mask=mask_m)


@triton.jit(do_not_specialize=["count"])
def top_k_join_kernel(
    pairs_ptr, highest_ptr, sums_ptr, values_ptr, ids_ptr, lse_ptr,
    count,
    PARTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row: of the pairs of all parts the `count` highest, in order, and the log-sum-exp."""
    row = tl.program_id(0).to(tl.int64)
    offs_p = tl.arange(0, BLOCK_P)
    mask_p = offs_p < PARTS
    highest = tl.load(highest_ptr + row * PARTS + offs_p, mask=mask_p, other=-INFINITY)  # [BLOCK_P]
    sums = tl.load(sums_ptr + row * PARTS + offs_p, mask=mask_p, other=0.0)  # [BLOCK_P]
    base = _finite(tl.max(highest, 0))
    tl.store(lse_ptr + row, base + tl.log(tl.sum(sums * tl.exp(highest - base), 0)))

    kept = _nothing_kept(count, BLOCK_C)
    for start in range(0, PARTS * count, STEP):
        offs = start + tl.arange(0, STEP)
        pairs = tl.load(pairs_ptr + row * PARTS * count + offs, mask=offs < PARTS * count, other=NO_PAIR)  # [STEP]
        pair, lowest = tl.max(pairs, 0), tl.min(kept, 0)
        while pair > lowest:
            kept = tl.where(kept == lowest, pair, kept)
            pairs = tl.where(pairs == pair, NO_PAIR, pairs)
            pair, lowest = tl.max(pairs, 0), tl.min(kept, 0)
    lanes = tl.arange(0, BLOCK_C)
    kept = tl.where(lanes < count, kept, NO_PAIR)
    # A pair's place is the number of higher ones.
    place = tl.sum((kept[None, :] > kept[:, None]).to(tl.int32), 1)
    value = _flipped((kept >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    tl.store(values_ptr + row * count + place, value, mask=lanes < count)
    tl.store(ids_ptr + row * count + place, (kept & LAST_TOKEN) ^ LAST_TOKEN, mask=lanes < count)


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def logits_kernel(
    rows_ptr, weight_ptr, bias_ptr, own_ptr, out_ptr,
    rows, row_blocks,
    stride_wn: tl.constexpr, stride_ok: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VOCAB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of logits; `out` `[rows, VOCAB]` is contiguous."""
    offs_m = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (tl.program_id(0) // row_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < rows, offs_n < VOCAB
    logit = _tile(
        rows_ptr, weight_ptr, bias_ptr, own_ptr, offs_m, mask_m, offs_n, mask_n,
        stride_wn, stride_ok, WIDTH, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    out = out_ptr + offs_m[:, None] * VOCAB + offs_n[None, :]
    tl.store(out, logit.to(out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


def highest_logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor | None, count: int, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest logits of each row, their tokens, and the log-sum-exp of all, in fp32 throughout.

    Args:
        x: `[rows, hidden]`, contiguous, at least one row.
        weight: `[vocab, width]`, dense rows; bias `[vocab]`, contiguous, or None.
        own: `[hidden - width, vocab]`, dense rows, or None where `width == hidden`.
        count: from 1 to `MAX_TOP_K`, and no more than there are tokens.
        config: BLOCK_M, BLOCK_N, BLOCK_K; PARTS, into how many parts the vocabulary is cut at most.

    Returns:
        Values fp32 `[rows, count]`, ids int64 `[rows, count]`, log-sum-exp fp32 `[rows]`.
    """
    rows, vocab = x.shape[0], weight.shape[0]
    tile = config["BLOCK_N"]
    split = -(-vocab // (tile * config["PARTS"])) * tile
    parts = -(-vocab // split)
    pairs = torch.empty((rows, parts, count), dtype=torch.int64, device=x.device)
    highest, sums = (torch.empty((rows, parts), dtype=torch.float32, device=x.device) for _ in range(2))
    values = torch.empty((rows, count), dtype=torch.float32, device=x.device)
    ids = torch.empty((rows, count), dtype=torch.int64, device=x.device)
    lse = torch.empty(rows, dtype=torch.float32, device=x.device)
    between = {"pairs_ptr": pairs, "highest_ptr": highest, "sums_ptr": sums, "count": count}
    arguments, constants, row_blocks = _product(x, weight, bias, own, config)
    kept = {"PARTS": parts, "BLOCK_C": next_power_of_2(count)}
    launch(
        top_k_parts_kernel,
        (row_blocks * parts,),
        {**arguments, **between},
        {**constants, **kept, "SPLIT": split},
        config,
    )
    results = {"values_ptr": values, "ids_ptr": ids, "lse_ptr": lse}
    steps = {"BLOCK_P": next_power_of_2(parts), "STEP": min(next_power_of_2(parts * count), KEYS_A_STEP)}
    launch(top_k_join_kernel, (rows,), {**between, **results}, {**kept, **steps}, Config.of(num_warps=4, num_stages=1))
    return values, ids, lse


def logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor | None, dtype: torch.dtype, config: Config
) -> Tensor:
    """All logits in `dtype`, `[rows, vocab]`, rounded once; arguments as of `highest_logits`."""
    rows, vocab = x.shape[0], weight.shape[0]
    out = torch.empty((rows, vocab), dtype=dtype, device=x.device)
    arguments, constants, row_blocks = _product(x, weight, bias, own, config)
    tiles = Config(
        tuple(block for block in config.blocks if block[0] != "PARTS"),
        config.num_warps,
        config.num_stages,
        config.max_registers,
    )
    programs = row_blocks * -(-vocab // config["BLOCK_N"])
    launch(logits_kernel, (programs,), {**arguments, "out_ptr": out}, constants, tiles)
    return out


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor | None, config: Config
) -> tuple[dict, dict, int]:
    """What both kernels of logits take, and how many blocks of rows there are."""
    rows, hidden = x.shape
    vocab, width = weight.shape
    row_blocks = -(-rows // config["BLOCK_M"])
    arguments = {
        "rows_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "own_ptr": own,
        "rows": rows,
        "row_blocks": row_blocks,
    }
    constants = {
        "stride_wn": weight.stride(0),
        "stride_ok": 0 if own is None else own.stride(0),
        "WIDTH": width,
        "HIDDEN": hidden,
        "VOCAB": vocab,
    }
    return arguments, constants, row_blocks
