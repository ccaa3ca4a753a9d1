"""From token rows to one vector a text in Triton: `engine/ops/pool.py`, with L2 norm and finite flag in the same pass.

Maths, over a text's rows `x[i]` from `skip` on, in fp32:
    mean sum x[i] / n      mean_sqrt_len_tokens sum x[i] / sqrt(n)      weightedmean sum (i + 1) x[i] / sum (i + 1)
    max max x[i]           cls the first row                            lasttoken the last row
then `finite = all(|v| < inf)` and `v / max(norm2(v), 1e-12)`.

Tiling: the norm needs the whole vector, so a program holds whole rows, BLOCK_N of them at a time, and never a slice of
the channels. Texts are cut into parts of SPLIT tokens, counted from the text's own first token, and each part is a
program: a text of 8,192 tokens keeps 64 programs busy, and 4,000 short texts 4,000. A part that is its whole text
finishes it on the spot; otherwise it leaves an fp32 row, and a second kernel, one program a text, joins the rows in
their order. How a text is cut depends on its own length alone, and nothing is added atomically: its bits do not depend
on its neighbours. A grid over (text, block of channels) would need no second kernel, but leaves one long text to a
handful of programs, and the norm to a kernel of its own.

    slot      0   1   2   3 │ 4 │ 5   6 │             slot of a text's first part: cu_seqlens[t] // SPLIT + t
    text A  [ S | S | S | r ]   │       │             4 parts -> 4 rows -> joined
    text B                  │[r]│       │             1 part: normalised and written at once
    text C                  │   │[S | r]│             a slot that no part needs ends at once

The host knows neither how many parts there are nor where a text's begin, and does not ask: `tokens // SPLIT + texts`
slots are enough (see `texts.py`), and each program finds its text by a binary search.

Bytes: every counted row is read once, `element * hidden` a token, and `4 * hidden` written a text; parts add
`8 * hidden` for each SPLIT tokens of texts longer than that (3 % at 128 tokens in 16-bit dtypes). cls and lasttoken
read one row a text. FLOPs: about one an element read (weightedmean two), and `4 * hidden` a text behind it: 0.5 to 1 a
byte. Memory is the bound.

A text without a token, which the contract rules out, reads nothing: it counts like one whose tokens are all skipped,
and gives zeros for cls and lasttoken.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config, launch, next_power_of_2
from .limits import (
    dtype_reasons,
    hidden_reasons,
    require_count,
    require_dtype,
    require_lengths,
    require_no_gradient,
    require_shape,
)
from .registration import traceable
from .texts import text_at
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "pool", "unsupported"]

INFINITY = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@triton.jit
def _write(vector, text, out_ptr, finite_ptr, NORMALIZE: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_D: tl.constexpr):
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HIDDEN
    if finite_ptr is not None:
        # False for NaN as well.
        usable = (tl.abs(vector) < INFINITY) | (offs_d >= HIDDEN)
        tl.store(finite_ptr + text, tl.min(usable.to(tl.int32), 0))
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(tl.where(mask_d, vector * vector, 0.0), 0))
        # Not a maximum, which would drop a norm that is NaN.
        vector = tl.div_rn(vector, tl.where(norm < 1e-12, 1e-12, norm))
    tl.store(out_ptr + text * HIDDEN + offs_d, vector, mask=mask_d)


@triton.jit
def _nothing(MODE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.full((BLOCK_N, BLOCK_D), -INFINITY if MODE == "max" else 0.0, tl.float32)


@triton.jit
def _joined(so_far, rows, MODE: tl.constexpr):
    if MODE == "max":
        return tl.maximum(so_far, rows, propagate_nan=tl.PropagateNan.ALL)
    else:
        return so_far + rows


@triton.jit
def _collapsed(rows, MODE: tl.constexpr):
    if MODE == "max":
        # A maximum over an axis drops NaN.
        spoilt = tl.max((rows != rows).to(tl.int32), 0)
        highest = tl.max(tl.where(rows != rows, -INFINITY, rows), 0)
        return tl.where(spoilt > 0, NAN, highest)
    else:
        return tl.sum(rows, 0)


@triton.jit
def _divided(total, length, skip, MODE: tl.constexpr):
    counted = tl.maximum(length - skip, 0)
    if MODE == "max":
        return total
    elif MODE == "weightedmean":
        # 1 + … + length without 1 + … + skip, exact in 64 bits. Nothing counted: zeros, by any divisor.
        weights = tl.where(counted > 0, (length * (length + 1) - skip * (skip + 1)) // 2, 1)
        return tl.div_rn(total, weights.to(tl.float32))
    else:
        count = tl.maximum(counted, 1).to(tl.float32)
        return tl.div_rn(total, tl.sqrt_rn(count) if MODE == "mean_sqrt_len_tokens" else count)


@triton.jit(do_not_specialize=["skip"])
def pool_row_kernel(
    hidden_ptr, cu_seqlens_ptr, out_ptr, finite_ptr, skip,
    stride_ht: tl.constexpr, MODE: tl.constexpr, NORMALIZE: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """cls and lasttoken: one program a text, which reads one row."""
    text = tl.program_id(0).to(tl.int64)
    skip = skip.to(tl.int64)
    start = tl.load(cu_seqlens_ptr + text).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + text + 1).to(tl.int64)
    row = tl.where(start + skip < stop, start + skip, start) if MODE == "cls" else stop - 1
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs_d < HIDDEN) & (start < stop)
    vector = tl.load(hidden_ptr + row * stride_ht + offs_d, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_D]
    _write(vector, text, out_ptr, finite_ptr, NORMALIZE, HIDDEN, BLOCK_D)


@triton.jit(do_not_specialize=["texts", "skip"])
def pool_parts_kernel(
    hidden_ptr, cu_seqlens_ptr, parts_ptr, out_ptr, finite_ptr, texts, skip,
    stride_ht: tl.constexpr, MODE: tl.constexpr, NORMALIZE: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Up to SPLIT tokens of one text: its vector if these are all, else a row of `parts`, fp32 `[slots, HIDDEN]`."""
    slot = tl.program_id(0).to(tl.int64)
    skip = skip.to(tl.int64)
    text = text_at(slot, cu_seqlens_ptr, texts, SPLIT)
    start = tl.load(cu_seqlens_ptr + text).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + text + 1).to(tl.int64)
    part = slot - (start // SPLIT + text)
    low = start + skip + part * SPLIT
    # The first part answers for a text of which nothing is counted.
    if (part == 0) | (low < stop):
        offs_d = tl.arange(0, BLOCK_D)[None, :]
        rows = _nothing(MODE, BLOCK_N, BLOCK_D)
        for row in range(0, tl.minimum(stop - low, SPLIT).to(tl.int32), BLOCK_N):
            within = row + tl.arange(0, BLOCK_N)[:, None]
            offs_n = low + within
            mask = (offs_n < stop) & (within < SPLIT) & (offs_d < HIDDEN)
            nothing = -INFINITY if MODE == "max" else 0.0
            x = tl.load(hidden_ptr + offs_n * stride_ht + offs_d, mask=mask, other=nothing)  # [BLOCK_N, BLOCK_D]
            x = x.to(tl.float32)
            if MODE == "weightedmean":
                x *= (offs_n - start + 1).to(tl.float32)
            rows = _joined(rows, x, MODE)
        vector = _collapsed(rows, MODE)
        if stop - start - skip <= SPLIT:
            vector = _divided(vector, stop - start, skip, MODE)
            _write(vector, text, out_ptr, finite_ptr, NORMALIZE, HIDDEN, BLOCK_D)
        else:
            channels = tl.arange(0, BLOCK_D)
            tl.store(parts_ptr + slot * HIDDEN + channels, vector, mask=channels < HIDDEN)


@triton.jit(do_not_specialize=["skip"])
def pool_join_kernel(
    parts_ptr, cu_seqlens_ptr, out_ptr, finite_ptr, skip,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One text of more than SPLIT tokens: its rows of `parts`, joined in their order."""
    text = tl.program_id(0).to(tl.int64)
    skip = skip.to(tl.int64)
    start = tl.load(cu_seqlens_ptr + text).to(tl.int64)
    length = tl.load(cu_seqlens_ptr + text + 1).to(tl.int64) - start
    if length - skip > SPLIT:
        first = start // SPLIT + text
        parts = ((length - skip + SPLIT - 1) // SPLIT).to(tl.int32)
        offs_d = tl.arange(0, BLOCK_D)[None, :]
        rows = _nothing(MODE, BLOCK_N, BLOCK_D)
        for row in range(0, parts, BLOCK_N):
            within = row + tl.arange(0, BLOCK_N)[:, None]
            mask = (within < parts) & (offs_d < HIDDEN)
            nothing = -INFINITY if MODE == "max" else 0.0
            x = tl.load(parts_ptr + (first + within) * HIDDEN + offs_d, mask=mask, other=nothing)  # [BLOCK_N, BLOCK_D]
            rows = _joined(rows, x, MODE)
        vector = _divided(_collapsed(rows, MODE), length, skip, MODE)
        _write(vector, text, out_ptr, finite_ptr, NORMALIZE, HIDDEN, BLOCK_D)


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: parts of 128 tokens, read 32 KiB at a time.

    A part waits for memory 128 / BLOCK_N times, whatever else runs: hence tiles as high as many warps can hold. Both
    numbers decide the order of the sums; they depend on width and dtype, never on the number of tokens or texts.
    """
    rows = 32768 // (next_power_of_2(call.hidden or 768) * call.dtype.itemsize)
    return Config.of(num_warps=16, num_stages=1, SPLIT=128, BLOCK_N=min(max(rows, 1), 128))


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=1, SPLIT=tokens, BLOCK_N=rows)
    for warps in (4, 8, 16)
    for tokens in (64, 128, 256)
    for rows in (2, 4, 8, 16, 32)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + hidden_reasons(call)


@overload
def pool(
    hidden: Tensor, cu_seqlens: Tensor, *, mode: str, skip: int = 0, normalize: bool = False,
    return_finite: Literal[False] = False, config: Config | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def pool(
    hidden: Tensor, cu_seqlens: Tensor, *, mode: str, skip: int = 0, normalize: bool = False,
    return_finite: Literal[True], config: Config | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@traceable("pool")
def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: str,
    skip: int = 0,
    normalize: bool = False,
    return_finite: bool = False,
    config: Config | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `engine/ops/pool.py`, from fp32, fp16 or bf16 rows up to 8,192 wide, to fp32.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: no such mode, `skip` below 0, shapes, dtypes or devices that do not fit, or a gradient is asked for.
    """
    if mode not in MODES:
        raise InputError(f"pool: mode: expected one of {', '.join(MODES)}, got {mode!r}")
    skip = require_count("pool", "skip", skip)
    require_no_gradient("pool", hidden)
    require_dtype("pool", hidden=hidden)
    require_shape("pool", "hidden", hidden, None, None)
    cu_seqlens = require_lengths("pool", "cu_seqlens", cu_seqlens, hidden.device)
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    tokens, width = hidden.shape
    texts = cu_seqlens.shape[0] - 1
    out = torch.empty((texts, width), dtype=torch.float32, device=hidden.device)
    # Stored as bytes, read as bool.
    finite = torch.empty(texts, dtype=torch.uint8, device=hidden.device) if return_finite else None
    config = config or TUNED("pool", hidden.device, hidden.dtype, hidden=width)
    split = config["SPLIT"]
    arguments = {
        "hidden_ptr": hidden,
        "cu_seqlens_ptr": cu_seqlens,
        "out_ptr": out,
        "finite_ptr": finite,
        "skip": skip,
    }
    row = {"stride_ht": hidden.stride(0)}
    constants = {"MODE": mode, "NORMALIZE": normalize, "HIDDEN": width, "BLOCK_D": next_power_of_2(width)}
    if texts and mode in ("cls", "lasttoken"):
        whole = Config.of(config.num_warps, config.num_stages)
        launch(pool_row_kernel, (texts,), arguments, {**constants, **row}, whole)
    elif texts:
        slots = tokens // split + texts
        parts = torch.empty((slots, width), dtype=torch.float32, device=hidden.device)
        arguments["parts_ptr"] = parts
        launch(pool_parts_kernel, (slots,), {**arguments, "texts": texts}, {**constants, **row}, config)
        if tokens > split:
            del arguments["hidden_ptr"]
            launch(pool_join_kernel, (texts,), arguments, constants, config)
    return out if finite is None else (out, finite.view(torch.bool))
