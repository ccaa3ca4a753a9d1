"""Decode attention's kernel in the interpreter: the eager op in fp64 by the 2x rule, on caches and packed keys."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from operands import DTYPES, alike, distinct, grid, laid_out, normal, sampled, sparse
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.ops.decode import decode_attention as eager
from padless.kernels import decode as kernel_file
from padless.kernels.decode import decode_attention
from padless.kernels.launch import Config

SPLITS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    head_dim: int
    heads: tuple[int, int]
    lengths: tuple[int, ...]
    store: str
    layout: str
    split: int | None
    slack: int
    bias: str
    positions: str
    scale: float | None
    magnitude: float
    starts: torch.dtype


CASES = sampled(
    Case, 444, seed=5, dtype=DTYPES, head_dim=(16, 24, 40, 48, 60, 64, 80, 96, 128, 256),
    heads=(
        (1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (6, 2), (7, 1), (8, 1), (8, 8), (12, 4), (16, 1), (17, 1), (32, 1),
        (32, 8), (64, 2),
    ),
    lengths=(
        (1,), (0,), (0, 0, 3, 0), (1, 5, 17, 0), (2, 15, 16, 17), (31, 33, 0, 32), (63, 64, 65), (1, 129, 127, 128),
        (257, 255, 256), (511, 2), (512, 513), (1, 2, 600, 1, 0, 3), (1025,), (7,) * 7,
    ),
    store=("cache", "packed", "reversed", "shared"), layout=("dense", "fused", "heads first", "transposed"),
    split=(None, *SPLITS), slack=(0, 1, 300), bias=("none", "none", "one side", "both sides"),
    positions=("none", "none", "inside", "beyond"), scale=(None, 1.0, 0.3), magnitude=(0.1, 1.0, 1.0, 20.0),
    starts=(torch.int32, torch.int64),
)  # fmt: skip


def configuration(split: int | None, head_dim: int, dtype: torch.dtype) -> Config | None:
    """The kernel's own configuration with this many keys a program; None for None."""
    if split is None:
        return None
    facts = Call(op="decode_attention", device="cuda", dtype=dtype, sm=90, head_dim=head_dim)
    own = kernel_file.default_config(facts)
    return replace(own, blocks=tuple((name, split if name == "SPLIT" else size) for name, size in own.blocks))


def stored(
    lengths: Sequence[int], heads_k: int, head_dim: int, dtype: torch.dtype, store: str, layout: str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """k, v, starts: rows that belong to no sequence hold NaN.

    Args:
        lengths: keys of each sequence.
        heads_k: heads of k and v; with head_dim and dtype their shape.
        head_dim: see above.
        dtype: see above.
        store: "cache": a capacity of a few more than the longest; "packed": one after another; "reversed": the last
            sequence first, with gaps; "shared": all begin at the same row.
        layout: "fused": k and v views of one projection's output; "heads first": a cache `[heads_k, rows, head_dim]`.
        seed: of the values.
    """
    longest, total = max(lengths, default=0), sum(lengths)
    if store == "cache":
        starts, rows = [i * (longest + 5) for i in range(len(lengths))], len(lengths) * (longest + 5)
    elif store == "packed":
        starts, rows = [0, *itertools.accumulate(lengths)][:-1], total
    elif store == "reversed":
        starts = [total - done + 2 * (len(lengths) - i) for i, done in enumerate(itertools.accumulate(lengths))]
        rows = total + 2 * len(lengths) + 2
    else:
        starts, rows = [3] * len(lengths), longest + 7
    unused = torch.ones(rows, 1, 1, dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=True):
        unused[start : start + length] = False
    both = normal(rows, 2 * heads_k, head_dim, seed=seed, dtype=dtype).masked_fill(unused, torch.nan)
    k, v = both[:, :heads_k], both[:, heads_k:]
    if layout == "heads first":
        k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v))
    elif layout != "fused":
        k, v = laid_out(k, layout), laid_out(v, layout)
    return k, v, torch.tensor(starts, dtype=torch.int64)


def t5_bias(kind: str, heads: int, dtype: torch.dtype) -> dict[str, Any]:
    if kind == "none":
        return {}
    buckets, farthest = (32, 128) if kind == "one side" else (20, 40)
    table = normal(buckets, heads, seed=3, dtype=dtype, magnitude=2.0)
    return {"position_bias": table, "bias_max_distance": farthest, "bias_bidirectional": kind == "both sides"}


def in_fp64(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }


def assert_right(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, max_length: int, config: Config | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernel returned, after the rule has held for it, and for the log-sum-exp more than that."""
    where = starts, lengths, max_length
    got, lse = decode_attention(q, k, v, *where, **options, return_lse=True, config=config)
    same, same_lse = eager(q, k, v, *where, **options, return_lse=True)
    wide = q.double(), k.double(), v.double()
    exact, exact_lse = eager(*wide, *where, **in_fp64(options), return_lse=True)
    assert_two_times_rule(got, same, exact)
    assert_two_times_rule(lse, same_lse, exact_lse, "log-sum-exp")
    # Eager's scores are rounded to the dtype; a kernel's are not.
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-4, equal_nan=True)
    alone = decode_attention(q, k, v, *where, **options, config=config)
    assert isinstance(alone, Tensor)
    assert alike(alone, got), "the output changed with return_lse"
    return got, lse


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    heads, heads_k = case.heads
    k, v, starts = stored(case.lengths, heads_k, case.head_dim, case.dtype, case.store, case.layout)
    shape = len(case.lengths), heads + 2, case.head_dim
    q = normal(*shape, seed=1, dtype=case.dtype, magnitude=case.magnitude)[:, 1:-1]
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    options = t5_bias(case.bias, heads, case.dtype)
    if case.positions != "none":
        moved = lengths // 3 if case.positions == "inside" else lengths + 50 * torch.arange(len(lengths))
        options["query_positions"] = moved.to(torch.int32)
    assert_right(
        q, k, v, starts.to(case.starts), lengths, max(case.lengths) + case.slack,
        configuration(case.split, case.head_dim, case.dtype), softmax_scale=case.scale, **options,
    )  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_lengths_beside_a_split(split: int, beside: int) -> None:
    sequences = [split + beside, 2 * split + beside, 1]
    k, v, starts = stored(sequences, 1, 24, torch.bfloat16, "cache", "dense")
    q, lengths = normal(3, 3, 24, seed=1, dtype=torch.bfloat16), torch.tensor(sequences, dtype=torch.int32)
    assert_right(q, k, v, starts, lengths, 2 * split + beside, configuration(split, 24, torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_length", [0, 1, 700])
def test_no_keys_at_all(max_length: int, dtype: torch.dtype) -> None:
    q, rows = normal(3, 4, 40, seed=1, dtype=dtype), torch.empty(0, 2, 40, dtype=dtype)
    nothing = torch.zeros(3, dtype=torch.int32)
    out, lse = decode_attention(q, rows, rows, nothing, nothing, max_length, return_lse=True)
    assert alike(out, torch.zeros(3, 4, 40, dtype=dtype))
    assert alike(lse, torch.full((4, 3), -torch.inf))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_sequences(dtype: torch.dtype) -> None:
    q, rows, nothing = torch.empty(0, 4, 64, dtype=dtype), normal(9, 2, 64, seed=1, dtype=dtype), torch.zeros(0)
    out, lse = decode_attention(q, rows, rows, nothing.long(), nothing.int(), 9, return_lse=True)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == ((0, 4, 64), dtype, (4, 0), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_a_single_key_the_value_comes_back(dtype: torch.dtype) -> None:
    q, k, v = (normal(5, heads, 80, seed=heads, dtype=dtype, magnitude=4.0) for heads in (6, 2, 2))
    out = decode_attention(q, k, v, torch.arange(5), torch.ones(5, dtype=torch.int32), 900)
    assert isinstance(out, Tensor)
    assert torch.equal(out, v.repeat_interleave(3, dim=1))


@pytest.mark.parametrize("place", [0, 1, 63, 64, 65, 127, 128, 199])
@pytest.mark.parametrize("length", [200, 64])
def test_a_key_that_outweighs_all_others_is_found_inside_the_length_only(length: int, place: int) -> None:
    q = torch.zeros(1, 2, 16)
    q[..., 0] = 100.0
    k, v = torch.zeros(200, 1, 16), normal(200, 1, 16, seed=1, dtype=torch.float32)
    k[place, 0, 0] = 10.0
    where = torch.tensor([0]), torch.tensor([length], dtype=torch.int32), 200
    out, _ = assert_right(q, k, v, *where, configuration(64, 16, torch.float32))
    expected = v[place] if place < length else v[:length].mean(dim=0)
    torch.testing.assert_close(out[0], expected.expand(2, 16), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [-3e4, 3e4])
def test_scores_far_from_zero(shift: float) -> None:
    # All of them: exp of such scores is 0 or infinite unless the greatest is taken off first, in every split.
    k, v = torch.ones(300, 1, 16), normal(300, 1, 16, seed=1, dtype=torch.float32)
    q = torch.full((1, 2, 16), shift / 16)
    where = torch.tensor([0]), torch.tensor([300], dtype=torch.int32), 300
    out, lse = assert_right(q, k, v, *where, configuration(64, 16, torch.float32), softmax_scale=1.0)
    torch.testing.assert_close(out[0], v.mean(dim=0).expand(2, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, torch.full((2, 1), shift + 5.7037825), rtol=0, atol=4e-3)


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize(
    ("buckets", "farthest"),
    [(32, 128), pytest.param(20, 40, marks=pytest.mark.grid), pytest.param(8, 16, marks=pytest.mark.grid), (64, 300)],
)
def test_where_the_buckets_of_the_bias_lie(buckets: int, farthest: int, both_sides: bool) -> None:
    # Zero queries and values that name their key: the output is the softmax of the bias alone, key by key.
    length = 128
    k, v = torch.zeros(length, 1, length), torch.eye(length)[:, None]
    q, table = torch.zeros(4, 2, length), normal(buckets, 2, seed=1, dtype=torch.float32)
    positions = torch.tensor([127, 0, 64, 400], dtype=torch.int32)
    starts, lengths = torch.zeros(4, dtype=torch.int64), torch.full((4,), length, dtype=torch.int32)
    bias: dict[str, Any] = {
        "position_bias": table, "bias_max_distance": farthest, "bias_bidirectional": both_sides
    }  # fmt: skip
    config = configuration(64, length, torch.float32)
    out, _ = assert_right(q, k, v, starts, lengths, length, config, **bias, query_positions=positions)
    last, _ = assert_right(q[:1], k, v, starts[:1], lengths[:1], length, config, **bias)
    assert torch.equal(last, out[:1]), "a query without a position stands beside its last key"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", ["none", "one side"])
@pytest.mark.parametrize("split", [None, 64])
def test_a_sequence_has_the_same_bits_whatever_stands_beside_it(
    split: int | None, bias: str, dtype: torch.dtype
) -> None:
    sequences = [1, 0, 64, 260, 65]
    k, v, starts = stored(sequences, 2, 40, dtype, "packed", "fused")
    q, lengths = normal(5, 4, 40, seed=1, dtype=dtype), torch.tensor(sequences, dtype=torch.int32)
    options = t5_bias(bias, 4, dtype) | {"config": configuration(split, 40, dtype), "return_lse": True}
    batch, batch_lse = decode_attention(q, k, v, starts, lengths, 260, **options)
    for max_length in (261, 1030):
        longer, longer_lse = decode_attention(q, k, v, starts, lengths, max_length, **options)
        assert torch.equal(longer, batch)
        assert torch.equal(longer_lse, batch_lse)
    for i, length in enumerate(sequences):
        one = slice(i, i + 1)
        alone, lse = decode_attention(q[one], k, v, starts[one], lengths[one], length, **options)
        assert torch.equal(alone, batch[one])
        assert torch.equal(lse, batch_lse[:, one])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stale", [torch.nan, torch.inf, -torch.inf])
def test_what_a_cache_holds_beyond_a_length_is_not_seen(stale: float, dtype: torch.dtype) -> None:
    lengths = torch.tensor([3, 0, 70, 128], dtype=torch.int32)
    q, starts = normal(4, 4, 64, seed=1, dtype=dtype), torch.arange(4) * 130
    k, v = (normal(4 * 130, 2, 64, seed=seed, dtype=dtype) for seed in (2, 3))
    expected = decode_attention(q, k, v, starts, lengths, 130, return_lse=True)
    unseen = torch.arange(130) >= lengths[:, None]
    k[unseen.flatten()], v[unseen.flatten()] = stale, stale
    got = decode_attention(q, k, v, starts, lengths, 130, return_lse=True)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert got[0].isfinite().all()


def test_a_nan_stays_in_its_sequence_and_its_heads() -> None:
    sequences = [5, 140, 66]
    k, v, starts = stored(sequences, 2, 24, torch.float16, "packed", "fused")
    q, lengths = normal(3, 6, 24, seed=1, dtype=torch.float16), torch.tensor(sequences, dtype=torch.int32)
    config = configuration(64, 24, torch.float16)
    clean, _ = assert_right(q, k, v, starts, lengths, 140, config)
    k[5 + 100, 1, 7], v[145 + 65, 0, 23] = torch.nan, torch.nan
    struck, _ = assert_right(q, k, v, starts, lengths, 140, config)
    expected = torch.zeros(3, 6, 24, dtype=torch.bool)
    expected[1, 3:], expected[2, :3, 23] = True, True
    assert torch.equal(struck.isnan(), expected)
    assert torch.equal(struck[~expected], clean[~expected])


def test_starts_and_lengths_that_are_columns_of_larger_tensors() -> None:
    k, v, starts = stored([7, 30, 2], 1, 16, torch.float32, "reversed", "dense")
    lengths = torch.tensor([[7, 99], [30, 99], [2, 99]], dtype=torch.int32)[:, 0]
    far = torch.stack([starts, torch.full_like(starts, 10**6)], dim=1)[:, 0]
    positions = torch.tensor([[3, 99], [30, 99], [0, 99]], dtype=torch.int32)[:, 0]
    q = laid_out(normal(3, 2, 16, seed=1, dtype=torch.float32), "transposed")
    bias = t5_bias("both sides", 2, torch.float32)
    bias["position_bias"] = laid_out(bias["position_bias"], "columns")
    assert_right(q, k, v, far, lengths, 30, **bias, query_positions=positions)


def test_every_candidate_obeys_the_rule() -> None:
    sequences = [300, 0, 1]
    k, v, starts = stored(sequences, 1, 40, torch.bfloat16, "cache", "fused")
    q, lengths = normal(3, 3, 40, seed=1, dtype=torch.bfloat16), torch.tensor(sequences, dtype=torch.int32)
    for config in distinct(kernel_file.CANDIDATES):
        assert_right(q, k, v, starts, lengths, 300, config, **t5_bias("one side", 3, torch.bfloat16))


@pytest.mark.grid
def test_every_candidate_obeys_the_rule_beyond_its_split() -> None:
    sequences = [1100, 0, 1025, 513]
    k, v, starts = stored(sequences, 2, 40, torch.bfloat16, "cache", "fused")
    q, lengths = normal(4, 6, 40, seed=1, dtype=torch.bfloat16), torch.tensor(sequences, dtype=torch.int32)
    for config in distinct(kernel_file.CANDIDATES):
        assert_right(q, k, v, starts, lengths, 1100, config, **t5_bias("one side", 6, torch.bfloat16))


@pytest.mark.parametrize("far_apart", ["k", "v", "q"])
def test_strides_beyond_two_to_the_31_elements(far_apart: str, tmp_path: Path) -> None:
    # Rows 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around.
    apart, lengths = 2**28, torch.tensor([3, 7] + [0] * 9 + [2], dtype=torch.int32)
    starts = torch.tensor([0, 3] + [0] * 9 + [10])
    near = {name: normal(12, 2, 24, seed=i, dtype=torch.float16) for i, name in enumerate("qkv")}
    far = sparse(tmp_path, 11 * apart + 48, torch.float16).as_strided((12, 2, 24), (apart, 24, 1))
    far.copy_(near[far_apart])
    expected = decode_attention(near["q"], near["k"], near["v"], starts, lengths, 7)
    both = near | {far_apart: far}
    got = decode_attention(both["q"], both["k"], both["v"], starts, lengths, 7)
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    assert torch.equal(got, expected)
    assert got[11].any()


@pytest.mark.parametrize("row", [2**27 - 70, 2**31 + 5])
def test_starts_beyond_two_to_the_31_elements(row: int, tmp_path: Path) -> None:
    # The first fits 32 bits, its offset does not; the second does not: rows that overlap, a single element apart.
    apart = 40 if row < 2**31 else 1
    memory = sparse(tmp_path, (row + 70) * apart + 40, torch.float16)
    memory[row * apart :] = normal(70 * apart + 40, seed=1, dtype=torch.float16)
    rows = memory.as_strided((row + 70, 1, 40), (apart, 40, 1))
    q, lengths = normal(2, 2, 40, seed=2, dtype=torch.float16), torch.tensor([3, 70], dtype=torch.int32)
    starts = torch.tensor([row + 1, row], dtype=torch.int32 if row < 2**31 else torch.int64)
    got = decode_attention(q, rows, rows, starts, lengths, 70)
    near = rows[row:].clone()
    expected = decode_attention(q, near, near, torch.tensor([1, 0]), lengths, 70)
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    assert torch.equal(got, expected)
