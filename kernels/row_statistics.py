"""What a norm needs to know of a row, in Triton: found in runs of its columns, and merged to one mean and one scale.

A run is some columns beside each other, and its statistics are two numbers, n columns of values t counted:
    mean = sum(t) / n        M2 = sum((t - mean)²), the squared deviations from the run's own mean
Runs are of a power of two of columns, the last one of what is left. Chan, Golub & LeVeque 1979 ("Updating Formulae and
a Pairwise Algorithm for Computing Sample Variances", section 2) merge them without a second look at the row:
    layer_norm   mean = sum(n_i mean_i) / N;  variance = sum(M2_i + n_i (mean_i - mean)²) / N
    rms_norm     mean square = sum(M2_i + n_i mean_i²) / N
Never E[t²] - E[t]², which cancels where the mean is large. All in fp32; roots and quotients are those of IEEE.

Whoever writes rows stores the statistics of their runs beside them, `[rows, runs, 2]`: a part of a tile of `linear` is
a run. `row_statistics` finds those of rows that nobody left any of, one run each. Which columns a run has follows from
the number of runs P and the width N alone, by `run_of`. Runs of B columns, a power of two, are P = ceil(N / B) of them.
For P = 1 all columns are in it. Otherwise (P - 1) B < N <= P B, so that ceil(N / P) <= B and N / P > B (P - 1) / P, at
least B / 2: B is the next power of two from ceil(N / P) on.

The sums are in an order that depends on the width alone: the bits of a row are its own, in any company.

Bytes of `row_statistics`: `e N + 8` a token of rows of `e` bytes a number, 1.5 kB at N = 768; memory is the bound.
Those of a product's runs: 8 a run, written once, and read once a tile of columns of the next product, which L2 keeps:
96 B a token at 12 runs. Times on a GPU: not measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch, next_power_of_2

__all__ = ["merged_statistics", "row_statistics", "row_statistics_kernel", "run_of", "store_statistics"]

RUNS_AT_ONCE = tl.constexpr(16)
"""Of a row, while they are merged: rows of 1,024 columns in one step, and never more than a few registers a thread."""


@triton.jit
def store_statistics(
    values, statistics_ptr, offs_m, mask_m, begin, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and M2 of the run of columns from `begin` on, a multiple of BLOCK, of rows `values`, fp32 [rows, BLOCK].

    Args:
        statistics_ptr: fp32 [all rows, ceil(WIDTH / BLOCK), 2], contiguous.
        offs_m: int64 [rows], where in it each row is.
        mask_m: [rows], which rows there are; a run from WIDTH on is not stored.
    """
    RUNS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    inside = (begin + tl.arange(0, BLOCK) < WIDTH)[None, :]
    count = tl.minimum(WIDTH - begin, BLOCK) * 1.0  # of a part beyond the end nothing is stored
    if WIDTH % BLOCK != 0:
        values = tl.where(inside, values, 0.0)
    mean = tl.div_rn(tl.sum(values, 1), count)
    values -= mean[:, None]
    if WIDTH % BLOCK != 0:
        values = tl.where(inside, values, 0.0)
    squares = tl.sum(values * values, 1)
    run = statistics_ptr + offs_m * (2 * RUNS) + begin // BLOCK * 2
    mask = mask_m & (begin < WIDTH)
    tl.store(run, mean, mask=mask)
    tl.store(run + 1, squares, mask=mask)


@triton.jit
def _runs(
    statistics_ptr, offs_m, mask_m, first,
    WIDTH: tl.constexpr, RUNS: tl.constexpr, RUN: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Of COUNT runs from `first` on: columns [1, COUNT], means and M2 [rows, COUNT]; of those that are not there 0."""
    runs = (first + tl.arange(0, COUNT))[None, :]
    # Both numbers of a run at once: as many addresses again would be registers.
    places = (2 * first + tl.arange(0, 2 * COUNT))[None, :]
    mask = mask_m[:, None] & (places < 2 * RUNS)
    pairs = tl.load(statistics_ptr + offs_m[:, None] * (2 * RUNS) + places, mask=mask, other=0.0)  # [rows, 2 * COUNT]
    means, squares = pairs.reshape(pairs.shape[0], COUNT, 2).split()
    counts = tl.where(runs < RUNS - 1, RUN, tl.where(runs < RUNS, WIDTH - (RUNS - 1) * RUN, 0)).to(tl.float32)
    return counts, means, squares


@triton.jit
def merged_statistics(
    statistics_ptr, offs_m, mask_m, eps,
    WIDTH: tl.constexpr, RUNS: tl.constexpr, RUN: tl.constexpr, CENTRED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of each row the mean and what its deviations from it are multiplied with, 1 / sqrt(variance + eps).

    Args:
        statistics_ptr: fp32 [all rows, RUNS, 2], contiguous, of runs of RUN columns of WIDTH.
        offs_m: int64 [BLOCK_M], where in it each row is.
        mask_m: [BLOCK_M], which rows there are.
        eps: added to the variance.
        CENTRED: layer norm; otherwise rms norm, whose mean is taken to be 0.

    Returns:
        Two of fp32 [BLOCK_M].
    """
    COUNT: tl.constexpr = RUNS_AT_ONCE if RUNS > RUNS_AT_ONCE else triton.next_power_of_2(RUNS)
    mean = tl.zeros([BLOCK_M], tl.float32)
    if CENTRED:
        for first in range(0, RUNS, COUNT):
            counts, means, squares = _runs(statistics_ptr, offs_m, mask_m, first, WIDTH, RUNS, RUN, COUNT)
            mean += tl.sum(counts * means, 1)
        mean = tl.div_rn(mean, WIDTH * 1.0)
    square = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, RUNS, COUNT):
        counts, means, squares = _runs(statistics_ptr, offs_m, mask_m, first, WIDTH, RUNS, RUN, COUNT)
        means -= mean[:, None]
        square += tl.sum(tl.fma(counts * means, means, squares), 1)
    square = tl.div_rn(square, WIDTH * 1.0)
    return mean, tl.div_rn(1.0, tl.sqrt_rn(square + eps))


@triton.jit(do_not_specialize=["tokens"])
def row_statistics_kernel(
    x_ptr, statistics_ptr, tokens, stride_xt: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of whole rows in registers, BLOCK_D the next power of two above HIDDEN: a run each."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask = mask_m[:, None] & (offs_d < HIDDEN)
    x = tl.load(x_ptr + offs_m[:, None] * stride_xt + offs_d, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    store_statistics(x.to(tl.float32), statistics_ptr, offs_m, mask_m, 0, HIDDEN, BLOCK_D)


def run_of(width: int, runs: int) -> int:
    """Columns of each run but the last, where rows of this width have so many of them; see above.

    Args:
        width: columns of a row, at least 1.
        runs: their number, at least 1.
    """
    return next_power_of_2(-(-width // runs))


def row_statistics(x: Tensor) -> Tensor:
    """Statistics of whole rows, one run each.

    Args:
        x: `[tokens, hidden]`, fp32, fp16 or bf16, at most 8,192 wide, a row's numbers beside each other. Trusted.

    Returns:
        fp32 `[tokens, 1, 2]`: mean, and sum of squared deviations from it.
    """
    tokens, hidden = x.shape
    statistics = torch.empty((tokens, 1, 2), dtype=torch.float32, device=x.device)
    width = next_power_of_2(hidden)
    # Up to 32 channels a thread, as the norms.
    config = Config.of(num_warps=min(max(width // 256, 4), 16), num_stages=1, BLOCK_M=max(4096 // width, 1))
    constants = {"stride_xt": x.stride(0) if tokens > 1 else hidden, "HIDDEN": hidden, "BLOCK_D": width}
    arguments = {"x_ptr": x, "statistics_ptr": statistics, "tokens": tokens}
    launch(row_statistics_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return statistics
