"""Layer norm, rms norm and MobileBERT's NoNorm of token rows in Triton: `engine/ops/norm.py`, in one pass over memory.

Maths, in fp32, of `t`, the sum of residual and x rounded to the wider dtype of both, or x where there is no residual:
    layer_norm  d = t - sum(t) / hidden;  d / sqrt(sum(d²) / hidden + eps) * weight + bias
    rms_norm    round(t / sqrt(sum(t²) / hidden + eps)) * weight       rounded to the weight's dtype, as T5 was trained
    no_norm     (residual + x) * weight + bias                         the sum is not rounded in between
The variance is the mean of centred squares, never E[t²] - E[t]², which cancels where the mean is large. Roots and
quotients are those of IEEE: an approximate rsqrt would save one instruction a row.

Tiling: a program owns BLOCK_M whole rows in registers, many of narrow ones and one of wide ones, so that neither the
mean nor the squares need a second look at memory or another program. What is summed within a row depends on its width
alone: the bits of a row depend neither on its neighbours nor on how many rows there are. no_norm has no sums, and walks
over rows of any width BLOCK_D channels at a time.

    x        [BLOCK_M, BLOCK_D] ┐
                                ├─ + ─> t, written once ──> mean ──> squares ──> scale ──> out, written once
    residual [BLOCK_M, BLOCK_D] ┘       (BLOCK_D: hidden up to the next power of two, masked)

What is fused: the residual's addition and its cast, both passes of the statistics, scale, shift, the cast to the
weight's dtype. Whatever is None is not compiled. Rows may be strided, and x, residual and weight of three dtypes.

Bytes: `(x + residual + t + out elements) * hidden` a token, 8 * hidden in 16-bit dtypes with a residual and 4 * hidden
without; weight and bias stay in L2. FLOPs: about `8 * hidden` a token (layer_norm), 1 to 2 a byte: memory is the bound.
Tried by compiling: 32 channels a thread leave registers for several programs a multiprocessor; a row kept to one warp
would save the exchange between warps, at the price of twice the registers from 1,024 channels on.
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
    MAX_HIDDEN,
    dtype_reasons,
    hidden_reasons,
    require_dtype,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .registration import traceable
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "layer_norm", "no_norm", "rms_norm", "unsupported"]

CHANNELS_A_STEP = 1024
"""Of no_norm: a row of MobileBERT, 128 or 512 channels, is one step."""


@triton.jit(do_not_specialize=["tokens"])
def norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, total_ptr,
    tokens, eps,
    stride_xt: tl.constexpr, stride_rt: tl.constexpr,
    CENTRED: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of whole rows; `out` and `total` are contiguous. CENTRED: layer norm, otherwise rms norm."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_d = offs_d < HIDDEN
    mask = (offs_m < tokens) & mask_d
    x = tl.load(x_ptr + offs_m * stride_xt + offs_d, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_D]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offs_m * stride_rt + offs_d, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
        total = (residual.to(tl.float32) + x).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + offs_m * HIDDEN + offs_d, total, mask=mask)
        x = total.to(tl.float32)
    if CENTRED:
        mean = tl.div_rn(tl.sum(x, 1, keep_dims=True), HIDDEN * 1.0)
        # Lanes beyond the row stay 0 for the squares.
        x = tl.where(mask_d, x - mean, 0.0)
    square = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), HIDDEN * 1.0)
    x *= tl.div_rn(1.0, tl.sqrt_rn(square + eps))
    if not CENTRED:
        x = x.to(weight_ptr.dtype.element_ty).to(tl.float32)
    x *= tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
    if bias_ptr is not None:
        x += tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
    tl.store(out_ptr + offs_m * HIDDEN + offs_d, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def no_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr,
    tokens,
    stride_xt: tl.constexpr, stride_rt: tl.constexpr,
    HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of rows, BLOCK_D channels at a time; `out` is contiguous."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    for start in range(0, HIDDEN, BLOCK_D):
        offs_d = start + tl.arange(0, BLOCK_D)[None, :]
        mask_d = offs_d < HIDDEN
        mask = (offs_m < tokens) & mask_d
        x = tl.load(x_ptr + offs_m * stride_xt + offs_d, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_D]
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offs_m * stride_rt + offs_d, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
            x += residual.to(tl.float32)
        weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
        bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
        x = tl.fma(x, weight, bias)
        tl.store(out_ptr + offs_m * HIDDEN + offs_d, x.to(out_ptr.dtype.element_ty), mask=mask)


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: up to 32 channels a thread, one row at least; fewer of rows that are wide.

    What is summed within a row depends on `hidden` alone, never on the number of tokens.
    """
    width = next_power_of_2(call.hidden or 768)
    if call.op == "no_norm":
        return Config.of(num_warps=4, num_stages=1, BLOCK_M=2048 // min(width, CHANNELS_A_STEP))
    return Config.of(num_warps=min(max(width // 256, 4), 16), num_stages=1, BLOCK_M=max(4096 // width, 1))


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=1, BLOCK_M=rows) for warps in (1, 2, 4, 8, 16) for rows in (1, 2, 4, 8, 16)
)
"""What tuning tries, for each of the three ops."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`; of rows without a norm any width is served."""
    return dtype_reasons(call) + ([] if call.op == "no_norm" else hidden_reasons(call))


@traceable("layer_norm")
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    residual: Tensor | None = None,
    config: Config | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm` of `engine/ops/norm.py`, of fp32, fp16 and bf16 in any mixture, rows up to 8,192 wide.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    return _norm("norm", "layer_norm", x, weight, bias, eps, residual, config)


@traceable("rms_norm")
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None, config: Config | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`rms_norm` of `engine/ops/norm.py`, of fp32, fp16 and bf16 in any mixture, rows up to 8,192 wide.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    return _norm("rms_norm", "rms_norm", x, weight, None, eps, residual, config)


@traceable("no_norm")
def no_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    wide: bool = False,
    config: Config | None = None,
) -> Tensor:
    """`no_norm` of `engine/ops/norm.py`, of fp32, fp16 and bf16 in any mixture, rows of any width.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    _check("no_norm", x, weight, bias, residual)
    x, weight, bias = _dense(x), weight.contiguous(), bias.contiguous()
    residual = None if residual is None else _dense(residual)
    tokens, hidden = x.shape
    out = torch.empty((tokens, hidden), dtype=torch.float32 if wide else x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = config or TUNED("no_norm", x.device, x.dtype, hidden=hidden)
    arguments = {
        "x_ptr": x,
        "residual_ptr": residual,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "out_ptr": out,
        "tokens": tokens,
    }
    constants = {
        "stride_xt": x.stride(0),
        "stride_rt": 0 if residual is None else residual.stride(0),
        "HIDDEN": hidden,
        "BLOCK_D": min(next_power_of_2(hidden), CHANNELS_A_STEP),
    }
    launch(no_norm_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out


def _norm(
    op: str, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None,
    config: Config | None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Of `op`, a key of the dispatch table; `name` is the function's, for messages."""
    _check(name, x, weight, bias, residual)
    if x.shape[1] > MAX_HIDDEN:
        raise InputError(f"{name}: x: expected rows up to {MAX_HIDDEN} wide, got {x.shape[1]}")
    x, weight = _dense(x), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else _dense(residual)
    tokens, hidden = x.shape
    out, total = torch.empty((tokens, hidden), dtype=weight.dtype, device=x.device), None
    if residual is not None:
        wider = torch.promote_types(x.dtype, residual.dtype)
        total = torch.empty((tokens, hidden), dtype=wider, device=x.device)
    if out.numel() != 0:
        config = config or TUNED(op, x.device, x.dtype, hidden=hidden)
        arguments = {
            "x_ptr": x,
            "residual_ptr": residual,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_ptr": out,
            "total_ptr": total,
            "tokens": tokens,
            "eps": float(eps),
        }
        constants = {
            "stride_xt": x.stride(0),
            "stride_rt": 0 if residual is None else residual.stride(0),
            "CENTRED": op == "norm",
            "HIDDEN": hidden,
            "BLOCK_D": next_power_of_2(hidden),
        }
        launch(norm_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out if total is None else (out, total)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """Refuse what does not fit together; each tensor may have a dtype of its own."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    present = {key: value for key, value in given.items() if value is not None}
    require_no_gradient(name, *present.values())
    require_shape(name, "x", x, None, None)
    tokens, hidden = x.shape
    for key, value in present.items():
        require_dtype(name, **{key: value})
        if key in ("weight", "bias"):
            require_shape(name, key, value, hidden)
    if residual is not None:
        require_shape(name, "residual", residual, tokens, hidden)
    require_same_device(name, **present)
