"""Mutants of linear: the GEMM with what follows it, and the activations it shares with other kernels."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["ACTIVATIONS", "LINEAR"]

LINEAR = (
    Mutant(
        "for k in range(0, IN_FEATURES, BLOCK_K)",
        "for k in range(BLOCK_K, IN_FEATURES, BLOCK_K)",
        "the first features are left out, under TMA",
        place=(1, 2),
    ),
    Mutant(
        "for k in range(0, IN_FEATURES, BLOCK_K)",
        "for k in range(0, IN_FEATURES - BLOCK_K + 1, BLOCK_K)",
        "the last features are left out where they fill no block",
        place=(2, 2),
    ),
    Mutant("x_rows.load([pid_m * BLOCK_M, k])", "x_rows.load([pid_m * BLOCK_N, k])", "bands lie a tile's width apart"),
    Mutant(
        "weight_rows.load([pid_n * BLOCK_N, k])",
        "weight_rows.load([pid_n * BLOCK_M, k])",
        "columns lie a tile's height apart",
    ),
    Mutant(
        "acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)",
        "acc = tl.dot(x, tl.trans(weight), input_precision=PRECISION)",
        "only the last features count, under TMA",
        place=(1, 2),
    ),
    Mutant(
        "acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)",
        "acc = tl.dot(x, tl.trans(weight), input_precision=PRECISION)",
        "only the last features count",
        place=(2, 2),
    ),
    Mutant(
        "acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)",
        'acc = tl.dot(x, tl.trans(weight), acc, input_precision="tf32")',
        "fp32 is rounded to TF32",
        place=(2, 2),
        survives="the interpreter multiplies in full; the compile gate refuses TF32",
    ),
    Mutant(
        "offs_m = pid_m.to(tl.int64) * BLOCK_M",
        "offs_m = pid_m * BLOCK_M",
        "rows of x are addressed in 32 bits",
        place=(1, 2),
    ),
    Mutant(
        "offs_m = pid_m.to(tl.int64) * BLOCK_M",
        "offs_m = pid_m * BLOCK_M",
        "rows of residual and result are addressed in 32 bits",
        place=(2, 2),
    ),
    Mutant("offs_n = pid_n.to(tl.int64) * BLOCK_N", "offs_n = pid_n * BLOCK_N", "weights are addressed in 32 bits"),
    Mutant("mask_m = (offs_m < tokens)[:, None]", "mask_m = (offs_m >= 0)[:, None]", "rows beyond x are read"),
    Mutant("mask_n = (offs_n < OUT_FEATURES)[:, None]", "mask_n = (offs_n >= 0)[:, None]", "rows beyond the weight"),
    Mutant(
        "offs_m[:, None] * stride_xt", "offs_m[:, None] * IN_FEATURES", "rows of x are as far apart as they are wide"
    ),
    Mutant("offs_n[:, None] * stride_wn", "offs_n[:, None] * IN_FEATURES", "weights lie densely"),
    Mutant("if IN_FEATURES % BLOCK_K == 0:", "if IN_FEATURES >= BLOCK_K:", "no mask for the last, incomplete block"),
    Mutant("offs_k < IN_FEATURES - k", "offs_k < IN_FEATURES", "the last block goes on into the next row"),
    Mutant("mask=mask_m & mask_k", "mask=mask_m", "features of x beyond the last"),
    Mutant("mask=mask_n & mask_k", "mask=mask_n", "features of the weight beyond the last"),
    Mutant(
        "acc.reshape(BLOCK_M, 2, BLOCK // 2).permute(0, 2, 1).split()",
        "acc.reshape(BLOCK_M, BLOCK // 2, 2).split()",
        "every second column in place of half of them",
    ),
    Mutant("pair = begin // 2 + tl.arange", "pair = begin + tl.arange", "pairs are counted as columns"),
    Mutant("turns = (pair < TURNED // 2)", "turns = (pair < TURNED)", "values are turned"),
    Mutant("turns = (pair < TURNED // 2)", "turns = (pair < TURNED // 2 - 1)", "the last pair is not turned"),
    Mutant(
        "mask = mask_m[:, None] & (pair < OUT_FEATURES // 2)[None, :]",
        "mask = mask_m[:, None] & (pair >= 0)[None, :]",
        "channels beyond the last are written into other rows",
    ),
    Mutant(
        "mask=mask_m, other=0).to(tl.int64)[:, None]",
        "mask=mask_m, other=0).to(tl.int32)[:, None]",
        "rows of the tables are addressed in 32 bits",
    ),
    Mutant("cos_ptr + rows * stride_cos", "cos_ptr + rows * stride_sin", "cosines lie where sines do"),
    Mutant("sin_ptr + rows * stride_sin", "sin_ptr + rows * stride_cos", "sines lie where cosines do"),
    Mutant("tl.load(sin_ptr + rows", "tl.load(cos_ptr + rows", "sines are cosines"),
    Mutant("tl.load(rows_ptr + offs_m", "tl.load(rows_ptr + offs_m * 0", "all turn like the first"),
    Mutant("head * (2 * HALF) + channel", "head * HALF + channel", "heads are written over one another"),
    Mutant("first * cosine - second * sine", "first * cosine + second * sine", "the first half turns the other way"),
    Mutant("second * cosine + first * sine", "second * cosine - first * sine", "the second half turns the other way"),
    Mutant("tl.store(out + HALF,", "tl.store(out + 1,", "partners are written side by side"),
    Mutant("activate(value, EPILOGUE) * gate", "value * activate(gate, EPILOGUE)", "the wrong half is activated"),
    Mutant("activate(value, EPILOGUE) * gate", "activate(value * gate, EPILOGUE)", "the product is activated"),
    Mutant("(begin // OF_EACH + tl.arange", "(begin + tl.arange", "results are counted as columns"),
    Mutant(
        "(offs_n < OUT_FEATURES // OF_EACH)", "(offs_n < OUT_FEATURES)", "results beyond the last, into the next row"
    ),
    Mutant(
        "offs_m[:, None] * stride_rt",
        "offs_m[:, None] * (OUT_FEATURES // OF_EACH)",
        "residuals are as far apart as they are wide",
    ),
    Mutant("out += tl.load(residual,", "out = tl.load(residual,", "the residual in place of the result"),
    Mutant(
        "out_ptr + offs_m[:, None] * (OUT_FEATURES // OF_EACH)",
        "out_ptr + offs_m[:, None] * OUT_FEATURES",
        "results are as far apart as the product is wide",
    ),
    Mutant("(OUT_FEATURES + BLOCK_N - 1) // BLOCK_N", "OUT_FEATURES // BLOCK_N + 0", "the last columns are left out"),
    Mutant("tl.num_programs(0),", "tl.num_programs(0) * 2,", "every second tile of a program is left out"),
    Mutant("tl.program_id(0),", "tl.program_id(0) + 1,", "the first tile is left out"),
    Mutant("tl.minimum(tiles_m - first_m, GROUP_M)", "tl.minimum(tiles_m, GROUP_M)", "the last group is a whole one"),
    Mutant("pid_m = first_m + tile", "pid_m = tile", "every group is the first"),
    Mutant("pid_n = tile % GROUP // bands", "pid_n = tile % GROUP // GROUP_M", "columns as if all groups were whole"),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m < tokens - 1", "the last token is left out"),
    Mutant("parts = (left, right)", "parts = (right, left)", "halves are swapped"),
    Mutant(
        "_halves(left, BLOCK_M, BLOCK_N // 2) + _halves(right, BLOCK_M, BLOCK_N // 2)",
        "_halves(right, BLOCK_M, BLOCK_N // 2) + _halves(left, BLOCK_M, BLOCK_N // 2)",
        "quarters are swapped",
    ),
    Mutant("pid_n * BLOCK_N + part * BLOCK", "pid_n * BLOCK_N + part", "parts lie a column apart"),
    Mutant("offs_n = begin + tl.arange(0, BLOCK)", "offs_n = tl.arange(0, BLOCK)", "the first biases for all parts"),
    Mutant("out += bias.to(tl.float32)[None, :]", "out -= bias.to(tl.float32)[None, :]", "the bias is taken away"),
)

ACTIVATIONS = (
    Mutant("math.sqrt(0.5)", "0.7", "gelu's argument is a percent too small"),
    Mutant("2.0 * math.sqrt(2.0 / math.pi)", "math.sqrt(2.0 / math.pi)", "gelu_tanh with half of its argument"),
    Mutant("1.0 / (1.0 + tl.exp(-x))", "tl.exp(x) / (1.0 + tl.exp(x))", "inf / inf for large numbers"),
    Mutant("-5.70498872745e-3", "5.70498872745e-3", "the fifth coefficient of tanh"),
    Mutant("-3.33332819422e-1", "-3.33e-1", "the first coefficient of tanh"),
    Mutant("size < 0.625", "size < 0.0", "tanh cancels near 0"),
    Mutant("size < 0.625", "size < 6.25", "tanh's series where it does not hold"),
    Mutant("size = tl.abs(x)", "size = x", "tanh of negative numbers by the series"),
    Mutant("tl.where(x < 0.0, -far, far)", "far", "tanh of far negative numbers is positive"),
    Mutant(
        "1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)",
        "(tl.exp(2.0 * size) - 1.0) / (tl.exp(2.0 * size) + 1.0)",
        "tanh is inf / inf for large numbers",
    ),
    Mutant("tl.minimum(x, 20.0)", "x", "mish is inf / inf for large numbers"),
    Mutant("tl.minimum(x, 20.0)", "tl.minimum(x, 2.0)", "mish's fraction grows no more from 2 on"),
    Mutant("n = e * (e + 2.0)", "n = e * (e + 1.0)", "another fraction in mish"),
    Mutant("x * (n / (n + 2.0))", "x * (n / (n + 1.0))", "another denominator in mish"),
    Mutant("(1.0 + tl.erf(", "(1.0 - tl.erf(", "gelu keeps negative numbers"),
    Mutant("0.5 * x * (1.0", "x * (1.0", "twice gelu"),
    Mutant("0.044715 * x * x", "0.044715 * x", "gelu_tanh with a square for the cube"),
    Mutant("tl.where(x < 0.0, 0.0, x)", "tl.where(x > 0.0, x, 0.0)", "relu of NaN is 0", place=(1, 2)),
    Mutant("tl.where(x < 0.0, 0.0, x)", "tl.where(x > 0.0, x, 0.0)", "relu2 of NaN is 0", place=(2, 2)),
    Mutant("tl.where(x > 6.0, 6.0, x)", "tl.minimum(x, 6.0)", "relu6 of NaN is 6"),
    Mutant("tl.where(x > 6.0, 6.0, x)", "x", "relu6 has no end"),
    Mutant("positive * positive", "positive", "relu2 is relu"),
    Mutant('EPILOGUE == "silu":\n        out = x * ', 'EPILOGUE == "silu":\n        out = ', "silu is sigmoid"),
    Mutant("out = _sigmoid(x)", "out = x * _sigmoid(x)", "sigmoid is silu"),
    Mutant("1.702 * x", "1.7 * x", "quick_gelu's factor"),
)
