"""Attention of one query a sequence to the keys kept for it, split over the keys: the step of generation.

Maths. softmax(scale * q K^T + bias) V for a single query is bound by reading K and V, and sequences times heads are too
few programs to do that fast. So the keys are split (flash-decoding, Dao et al. 2023): a program takes SPLIT keys of one
sequence and K/V head, BLOCK_N at a time, and keeps the highest score, the total of the weights and the weighted values
`acc` in fp32 by online softmax (Milakov & Gimelshein 2018, section 3). A second kernel adds up a sequence's splits,
each scaled by `exp(its highest score - the highest of all)`.

Tiling.                 keys of a sequence, SPLIT a program
                        |  split 0   |  split 1   |  split 2   |            |   n: BLOCK_N keys, one dot
    heads that share a  | n | n | n  | n | n | n  | n | n.     |   exits    |
    K/V head: 16 rows   +-----+------+-----+------+-----+------+------------+
                              acc, highest, total of each split, fp32
                              REDUCED splits at a time  ->  out, lse

Heads that share K and V are rows of one dot, padded to BLOCK_M: K and V are read once for all of them. A dot has at
least 16 rows, so a head alone wastes 15; they cost no bytes. Heads run fastest over the grid, then sequences, then
splits: programs in flight together read neighbouring rows of memory.

What a sequence adds up, and in which order, depends on its own length and on SPLIT, BLOCK_N and REDUCED, never on its
neighbours or on `max_length`. A sequence of one split is finished by its program, whether others have more or not, and
the second kernel leaves it alone; it is not started where no sequence may need it. Programs beyond a sequence's length
end after one load. Rows beyond a length are not read.

Bytes of a sequence of L keys: `2 L heads_k d itemsize` of K and V, once; splits add `8 heads (d + 2)` for each SPLIT
keys: 0.8 % at d = 64 in bf16 with SPLIT = 256 and no heads shared. FLOPs: `4 L heads d`, on tiles `64 L heads_k d` for
up to 16 heads a K/V head: 16 a byte in bf16, so memory is the bound on everything with tensor cores; see
docs/kernels.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..engine.contract import Call
from .launch import Config, channel_unit, launch, next_power_of_2
from .limits import (
    dtype_reasons,
    head_dim_reasons,
    require_bias,
    require_count,
    require_dtype,
    require_heads,
    require_indices,
    require_no_gradient,
    require_same_device,
    require_scale,
)
from .registration import traceable
from .relative_bias import bias_by_distance
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "decode_attention", "default_config", "unsupported"]

REDUCED = 16
"""Splits that the second kernel takes in at a time."""


@triton.jit
def _finite(highest):
    """The maximum to subtract: where all scores are -inf, 0, for -inf - -inf is NaN."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit(do_not_specialize=("splits", "stride_lh"))
def _split_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, acc_ptr, highest_ptr, total_ptr, bias_ptr,
    starts_ptr, lengths_ptr, positions_ptr,
    stride_qs, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_os, stride_lh, stride_bh,
    num_heads, splits, scale, reach,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HAS_LSE: tl.constexpr, UNIT: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """SPLIT keys of one sequence, for up to BLOCK_M of the GROUP heads that share a K/V head.

    Strides of q, k and v count UNIT channels.
    """
    program = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    TILES: tl.constexpr = (GROUP + BLOCK_M - 1) // BLOCK_M
    heads_k = num_heads // GROUP
    tile = (program % TILES).to(tl.int64)
    head_k = (program // TILES % heads_k).to(tl.int64)
    sequence = (program // TILES // heads_k).to(tl.int64)

    length = tl.load(lengths_ptr + sequence)
    start = tl.load(starts_ptr + sequence).to(tl.int64)
    begin = split * SPLIT
    # The first program of a sequence without keys stays, to write that there are none.
    if begin >= tl.maximum(length, 1):
        return

    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < GROUP
    mask_d = offs_d < HEAD_DIM
    heads = head_k * GROUP + offs_m
    mask_q = mask_m[:, None] & mask_d[None, :]
    q = tl.load(
        q_ptr + (sequence * stride_qs + heads[:, None] * stride_qh) * UNIT + offs_d[None, :], mask=mask_q, other=0.0
    )  # [BLOCK_M, BLOCK_D]
    k_rows = k_ptr + ((start + begin) * stride_kt + head_k * stride_kh) * UNIT
    v_rows = v_ptr + ((start + begin) * stride_vt + head_k * stride_vh) * UNIT
    bias_rows = bias_ptr
    if HAS_BIAS:
        bias_rows += heads[:, None] * stride_bh
    nearest = begin.to(tl.int32)
    if HAS_POSITIONS:
        nearest -= tl.load(positions_ptr + sequence).to(tl.int32)
    else:
        nearest -= length - 1

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    stop = tl.minimum(length - begin, SPLIT).to(tl.int32)
    for first in tl.range(0, stop, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = offs_n < stop
        mask = mask_n[:, None] & mask_d[None, :]
        rows = offs_n.to(tl.int64)[:, None]
        k = tl.load(k_rows + rows * stride_kt * UNIT + offs_d[None, :], mask=mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        if HAS_BIAS:
            column = tl.minimum(tl.maximum(nearest + offs_n, -reach), reach) + reach
            bias = tl.load(bias_rows + column[None, :], mask=mask_m[:, None], other=0.0)  # [BLOCK_M, BLOCK_N]
            scores += bias.to(tl.float32)
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        highest_new = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp(scores - _finite(highest_new)[:, None])
        rescale = tl.exp(highest - _finite(highest_new))
        total = tl.fma(total, rescale, tl.sum(p, 1))
        v = tl.load(v_rows + rows * stride_vt * UNIT + offs_d[None, :], mask=mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        highest = highest_new

    if length <= SPLIT:
        out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            out_ptr + sequence * stride_os + heads[:, None] * HEAD_DIM + offs_d[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=mask_q,
        )
        if HAS_LSE:
            lse = tl.where(total == 0.0, float("-inf"), highest + tl.log(total))
            tl.store(lse_ptr + heads * stride_lh + sequence, lse, mask=mask_m)
    else:
        places = (sequence * splits + split) * num_heads + heads
        tl.store(acc_ptr + places[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=mask_q)
        tl.store(highest_ptr + places, highest, mask=mask_m)
        tl.store(total_ptr + places, total, mask=mask_m)


@triton.jit(do_not_specialize=("splits", "stride_lh"))
def _reduce_kernel(
    out_ptr, lse_ptr, acc_ptr, highest_ptr, total_ptr, lengths_ptr,
    stride_os, stride_lh, num_heads, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_LSE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One head of one sequence from its splits, BLOCK_S at a time."""
    program = tl.program_id(0)
    head = (program % num_heads).to(tl.int64)
    sequence = (program // num_heads).to(tl.int64)
    length = tl.load(lengths_ptr + sequence)
    if length <= SPLIT:
        return

    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    highest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    filled = (length + SPLIT - 1) // SPLIT
    for first in tl.range(0, filled, BLOCK_S):
        offs_s = first + tl.arange(0, BLOCK_S)
        mask_s = offs_s < filled
        places = (sequence * splits + offs_s) * num_heads + head
        highest_s = tl.load(highest_ptr + places, mask=mask_s, other=float("-inf"))  # [BLOCK_S]
        total_s = tl.load(total_ptr + places, mask=mask_s, other=0.0)  # [BLOCK_S]
        acc_s = tl.load(
            acc_ptr + places[:, None] * HEAD_DIM + offs_d[None, :], mask=mask_s[:, None] & mask_d[None, :], other=0.0
        )  # [BLOCK_S, BLOCK_D]
        highest_new = tl.maximum(highest, tl.max(highest_s, 0))
        weight = tl.exp(highest_s - _finite(highest_new))
        rescale = tl.exp(highest - _finite(highest_new))
        total = tl.fma(total, rescale, tl.sum(total_s * weight, 0))
        acc = tl.fma(acc, rescale, tl.sum(acc_s * weight[:, None], 0))
        highest = highest_new

    out = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + sequence * stride_os + head * HEAD_DIM + offs_d, out.to(out_ptr.dtype.element_ty), mask=mask_d)
    if HAS_LSE:
        lse = tl.where(total == 0.0, float("-inf"), highest + tl.log(total))
        tl.store(lse_ptr + head * stride_lh + sequence + tl.arange(0, 1), lse)


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: 16 KiB a stage for K and V together, so that several programs share an SM.

    With a bias tiles are smaller, for the addresses it is gathered from take registers too.
    """
    width = max(next_power_of_2(call.head_dim or 64), 16)
    itemsize = 4 if call.dtype == torch.float32 else 2
    keys = min(max(8192 // (width * itemsize), 16), 128)
    if call.bias == "t5":
        keys = max(keys // 2, 64 // itemsize)
    stages = 3 if keys * width * itemsize <= 8192 else 2
    return Config.of(num_warps=4, num_stages=stages, SPLIT=256, BLOCK_M=16, BLOCK_N=keys)


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=stages, SPLIT=split, BLOCK_M=16, BLOCK_N=keys)
    for split in (256, 512, 1024)
    for keys in (16, 32, 64, 128)
    for warps in (1, 2, 4)
    for stages in (2, 3, 4)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + head_dim_reasons(call)


@traceable("decode_attention")
def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    max_length: int,
    *,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = False,
    query_positions: Tensor | None = None,
    return_lse: bool = False,
    config: Config | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `engine/ops/decode.py`, in fp32, fp16 or bf16, head sizes up to 256.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, a number is none, or a gradient is asked for.
    """
    max_length = require_count("decode_attention", "max_length", max_length)
    starts, lengths, query_positions = _checked(q, k, v, starts, lengths, query_positions, position_bias)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    sequences, heads, head_dim = q.shape
    heads_k = k.shape[1]
    out = torch.empty((sequences, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, sequences), dtype=torch.float32, device=q.device) if return_lse else None
    if sequences == 0 or max_length == 0:
        out.zero_()
        return out if lse is None else (out, lse.fill_(-torch.inf))
    if config is None:
        kind = "none" if position_bias is None else "t5"
        config = TUNED("decode_attention", q.device, q.dtype, head_dim=head_dim, bias=kind)
    splits = -(-max_length // config["SPLIT"])
    # One split is finished at once: nothing is kept, and the same compiled kernel runs.
    kept = splits if splits > 1 else 0
    acc = torch.empty((sequences, kept, heads, head_dim), dtype=torch.float32, device=q.device)
    highest, total = (torch.empty((sequences, kept, heads), dtype=torch.float32, device=q.device) for _ in range(2))
    bias, reach = None, 0
    if position_bias is not None:
        bias, reach = bias_by_distance(position_bias, bias_max_distance, bias_bidirectional)
    unit = channel_unit(q, k, v)
    result = {"out_ptr": out, "lse_ptr": lse, "stride_os": out.stride(0), "stride_lh": sequences}
    parts = {"acc_ptr": acc, "highest_ptr": highest, "total_ptr": total, "splits": splits}
    whole = {"lengths_ptr": lengths, "num_heads": heads, **result, **parts}
    arguments = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "bias_ptr": bias,
        "starts_ptr": starts,
        "positions_ptr": query_positions,
        "stride_qs": q.stride(0) // unit,
        "stride_qh": q.stride(1) // unit,
        "stride_kt": k.stride(0) // unit,
        "stride_kh": k.stride(1) // unit,
        "stride_vt": v.stride(0) // unit,
        "stride_vh": v.stride(1) // unit,
        "stride_bh": 0 if bias is None else bias.stride(0),
        "scale": require_scale("decode_attention", softmax_scale, head_dim),
        "reach": reach,
    }
    shape = {"HEAD_DIM": head_dim, "BLOCK_D": max(next_power_of_2(head_dim), 16), "HAS_LSE": return_lse}
    constants = {
        "GROUP": heads // heads_k,
        "HAS_BIAS": bias is not None,
        "HAS_POSITIONS": query_positions is not None,
        "UNIT": unit,
    }
    tiles = -(-(heads // heads_k) // config["BLOCK_M"])
    launch(_split_kernel, (sequences * heads_k * tiles, splits), whole | arguments, shape | constants, config)
    if kept:
        reduced = Config.of(num_warps=4 if head_dim <= 128 else 8, num_stages=1, SPLIT=config["SPLIT"], BLOCK_S=REDUCED)
        launch(_reduce_kernel, (sequences * heads,), whole, shape, reduced)
    return out if lse is None else (out, lse)


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    query_positions: Tensor | None,
    position_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The integers of each sequence, contiguous, where all fits together; their values are trusted."""
    op = "decode_attention"
    require_no_gradient(op, q, k, v, position_bias)
    require_dtype(op, q=q, k=k, v=v)
    require_heads(op, q, k, v)
    require_same_device(op, q=q, k=k, v=v)
    sequences, heads, _ = q.shape
    if position_bias is not None:
        require_bias(op, position_bias, heads, q.device)
    starts = require_indices(op, "starts", starts, q.device, sequences)
    lengths = require_indices(op, "lengths", lengths, q.device, sequences)
    if query_positions is not None:
        query_positions = require_indices(op, "query_positions", query_positions, q.device, sequences)
    return starts, lengths, query_positions
