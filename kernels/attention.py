"""The Triton row of `attention`: tilings, what it serves, and the launch. The kernel is in `attention_forward.py`."""

from __future__ import annotations

import itertools
import math
import os

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..engine.contract import Call
from ..engine.errors import InputError
from ..engine.memo import Memo
from .attention_forward import attention_kernel
from .launch import Config, channel_unit, launch, next_power_of_2
from .limits import (
    dtype_reasons,
    head_dim_reasons,
    require_bias,
    require_count,
    require_dtype,
    require_heads,
    require_lengths,
    require_no_gradient,
    require_same_device,
    require_scale,
)
from .registration import traceable
from .relative_bias import bias_by_distance
from .schedule import tile_list, tile_list_length
from .tuned import Tuned, compute_capability

__all__ = ["CANDIDATES", "TUNED", "check_inputs", "default_config", "unsupported", "varlen_attention"]

MOST_TOKENS = 1 << 30
"""No text is longer; a wider window is this wide, so that no sum of a window and a position leaves 32 bits."""

LEAST_SCALE = 2.0**-120
"""Below it a product of scale and log2(e) may be 0 in fp32, and 0 times the -inf of a masked score is NaN."""

CHECKS_LENGTHS = os.environ.get("PADLESS_CHECK") == "1"
"""Whether `cu_seqlens` and `max_seqlen` are looked at, which waits for the GPU at every call."""


def default_config(call: Call) -> Config:
    """Tiling where nothing was measured: the widest that keeps everything in registers for this dtype and head size.

    The gate holds what it takes on each architecture (tests/gate/resources.json).
    """
    width = max(next_power_of_2(call.head_dim or 64), 16)
    has_bias = call.bias == "t5"
    if call.dtype == torch.float32:
        # Products in full fp32 run on the ordinary cores, with both operands in registers.
        rows, keys = (64, 32) if width <= 32 else (32, 32) if width == 64 else (16, 16)
        # Off NVIDIA hardware Triton 3.6 cannot translate the bias' gather where blocks of keys are fetched ahead.
        stages = 1 if has_bias and call.sm is None else 2
        return Config.of(num_warps=8, num_stages=stages, max_registers=255, BLOCK_M=rows, BLOCK_N=keys, TMA=0)
    if call.sm in (90, 100):
        rows, keys = 128, 64 if width <= 128 else 32
        if has_bias:
            rows, keys = 128 if width <= 64 else 64, 64 if width <= 64 and call.sm == 90 else 32
    else:
        # The tensor cores of the others read both operands from registers, and sm_86, 89 and 120 have 99 KiB shared.
        rows, keys = (128 if width <= 64 else 64, 32 if width <= 128 else 16)
        if has_bias and call.head_dim not in (None, width):
            rows = 64  # masks of the last channels beside the bias
    stages = 3 if width <= 64 else 2
    return Config.of(num_warps=8, num_stages=stages, max_registers=255, BLOCK_M=rows, BLOCK_N=keys, TMA=0)


CANDIDATES = (
    *(
        Config.of(warps, stages, 255, BLOCK_M=rows, BLOCK_N=keys, TMA=tma)
        for rows, warps in ((64, 4), (64, 8), (128, 4), (128, 8))
        for keys in (16, 32, 64, 128)
        for stages in (2, 3, 4)
        for tma in (0, 1)
    ),
    *(Config.of(8, 2, 255, BLOCK_M=rows, BLOCK_N=keys, TMA=0) for rows, keys in ((16, 16), (32, 16), (32, 32))),
    *(Config.of(8, 1, 255, BLOCK_M=rows, BLOCK_N=keys, TMA=0) for rows, keys in ((16, 16), (32, 32), (64, 32))),
)
"""What tuning tries; the last six are for fp32. TMA: keys and values through tensor descriptors, from sm_90 on."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + head_dim_reasons(call)


@traceable("varlen_attention")
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
    """As `engine/ops/attention.py`, in fp32, fp16 or bf16, head sizes up to 256.

    Args:
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is wanted.
    """
    cu_seqlens, cu_seqlens_k, max_seqlen = check_inputs(
        q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, position_bias
    )
    out, lse = forward(
        q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k,
        window_left=window[0], window_right=0 if causal else window[1], softmax_scale=softmax_scale,
        position_bias=position_bias, bias_max_distance=bias_max_distance, bias_bidirectional=bias_bidirectional,
        return_lse=return_lse, memo=memo, config=config,
    )  # fmt: skip
    return out if lse is None else (out, lse)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None,
    *,
    window_left: int,
    window_right: int,
    softmax_scale: float | None,
    position_bias: Tensor | None,
    bias_max_distance: int,
    bias_bidirectional: bool,
    return_lse: bool,
    memo: Memo | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The launch behind `varlen_attention`, without its checks; causal is a `window_right` of 0."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tokens, heads, head_dim = q.shape
    texts = cu_seqlens.shape[0] - 1
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device) if return_lse else None
    if tokens == 0 or heads == 0:
        return out, lse
    has_left, has_right, has_bias = window_left >= 0, window_right >= 0, position_bias is not None
    if config is None:
        window = "causal" if (has_left, window_right) == (False, 0) else "sliding" if has_left or has_right else "full"
        bias_kind = "t5" if has_bias else "none"
        config = TUNED("attention", q.device, q.dtype, head_dim=head_dim, window=window, bias=bias_kind)
    rows, keys = config["BLOCK_M"], config["BLOCK_N"]
    blocks_per_text = -(-max_seqlen // rows)
    num_tiles = tile_list_length(tokens, texts, rows)
    # Texts of one length, or all within a tile, need no list: the program's number says which tile is its own.
    listed = texts * blocks_per_text > max(num_tiles, texts)
    tiles = tile_list(cu_seqlens, tokens, rows, memo) if listed else None
    bias, reach = None, 0
    if position_bias is not None:
        bias, reach = bias_by_distance(position_bias, bias_max_distance, bias_bidirectional, memo)
    scale = require_scale("attention", softmax_scale, head_dim)
    block_d = max(next_power_of_2(head_dim), 16)
    unit = channel_unit(q, k, v, out)
    arguments = {
        "q_ptr": q,
        "k_rows": k,
        "v_rows": v,
        "out_ptr": out,
        "lse_ptr": lse,
        "bias_ptr": bias,
        "cu_seqlens_q_ptr": cu_seqlens,
        "cu_seqlens_k_ptr": cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
        "tiles_ptr": tiles,
        "stride_qt": q.stride(0) // unit,
        "stride_qh": q.stride(1) // unit,
        "stride_kt": k.stride(0) // unit,
        "stride_kh": k.stride(1) // unit,
        "stride_vt": v.stride(0) // unit,
        "stride_vh": v.stride(1) // unit,
        "stride_ot": out.stride(0) // unit,
        "stride_oh": out.stride(1) // unit,
        "stride_lh": tokens,
        "stride_bh": 0 if bias is None else bias.stride(0),
        "num_heads": heads,
        "group": heads // k.shape[1],
        "blocks_per_text": blocks_per_text,
        "scale": scale * math.log2(math.e),
        "left": min(window_left, MOST_TOKENS),
        "right": min(window_right, MOST_TOKENS),
        "reach": reach,
    }
    tma = bool(dict(config.blocks).get("TMA")) and _has_descriptors(k, v, block_d)
    if tma:
        arguments["k_rows"], arguments["v_rows"] = (
            TensorDescriptor(x, list(x.shape), list(x.stride()), [keys, 1, block_d]) for x in (k, v)
        )
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "UNIT": unit,
        "HAS_TILES": listed,
        "HAS_LEFT": has_left,
        "HAS_RIGHT": has_right,
        # A window narrower than a tile is high and wide lets no query of it see a whole block that all others see.
        "HAS_INSIDE": not (has_left and has_right) or window_left + window_right >= rows + keys - 2,
        "HAS_BIAS": has_bias,
        "HAS_LSE": return_lse,
        # The maximum of the scaled scores is the scaled maximum of the scores only where the scale is positive.
        "SCALE_FIRST": has_bias or not scale > LEAST_SCALE,
        "TMA": tma,
        "PRECISION": "ieee",
    }
    grid = (heads * (num_tiles if listed else texts * blocks_per_text),)
    launch(attention_kernel, grid, arguments, constants, config)
    return out, lse


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    position_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, int]:
    """Refuse what the kernel would read wrongly; what lies on the device only under `PADLESS_CHECK=1`.

    Returns:
        `cu_seqlens` and `cu_seqlens_k`, contiguous, and `max_seqlen` as Python's integer.

    Raises:
        InputError: shapes, dtypes, devices or lengths do not fit together, or a gradient is wanted.
    """
    require_heads("attention", q, k, v)
    require_dtype("attention", q=q, k=k, v=v)
    require_same_device("attention", q=q, k=k, v=v)
    require_no_gradient("attention", q, k, v, position_bias)
    cu_seqlens = require_lengths("attention", "cu_seqlens", cu_seqlens, q.device)
    max_seqlen = require_count("attention", "max_seqlen", max_seqlen)
    if cu_seqlens_k is not None:
        texts = cu_seqlens.shape[0] - 1
        cu_seqlens_k = require_lengths("attention", "cu_seqlens_k", cu_seqlens_k, q.device, texts)
    elif len(q) != len(k):
        raise InputError(f"attention: expected as many keys as queries without cu_seqlens_k, got {len(k)} and {len(q)}")
    if position_bias is not None:
        require_bias("attention", position_bias, q.shape[1], q.device)
    if CHECKS_LENGTHS:
        _check_lengths("cu_seqlens", cu_seqlens, len(q), max_seqlen)
        if cu_seqlens_k is not None:
            _check_lengths("cu_seqlens_k", cu_seqlens_k, len(k), max_seqlen_k)
    return cu_seqlens, cu_seqlens_k, max_seqlen


def _check_lengths(name: str, cu_seqlens: Tensor, tokens: int, longest: int | None) -> None:
    """What lies on the device, looked at only under `PADLESS_CHECK=1`: reading it waits for the GPU."""
    edges = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in itertools.pairwise(edges)]
    if edges[0] != 0 or edges[-1] != tokens:
        raise InputError(f"attention: {name}: expected edges from 0 to {tokens} tokens, got {edges[0]} to {edges[-1]}")
    for text, length in enumerate(lengths):
        if length < 0 or (longest is not None and length > longest):
            most = "any number" if longest is None else f"at most {longest}"
            raise InputError(f"attention: {name}: text {text}: expected 0 or more tokens, {most}, got {length}")


def _has_descriptors(k: Tensor, v: Tensor, block_d: int) -> bool:
    """Whether tensor descriptors can stand for k and v: 16-byte steps, and hardware that has them (sm_90, sm_100 …)."""
    if len(k) == 0 or torch.version.hip is not None or (compute_capability(k.device) or 90) < 90:
        return False
    if not all(stride for x in (k, v) for stride in x.stride()):
        return False  # rows that lie on one another
    steps = [x.data_ptr() for x in (k, v)] + [s * x.element_size() for x in (k, v) for s in x.stride()[:-1]]
    return all(step % 16 == 0 for step in steps) and block_d <= 256
