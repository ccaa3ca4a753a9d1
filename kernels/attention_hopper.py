"""Attention for Hopper, in Gluon: tilings, what it serves, the launch. The kernel: `attention_hopper_forward.py`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..engine.contract import Call
from ..engine.errors import InputError
from ..engine.memo import Memo
from .attention_hopper_forward import MOST_ROWS, ROWS, attention_hopper_kernel
from .launch import Config, launch
from .limits import (
    require_count,
    require_heads,
    require_lengths,
    require_no_gradient,
    require_same_device,
    require_scale,
)
from .schedule import tile_list, tile_list_length

__all__ = ["CANDIDATES", "PROVEN", "default_config", "ragged", "refusals", "unsupported", "varlen_attention"]

PROVEN = False
"""Whether a GPU report has shown this kernel right, and faster than the plain one. Until then it serves nobody."""

DTYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
HEAD_DIMS = (64, 128)
MOST_COORDINATES = 0x7FFF0000
"""Of a dimension that no row ever reaches the end of: what still is a 32-bit integer, and has a tile to spare."""


def default_config(head_dim: int) -> Config:
    """Tiling where nothing was measured: the widest tiles of keys whose scores stay in registers.

    `num_warps` are those of one consumer; Triton adds the other partitions' by itself, twelve in all. 168 registers
    are what each of 384 threads can have of a multiprocessor's 65,536: the consumers take theirs from there.
    """
    return Config.of(num_warps=4, num_stages=3 if head_dim == 64 else 2, max_registers=168, BLOCK_M=128, BLOCK_N=128)


CANDIDATES = tuple(
    Config.of(num_warps=4, num_stages=stages, max_registers=168, BLOCK_M=128, BLOCK_N=keys)
    for keys in (64, 128)
    for stages in (2, 3, 4)
)
"""What tuning tries; of 128 keys at head size 128, four stages do not fit."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    unproven = [] if PROVEN else ["needs a GPU report that shows it right and faster, got none"]
    return unproven + refusals(call)


def refusals(call: Call) -> list[str]:
    """What of `call` the kernel cannot do, proven or not: for the report that is to prove it."""
    reasons = []
    if call.sm != 90:
        reasons.append(f"needs sm_90, got {'none' if call.sm is None else f'sm_{call.sm}'}")
    if call.dtype not in DTYPES:
        reasons.append(f"needs dtype float16 or bfloat16, got {str(call.dtype).removeprefix('torch.')}")
    if call.head_dim not in HEAD_DIMS:
        reasons.append(f"needs head_dim 64 or 128, got {call.head_dim}")
    if call.window != "full":
        reasons.append(f"needs window full, got {call.window}")
    if call.bias != "none":
        reasons.append(f"needs bias none, got {call.bias}")
    if call.cross:
        reasons.append("needs keys of the same texts, got those of others")
    return reasons


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    softmax_scale: float | None = None,
    position_bias: Tensor | None = None,
    bias_max_distance: int = 128,
    bias_bidirectional: bool = True,
    return_lse: bool = False,
    memo: Memo | None = None,
    config: Config | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `engine/ops/attention.py`, of texts to themselves, no window, no bias, fp16 or bf16, head size 64 or 128.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes or dtypes do not fit together, or something else is asked for.
    """
    require_heads("attention", q, k, v)
    require_same_device("attention", q=q, k=k, v=v)
    require_no_gradient("attention", q, k, v)
    cu_seqlens = require_lengths("attention", "cu_seqlens", cu_seqlens, q.device)
    max_seqlen = require_count("attention", "max_seqlen", max_seqlen)
    tokens, heads, head_dim = q.shape
    dtypes = [str(x.dtype).removeprefix("torch.") for x in (q, k, v)]
    if q.dtype not in DTYPES or head_dim not in HEAD_DIMS or len(set(dtypes)) > 1:
        found = f"{', '.join(dtypes)} at {head_dim}"
        raise InputError(f"attention on Hopper: expected float16 or bfloat16 at head_dim 64 or 128, got {found}")
    if cu_seqlens_k is not None or len(k) != tokens or tuple(window) != (-1, -1) or causal or position_bias is not None:
        raise InputError("attention on Hopper: expected keys of the same texts, no window, not causal, no bias")
    texts = cu_seqlens.shape[0] - 1
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device) if return_lse else None
    if tokens > 0 and heads > 0:
        config = config or default_config(head_dim)
        rows = config["BLOCK_M"]
        blocks_per_text = -(-max_seqlen // rows)
        num_tiles = tile_list_length(tokens, texts, rows)
        # As for the plain kernel: texts of one length, or all within a tile, need no list.
        listed = texts * blocks_per_text > max(num_tiles, texts)
        scale = require_scale("attention", softmax_scale, head_dim)
        arguments = {
            "q_rows": ragged(q, ROWS.value),
            "k_rows": ragged(k, config["BLOCK_N"]),
            "v_rows": ragged(v, config["BLOCK_N"]),
            "out_ptr": out,
            "lse_ptr": lse,
            "cu_seqlens_ptr": cu_seqlens,
            "tiles_ptr": tile_list(cu_seqlens, tokens, rows, memo) if listed else None,
            "stride_ot": out.stride(0),
            "stride_oh": out.stride(1),
            "stride_lh": tokens,
            "num_heads": heads,
            "group": heads // k.shape[1],
            "blocks_per_text": blocks_per_text,
            "scale": scale * math.log2(math.e),
        }
        constants = {
            "HEAD_DIM": head_dim,
            "STAGES": config.num_stages,
            "HAS_TILES": listed,
            "HAS_LSE": return_lse,
            # The maximum of the scaled scores is the scaled maximum of the scores only where the scale is positive.
            "SCALE_FIRST": scale <= 0,
        }
        grid = (heads * (num_tiles if listed else texts * blocks_per_text),)
        launch(attention_hopper_kernel, grid, arguments, constants, config)
    return out if lse is None else (out, lse)


def ragged(x: Tensor, rows: int) -> TensorDescriptor:
    """`x` `[tokens, heads, head_dim]` for TMA, `rows` tokens of a head at a time, with an end for every text.

    The hardware fills with zeros what lies beyond the shape of a descriptor, but that is the batch's, not the text's.
    Two more dimensions make up for it, as in `triton.tools.ragged_tma`: before the tokens, of which there seem to be
    2^30, one with steps of a token, s channels, and one with steps of 2^34 - s channels. Row r of the text of n tokens
    that begins at token b is then at (2^30, b + n, 2^30 - n + r), which is 2^30 (2^34 - s) + (b + n) s +
    (2^30 - n + r) s = 2^64 + (b + r) s channels from the start: addresses of 64 bits are back where they belong, and
    r = n is beyond the shape.
    """
    heads, head_dim = x.shape[1:]
    step = x.stride(0)
    packed = x.stride(2) == 1 and (heads == 1 or x.stride(1) == head_dim) and step >= heads * head_dim
    if not packed or step % 8 or x.data_ptr() % 16:
        # The hardware steps by 16 bytes.
        x = x.clone(memory_format=torch.contiguous_format)
        step = heads * head_dim
    shape = [MOST_COORDINATES, MOST_COORDINATES, MOST_ROWS.value, heads * head_dim]
    block = [1, 1, rows, head_dim]
    layout: Any = gl.NVMMASharedLayout.get_default_for(block, DTYPES[x.dtype])
    return TensorDescriptor(x, shape, [2**34 - step, step, step, 1], block, layout)
