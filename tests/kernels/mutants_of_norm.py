"""Mutants of the norms."""

from __future__ import annotations

from mutant import FMA_ROUNDS_TWICE, Mutant

__all__ = ["NORM"]

ROWS = "offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]"
RESIDUAL = "residual = tl.load(residual_ptr + offs_m * stride_rt + offs_d, mask=mask, other=0.0)"

NORM = (
    # Which rows and channels, and where they lie.
    Mutant(ROWS, ROWS.replace(".to(tl.int64)", ""), "tokens are addressed in 32 bits", (1, 2)),
    Mutant(ROWS, ROWS.replace(".to(tl.int64)", ""), "tokens of no_norm are addressed in 32 bits", (2, 2)),
    Mutant("(offs_m < tokens) & mask_d", "(offs_m <= tokens) & mask_d", "one token too many", (1, 2)),
    Mutant("(offs_m < tokens) & mask_d", "(offs_m <= tokens) & mask_d", "one token of no_norm too many", (2, 2)),
    Mutant("(offs_m < tokens) & mask_d", "mask_d & (offs_m >= 0)", "tokens beyond the last", (1, 2)),
    Mutant("mask_d = offs_d < HIDDEN", "mask_d = offs_d <= HIDDEN", "one channel too many", (1, 2)),
    Mutant("mask_d = offs_d < HIDDEN", "mask_d = offs_d <= HIDDEN", "one channel of no_norm too many", (2, 2)),
    Mutant("mask_d = offs_d < HIDDEN", "mask_d = offs_d < HIDDEN - 1", "the last channel is forgotten", (1, 2)),
    Mutant("x_ptr + offs_m * stride_xt", "x_ptr + offs_m * HIDDEN", "rows are taken for contiguous", (1, 2)),
    Mutant("x_ptr + offs_m * stride_xt", "x_ptr + offs_m * HIDDEN", "rows of no_norm are contiguous", (2, 2)),
    Mutant(RESIDUAL, RESIDUAL.replace("stride_rt", "stride_xt"), "the residual lies where x does", (1, 2)),
    Mutant(RESIDUAL, RESIDUAL.replace("stride_rt", "stride_xt"), "no_norm's residual lies where x does", (2, 2)),
    Mutant("total_ptr + offs_m * HIDDEN", "total_ptr + offs_m * stride_xt", "the sum is written where x lies"),
    Mutant("out_ptr + offs_m * HIDDEN", "out_ptr + offs_m * BLOCK_D", "outputs are a power of two apart", (1, 2)),
    Mutant("out_ptr + offs_m * HIDDEN", "out_ptr + offs_m * stride_xt", "no_norm writes where x lies", (2, 2)),
    # The sum of residual and x.
    Mutant(
        "total = (residual.to(tl.float32) + x).to(total_ptr.dtype.element_ty)",
        "total = residual.to(tl.float32).to(total_ptr.dtype.element_ty)",
        "x is not added",
    ),
    Mutant(
        "        x = total.to(tl.float32)\n",
        "        x += residual.to(tl.float32)\n",
        "the norm is of a sum that was not rounded",
        survives="that is nearer to the exact one, and within twice eager's error: what is lost is one rounding",
    ),
    Mutant("        x = total.to(tl.float32)\n", "", "the norm is of x alone"),
    Mutant("x += residual.to(tl.float32)", "x -= residual.to(tl.float32)", "no_norm subtracts the residual"),
    Mutant(
        "            x += residual.to(tl.float32)",
        "            x = (x + residual.to(tl.float32)).to(x_ptr.dtype.element_ty).to(tl.float32)",
        "no_norm rounds its sum",
    ),
    # Statistics.
    Mutant(
        "tl.div_rn(tl.sum(x, 1, keep_dims=True), HIDDEN * 1.0)",
        "tl.div_rn(tl.sum(x, 1, keep_dims=True), BLOCK_D * 1.0)",
        "the mean divides by a power of two",
    ),
    Mutant("x = tl.where(mask_d, x - mean, 0.0)", "x = x - mean", "the variance takes in channels beyond the row"),
    Mutant("x = tl.where(mask_d, x - mean, 0.0)", "x = tl.where(mask_d, x, 0.0)", "the mean is not subtracted"),
    Mutant("    if CENTRED:\n", "    if not CENTRED:\n", "layer norm is rms norm, and rms norm layer norm"),
    Mutant("    if CENTRED:\n", "    if True:\n", "rms norm subtracts the mean"),
    Mutant(
        "tl.div_rn(tl.sum(x * x, 1, keep_dims=True), HIDDEN * 1.0)",
        "tl.div_rn(tl.sum(x * x, 1, keep_dims=True), HIDDEN - 1.0)",
        "the variance is of a sample",
    ),
    Mutant(
        "    square = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), HIDDEN * 1.0)\n",
        "    square = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), BLOCK_D * 1.0)\n",
        "the mean square divides by a power of two",
    ),
    Mutant(
        "        mean = tl.div_rn(tl.sum(x, 1, keep_dims=True), HIDDEN * 1.0)\n",
        "        mean = tl.div_rn(tl.sum(x, 1, keep_dims=True), HIDDEN * 1.0)\n"
        "        raw = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), HIDDEN * 1.0)\n"
        "        eps += tl.max(tl.abs(raw - mean * mean)) * 1e-4\n",
        "rows of a band have a say in each other's variance",
    ),
    Mutant("tl.sqrt_rn(square + eps)", "tl.sqrt_rn(square) + eps", "eps is added to the root"),
    Mutant("tl.sqrt_rn(square + eps)", "tl.sqrt_rn(square)", "no eps"),
    Mutant("tl.div_rn(1.0, tl.sqrt_rn(square + eps))", "tl.div_rn(1.0, square + eps)", "no root"),
    # Scale and shift.
    Mutant("    if not CENTRED:\n", "    if False:\n", "rms norm does not round the quotient"),
    Mutant("    if not CENTRED:\n", "    if True:\n", "layer norm rounds the quotient"),
    Mutant(
        "x = x.to(weight_ptr.dtype.element_ty).to(tl.float32)",
        "x = x.to(x_ptr.dtype.element_ty).to(tl.float32)",
        "the quotient is rounded to x's dtype",
    ),
    Mutant("x *= tl.load(weight_ptr", "x += tl.load(weight_ptr", "the weight is added"),
    Mutant("x *= tl.load(weight_ptr + offs_d", "x *= tl.load(weight_ptr + 0 * offs_d", "one weight for all channels"),
    Mutant("x += tl.load(bias_ptr", "x -= tl.load(bias_ptr", "the bias is subtracted"),
    Mutant("    if bias_ptr is not None:\n", "    if False:\n", "there is no bias"),
    Mutant("x = tl.fma(x, weight, bias)", "x = tl.fma(x, bias, weight)", "scale and shift are exchanged"),
    Mutant("x = tl.fma(x, weight, bias)", "x = x * weight + bias", "a rounding more", survives=FMA_ROUNDS_TWICE),
    Mutant("range(0, HIDDEN, BLOCK_D)", "range(0, BLOCK_D, BLOCK_D)", "no_norm takes the first step alone"),
    Mutant("offs_d = start + tl.arange", "offs_d = 0 * start + tl.arange", "no_norm takes the first step again"),
)
