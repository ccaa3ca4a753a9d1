"""Every launcher, called as users' models call it: at real shapes, with tensors whose memory nothing ever touches.

Each function takes the facts of a case by name and calls one launcher; `gate_recorder` keeps what it would launch. The
numbers of tokens and texts are odd, as they are in life: what is divisible by 16 here is what always is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from padless.kernels import attention, attention_hopper, decode, embed, pool, rope, schedule, trigram
from padless.kernels.launch import Config

__all__ = [
    "DTYPES",
    "TOKENS",
    "call_attention",
    "call_decode",
    "call_embed",
    "call_hopper",
    "call_pool",
    "call_rope",
    "call_tiles",
    "call_trigram",
    "rows",
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS = 8191
LONGEST = 2043
HEADS = 12
VOCABULARY = 30_522


def _lengths(equal: bool = False) -> Tensor:
    """`cu_seqlens` of texts that are all as long, or of a few of which one is by far the longest."""
    edges = [LONGEST * i for i in range(5)] if equal else [0, 17, 17 + LONGEST, TOKENS - 900, TOKENS]
    return torch.tensor(edges, dtype=torch.int32)


def _heads(head_dim: int, grouped: bool) -> tuple[int, int]:
    """Heads of the queries, heads of keys and values."""
    heads = max(HEADS * 64 // head_dim, 3)
    return (4 * heads, heads) if grouped else (heads, heads)


def rows(*shape: int, dtype: torch.dtype, aligned: bool) -> Tensor:
    """A tensor as torch allocates it, or a view whose rows begin anywhere, an odd number of elements apart."""
    if aligned:
        return torch.empty(*shape, dtype=dtype)
    return torch.empty(*shape[:-1], shape[-1] + 1 + shape[-1] % 2, dtype=dtype)[..., 1 : 1 + shape[-1]]


def _projected(
    tokens: int, heads: int, heads_k: int, head_dim: int, dtype: torch.dtype, aligned: bool
) -> tuple[Tensor, ...]:
    """q, k and v as views of one fused projection."""
    fused = rows(tokens, heads + 2 * heads_k, head_dim, dtype=dtype, aligned=aligned)
    return fused.split([heads, heads_k, heads_k], dim=1)


def call_attention(
    *, dtype: str, head_dim: int, kind: str, lengths: str, heads: str, lse: bool, aligned: bool, config: Config | None
) -> None:
    """kind: what a query sees, and whether the bias of T5 is added. lengths: "mixed" or "equal"."""
    cu_seqlens = _lengths(lengths == "equal")
    q, k, v = _projected(int(cu_seqlens[-1]), *_heads(head_dim, heads == "grouped"), head_dim, DTYPES[dtype], aligned)
    window = {"window": (64, 64), "wide window": (1024, 1024)}.get(kind, (-1, -1))
    options: dict[str, Any] = {"window": window, "causal": "causal" in kind, "return_lse": lse, "config": config}
    if "t5" in kind:
        options["position_bias"] = torch.empty(32, q.shape[1], dtype=DTYPES[dtype])
        options["bias_bidirectional"] = "causal" not in kind
    if kind == "cross":
        options["cu_seqlens_k"] = torch.tensor([0, 100, 900, 901, 1777], dtype=torch.int32)
        options["max_seqlen_k"] = 876
        k, v = rows(1777, 2, k.shape[1], head_dim, dtype=DTYPES[dtype], aligned=aligned).unbind(1)
    attention.varlen_attention(q, k, v, cu_seqlens, LONGEST, **options)


def call_hopper(
    *, dtype: str, head_dim: int, lengths: str, heads: str, lse: bool, aligned: bool, config: Config | None
) -> None:
    """The row of Hopper, which serves texts seen whole and without bias."""
    cu_seqlens = _lengths(lengths == "equal")
    q, k, v = _projected(int(cu_seqlens[-1]), *_heads(head_dim, heads == "grouped"), head_dim, DTYPES[dtype], aligned)
    attention_hopper.varlen_attention(q, k, v, cu_seqlens, LONGEST, return_lse=lse, config=config)


def call_tiles(*, texts: int, aligned: bool, config: Config | None) -> None:
    """The list of tiles of this many texts; its configuration is its own business."""
    schedule.tile_list(torch.zeros(texts + 1, dtype=torch.int32), TOKENS, 128)


def call_decode(
    *, dtype: str, head_dim: int, kind: str, heads: str, lse: bool, aligned: bool, config: Config | None
) -> None:
    """kind: "plain", "t5", or "t5 cross", where the query stands elsewhere than behind the keys."""
    sequences, capacity = 63, 4099
    heads_q, heads_k = _heads(head_dim, heads == "grouped")
    cache = rows(sequences * capacity, 2, heads_k, head_dim, dtype=DTYPES[dtype], aligned=aligned)
    q = rows(sequences, heads_q, head_dim, dtype=DTYPES[dtype], aligned=aligned)
    starts = torch.arange(sequences, dtype=torch.int32) * capacity
    lengths = torch.full((sequences,), capacity, dtype=torch.int32)
    options: dict[str, Any] = {"return_lse": lse, "config": config}
    if kind.startswith("t5"):
        options["position_bias"] = torch.empty(32, heads_q, dtype=DTYPES[dtype])
    if kind == "t5 cross":
        options["query_positions"] = lengths - 7
    k, v = cache.unbind(1)
    decode.decode_attention(q, k, v, starts, lengths, capacity, **options)


def call_rope(*, dtype: str, head_dim: int, heads: str, aligned: bool, config: Config | None) -> None:
    """Queries and keys inside the fused projection."""
    q, k, _ = _projected(TOKENS, *_heads(head_dim, heads == "grouped"), head_dim, DTYPES[dtype], aligned)
    cos, sin = rows(2, 8192, head_dim // 2, dtype=torch.float32, aligned=aligned).unbind(0)
    rope.rope(q, k, torch.empty(TOKENS, dtype=torch.int64), cos, sin, config=config)


def call_pool(*, dtype: str, hidden: int, mode: str, finish: str, aligned: bool, config: Config | None) -> None:
    """finish: "plain", or "whole", normalised and checked for numbers that are none."""
    hidden_rows = rows(TOKENS, hidden, dtype=DTYPES[dtype], aligned=aligned)
    whole = finish == "whole"
    pool.pool(hidden_rows, _lengths(), mode=mode, normalize=whole, return_finite=whole, config=config)


def call_embed(*, dtype: str, hidden: int, family: str, aligned: bool, config: Config | None) -> None:
    """family: which tables and which norm there are."""
    ids = torch.empty(TOKENS, dtype=torch.int64)
    sizes = (VOCABULARY, 512, 2, 2)
    word, position, types, norm = (rows(n, hidden, dtype=DTYPES[dtype], aligned=aligned) for n in sizes)
    weight, bias = norm.unbind(0)
    match family:
        case "bert":
            embed.embed(ids, ids, ids, word, position, types, weight, bias, eps=1e-12, config=config)
        case "one type":
            embed.embed(ids, ids, None, word, position, types, weight, bias, eps=1e-12, config=config)
        case "modernbert":
            embed.embed(ids, ids, None, word, None, None, weight, None, eps=1e-5, config=config)
        case "t5":
            embed.embed(ids, ids, None, word, config=config)
        case _:
            raise ValueError(f"family: expected bert, one type, modernbert or t5, got {family}")


def call_trigram(*, dtype: str, width: int, aligned: bool, config: Config | None) -> None:
    """MobileBERT's embeddings of a token and its neighbours."""
    word = rows(VOCABULARY, width, dtype=DTYPES[dtype], aligned=aligned)
    trigram.trigram(torch.empty(TOKENS, dtype=torch.int64), _lengths(), word, config=config)
