"""Decode attention's kernel for any sequences: the 2x rule, and bits that depend on a sequence's own keys alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operands import DTYPES, laid_out, normal, properties
from two_times_rule import assert_two_times_rule

from padless.engine.ops.decode import decode_attention as eager
from padless.kernels.decode import decode_attention


@dataclass(frozen=True)
class Example:
    dtype: torch.dtype
    head_dim: int
    heads_k: int
    group: int
    lengths: tuple[int, ...]
    gaps: tuple[int, ...]
    layout: str
    slack: int
    buckets: int
    farthest: int
    both_sides: bool
    positions: tuple[int, ...] | None
    scale: float | None
    magnitude: float
    seed: int


LENGTHS = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 140), st.integers(240, 530))
EXAMPLES = st.builds(
    Example,
    dtype=st.sampled_from(DTYPES),
    head_dim=st.sampled_from((16, 24, 32, 40, 48, 56, 60, 64, 80, 96, 112, 128, 160, 256)),
    heads_k=st.integers(1, 3),
    group=st.sampled_from((1, 1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 32)),
    lengths=st.lists(LENGTHS, min_size=1, max_size=4).map(tuple),
    gaps=st.lists(st.integers(0, 40), min_size=4, max_size=4).map(tuple),
    layout=st.sampled_from(("dense", "columns", "every second", "transposed")),
    slack=st.integers(0, 700),
    buckets=st.sampled_from((0, 0, 8, 20, 32)),
    farthest=st.sampled_from((20, 64, 128)),
    both_sides=st.booleans(),
    positions=st.one_of(st.none(), st.lists(st.integers(0, 600), min_size=4, max_size=4).map(tuple)),
    scale=st.sampled_from((None, 1.0, 0.05)),
    magnitude=st.sampled_from((0.0, 0.1, 1.0, 10.0, 50.0)),
    seed=st.integers(0, 2**20),
)


def check(example: Example) -> None:
    dtype, seed = example.dtype, example.seed
    heads, shape = example.heads_k * example.group, (example.heads_k, example.head_dim)
    spans = [length + gap for length, gap in zip(example.lengths, example.gaps, strict=False)]
    first = [0, *itertools.accumulate(spans)]
    unused = torch.ones(first[-1], 1, 1, dtype=torch.bool)
    for start, length in zip(first, example.lengths, strict=False):
        unused[start : start + length] = False
    k, v = (
        laid_out(normal(first[-1], *shape, seed=seed + i, dtype=dtype).masked_fill(unused, torch.nan), example.layout)
        for i in (1, 2)
    )
    q = normal(len(example.lengths), heads, example.head_dim, seed=seed, dtype=dtype, magnitude=example.magnitude)
    options: dict[str, Any] = {"softmax_scale": example.scale, "return_lse": True}
    if example.buckets:
        table = normal(example.buckets, heads, seed=seed + 3, dtype=dtype, magnitude=3.0)
        options |= {"bias_max_distance": example.farthest, "bias_bidirectional": example.both_sides}
        options["position_bias"] = table
    starts, lengths = torch.tensor(first[:-1]), torch.tensor(example.lengths, dtype=torch.int32)
    if example.positions is not None:
        options["query_positions"] = torch.tensor(example.positions[: len(lengths)], dtype=torch.int32)
    longest = max(example.lengths) + example.slack
    got, lse = decode_attention(q, k, v, starts, lengths, longest, **options)
    same, same_lse = eager(q, k, v, starts, lengths, longest, **options)
    wide = {name: x.double() if name == "position_bias" else x for name, x in options.items()}
    exact, exact_lse = eager(q.double(), k.double(), v.double(), starts, lengths, longest, **wide)
    assert_two_times_rule(got, same, exact)
    assert_two_times_rule(lse, same_lse, exact_lse, "log-sum-exp")
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-4)

    # Every second sequence, in reverse order, with a bound of its own.
    kept = list(reversed(range(len(lengths))))[::2]
    if "query_positions" in options:
        options["query_positions"] = options["query_positions"][kept]
    longest = max(example.lengths[i] for i in kept)
    some, some_lse = decode_attention(q[kept], k, v, starts[kept], lengths[kept], longest, **options)
    assert torch.equal(some, got[kept])
    assert torch.equal(some_lse, lse[:, kept])


@pytest.mark.grid
@properties(200)
@given(EXAMPLES)
def test_any_sequences(example: Example) -> None:
    check(example)


@properties(20)
@given(EXAMPLES)
def test_some_sequences(example: Example) -> None:
    check(example)
