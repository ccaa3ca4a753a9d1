"""Cases of the ops that attend: `attention` in each of its kinds, and `decode_attention`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..gpu.problem import BIAS_REACH, BUCKETS, Problem, make_inputs
from ..lengths import Lengths
from . import cost
from .case import Case, Draw
from .families import Family

__all__ = ["attention", "decode_attention"]

CROSS_SHARE = 4
"""Of an encoder's text a decoder has written a quarter: as many tokens less are its queries."""

SEQUENCES = 64
"""That are generated at once, at most."""


def attention(
    name: str,
    family: Family,
    kind: str,
    lengths: Lengths,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    """Attention of each text to itself, or to another.

    Args:
        kind: "full"; "sliding", the family's window; "causal"; "t5 bias", computed inside from the bucket table;
            "cross", shorter texts of queries to the batch's texts.
    """
    queries = tuple(max(1, length // CROSS_SHARE) for length in lengths.lengths) if kind == "cross" else lengths.lengths
    problem = Problem(
        queries,
        family.heads,
        family.head_dim,
        dtype,
        lengths_k=lengths.lengths if kind == "cross" else None,
        window=family.window if kind == "sliding" else (-1, -1),
        causal=kind == "causal",
        bias="both" if kind == "t5 bias" else None,
    )
    inputs = make_inputs(problem, device)
    facts: dict[str, Any] = {"head_dim": family.head_dim, "bias": "t5" if problem.bias else "none"}
    facts |= {"window": kind if kind in ("sliding", "causal") else "full", "cross": kind == "cross"}
    price = cost.attention(problem)
    arguments, options = inputs.arguments(), inputs.options()
    return Case("attention", name, lengths, dtype, device, facts, arguments, (), options, price, attention=inputs)


def decode_attention(
    name: str, family: Family, bias: bool, lengths: Lengths, dtype: torch.dtype, device: torch.device
) -> Case:
    """A step of generation: one query a sequence of a static cache, which holds as many keys as the text has tokens.

    Of the batch the first `SEQUENCES` texts, and the longest one: the cache has room for it in every sequence.
    """
    kept = sorted(lengths.lengths[:SEQUENCES])
    lengths = replace(lengths, lengths=(lengths.longest, *kept[:-1]))
    draw, heads, head_dim = Draw(dtype, device), family.heads, family.head_dim
    sequences, capacity = len(lengths.lengths), lengths.longest
    k, v = (draw.rows(sequences * capacity, heads, head_dim) for _ in range(2))
    starts = torch.arange(sequences, device=device) * capacity
    counts = torch.tensor(lengths.lengths, dtype=torch.int32, device=device)
    given = (draw.rows(sequences, heads, head_dim), k, v, starts, counts, capacity)
    options: dict[str, Any] = {}
    if bias:
        options = {"position_bias": draw.rows(BUCKETS, heads), "bias_max_distance": BIAS_REACH}
    price = cost.decode_attention(lengths.lengths, heads, heads, head_dim, dtype.itemsize, bias=bias)
    facts = {"head_dim": head_dim, "bias": "t5" if bias else "none"}
    rows = frozenset({0, 3, 4})
    return Case("decode_attention", name, lengths, dtype, device, facts, given, (), options, price, rows)
