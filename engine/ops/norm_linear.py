"""A GEMM on normalised rows, with what follows it: `linear` behind `layer_norm` or `rms_norm`."""

from __future__ import annotations

from torch import Tensor

from .linear import Rotation, linear
from .norm import layer_norm, rms_norm

__all__ = ["NORMS", "norm_linear"]

NORMS = ("layer_norm", "rms_norm")
"""The norms it knows, both of `engine/ops/norm.py`."""


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str,
    eps: float,
    statistics: Tensor | None = None,
    epilogue: str = "none",
    gated: bool = False,
    rope: Rotation | None = None,
    turned: int = 0,
) -> Tensor:
    """`linear(norm(x))`, the normalised rows in the norm's dtype brought to that of x.

    A row that fuses the two multiplies the norm's weight into the product's beforehand, and scales and shifts the
    product by each row's statistics: `rstd (x @ W'^T - mean sum(W')) + bias'`.

    Args:
        x: `[tokens, hidden]`, any floating dtype.
        norm_weight: `[hidden]`.
        norm_bias: `[hidden]` or None; None for "rms_norm".
        weight: `[out_features, hidden]`, x's dtype.
        bias: `[out_features]` or None.
        norm: one of `NORMS`.
        eps: as of the norm.
        statistics: of the rows of x, as the `linear` of the same row of the table returned them with x; None where
            there are none, then they are computed. Trusted. This function computes them always.
        epilogue: as in `engine/ops/linear.py`, as are `gated`, `rope` and `turned`.

    Returns:
        `[tokens, out_features]` in x's dtype.
    """
    if norm == "layer_norm":
        rows = layer_norm(x, norm_weight, norm_bias, eps=eps)
    elif norm == "rms_norm":
        rows = rms_norm(x, norm_weight, eps=eps)
    else:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    assert isinstance(rows, Tensor)
    return linear(rows.to(x.dtype), weight, bias, epilogue=epilogue, gated=gated, rope=rope, turned=turned)
