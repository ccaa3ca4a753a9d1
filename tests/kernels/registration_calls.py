"""A call of every launcher, of any number of texts: what `test_registration.py` compiles, traces and exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from padless.engine.ops import attention as eager_attention
from padless.engine.ops import decode as eager_decode
from padless.engine.ops import embed as eager_embed
from padless.engine.ops import linear as eager_linear
from padless.engine.ops import mlm_head as eager_mlm_head
from padless.engine.ops import mobilebert as eager_mobilebert
from padless.engine.ops import norm as eager_norm
from padless.engine.ops import norm_linear as eager_norm_linear
from padless.engine.ops import pool as eager_pool
from padless.engine.ops import rope as eager_rope
from padless.engine.ops import trigram as eager_trigram
from padless.kernels.attention import varlen_attention
from padless.kernels.decode import decode_attention
from padless.kernels.embed import embed
from padless.kernels.launch import Config
from padless.kernels.linear import linear
from padless.kernels.mlm_head import mlm_head
from padless.kernels.mobilebert import mobilebert_in, mobilebert_out
from padless.kernels.norm import layer_norm, no_norm, rms_norm
from padless.kernels.norm_linear import norm_linear
from padless.kernels.pool import pool
from padless.kernels.rope import rope
from padless.kernels.trigram import trigram

__all__ = [
    "CALLS",
    "HEADS",
    "HEAD_DIM",
    "HIDDEN",
    "LAUNCHERS",
    "POSITIONS",
    "Call",
    "attention_call",
    "batch_of",
    "embed_call",
    "rope_call",
    "starts",
]

HEADS, HEADS_K, HEAD_DIM, VOCABULARY, POSITIONS = 2, 1, 16, 50, 64
HIDDEN = HEADS * HEAD_DIM

LAUNCHERS = {
    "varlen_attention": (varlen_attention, eager_attention.varlen_attention),
    "decode_attention": (decode_attention, eager_decode.decode_attention),
    "rope": (rope, eager_rope.rope),
    "pool": (pool, eager_pool.pool),
    "embed": (embed, eager_embed.embed),
    "trigram": (trigram, eager_trigram.trigram),
    "linear": (linear, eager_linear.linear),
    "norm_linear": (norm_linear, eager_norm_linear.norm_linear),
    "layer_norm": (layer_norm, eager_norm.layer_norm),
    "rms_norm": (rms_norm, eager_norm.rms_norm),
    "no_norm": (no_norm, eager_norm.no_norm),
    "mobilebert_in": (mobilebert_in, eager_mobilebert.mobilebert_in),
    "mobilebert_out": (mobilebert_out, eager_mobilebert.mobilebert_out),
    "mlm_head": (mlm_head, eager_mlm_head.mlm_head),
}

Call = tuple[list[Any], dict[str, Any]]


def batch_of(number: int) -> list[int]:
    """Lengths of texts; no two sizes of the first batch are equal, as torch.compile would take them for one size."""
    return [5, 9, 8, 3, 2, 1] if number == 0 else [(7 * number + 3 * text) % 7 + 1 for text in range(number % 5 + 2)]


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def attention_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    fused = torch.randn(sum(lengths), HEADS + 2 * HEADS_K, HEAD_DIM).to(dtype)
    q, k, v = fused.split([HEADS, HEADS_K, HEADS_K], dim=1)
    return [q, k, v, starts(lengths), max(lengths, default=0)], options


def cross_call(lengths: Sequence[int], **options: Any) -> Call:
    (q, *_), _ = attention_call([length + 2 for length in lengths])
    (_, k, v, cu_seqlens_k, longest_k), _ = attention_call(lengths)
    cu_seqlens = starts([length + 2 for length in lengths])
    return [q, k, v, cu_seqlens, longest_k + 2], {"cu_seqlens_k": cu_seqlens_k, "max_seqlen_k": longest_k, **options}


def decode_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    (q, k, v, cu_seqlens, longest), _ = attention_call(lengths, dtype)
    return [q[: len(lengths)], k, v, cu_seqlens[:-1], cu_seqlens.diff(), longest], options


def rope_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    (q, k, *_), _ = attention_call(lengths, dtype)
    rows = torch.cat([torch.arange(length) for length in lengths] or [torch.arange(0)])
    angles = torch.randn(POSITIONS, HEAD_DIM // 2)
    return [q, k, rows, angles.cos(), angles.sin()], options


def pool_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    return [torch.randn(sum(lengths), HIDDEN).to(dtype), starts(lengths)], {"mode": "mean", **options}


def embed_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    places = rope_call(lengths)[0][2]
    ids = torch.randint(VOCABULARY, (sum(lengths),))
    word, position = torch.randn(VOCABULARY, HIDDEN).to(dtype), torch.randn(POSITIONS, HIDDEN).to(dtype)
    weight, bias = torch.randn(2, HIDDEN).to(dtype)
    return [ids, places, None, word, position, None, weight, bias], {"eps": 1e-5, **options}


def trigram_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    return [torch.randint(VOCABULARY, (sum(lengths),)), starts(lengths), torch.randn(VOCABULARY, 24).to(dtype)], options


def rows_of(lengths: Sequence[int], width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(sum(lengths), width).to(dtype)


def linear_call(
    lengths: Sequence[int], dtype: torch.dtype = torch.float32, *, turned: bool = False, **options: Any
) -> Call:
    weight, bias = torch.randn(3 * HIDDEN, 20).to(dtype), torch.randn(3 * HIDDEN).to(dtype)
    if turned:
        (*_, places, cos, sin), _ = rope_call(lengths)
        options |= {"rope": (places, cos, sin), "turned": 2 * HIDDEN}
    if options.pop("summed", False):
        width = 3 * HIDDEN // (2 if options.get("gated") else 1)
        options["residual"] = rows_of(lengths, width, torch.float32)
    return [rows_of(lengths, 20, dtype), weight, bias], options


def norm_linear_call(
    lengths: Sequence[int], dtype: torch.dtype, *, runs: int = 0, turned: bool = False, **options: Any
) -> Call:
    (x, weight, bias), options = linear_call(lengths, dtype, turned=turned, **options)
    if runs:
        options["statistics"] = torch.rand(len(x), runs, 2)
    sums = None if options["norm"] == "rms_norm" else weight.float().sum(dim=1)
    return [x, weight, sums, bias.float()], {"eps": 1e-5, **options}


def norm_call(lengths: Sequence[int], dtype: torch.dtype, *, parts: int, summed: bool = False, **options: Any) -> Call:
    if summed:
        options["residual"] = rows_of(lengths, HIDDEN, torch.float32)
    return [rows_of(lengths, HIDDEN, dtype), *torch.randn(parts, HIDDEN).to(dtype)], options


def mobilebert_in_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    shapes = [(16, 24), (16,), (16,), (16,)] * 2 + [(32, 16), (32,), (16, 24), (16,)]
    return [rows_of(lengths, 24, torch.float32), *(torch.randn(shape).to(dtype) for shape in shapes)], options


def mobilebert_out_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    shapes = [
        (16, 16),
        (16,),
        (16,),
        (16,),
        (40, 16),
        (40,),
        (32, 20),
        (32,),
        (32,),
        (32,),
        (24, 16),
        (24,),
        (24,),
        (24,),
    ]
    rows = [rows_of(lengths, 16, dtype), rows_of(lengths, 16, torch.float32), rows_of(lengths, 24, torch.float32)]
    return [*rows, *(torch.randn(shape).to(dtype) for shape in shapes)], {"networks": 2, **options}


def mlm_head_call(lengths: Sequence[int], dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    shapes = [(HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN,), (HIDDEN,), (VOCABULARY, HIDDEN), (VOCABULARY,)]
    return [rows_of(lengths, HIDDEN, dtype), *(torch.randn(shape).to(dtype) for shape in shapes)], options


BIAS = torch.linspace(-1, 1, 32 * HEADS).view(32, HEADS)

SMALL_TILES = Config.of(
    num_stages=3, BLOCK_M=16, BLOCK_N=32, BLOCK_K=16, GROUP_M=8, PARTS=2, TMA=0, FLATTEN=0, WARP_SPECIALIZE=0
)

CALLS: dict[str, tuple[str, Callable[[Sequence[int]], Call]]] = {
    "attention": ("varlen_attention", attention_call),
    "attention bf16": ("varlen_attention", lambda lengths: attention_call(lengths, torch.bfloat16)),
    "attention window lse": (
        "varlen_attention",
        lambda lengths: attention_call(lengths, window=(3, 2), softmax_scale=0.3, return_lse=True),
    ),
    "attention causal bias": (
        "varlen_attention",
        lambda lengths: attention_call(lengths, causal=True, position_bias=BIAS, bias_bidirectional=False),
    ),
    "attention tiling": (
        "varlen_attention",
        lambda lengths: attention_call(lengths, config=Config.of(num_stages=3, BLOCK_M=16, BLOCK_N=16)),
    ),
    "cross attention": ("varlen_attention", lambda lengths: cross_call(lengths, return_lse=True)),
    "decode": ("decode_attention", decode_call),
    "decode lse": (
        "decode_attention",
        lambda lengths: decode_call(lengths, torch.bfloat16, position_bias=BIAS, return_lse=True),
    ),
    "rope": ("rope", rope_call),
    "rope fp16": ("rope", lambda lengths: rope_call(lengths, torch.float16)),
    "pool": ("pool", pool_call),
    "pool cls": ("pool", lambda lengths: pool_call(lengths, torch.bfloat16, mode="cls", skip=1)),
    "pool finite": (
        "pool",
        lambda lengths: pool_call(lengths, mode="weightedmean", normalize=True, return_finite=True),
    ),
    "embed": ("embed", embed_call),
    "embed bf16": ("embed", lambda lengths: embed_call(lengths, torch.bfloat16, eps=None)),
    "trigram": ("trigram", trigram_call),
    "linear": ("linear", linear_call),
    "linear gated": (
        "linear",
        lambda lengths: linear_call(lengths, torch.bfloat16, epilogue="gelu", gated=True, summed=True),
    ),
    "linear turned": ("linear", lambda lengths: linear_call(lengths, turned=True)),
    "linear wide": ("linear", lambda lengths: linear_call(lengths, torch.float16, epilogue="silu", wide=True)),
    "linear statistics": (
        "linear",
        lambda lengths: linear_call(lengths, torch.bfloat16, summed=True, statistics=True),
    ),
    "linear statistics tiling": (
        "linear",
        lambda lengths: linear_call(lengths, torch.float16, statistics=True, config=SMALL_TILES),
    ),
    "norm linear": ("norm_linear", lambda lengths: norm_linear_call(lengths, torch.float16, norm="layer_norm")),
    "norm linear gated": (
        "norm_linear",
        lambda lengths: norm_linear_call(
            lengths, torch.bfloat16, norm="rms_norm", runs=5, epilogue="gelu_tanh", gated=True
        ),
    ),
    "norm linear turned": (
        "norm_linear",
        lambda lengths: norm_linear_call(lengths, torch.float16, norm="layer_norm", runs=1, turned=True),
    ),
    "layer norm": ("layer_norm", lambda lengths: norm_call(lengths, torch.float32, parts=2, eps=1e-5)),
    "layer norm of a sum": (
        "layer_norm",
        lambda lengths: norm_call(lengths, torch.bfloat16, parts=2, summed=True, eps=1e-5),
    ),
    "rms norm": ("rms_norm", lambda lengths: norm_call(lengths, torch.float16, parts=1, eps=1e-6)),
    "rms norm of a sum": (
        "rms_norm",
        lambda lengths: norm_call(lengths, torch.float32, parts=1, summed=True, eps=1e-6),
    ),
    "no norm": ("no_norm", lambda lengths: norm_call(lengths, torch.float32, parts=2)),
    "no norm wide": ("no_norm", lambda lengths: norm_call(lengths, torch.float16, parts=2, summed=True, wide=True)),
    "mobilebert in": ("mobilebert_in", mobilebert_in_call),
    "mobilebert in bf16": ("mobilebert_in", lambda lengths: mobilebert_in_call(lengths, torch.bfloat16)),
    "mobilebert out": ("mobilebert_out", mobilebert_out_call),
    "mobilebert out normed": (
        "mobilebert_out",
        lambda lengths: mobilebert_out_call(lengths, torch.bfloat16, norm="layer_norm", activation="gelu"),
    ),
    "mlm head": ("mlm_head", mlm_head_call),
    "mlm head highest": ("mlm_head", lambda lengths: mlm_head_call(lengths, torch.bfloat16, top_k=5)),
}
