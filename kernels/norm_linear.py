"""A norm folded into the product behind it, in Triton: `engine/ops/norm_linear.py` without the normalised rows.

Maths, of a row t as it is stored, with g and b the norm's weight and bias, W and c the product's:
    layer_norm   ((t - mean) rstd g + b) @ W^T + c  =  rstd (t @ W'^T - mean s) + c'
    rms_norm     (t rstd g) @ W^T + c               =  rstd (t @ W'^T) + c
    W' = W g, for layer_norm less the mean of each row of it, rounded to W's dtype
    s, the sums of the rows of W' as it was rounded;  c' = c + W b;  both in fp32
What is taken from a row of weights, one number for all columns, meets the sum of t - mean, which is 0; without it the
mean of a row would meet weights whose sum is large, and cancel only in the end.
`prepare` computes W', s and c' once. The product is that of `linear_forward.py`, of the stream itself; mean and rstd of
the rows of a tile are found in front of it, and applied to its fp32 sums before the bias. Behind that follows what
follows any product there: activation, gate, rotation, the cast.

Where mean and rstd come from: from the product that wrote the rows, if it was asked for `statistics`, as mean and M2 of
runs of columns; otherwise from a small launch that looks at the rows first (`row_statistics.py`, which also merges the
runs). Both are of the rows as they were rounded, and of one row alone.

What it rounds: W' once, where the norm on its own rounds each normalised row. As s is of the rounded W', an error of W'
meets t - mean, and not the mean. What is left of it cancels: `t @ W'^T - mean s` loses the digits by which the mean is
larger than the deviation. Sums in fp32 have them: the 2x rule of the tests holds up to a mean of 4,000 deviations
(interpreted; the sums of tensor cores: not measured), and a row as it is stored hardly has more, for its last place is
2,000 times smaller than the mean in fp16 and 250 times in bf16. The exception are rows of one value throughout, or
nearly so, whose deviation is 0: what is left of the mean is then multiplied by up to 1 / sqrt(eps). Rows of zeros are
exact. In fp16 a W' below 6e-5 has fewer digits. fp32 has none to spare, and is left to a norm of its own.

Tiling: that of `linear.py`. What is fused: scale, shift, centring, and with them the norm's own launch.

Bytes and FLOPs a token, K columns in and N out, elements of `e` bytes: `e (K + outputs)`, 8 a run of the statistics and
once more for each tile of columns out of L2 (12 runs at K = 768); `2 N K + 4 N`. A norm of its own would write the row
and have it read again, 2 e K (3.1 kB at K = 768), in a launch more. Statistics that did not come with the rows cost
e K, and that launch.

Tried by compiling alone, gated on sm_120: statistics read number by number take two addresses a run, and spilled 8 B
beside 256 columns and gelu_tanh; pairs spill nothing on any target, and leave some 20 registers free on sm_80. All
of 64 runs at once spilled 128 B, hence 16 at a time. Times on a GPU: not measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config
from .limits import MAX_HIDDEN, require_no_gradient, require_same_device, require_shape
from .linear import CANDIDATES, check_inputs, default_config, dense, reasons_of_product
from .linear import prepare as prepare_linear
from .linear_launch import Normalised, launch_linear, shipped_config
from .registration import traceable
from .row_statistics import row_statistics, run_of
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "defers", "norm_linear", "prepare", "unsupported"]

DTYPES = (torch.float16, torch.bfloat16)
NORMS = ("layer_norm", "rms_norm")
"""Those of `engine/ops/norm_linear.py`, which kernels do not import."""

MAX_PLAIN_OUTPUTS = 1536
"""Outputs of a plain product up to which a launch less is predicted to be worth more than a tuned library."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of `linear`'s tilings serves a call: the statistics take room beside them, so measured for itself."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    reasons = reasons_of_product(call)
    if call.dtype not in DTYPES:
        found = str(call.dtype).removeprefix("torch.")
        reasons.append(
            f"needs dtype float16 or bfloat16, got {found}: the product of rows that are not centred would cancel"
        )
    if call.norm not in NORMS:
        reasons.append(f"needs norm {' or '.join(NORMS)}, got {call.norm}")
    if call.residual or call.statistics:
        reasons.append("needs a call without residual and statistics of its results, got one")
    if call.inner is not None and not 1 <= call.inner <= MAX_HIDDEN:
        reasons.append(f"needs rows 1 to {MAX_HIDDEN} wide, got {call.inner}")
    return reasons


def defers(call: Call) -> list[str]:
    """Why `call` is left to the rows below under "auto", though this one could serve it."""
    plain = call.epilogue in (None, "none") and not (call.gated or call.rope)
    if plain and (call.hidden or 0) > MAX_PLAIN_OUTPUTS:
        return ["leaves a wide plain product to cuBLAS behind a norm of its own: predicted, not measured"]
    return []


def prepare(
    norm_weight: Tensor, norm_bias: Tensor | None, weight: Tensor, bias: Tensor | None, *, call: Call
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weights as `norm_linear` takes them: the norm's in the product's, in the order of `linear.prepare`; see above.

    Args:
        norm_weight: `[in_features]`, of any floating dtype.
        norm_bias: alike, or None; None for "rms_norm".
        weight: `[out_features, in_features]`, in the order of `engine/ops/norm_linear.py`.
        bias: `[out_features]` or None.
        call: names the norm, and the gate or the heads whose rows are put beside each other.

    Returns:
        W' `[out_features, in_features]` in the weight's dtype; fp32 `[out_features]`, the sums of its rows, None for
        "rms_norm"; fp32 `[out_features]` of the bias, None where neither the norm nor the product has one.

    Raises:
        InputError: shapes do not fit together, or there are not as many rows as gate or heads need.
    """
    require_shape("norm_linear", "weight", weight, None, None)
    out_features, in_features = weight.shape
    require_shape("norm_linear", "norm_weight", norm_weight, in_features)
    shift = None if bias is None else bias.float()
    if shift is not None:
        require_shape("norm_linear", "bias", shift, out_features)
    if norm_bias is not None:
        require_shape("norm_linear", "norm_bias", norm_bias, in_features)
        if call.norm == "rms_norm":
            raise InputError("norm_linear: norm_bias: expected None for rms_norm, got a tensor")
        # Neither a product of matrices, which may be in TF32, nor a sum in fp32: this is done once.
        moved = (weight.double() * norm_bias.double()).sum(dim=1)
        shift = (moved if shift is None else moved + shift).float()
    scaled = weight.float() * norm_weight.float()
    if call.norm == "layer_norm":
        scaled -= scaled.mean(dim=1, keepdim=True)
    scaled, shift = prepare_linear(scaled.to(weight.dtype), shift, call=replace(call, op="linear"))
    sums = None if call.norm == "rms_norm" else scaled.sum(dim=1, dtype=torch.float64).float()
    return scaled, sums, shift


@traceable("norm_linear")
def norm_linear(
    x: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    bias: Tensor | None,
    *,
    norm: str,
    eps: float,
    statistics: Tensor | None = None,
    epilogue: str = "none",
    gated: bool = False,
    rope: tuple[Tensor, Tensor, Tensor] | None = None,
    turned: int = 0,
    config: Config | None = None,
) -> Tensor:
    """As `engine/ops/norm_linear.py`, in fp16 or bf16, with the weights that `prepare` gave; the result is contiguous.

    A row has the same bits whatever the other rows are, and however many; those with statistics that were handed on and
    those without may differ in the last place.

    Args:
        x: `[tokens, in_features]`, at most 8,192 wide; weight and bias as from `prepare`.
        weight: W'.
        sums: of its rows, fp32 `[out_features]`; None for "rms_norm".
        bias: fp32 `[out_features]` or None.
        norm: "layer_norm" or "rms_norm".
        eps: added to the variance, or to the mean square.
        statistics: fp32 `[tokens, runs, 2]` as `linear` returned them with x, in runs of any power of two of columns.
            Trusted. None: they are found first.
        epilogue: as in `engine/ops/linear.py`, as are `gated`, `rope` and `turned`.
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    rope = check_inputs(
        "norm_linear", x, weight, None, epilogue=epilogue, gated=gated, rope=rope, turned=turned
    )  # fmt: skip
    run = _checked(x, weight, sums, bias, norm, statistics)
    x, weight = dense(x), dense(weight)
    out_features = weight.shape[0]
    out = torch.empty((x.shape[0], out_features // 2 if gated else out_features), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = config or shipped_config(
        TUNED, "norm_linear", x, weight, epilogue=epilogue, gated=gated, rope=rope, norm=norm
    )  # fmt: skip
    normalised = Normalised(
        row_statistics(x) if statistics is None else statistics.contiguous(),
        run,
        None if sums is None else sums.contiguous(),
        eps,
    )
    launch_linear(
        x, weight, None if bias is None else bias.contiguous(), out, config, epilogue=epilogue, gated=gated, rope=rope,
        turned=turned, normalised=normalised,
    )  # fmt: skip
    return out


def _checked(
    x: Tensor, weight: Tensor, sums: Tensor | None, bias: Tensor | None, norm: str, statistics: Tensor | None
) -> int:
    """Columns of a run of the statistics, where all fits together; x and weight were looked at."""
    given = {"sums": sums, "bias": bias, "statistics": statistics}
    present = {name: tensor for name, tensor in given.items() if tensor is not None}
    if norm not in NORMS:
        raise InputError(f"norm_linear: norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    if x.dtype not in DTYPES:
        raise InputError(f"norm_linear: x: expected float16 or bfloat16, got {str(x.dtype).removeprefix('torch.')}")
    (tokens, in_features), out_features = x.shape, weight.shape[0]
    if not 1 <= in_features <= MAX_HIDDEN:
        raise InputError(f"norm_linear: x: expected rows 1 to {MAX_HIDDEN} wide, got {in_features}")
    if (sums is None) != (norm == "rms_norm"):
        raise InputError(f"norm_linear: sums: expected them for layer_norm alone, got {norm} {_with(sums)} them")
    require_no_gradient("norm_linear", *present.values())
    require_same_device("norm_linear", x=x, **present)
    for name, tensor in present.items():
        if tensor.dtype != torch.float32:
            raise InputError(f"norm_linear: {name}: expected float32, got {str(tensor.dtype).removeprefix('torch.')}")
        if name != "statistics":
            require_shape("norm_linear", name, tensor, out_features)
    if statistics is None:
        return run_of(in_features, 1)
    require_shape("norm_linear", "statistics", statistics, tokens, None, 2)
    runs = statistics.shape[1]
    run = run_of(in_features, runs) if 1 <= runs <= in_features else 0
    if not run or -(-in_features // run) != runs:
        raise InputError(
            f"norm_linear: statistics: expected runs of a power of two of {in_features} columns, got {runs}"
        )
    return run


def _with(x: Tensor | None) -> str:
    return "without" if x is None else "with"
