"""MobileBERT's embeddings of each token and its two neighbours in Triton: `engine/ops/trigram.py`.

Maths: `[word[next], word[this], word[previous]]`, zeros in place of a neighbour beyond the text's edge. Values are
moved, not computed.

Tiling: a program owns BLOCK_M tokens. It looks for the text of each of them in `cu_seqlens` (a binary search with one
lane a token; `cu_seqlens` is a few kilobytes that every program reads, so it comes from L1), which says at once whether
an edge stands to its left (the text starts here) or to its right (it stops behind it).

    tokens      … t-1 │ t  t+1 … u │ u+1 …          │ an edge
    out row t     [ word[t+1] | word[t] |    0      ]
    out row u     [     0     | word[u] | word[u-1] ]

What is fused: three gathers, the two masks and the concatenation; eager moves the rows seven times.

Bytes: a row of the table is read once from memory (its two other uses come from L1 or L2) and three are written,
`4 * element * width` a token. FLOPs: none. Memory is the bound.
"""

from __future__ import annotations

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
    require_dtype,
    require_indices,
    require_lengths,
    require_no_gradient,
    require_shape,
)
from .registration import traceable
from .texts import text_at
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "trigram", "unsupported"]


@triton.jit
def _move(ids_ptr, word_ptr, stride_word: tl.constexpr, neighbour, there, out, offs_d, mask_d, mask):
    ids = tl.load(ids_ptr + neighbour, mask=there, other=0).to(tl.int64)[:, None]  # [BLOCK_M]
    rows = tl.load(word_ptr + ids * stride_word + offs_d, mask=there[:, None] & mask_d, other=0.0)  # [BLOCK_M, BLOCK_D]
    tl.store(out, rows, mask=mask)


@triton.jit(do_not_specialize=["tokens", "texts"])
def trigram_kernel(
    ids_ptr, cu_seqlens_ptr, word_ptr, out_ptr, tokens, texts,
    stride_word: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One band of BLOCK_M tokens; `out` is contiguous."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_d = offs_d < WIDTH
    mask = mask_m[:, None] & mask_d
    text = text_at(offs_m, cu_seqlens_ptr, texts, 0)
    start = tl.load(cu_seqlens_ptr + text)  # [BLOCK_M]
    stop = tl.load(cu_seqlens_ptr + text + 1)  # [BLOCK_M]
    has_next = mask_m & (offs_m + 1 < stop)
    has_previous = mask_m & (offs_m > start)
    out = out_ptr + offs_m[:, None] * (3 * WIDTH) + offs_d
    _move(ids_ptr, word_ptr, stride_word, offs_m + 1, has_next, out, offs_d, mask_d, mask)
    _move(ids_ptr, word_ptr, stride_word, offs_m, mask_m, out + WIDTH, offs_d, mask_d, mask)
    _move(ids_ptr, word_ptr, stride_word, offs_m - 1, has_previous, out + 2 * WIDTH, offs_d, mask_d, mask)


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: 16 channels a thread, one row at least. Values are only moved."""
    return Config.of(num_warps=4, num_stages=1, BLOCK_M=max(2048 // next_power_of_2((call.hidden or 384) // 3), 1))


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=1, BLOCK_M=rows) for warps in (2, 4, 8) for rows in (1, 2, 4, 8, 16)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + hidden_reasons(call)


@traceable("trigram")
def trigram(input_ids: Tensor, cu_seqlens: Tensor, word: Tensor, *, config: Config | None = None) -> Tensor:
    """As `engine/ops/trigram.py`, in fp32, fp16 or bf16; ids are not checked.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    require_no_gradient("trigram", word)
    require_dtype("trigram", word=word)
    require_shape("trigram", "word", word, None, None)
    input_ids = require_indices("trigram", "input_ids", input_ids, word.device, input_ids.numel())
    cu_seqlens = require_lengths("trigram", "cu_seqlens", cu_seqlens, word.device)
    if len(cu_seqlens) == 1 and len(input_ids):
        raise InputError(f"trigram: cu_seqlens: expected a text that holds {len(input_ids)} tokens, got none")
    word = word if word.stride(-1) == 1 else word.contiguous()
    tokens, width = input_ids.shape[0], word.shape[1]
    out = torch.empty((tokens, 3 * width), dtype=word.dtype, device=word.device)
    if out.numel() == 0:
        return out
    config = config or TUNED("trigram", word.device, word.dtype, hidden=3 * width)
    arguments = {
        "ids_ptr": input_ids,
        "cu_seqlens_ptr": cu_seqlens,
        "word_ptr": word,
        "out_ptr": out,
        "tokens": tokens,
        "texts": cu_seqlens.shape[0] - 1,
    }
    constants = {"stride_word": word.stride(0), "WIDTH": width, "BLOCK_D": next_power_of_2(width)}
    launch(trigram_kernel, (-(-tokens // config["BLOCK_M"]),), arguments, constants, config)
    return out
