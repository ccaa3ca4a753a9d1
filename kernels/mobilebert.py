"""The Triton rows of `mobilebert_in` and `mobilebert_out`: tilings, what they serve, and the launches.

The kernels are in `mobilebert_in.py` and `mobilebert_out.py`; with the attention a layer is three launches.

Two schedules, chosen by the number of tokens. For many, a program owns as many rows as registers hold, for each program
reads all weights from L2. For few, programs of the fewest rows that the same instruction takes: 64 where products are
`wgmma` or `tcgen05`, 16 elsewhere. Both sum in the same order with the same kind of instruction, so that the bits of a
row do not depend on how many rows there are; with 16 rows Hopper would fall back to `mma.sync`, of which nobody
promises the same bits. Of few tokens `mobilebert_in` is split over columns too, without another launch, see there.

`mobilebert_out` is not: each network needs all of what the one before it computed, so that splitting its columns takes
a launch a network, of partial sums that the next one adds up in a fixed order. At the published sizes that is five
launches in place of one, which reads 1.21 MB on one multiprocessor; the time of four launches more is about what it
would save, and the sums would be those of another order than for many tokens. Not measured.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config, launch, next_power_of_2
from .limits import (
    DTYPES,
    dtype_reasons,
    require_dtype,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .mobilebert_in import mobilebert_in_kernel
from .mobilebert_out import mobilebert_out_kernel
from .registration import traceable
from .tuned import Tuned, compute_capability

__all__ = [
    "CANDIDATES",
    "TUNED",
    "default_config",
    "few_tokens_config",
    "mobilebert_in",
    "mobilebert_out",
    "unsupported",
]

MAX_WIDTH = 128
"""Channels between the bottlenecks that fit into registers, three times over."""

NORMS = ("no_norm", "layer_norm")
"""Those of `engine/ops/mobilebert.py`, which kernels do not import."""

ACTIVATIONS = (
    "none",
    "gelu",
    "gelu_tanh",
    "relu",
    "tanh",
    "silu",
    "mish",
    "relu6",
    "relu2",
    "sigmoid",
    "quick_gelu",
)
"""The keys of `ACTIVATIONS` in `engine/ops/linear.py`."""

FEW_PROGRAMS = 128
"""Up to so many programs of few rows run at once, about one a multiprocessor: from there on each has more rows."""

FEW_INTERPRETED_PROGRAMS = 8
"""The same where there is no GPU: so few that tests of a hundred tokens see both schedules."""

PARTS = 4
"""Of `mobilebert_in`: the narrow rows, values, queries and keys, by programs of their own."""


def default_config(call: Call) -> Config:
    """Tiling for many tokens where nothing was measured: as many rows as registers hold without a spill.

    The gate holds what it takes on each architecture (tests/gate/resources.json). BLOCK_K: columns that a product takes
    in at a time, of x, the context and the networks. BLOCK_N: columns of queries and keys, or of the layer's output.
    """
    entering = call.op == "mobilebert_in"
    if call.dtype == torch.float32:
        # Products in full fp32 run on the ordinary cores.
        return Config.of(8, 2, 255, BLOCK_M=64, BLOCK_K=16, BLOCK_N=16)
    if call.sm in (90, 100):
        rows, columns, stages = (128, 32, 3) if entering else (128, 64, 4)
        if call.sm == 100 and not entering:
            # More of them spill up to 92 bytes, with triton 3.6 or, in fp16, with 3.7.
            rows, columns = 64 if call.dtype == torch.float16 else 128, 32
        return Config.of(8, stages, 255, BLOCK_M=rows, BLOCK_K=columns, BLOCK_N=columns)
    # Shared memory is 99 KiB on sm_86, 89 and 120, and 64 KiB where there is no compute capability.
    stages = 2 if call.sm is None else 3 if entering else 4
    return Config.of(8, stages, 255, BLOCK_M=64, BLOCK_K=32, BLOCK_N=32)


def few_tokens_config(call: Call) -> Config:
    """Tiling for few tokens: the fewest rows of the instruction that serves many, and the same columns."""
    many = default_config(call)
    rows = 64 if call.sm in (90, 100) and call.dtype != torch.float32 else 16
    stages = many.num_stages if call.sm is None or call.dtype == torch.float32 else 4
    warps, registers = 8, 255
    if rows == 16 and call.dtype != torch.float32:
        # Left alone, ptxas takes a third of the registers, and spills none; told that it may have all, it spills.
        warps, registers = (8, None) if call.op == "mobilebert_in" else (4, 255)
    return Config.of(warps, stages, registers, BLOCK_M=rows, BLOCK_K=many["BLOCK_K"], BLOCK_N=many["BLOCK_N"])


CANDIDATES = (
    *(
        Config.of(warps, stages, 255, BLOCK_M=rows, BLOCK_K=columns, BLOCK_N=32)
        for rows, warps in ((64, 4), (64, 8), (128, 8))
        for columns in (32, 64)
        for stages in (2, 3, 4)
    ),
    *(Config.of(8, stages, 255, BLOCK_M=128, BLOCK_K=64, BLOCK_N=64) for stages in (2, 3, 4)),
    *(Config.of(8, 2, 255, BLOCK_M=rows, BLOCK_K=16, BLOCK_N=16) for rows in (16, 32, 64)),
)
"""What tuning tries, of either op; those of 16 columns are for fp32."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves many tokens."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`, whose `inner` is the width between the bottlenecks."""
    reasons = dtype_reasons(call)
    if call.inner is not None and not 1 <= call.inner <= MAX_WIDTH:
        reasons.append(f"needs a width of 1 to {MAX_WIDTH} between the bottlenecks, got {call.inner}")
    if call.epilogue is not None and call.epilogue not in ACTIVATIONS:
        reasons.append(f"needs activation {', '.join(ACTIVATIONS)}, got {call.epilogue}")
    return reasons


@traceable("mobilebert_in")
def mobilebert_in(
    x: Tensor,
    narrow_weight: Tensor,
    narrow_bias: Tensor,
    narrow_scale: Tensor,
    narrow_shift: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    shared_scale: Tensor,
    shared_shift: Tensor,
    qk_weight: Tensor,
    qk_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    *,
    norm: str = "no_norm",
    eps: float = 1e-12,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """As `engine/ops/mobilebert.py`, in fp32, fp16 or bf16, widths up to 128; the results are contiguous.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, the norm is unknown, or a gradient is asked for.
    """
    op = "mobilebert_in"
    width, hidden = _sizes(op, "narrow_weight", narrow_weight)
    line = (width,)
    weights = _checked(
        op, width, norm,
        narrow_weight=(narrow_weight, (width, hidden)), narrow_bias=(narrow_bias, line),
        narrow_scale=(narrow_scale, line), narrow_shift=(narrow_shift, line),
        shared_weight=(shared_weight, (width, hidden)), shared_bias=(shared_bias, line),
        shared_scale=(shared_scale, line), shared_shift=(shared_shift, line),
        qk_weight=(qk_weight, (2 * width, width)), qk_bias=(qk_bias, (2 * width,)),
        v_weight=(v_weight, (width, hidden)), v_bias=(v_bias, line),
    )  # fmt: skip
    dtype = qk_weight.dtype
    (x,) = _checked_rows(op, qk_weight, x=(x, hidden))
    tokens = x.shape[0]
    stream = torch.float32 if norm == "no_norm" else dtype
    narrow = torch.empty((tokens, width), dtype=stream, device=x.device)
    qkv = torch.empty((tokens, 3 * width), dtype=dtype, device=x.device)
    if tokens == 0:
        return narrow, qkv
    config = config or _schedule(op, hidden, width, dtype, tokens, x.device)
    block_w = max(next_power_of_2(width), 16)
    blocks = -(-tokens // config["BLOCK_M"])
    constants = {
        "STRIDE": x.stride(0),
        "WIDTH": width,
        "HIDDEN": hidden,
        "LAYER_NORM": norm == "layer_norm",
        "BLOCK_W": block_w,
        "BLOCK_N": min(config["BLOCK_N"], block_w),
        "PARTS": PARTS if blocks * PARTS <= _few(x.device) else 1,
    }
    arguments = {"x_ptr": x, "narrow_ptr": narrow, "qkv_ptr": qkv, **weights, "tokens": tokens, "eps": eps}
    launch(mobilebert_in_kernel, (blocks, constants["PARTS"]), arguments, constants, config)
    return narrow, qkv


@traceable("mobilebert_out")
def mobilebert_out(
    context: Tensor,
    narrow: Tensor,
    x: Tensor,
    attended_weight: Tensor,
    attended_bias: Tensor,
    attended_scale: Tensor,
    attended_shift: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    down_scale: Tensor,
    down_shift: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    *,
    networks: int,
    activation: str = "relu",
    norm: str = "no_norm",
    eps: float = 1e-12,
    last_eps: float = 1e-5,
    config: Config | None = None,
) -> Tensor:
    """As `engine/ops/mobilebert.py`, in fp32, fp16 or bf16, widths up to 128; the result is contiguous.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, norm or activation are unknown, or a gradient is
            asked for.
    """
    op = "mobilebert_out"
    if activation not in ACTIVATIONS:
        raise InputError(f"{op}: activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    hidden, width = _sizes(op, "out_weight", out_weight)
    if networks < 1 or up_weight.ndim != 2 or len(up_weight) % networks:
        found = f"up_weight {list(up_weight.shape)}"
        raise InputError(f"{op}: networks: expected 1 or more, a divisor of up_weight's rows, got {networks}, {found}")
    inner, line = len(up_weight) // networks, (width,)
    stack = (networks * width,)
    weights = _checked(
        op, width, norm,
        attended_weight=(attended_weight, (width, width)), attended_bias=(attended_bias, line),
        attended_scale=(attended_scale, line), attended_shift=(attended_shift, line),
        up_weight=(up_weight, (networks * inner, width)), up_bias=(up_bias, (networks * inner,)),
        down_weight=(down_weight, (networks * width, inner)), down_bias=(down_bias, stack),
        down_scale=(down_scale, stack), down_shift=(down_shift, stack),
        out_weight=(out_weight, (hidden, width)), out_bias=(out_bias, (hidden,)),
        out_scale=(out_scale, (hidden,)), out_shift=(out_shift, (hidden,)),
    )  # fmt: skip
    dtype = attended_weight.dtype
    context, narrow, x = _checked_rows(
        op, attended_weight, context=(context, width), narrow=(narrow, width), x=(x, hidden)
    )
    tokens = x.shape[0]
    stream = torch.float32 if norm == "no_norm" else dtype
    out = torch.empty((tokens, hidden), dtype=stream, device=x.device)
    if out.numel() == 0:
        return out
    config = config or _schedule(op, hidden, width, dtype, tokens, x.device)
    constants = {
        "STRIDE_C": context.stride(0),
        "STRIDE_N": narrow.stride(0),
        "STRIDE_X": x.stride(0),
        "WIDTH": width,
        "HIDDEN": hidden,
        "INNER": inner,
        "NETWORKS": networks,
        "ACTIVATION": activation,
        "LAYER_NORM": norm == "layer_norm",
        "BLOCK_W": max(next_power_of_2(width), 16),
    }
    arguments = {
        "context_ptr": context, "narrow_ptr": narrow, "x_ptr": x, "out_ptr": out, **weights,
        "tokens": tokens, "eps": eps, "last_eps": last_eps,
    }  # fmt: skip
    launch(mobilebert_out_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out


def _schedule(op: str, hidden: int, width: int, dtype: torch.dtype, tokens: int, device: torch.device) -> Config:
    """The tiling for so many tokens. Each of the two sums in the same order, so that a row has the same bits."""
    many = TUNED(op, device, dtype, hidden=hidden, inner=width)
    few = _few_tokens_config(op, dtype, compute_capability(device))
    if any(few[name] != many[name] for name in ("BLOCK_K", "BLOCK_N")):
        return many
    return few if -(-tokens // few["BLOCK_M"]) <= _few(device) else many


@functools.cache
def _few_tokens_config(op: str, dtype: torch.dtype, sm: int | None) -> Config:
    return few_tokens_config(Call(op, device="cuda", dtype=dtype, sm=sm))


def _few(device: torch.device) -> int:
    return FEW_PROGRAMS if device.type == "cuda" else FEW_INTERPRETED_PROGRAMS


def _sizes(op: str, name: str, weight: Tensor) -> Sequence[int]:
    require_shape(op, name, weight, None, None)
    return weight.shape


def _checked(op: str, width: int, norm: str, **weights: tuple[Tensor, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights by the names of the kernel's arguments, contiguous, where they are of their shapes, and alike."""
    if norm not in NORMS:
        raise InputError(f"{op}: norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    if not 1 <= width <= MAX_WIDTH:
        raise InputError(f"{op}: expected a width of 1 to {MAX_WIDTH} between the bottlenecks, got {width}")
    found = {name: weight for name, (weight, _) in weights.items()}
    require_no_gradient(op, *found.values())
    require_dtype(op, **found)
    require_same_device(op, **found)
    for name, (weight, shape) in weights.items():
        if weight.shape != shape:
            require_shape(op, name, weight, *shape)
    return {f"{name}_ptr": _aligned(weight.contiguous()) for name, weight in found.items()}


def _checked_rows(op: str, weight: Tensor, **rows: tuple[Tensor, int]) -> list[Tensor]:
    """Rows of these widths, as many of each, channel beside channel; fp32, or of the weights' dtype."""
    found = {name: x for name, (x, _) in rows.items()}
    require_no_gradient(op, *found.values())
    require_same_device(op, weights=weight, **found)
    tokens = None
    for name, (x, width) in rows.items():
        require_shape(op, name, x, tokens, width)
        tokens = x.shape[0]
        if x.dtype not in (torch.float32, weight.dtype) or x.dtype not in DTYPES:
            raise InputError(f"{op}: {name}: expected {weight.dtype}, the weights', or torch.float32, got {x.dtype}")
    return [_aligned(x if x.stride(-1) == 1 else x.contiguous()) for x in found.values()]


def _aligned(x: Tensor) -> Tensor:
    """x where it begins at 16 bytes, else a copy: read element by element a tile takes registers that are not there."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
