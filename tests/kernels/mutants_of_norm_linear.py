"""Mutants of the statistics of rows, and of what linear's kernel does with them."""

from __future__ import annotations

from mutant import TOO_LARGE, Mutant

__all__ = ["NORMALISED", "ROW_STATISTICS"]

NORMALISED = (
    # Of `linear_forward`, which has more of its own in `mutants_of_linear.py`.
    Mutant(
        "rows = pid_m.to(tl.int64) * BLOCK_M", "rows = pid_m * BLOCK_M", "statistics in 32 bits", survives=TOO_LARGE
    ),
    Mutant("rows < tokens, eps", "rows >= 0, eps", "statistics of rows beyond the last are read"),
    Mutant("rows < tokens, eps", "rows < tokens - 1, eps", "the last row has no statistics"),
    Mutant("rows < tokens, eps", "rows < tokens, 0.0", "eps is forgotten"),
    Mutant("rows, rows < tokens", "rows % BLOCK_M, rows < tokens", "every tile has the statistics of the first"),
    Mutant("IN_FEATURES, RUNS, RUN, sums_ptr", "RUNS * RUN, RUNS, RUN, sums_ptr", "the last run is a whole one"),
    Mutant("RUN, sums_ptr is not None", "RUN, True", "rms norm is about a mean"),
    Mutant("RUN, sums_ptr is not None", "RUN, sums_ptr is None", "layer norm is about 0, rms norm about a mean"),
    Mutant("tl.fma(-mean[:, None], sums", "tl.fma(mean[:, None], sums", "the mean is added"),
    Mutant("sums[None, :], acc)", "sums[None, :] * 0.0, acc)", "the mean is not taken away"),
    Mutant("columns = begin + tl.arange", "columns = tl.arange", "the first sums for all parts"),
    Mutant("mask=columns < OUT_FEATURES", "mask=columns >= 0", "sums beyond the last"),
    Mutant("return acc * scale[:, None]", "return acc", "rows are not scaled"),
    Mutant("return acc * scale[:, None]", "return acc / scale[:, None]", "rows are multiplied by their deviation"),
    Mutant(
        "_normalised(out, mean, scale, sums_ptr, begin,", "_normalised(out, mean, scale, sums_ptr, 0,", "sums of part 0"
    ),
    Mutant("store_statistics(rounded.to(tl.float32),", "store_statistics(out,", "statistics of what was not rounded"),
    Mutant(
        "offs_m, mask_m, begin, OUT_FEATURES, BLOCK)",
        "offs_m, mask_m, 0, OUT_FEATURES, BLOCK)",
        "all are the first run",
    ),
)

PAIRS = "statistics_ptr + offs_m[:, None] * (2 * RUNS) + places"
COUNTS = "tl.where(runs < RUNS - 1, RUN, tl.where(runs < RUNS, WIDTH - (RUNS - 1) * RUN, 0))"

ROW_STATISTICS = (
    # A run is written.
    Mutant("(WIDTH + BLOCK - 1) // BLOCK", "WIDTH // BLOCK", "rows are a run shorter"),
    Mutant("begin + tl.arange(0, BLOCK) < WIDTH", "begin + tl.arange(0, BLOCK) <= WIDTH", "a column too many"),
    Mutant("begin + tl.arange(0, BLOCK) < WIDTH", "begin + tl.arange(0, BLOCK) < WIDTH - 1", "a column too few"),
    Mutant("tl.minimum(WIDTH - begin, BLOCK)", "tl.minimum(WIDTH, BLOCK)", "the last run counts as a whole one"),
    Mutant(
        "values = tl.where(inside, values, 0.0)", "values = values * 1.0", "a mean with what is beyond the end", (1, 2)
    ),
    Mutant("values = tl.where(inside, values, 0.0)", "values = values * 1.0", "M2 with what is beyond the end", (2, 2)),
    Mutant("tl.div_rn(tl.sum(values, 1), count)", "tl.div_rn(tl.sum(values, 1), BLOCK * 1.0)", "means of whole runs"),
    Mutant("values -= mean[:, None]", "values -= 0.0", "squares of values in place of deviations"),
    Mutant("tl.sum(values * values, 1)", "tl.sum(tl.abs(values), 1)", "deviations are not squared"),
    Mutant("tl.sum(values * values, 1)", "tl.sum(values * values, 1) / count", "a variance in place of M2"),
    Mutant(
        "tl.sum(values * values, 1)",
        "tl.sum((values + mean[:, None]) * (values + mean[:, None]), 1) - mean * mean * count",
        "E[t²] - E[t]²",
    ),
    Mutant("offs_m * (2 * RUNS) + begin", "offs_m * RUNS + begin", "rows overlap"),
    Mutant("begin // BLOCK * 2", "begin // BLOCK", "runs overlap"),
    Mutant("mask = mask_m & (begin < WIDTH)", "mask = mask_m", "runs beyond the last are written"),
    Mutant(
        "mask = mask_m & (begin < WIDTH)", "mask = (offs_m >= 0) & (begin < WIDTH)", "rows beyond the last are written"
    ),
    Mutant("tl.store(run + 1, squares", "tl.store(run + 1, mean", "M2 is the mean"),
    # Runs are read.
    Mutant("(places < 2 * RUNS)", "(places < 2 * RUNS - 1)", "the last M2 is left out"),
    Mutant("(places < 2 * RUNS)", "(places >= 0)", "runs of the next row"),
    Mutant("mask_m[:, None] & (places", "(places", "rows beyond the last are read"),
    Mutant("2 * first + tl.arange", "first + tl.arange", "later runs begin too early"),
    Mutant(PAIRS, PAIRS.replace("(2 * RUNS)", "RUNS"), "rows are read as if they overlapped"),
    Mutant("COUNT, 2).split()", "2, COUNT).permute(0, 2, 1).split()", "means and M2 are not pairs"),
    Mutant(COUNTS, COUNTS.replace("runs < RUNS - 1", "runs < RUNS"), "the last run weighs as much as a whole one"),
    Mutant(COUNTS, COUNTS.replace("(RUNS - 1) * RUN", "RUNS * RUN"), "the last run weighs less than nothing"),
    # And merged.
    Mutant("tl.sum(counts * means, 1)", "tl.sum(means, 1)", "runs weigh nothing in the mean"),
    Mutant("tl.div_rn(mean, WIDTH * 1.0)", "tl.div_rn(mean, RUNS * RUN * 1.0)", "a mean of whole runs"),
    Mutant("means -= mean[:, None]", "means -= 0.0", "runs are about 0, and not about the mean"),
    Mutant(
        "tl.fma(counts * means, means, squares)", "tl.fma(means, means, squares)", "runs weigh nothing in the variance"
    ),
    Mutant("tl.fma(counts * means, means, squares)", "counts * means * means", "what varies within a run is left out"),
    Mutant("tl.fma(counts * means, means, squares)", "squares", "what varies between runs is left out"),
    Mutant("tl.div_rn(square, WIDTH * 1.0)", "tl.div_rn(square, WIDTH - 1.0)", "the unbiased variance"),
    Mutant("tl.sqrt_rn(square + eps)", "tl.sqrt_rn(square) + eps", "eps is added to the deviation"),
    Mutant(
        "tl.div_rn(1.0, tl.sqrt_rn(square + eps))", "tl.sqrt_rn(square + eps)", "the deviation, and not one over it"
    ),
    Mutant(
        "for first in range(0, RUNS, COUNT)", "for first in range(0, COUNT, COUNT)", "means of the first runs", (1, 2)
    ),
    Mutant("for first in range(0, RUNS, COUNT)", "for first in range(0, COUNT, COUNT)", "M2 of the first runs", (2, 2)),
    Mutant("    if CENTRED:\n", "    if not CENTRED:\n", "layer norm is rms norm, and rms norm layer norm"),
    # Whole rows.
    Mutant("tl.program_id(0).to(tl.int64) * BLOCK_M", "tl.program_id(0) * BLOCK_M", "rows in 32 bits"),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m < tokens - 1", "the last row is left out"),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m >= 0", "rows beyond the last"),
    Mutant("(offs_d < HIDDEN)", "(offs_d <= HIDDEN)", "a column of the next row"),
    Mutant("offs_m[:, None] * stride_xt", "offs_m[:, None] * HIDDEN", "rows lie densely"),
    Mutant("next_power_of_2(-(-width // runs))", "next_power_of_2(width // runs)", "runs that are too short"),
)
