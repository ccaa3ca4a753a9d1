"""The launch of `linear_kernel`, for the ops whose rows it serves: what each operand is to the kernel, and the grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Config, launch
from .linear_forward import linear_kernel
from .operators import RUN
from .tuned import Tuned, compute_capability

__all__ = ["Normalised", "launch_linear", "shipped_config"]

INTERPRETED_PROGRAMS = 3
"""Programs where no GPU says how many it runs at once: more than one, and fewer than tiles, so that all loops run."""


@dataclass(frozen=True)
class Normalised:
    """That the rows which enter the product are normalised, and by what.

    Attributes:
        statistics: fp32 `[tokens, runs, 2]`, contiguous, see `row_statistics.py`.
        run: columns of a run.
        sums: fp32 `[out_features]` of the weight's rows, for layer norm; None for rms norm.
        eps: added to the variance.
    """

    statistics: Tensor
    run: int
    sums: Tensor | None
    eps: float


def launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    config: Config,
    *,
    epilogue: str,
    gated: bool,
    residual: Tensor | None = None,
    rope: tuple[Tensor, Tensor, Tensor] | None = None,
    turned: int = 0,
    normalised: Normalised | None = None,
    found: Tensor | None = None,
) -> None:
    """Fill `out`, and `found` where it is given, with what the launchers' arguments of these names say. All is trusted.

    Args:
        x: `[tokens, in_features]`, a row's numbers beside each other, as those of weight, bias and residual.
        weight: `[out_features, in_features]`, as `linear.prepare` gave it.
        bias: `[out_features]` or None.
        out: `[tokens, outputs]`, contiguous, not empty.
        config: the tiling.
        epilogue: as in `engine/ops/linear.py`, as are `gated`, `residual`, `rope` and `turned`.
        normalised: the norm in front of the product, or None.
        found: fp32 `[tokens, runs, 2]`, contiguous, for the statistics of `out`, runs of `BLOCK_N // PARTS` columns.
    """
    tokens, in_features = x.shape
    out_features = weight.shape[0]
    rows, cos, sin = (None, None, None) if rope is None else rope
    statistics = None if normalised is None else normalised.statistics
    arguments: dict[str, Any] = {
        "x_rows": x,
        "weight_rows": weight,
        "bias_ptr": bias,
        "residual_ptr": residual,
        "rows_ptr": rows,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "statistics_ptr": statistics,
        "sums_ptr": None if normalised is None else normalised.sums,
        "out_ptr": out,
        "found_ptr": found,
        "tokens": tokens,
        "eps": None if normalised is None else float(normalised.eps),
    }
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    tma = bool(config["TMA"]) and _has_descriptors(x, weight)
    if tma:
        arguments["x_rows"] = TensorDescriptor(x, list(x.shape), list(x.stride()), [block_m, block_k])
        arguments["weight_rows"] = TensorDescriptor(
            weight, list(weight.shape), list(weight.stride()), [block_n, block_k]
        )
    constants = {
        # Of a single row torch may have any stride; each would be compiled anew.
        "stride_xt": x.stride(0) if tokens > 1 else in_features,
        "stride_wn": weight.stride(0),
        "stride_rt": 0 if residual is None else residual.stride(0),
        "stride_cos": 0 if cos is None else cos.stride(0),
        "stride_sin": 0 if sin is None else sin.stride(0),
        "IN_FEATURES": in_features,
        "OUT_FEATURES": out_features,
        "TURNED": turned,
        "HALF": 0 if cos is None else cos.shape[1],
        "EPILOGUE": epilogue,
        "GATED": gated,
        "TMA": tma,
        "PRECISION": "ieee",
        "RUNS": 0 if statistics is None else statistics.shape[1],
        "RUN": 0 if normalised is None else normalised.run,
    }
    tiles = -(-tokens // block_m) * -(-out_features // block_n)
    launch(linear_kernel, (min(tiles, _programs(x.device, config.num_warps)),), arguments, constants, config)


def shipped_config(
    tuned: Tuned, op: str, x: Tensor, weight: Tensor, *others: Tensor | None, epilogue: str, gated: bool,
    residual: bool = False, norm: str | None = None, rope: tuple[Tensor, Tensor, Tensor] | None = None,
    statistics: bool = False,
) -> Config:  # fmt: skip
    """What `tuned` says of these operands; `others` are those that may not be aligned either.

    Where one is not, rows are read number by number: nothing was measured so, and the default knows about it.
    Statistics are of runs of `RUN` columns, whatever was measured: a tracer knows their shape before the tiling.
    """
    facts: dict[str, Any] = {"inner": x.shape[1], "hidden": weight.shape[0], "epilogue": epilogue, "gated": gated}
    facts |= {"residual": residual, "norm": norm, "rope": rope is not None}
    facts["head_dim"] = None if rope is None else 2 * rope[1].shape[1]
    aligned = all(tensor is None or _is_aligned(tensor) for tensor in (x, weight, *others))
    config = tuned(op, x.device, x.dtype, aligned=aligned, **facts)
    if statistics and config["BLOCK_N"] != RUN * config["PARTS"]:
        return tuned(op, x.device, x.dtype, aligned=aligned, measured=False, **facts)
    return config


def _is_aligned(x: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, also where there is but one: its batch would have that stride."""
    return x.data_ptr() % 16 == 0 and (x.ndim == 1 or x.stride(0) * x.element_size() % 16 == 0)


def _has_descriptors(x: Tensor, weight: Tensor) -> bool:
    """Whether tensor descriptors can stand for both: 16-byte steps, 32-bit places, and hardware that has them."""
    if torch.version.hip is not None or (compute_capability(x.device) or 90) < 90 or x.dtype == torch.float32:
        return False
    if not x.stride(0) or not weight.stride(0) or not x.shape[1]:
        return False  # rows that lie on one another, or have nothing
    return max(*x.shape, *weight.shape) < 1 << 30 and _is_aligned(x) and _is_aligned(weight)


@functools.cache
def _programs(device: torch.device, num_warps: int) -> int:
    """As many as the GPU runs at once, each with the registers of its tile: one a multiprocessor, two of few warps."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * (1 if num_warps > 4 else 2)
