"""Mutants of MobileBERT's two kernels: the way into its attention, and the way from there to the end of the layer."""

from __future__ import annotations

from mutant import TOO_LARGE, Mutant

__all__ = ["MOBILEBERT_IN", "MOBILEBERT_OUT"]

MOBILEBERT_IN = (
    Mutant(
        "x_ptr + rows.to(tl.int64)[:, None] * COLUMNS",
        "x_ptr + rows[:, None] * COLUMNS",
        "weights are addressed in 32 bits",
        survives=TOO_LARGE,
    ),
    Mutant(
        "if ROWS % BLOCK_ROWS == 0 and COLUMNS % BLOCK_COLUMNS == 0:",
        "if ROWS % BLOCK_ROWS == 0 or COLUMNS % BLOCK_COLUMNS == 0:",
        "weights are read beyond their last column where their rows come out even",
    ),
    Mutant(
        "mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]",
        "mask=(columns < COLUMNS)[None, :]",
        "rows of weights beyond the last",
    ),
    Mutant(
        "mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]",
        "mask=(rows < ROWS)[:, None]",
        "columns of weights beyond the last",
    ),
    Mutant("mask=columns < COLUMNS, other", "mask=columns <= COLUMNS, other", "a bias is read beyond its end"),
    Mutant("x -= mean[:, None]", "x -= 0.0 * mean[:, None]", "the mean is not taken off"),
    Mutant("tl.sum(tl.where(inside, x, 0.0), 1), COLUMNS", "tl.sum(x, 1), BLOCK", "the mean is over the block"),
    Mutant(
        "tl.sum(tl.where(inside, x * x, 0.0), 1), COLUMNS",
        "tl.sum(x * x, 1), COLUMNS",
        "channels behind the last count in the variance",
    ),
    Mutant("tl.sqrt_rn(variance + eps)", "tl.sqrt_rn(variance)", "no eps"),
    Mutant("tl.div_rn(1.0, tl.sqrt_rn(variance + eps))", "tl.sqrt_rn(variance + eps)", "multiplied by the deviation"),
    Mutant(
        "x * per_column(scale_ptr, columns, COLUMNS) + per_column(shift_ptr, columns, COLUMNS)",
        "(x + per_column(shift_ptr, columns, COLUMNS)) * per_column(scale_ptr, columns, COLUMNS)",
        "shifted before it is scaled",
    ),
    Mutant("x = tl.where(inside, x, 0.0)", "x = x", "what an infinite number makes of zeros spreads"),
    Mutant(
        "mask = mask_m[:, None] & (offs_k < HIDDEN)[None, :]",
        "mask = mask_m[:, None] & (offs_k <= HIDDEN)[None, :]",
        "one channel of x too many",
    ),
    Mutant(
        "mask = mask_m[:, None] & (offs_k < HIDDEN)[None, :]",
        "mask = (offs_k < HIDDEN)[None, :]",
        "tokens of x beyond the last",
    ),
    Mutant("x_ptr + offs_m[:, None] * STRIDE", "x_ptr + offs_m[:, None] * HIDDEN", "x is taken for contiguous"),
    Mutant(
        "x_ptr + offs_m[:, None] * STRIDE",
        "x_ptr + offs_m.to(tl.int32)[:, None] * STRIDE",
        "tokens are addressed in 32 bits",
    ),
    Mutant("narrow += per_column(bias_ptr, offs_w, WIDTH)", "narrow += 0.0", "no bias of the narrow rows"),
    Mutant(
        "pointers = narrow_ptr + offs_m[:, None] * WIDTH",
        "pointers = narrow_ptr + offs_m[:, None] * BLOCK_W",
        "narrow rows are a power of two apart",
    ),
    Mutant("v += per_column(bias_ptr, offs_w, WIDTH)", "v += 0.0", "no bias of the values"),
    Mutant("(2 * WIDTH + offs_w)[None, :]", "(WIDTH + offs_w)[None, :]", "values lie on keys"),
    Mutant("shared += per_column(bias_ptr, offs_w, WIDTH)", "shared += 0.0", "no bias of the shared rows"),
    Mutant("half = tl.cast(n // BLOCK_W, tl.int64)", "half = tl.cast(n // WIDTH, tl.int64)", "keys begin too early"),
    Mutant("half * (WIDTH * WIDTH)", "half * WIDTH", "keys are made of other weights"),
    Mutant("qk_bias_ptr + half * WIDTH, offs_n", "qk_bias_ptr, offs_n", "keys have the queries' bias"),
    Mutant("(half * WIDTH + offs_n)[None, :]", "(half * BLOCK_W + offs_n)[None, :]", "keys lie behind a power of two"),
    Mutant(
        "mask=mask_m[:, None] & (offs_n < WIDTH)[None, :])",
        "mask=mask_m[:, None])",
        "queries and keys beyond the width",
    ),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m <= tokens", "one token too many"),
    Mutant("0, 2 * BLOCK_W, eps", "0, BLOCK_W, eps", "no keys for many tokens"),
    Mutant("first = (part - 2) * BLOCK_W", "first = (3 - part) * BLOCK_W * 0", "no keys for few tokens"),
    Mutant(
        "weight_ptr = shared_weight_ptr\n",
        "weight_ptr = narrow_weight_ptr\n",
        "queries and keys of few tokens come from the wrong bottleneck",
    ),
    Mutant(
        "weight_ptr = v_weight_ptr\n", "weight_ptr = shared_weight_ptr\n", "values of few tokens are the shared rows"
    ),
)

MOBILEBERT_OUT = (
    Mutant(
        "x_ptr + offs_m[:, None] * STRIDE + offs_n[None, :]",
        "x_ptr + offs_m[:, None] * HIDDEN + offs_n[None, :]",
        "x is taken for contiguous",
    ),
    Mutant(
        "x_ptr + offs_m[:, None] * STRIDE + offs_n[None, :]",
        "x_ptr + offs_m.to(tl.int32)[:, None] * STRIDE + offs_n[None, :]",
        "x is addressed in 32 bits",
    ),
    Mutant("return out + x.to(tl.float32)", "return out", "x is not added"),
    Mutant("+ per_column(out_bias_ptr, offs_n, HIDDEN)", "+ 0.0", "no bias of the output"),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m <= tokens", "one token too many"),
    Mutant(
        "mask=mask_m[:, None] & (offs_k < WIDTH)[None, :]", "mask=mask_m[:, None]", "channels beyond the context's last"
    ),
    Mutant(
        "mask=mask_m[:, None] & (offs_w < WIDTH)[None, :]", "mask=mask_m[:, None]", "channels beyond the narrow row's"
    ),
    Mutant("offs_m[:, None] * STRIDE_C", "offs_m[:, None] * WIDTH", "the context is taken for contiguous"),
    Mutant("offs_m[:, None] * STRIDE_N", "offs_m[:, None] * WIDTH", "the narrow rows are taken for contiguous"),
    Mutant("offs_m[:, None] * STRIDE_C", "offs_m.to(tl.int32)[:, None] * STRIDE_C", "the context by 32 bits"),
    Mutant("offs_m[:, None] * STRIDE_N", "offs_m.to(tl.int32)[:, None] * STRIDE_N", "the narrow rows by 32 bits"),
    Mutant(
        "(acc + per_column(attended_bias_ptr, offs_w, WIDTH)) + narrow.to(tl.float32)",
        "acc + per_column(attended_bias_ptr, offs_w, WIDTH)",
        "the attention forgets its residual",
    ),
    Mutant("(acc + per_column(attended_bias_ptr, offs_w, WIDTH))", "acc", "no bias of the attention's output"),
    Mutant("(acc + per_column(down_bias_ptr, offs_w, WIDTH)) + narrow", "acc + narrow", "no bias of the networks"),
    Mutant(
        "(acc + per_column(down_bias_ptr, offs_w, WIDTH)) + narrow",
        "acc + per_column(down_bias_ptr, offs_w, WIDTH)",
        "the networks forget their residual",
    ),
    Mutant("inner = activate(inner, ACTIVATION)", "inner = inner", "no activation"),
    Mutant("+ per_column(up_bias_ptr, offs_f, INNER)", "+ 0.0", "no bias before the activation"),
    Mutant(
        "inner = tl.where((offs_f < INNER)[None, :], inner, 0.0)",
        "inner = inner",
        "what an infinite number makes of zeros spreads",
    ),
    Mutant(
        "acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)\n        for f",
        "acc = narrow\n        for f",
        "the residual counts twice",
    ),
    Mutant("tl.where(network == NETWORKS - 1, last_eps, eps)", "eps", "the last network has the eps of the others"),
    Mutant("tl.where(network == NETWORKS - 1, last_eps, eps)", "last_eps", "all networks have the eps of the last"),
    Mutant("up_weight_ptr += INNER * WIDTH", "up_weight_ptr += 0", "all networks widen by the first's weights"),
    Mutant("up_bias_ptr += INNER", "up_bias_ptr += WIDTH", "networks have another's bias"),
    Mutant("down_weight_ptr += WIDTH * INNER", "down_weight_ptr += 0", "all networks narrow by the first's weights"),
    Mutant("down_bias_ptr += WIDTH", "down_bias_ptr += 0", "all networks have the first's bias"),
    Mutant("down_scale_ptr += WIDTH", "down_scale_ptr += 0", "all networks have the first's scale"),
    Mutant("down_shift_ptr += WIDTH", "down_shift_ptr += 0", "all networks have the first's shift"),
    Mutant("mean += distance * (count / total)", "mean += distance * 0.5", "means are merged half and half"),
    Mutant("tl.where(inside, out - own[:, None], 0.0)", "out - own[:, None]", "channels behind the last have variance"),
    Mutant("+ distance * distance * (count * (n / total))", "", "the variance between blocks is forgotten"),
    Mutant("tl.minimum(HIDDEN - n, BLOCK_N).to(tl.float32)", "(BLOCK_N * 1.0)", "the last block counts in full"),
    Mutant("HIDDEN * 1.0) + eps)", "HIDDEN * 1.0))", "no eps of the last norm"),
    Mutant("out = (out - mean[:, None]) * square[:, None]", "out = out * square[:, None]", "the mean is not taken off"),
    Mutant(
        "out_ptr + offs_m[:, None] * HIDDEN + offs_n",
        "out_ptr + offs_m[:, None] * STRIDE_X + offs_n",
        "the output lies as x does",
    ),
)
