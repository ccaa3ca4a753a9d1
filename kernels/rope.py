"""Rotary position embedding of packed queries and keys in Triton: `engine/ops/rope.py`, one launch for both.

Maths, for channel `j` of the first half of a head and its partner in the second:
    first  * cos[rows[token], j] - second * sin[rows[token], j]
    second * cos[rows[token], j] + first  * sin[rows[token], j]
in fp32, each product and each sum rounded once, as eager does: the results are those of eager, bit for bit.

Tiling: a program owns BLOCK_M tokens. It gathers their cosines and sines once, keeps them in registers, and walks with
them over all heads of q, then of k, four heads a step; each half of a head is one coalesced load.

              heads of q               heads of k
    tokens   [h h h h][h h h h] …    [h h h h] …        one program: one band of BLOCK_M tokens,
             [first half | second half] of each          cos, sin [BLOCK_M, head_dim / 2] loaded once for the band

What is fused: the gather of the tables, both turns, the cast, and the copy that makes the strided q and k of a fused
QKV buffer contiguous. Nothing is written in place, so v keeps its neighbours.

Bytes: `2 * element * head_dim * (heads + heads_k)` a token, read and written once, and `4 * head_dim` of tables, which
stay in L2. FLOPs: `3 * head_dim * (heads + heads_k)` a token; 0.75 a byte in 16-bit dtypes: memory is the bound.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config, launch, next_power_of_2
from .limits import (
    MAX_HEAD_DIM,
    dtype_reasons,
    require_dtype,
    require_indices,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .registration import traceable
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "rope", "unsupported"]

HEADS_A_STEP = 4
"""Divides the usual numbers of heads (4, 8, 12, 16), so that no lane idles."""


@triton.jit
def _turn(
    x_ptr, out_ptr, offs_m, mask_m, cosine, sine, heads, stride_xt: tl.constexpr, stride_xh: tl.constexpr,
    HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_d = tl.arange(0, BLOCK_D)[None, None, :]
    for head in range(0, heads, BLOCK_H):
        offs_h = (head + tl.arange(0, BLOCK_H)).to(tl.int64)[None, :, None]
        mask = mask_m & (offs_h < heads) & (offs_d < HALF)
        x = x_ptr + offs_m * stride_xt + offs_h * stride_xh + offs_d
        first = tl.load(x, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_H, BLOCK_D]
        second = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_H, BLOCK_D]
        out = out_ptr + (offs_m * heads + offs_h) * (2 * HALF) + offs_d
        tl.store(out, (first * cosine - second * sine).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out + HALF, (second * cosine + first * sine).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def rope_kernel(
    q_ptr, k_ptr, out_q_ptr, out_k_ptr, rows_ptr, cos_ptr, sin_ptr,
    tokens, heads, heads_k,
    stride_qt: tl.constexpr, stride_qh: tl.constexpr, stride_kt: tl.constexpr, stride_kh: tl.constexpr,
    stride_cos: tl.constexpr, stride_sin: tl.constexpr,
    HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of BLOCK_M tokens, all heads of q and of k; `out_q` and `out_k` are contiguous."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    rows = tl.load(rows_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)[:, None, None]  # [BLOCK_M]
    offs_m, mask_m = offs_m[:, None, None], mask_m[:, None, None]
    offs_d = tl.arange(0, BLOCK_D)[None, None, :]
    mask = mask_m & (offs_d < HALF)
    cosine = tl.load(cos_ptr + rows * stride_cos + offs_d, mask=mask, other=0.0)  # [BLOCK_M, 1, BLOCK_D]
    sine = tl.load(sin_ptr + rows * stride_sin + offs_d, mask=mask, other=0.0)  # [BLOCK_M, 1, BLOCK_D]
    _turn(
        q_ptr, out_q_ptr, offs_m, mask_m, cosine, sine, heads, stride_qt, stride_qh, HALF, BLOCK_M, BLOCK_H, BLOCK_D
    )  # fmt: skip
    _turn(
        k_ptr, out_k_ptr, offs_m, mask_m, cosine, sine, heads_k, stride_kt, stride_kh, HALF, BLOCK_M, BLOCK_H, BLOCK_D
    )  # fmt: skip


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: a step turns 2,048 pairs of channels, 16 a thread.

    Tokens and heads are turned each for itself, so no tiling can change a bit of the result.
    """
    half = next_power_of_2((call.head_dim or 64) // 2)
    return Config.of(num_warps=4, num_stages=1, BLOCK_M=max(2048 // (HEADS_A_STEP * half), 1))


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=1, BLOCK_M=rows) for warps in (2, 4, 8) for rows in (2, 4, 8, 16, 32)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = dtype_reasons(call)
    if call.head_dim is not None and (call.head_dim % 2 or not 0 < call.head_dim <= MAX_HEAD_DIM):
        reasons.append(f"needs an even head_dim up to {MAX_HEAD_DIM}, got {call.head_dim}")
    return reasons


@traceable("rope")
def rope(
    q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """As `engine/ops/rope.py`, in fp32, fp16 or bf16, even head sizes up to 256; the results are contiguous.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    rows = _checked(q, k, rows, cos, sin)
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    tokens, heads, head_dim = q.shape
    heads_k = k.shape[1]
    out_q = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    out_k = torch.empty((tokens, heads_k, head_dim), dtype=k.dtype, device=k.device)
    if tokens == 0 or head_dim == 0:
        return out_q, out_k
    config = config or TUNED("rope", q.device, q.dtype, head_dim=head_dim)
    arguments = {
        "q_ptr": q,
        "k_ptr": k,
        "out_q_ptr": out_q,
        "out_k_ptr": out_k,
        "rows_ptr": rows,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "tokens": tokens,
        "heads": heads,
        "heads_k": heads_k,
    }
    constants = {
        "stride_qt": q.stride(0),
        "stride_qh": q.stride(1),
        "stride_kt": k.stride(0),
        "stride_kh": k.stride(1),
        "stride_cos": cos.stride(0),
        "stride_sin": sin.stride(0),
        "HALF": head_dim // 2,
        "BLOCK_H": min(next_power_of_2(max(heads, heads_k)), HEADS_A_STEP),
        "BLOCK_D": next_power_of_2(head_dim // 2),
    }
    launch(rope_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out_q, out_k


def _checked(q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The tokens' rows, contiguous, where all fits together; their values are trusted."""
    require_no_gradient("rope", q, k, cos, sin)
    require_dtype("rope", q=q, k=k)
    require_shape("rope", "q", q, None, None, None)
    tokens, _, head_dim = q.shape
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise InputError(f"rope: q: expected an even head_dim up to {MAX_HEAD_DIM}, got {head_dim}")
    require_shape("rope", "k", k, tokens, None, head_dim)
    require_shape("rope", "cos", cos, None, head_dim // 2)
    require_shape("rope", "sin", sin, cos.shape[0], head_dim // 2)
    if not cos.dtype == sin.dtype == torch.float32:
        raise InputError(f"rope: expected cos and sin in float32, got {cos.dtype} and {sin.dtype}")
    require_same_device("rope", q=q, k=k, cos=cos, sin=sin)
    return require_indices("rope", "rows", rows, q.device, tokens)
