"""From token ids to the first hidden state in Triton: `engine/ops/embed.py` in one pass over memory.

Maths, a row of fp32 accumulators a token, rounded once at the end:
    x = word[id] + token_type[type] + position[place]
    (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias        where there is an eps

Tiling: a program owns BLOCK_M whole rows, as many as its registers hold, so that mean and variance
need no second look at memory and no other program. A row's statistics are those of the row alone: its bits do not
depend on what it shares a program with.

    ids [BLOCK_M] ──gather──> word rows ┐
    types         ──gather──> type rows ├─ + ──> x [BLOCK_M, BLOCK_D] fp32 ──> mean, variance ──> out, written once
    places        ──gather──> pos. rows ┘        (BLOCK_D: hidden up to the next power of two, masked)

What is fused: three gathers, two sums, the norm, the cast. Each table, and each part of the norm, may be missing; what
is missing is not compiled. Ids are trusted: on a GPU a row outside a table is memory of something else.

Bytes: a word row is read, a hidden row written, `2 * element * hidden` a token; the position and type tables are small
and stay in L2, which adds `2 * element * hidden` of L2 traffic; the ids are 8 bytes each. FLOPs: about `10 * hidden` a
token, 2.5 a byte in 16-bit dtypes: memory is the bound.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..engine.contract import Call
from .launch import Config, launch, next_power_of_2
from .limits import (
    dtype_reasons,
    hidden_reasons,
    require_dtype,
    require_indices,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .registration import traceable
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "embed", "unsupported"]


@triton.jit
def _rows(table_ptr, ids_ptr, stride: tl.constexpr, offs_m, mask_m, offs_d, mask):
    ids = tl.load(ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)  # [BLOCK_M]
    return tl.load(table_ptr + ids[:, None] * stride + offs_d, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def embed_kernel(
    ids_ptr, places_ptr, types_ptr, word_ptr, position_ptr, token_type_ptr, weight_ptr, bias_ptr, out_ptr,
    tokens, eps,
    stride_word: tl.constexpr, stride_position: tl.constexpr, stride_type: tl.constexpr,
    HAS_NORM: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of whole rows; `out` is contiguous. Parts that are missing are None."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_d = offs_d < HIDDEN
    mask = mask_m[:, None] & mask_d
    x = _rows(word_ptr, ids_ptr, stride_word, offs_m, mask_m, offs_d, mask)  # [BLOCK_M, BLOCK_D]
    if token_type_ptr is not None:
        if types_ptr is not None:
            x += _rows(token_type_ptr, types_ptr, stride_type, offs_m, mask_m, offs_d, mask)  # [BLOCK_M, BLOCK_D]
        else:
            x += tl.load(token_type_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
    if position_ptr is not None:
        x += _rows(position_ptr, places_ptr, stride_position, offs_m, mask_m, offs_d, mask)  # [BLOCK_M, BLOCK_D]
    if HAS_NORM:
        mean = tl.div_rn(tl.sum(tl.where(mask_d, x, 0.0), 1), HIDDEN * 1.0)
        x -= mean[:, None]
        variance = tl.div_rn(tl.sum(tl.where(mask_d, x * x, 0.0), 1), HIDDEN * 1.0)
        x *= tl.div_rn(1.0, tl.sqrt_rn(variance + eps))[:, None]
        if weight_ptr is not None:
            x *= tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
        if bias_ptr is not None:
            x += tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)  # [1, BLOCK_D]
    tl.store(out_ptr + offs_m[:, None] * HIDDEN + offs_d, x.to(out_ptr.dtype.element_ty), mask=mask)


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: up to 32 channels a thread, one row at least; fewer of rows that are wide.

    What is summed within a row depends on `hidden` alone, never on the number of tokens.
    """
    width = next_power_of_2(call.hidden or 768)
    return Config.of(num_warps=min(max(width // 256, 4), 16), num_stages=1, BLOCK_M=max(4096 // width, 1))


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=1, BLOCK_M=rows) for warps in (2, 4, 8, 16) for rows in (1, 2, 4, 8, 16)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + hidden_reasons(call)


@traceable("embed")
def embed(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor | None = None,
    token_type: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float | None = None,
    config: Config | None = None,
) -> Tensor:
    """As `engine/ops/embed.py`, in fp32, fp16 or bf16, rows up to 8,192 wide; ids are not checked.

    The sum is rounded once, where eager rounds after each table.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    _check(word, position, token_type, norm_weight, norm_bias)
    count, device = input_ids.numel(), word.device
    input_ids = require_indices("embed", "input_ids", input_ids, device, count)
    if position is not None:
        position_ids = require_indices("embed", "position_ids", position_ids, device, count)
    if token_type is not None and token_type_ids is not None:
        token_type_ids = require_indices("embed", "token_type_ids", token_type_ids, device, count)
    word = word if word.stride(-1) == 1 else word.contiguous()
    position, token_type, norm_weight, norm_bias = (
        table if table is None or table.stride(-1) == 1 else table.contiguous()
        for table in (position, token_type, norm_weight, norm_bias)
    )
    tokens, hidden = input_ids.shape[0], word.shape[1]
    out = torch.empty((tokens, hidden), dtype=word.dtype, device=word.device)
    if out.numel() == 0:
        return out
    config = config or TUNED("embed", word.device, word.dtype, hidden=hidden)
    normalised = eps is not None
    arguments = {
        "ids_ptr": input_ids,
        "places_ptr": None if position is None else position_ids,
        "types_ptr": None if token_type is None else token_type_ids,
        "word_ptr": word,
        "position_ptr": position,
        "token_type_ptr": token_type,
        "weight_ptr": norm_weight if normalised else None,
        "bias_ptr": norm_bias if normalised else None,
        "out_ptr": out,
        "tokens": tokens,
        "eps": eps or 0.0,
    }
    constants = {
        "stride_word": word.stride(0),
        "stride_position": 0 if position is None else position.stride(0),
        "stride_type": 0 if token_type is None else token_type.stride(0),
        "HAS_NORM": normalised,
        "HIDDEN": hidden,
        "BLOCK_D": next_power_of_2(hidden),
    }
    launch(embed_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out


def _check(
    word: Tensor,
    position: Tensor | None,
    token_type: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> None:
    """Refuse tables and norms that do not fit together; a norm may have a dtype of its own."""
    parts = {"position": position, "token_type": token_type, "norm_weight": norm_weight, "norm_bias": norm_bias}
    present = {name: x for name, x in parts.items() if x is not None}
    require_no_gradient("embed", word, *present.values())
    require_shape("embed", "word", word, None, None)
    require_same_device("embed", word=word, **present)
    hidden = word.shape[1]
    tables = {"word": word}
    for name, x in present.items():
        if name in ("position", "token_type"):
            require_shape("embed", name, x, None, hidden)
            tables[name] = x
        else:
            require_shape("embed", name, x, hidden)
            require_dtype("embed", **{name: x})
    require_dtype("embed", **tables)
