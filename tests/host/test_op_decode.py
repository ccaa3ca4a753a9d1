"""Attention of one query a sequence to kept keys: against PyTorch's, T5's and our own attention over whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from padless.engine.ops.attention import varlen_attention
from padless.engine.ops.decode import decode_attention

LENGTHS = (0, 5, 1, 0, 13, 130, 0)


def integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def packed_starts(lengths: Sequence[int]) -> Tensor:
    """What an encoder's `cu_seqlens[:-1]` is."""
    return integers([0, *accumulate(lengths)][:-1])


def drawn(
    lengths: Sequence[int], heads: int = 2, heads_k: int = 2, head_dim: int = 16, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """q, and packed k and v."""
    generator = torch.Generator().manual_seed(sum(lengths) + heads)
    shapes = ((len(lengths), heads, head_dim), *[(sum(lengths), heads_k, head_dim)] * 2)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def decode(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = decode_attention(*arguments, **options, return_lse=True)
    alone = decode_attention(*arguments, **options)
    assert isinstance(alone, Tensor)
    assert torch.equal(alone, out)
    return out, lse


def by_pytorch(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """The same of packed k and v by scaled_dot_product_attention; `bias` is `[heads, longest]`."""
    rows = [torch.zeros(0, *q.shape[1:], dtype=q.dtype)]
    start = 0
    for query, length in zip(q, lengths, strict=True):
        keys, values = (x[start : start + length].transpose(0, 1) for x in (k, v))
        mask = None if bias is None else bias[:, None, :length]
        # [heads, 1, head_dim]; for no keys at all theirs is NaN or zeros, by version and path.
        found = F.scaled_dot_product_attention(query[:, None], keys, values, mask, scale=scale, enable_gqa=True)
        rows.append(found.transpose(0, 1) if length else torch.zeros_like(query)[None])
        start += length
    return torch.cat(rows)


def assert_close(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [None, 1.0, 0.0, -0.3])
@pytest.mark.parametrize("head_dim", [1, 24, 64])
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (0, 0), (), (700, 2)], ids=str)
def test_as_pytorch_computes_it(lengths: tuple[int, ...], head_dim: int, scale: float | None) -> None:
    q, k, v = drawn(lengths, head_dim=head_dim)
    arguments = (q, k, v, packed_starts(lengths), integers(lengths), max(lengths, default=0))
    out, lse = decode(*arguments, softmax_scale=scale)
    assert_close(out, by_pytorch(q, k, v, lengths, scale))
    factor = head_dim**-0.5 if scale is None else scale
    for i, keys in enumerate(k.split(lengths)):
        assert_close(lse[:, i], torch.einsum("hd,nhd->hn", q[i], keys).mul(factor).exp().sum(-1).log())
    assert out.dtype == lse.dtype == torch.float64
    assert lse.shape == (2, len(lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_the_results(dtype: torch.dtype) -> None:
    q, k, v = drawn(LENGTHS, dtype=dtype)
    out, lse = decode(q, k, v, packed_starts(LENGTHS), integers(LENGTHS), 130)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    expected = by_pytorch(q.double(), k.double(), v.double(), LENGTHS)
    assert (out - expected).abs().max() <= 4 * torch.finfo(dtype).eps * v.abs().max()


def test_a_sequence_without_keys_gives_zeros_and_minus_infinity() -> None:
    q, k, v = drawn(LENGTHS)
    out, lse = decode(q, k, v, packed_starts(LENGTHS), integers(LENGTHS), 130)
    empty = integers(LENGTHS) == 0
    assert torch.equal(out[empty], torch.zeros_like(out[empty]))
    assert lse[:, empty].isneginf().all()
    assert lse[:, ~empty].isfinite().all()
    nothing, lse = decode(q, k[:0], v[:0], integers([0] * 7), integers([0] * 7), 0)
    assert torch.equal(nothing, torch.zeros_like(q))
    assert lse.isneginf().all()


@pytest.mark.parametrize(("heads", "heads_k"), [(6, 1), (6, 2), (6, 3), (34, 2)])
def test_grouped_heads(heads: int, heads_k: int) -> None:
    q, k, v = drawn(LENGTHS, heads, heads_k)
    out, _ = decode(q, k, v, packed_starts(LENGTHS), integers(LENGTHS), 130)
    assert_close(out, by_pytorch(q, k, v, LENGTHS))


@pytest.mark.parametrize(
    ("buckets", "max_distance", "bidirectional"), [(32, 128, False), (8, 20, False), (16, 40, True)]
)
@pytest.mark.parametrize("ahead", [None, 0, 7, -3])
def test_bias_is_that_of_t5(buckets: int, max_distance: int, bidirectional: bool, ahead: int | None) -> None:
    """Against the bias of transformers' T5 for the query's row, which it computes for a whole text at once."""
    heads, length = 4, 150
    config = T5Config(
        d_model=8,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    assert theirs.relative_attention_bias is not None
    table = theirs.relative_attention_bias.weight.detach()
    q, k, v = drawn((length,), heads, heads)
    position = length - 1 if ahead is None else length - 1 + ahead
    bias = theirs.compute_bias(position + 1, max(length, position + 1))[0, :, position, :length].detach()
    options = {
        "softmax_scale": 1.0,
        "position_bias": table,
        "bias_max_distance": max_distance,
        "bias_bidirectional": bidirectional,
        "query_positions": None if ahead is None else integers([position]),
    }
    out, _ = decode(q, k, v, integers([0]), integers([length]), length, **options)
    assert_close(out, by_pytorch(q, k, v, (length,), 1.0, bias))


def test_each_sequence_has_a_position_of_its_own() -> None:
    lengths, positions = (40, 0, 9, 40), (3, 0, 60, 39)
    q, k, v = drawn(lengths)
    table = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    options = {"position_bias": table, "bias_max_distance": 30, "bias_bidirectional": True}
    starts = packed_starts(lengths)
    out, lse = decode(q, k, v, starts, integers(lengths), 40, query_positions=integers(positions), **options)
    for i in range(len(lengths)):
        one = slice(i, i + 1)
        arguments = (q[one], k, v, starts[one], integers(lengths[one]), 40)
        alone, lse_alone = decode(*arguments, query_positions=integers(positions[one]), **options)
        assert torch.equal(out[one], alone)
        assert torch.equal(lse[:, one], lse_alone)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_as_the_last_token_of_a_causal_text(bias: bool, bidirectional: bool) -> None:
    lengths = (5, 1, 13, 130)
    _, k, v = drawn(lengths, heads_k=2)
    q = torch.randn(sum(lengths), 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    table = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) if bias else None
    options = {"position_bias": table, "bias_max_distance": 50, "bias_bidirectional": bidirectional}
    ends = torch.tensor(lengths).cumsum(0)
    cu_seqlens = F.pad(ends, (1, 0)).int()
    whole, lse_whole = varlen_attention(q, k, v, cu_seqlens, 130, causal=True, return_lse=True, **options)
    out, lse = decode(q[ends - 1], k, v, cu_seqlens[:-1], integers(lengths), 130, **options)
    assert_close(out, whole[ends - 1])
    assert_close(lse, lse_whole[:, ends - 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_static_cache_may_hold_anything_beyond_its_lengths(dtype: torch.dtype) -> None:
    lengths, capacity = (3, 0, 20, 11), 20
    q, k, v = drawn(lengths)
    # [sequences, capacity, keys and values, heads, head_dim]: k and v are strided views of one buffer.
    cache = torch.full((len(lengths), capacity, 2, 2, 16), torch.nan, dtype=torch.float64)
    for i, (keys, values) in enumerate(zip(k.split(lengths), v.split(lengths), strict=True)):
        cache[i, : lengths[i]] = torch.stack([keys, values], dim=1)
    cached_k, cached_v = cache.flatten(0, 1).unbind(1)
    assert cached_k.data_ptr() == cache.data_ptr()
    starts = torch.arange(len(lengths), dtype=dtype) * capacity
    out, lse = decode(q, cached_k, cached_v, starts, integers(lengths), capacity)
    expected, lse_expected = decode(q, k, v, packed_starts(lengths), integers(lengths), 20)
    assert torch.equal(out, expected)
    assert torch.equal(lse, lse_expected)


def test_sequences_may_share_their_keys() -> None:
    q, k, v = drawn((9, 9))
    out, _ = decode(q, k, v, integers([4, 4]), integers([9, 6]), 9)
    assert_close(out[:1], by_pytorch(q[:1], k[4:13], v[4:13], (9,)))
    assert_close(out[1:], by_pytorch(q[1:], k[4:10], v[4:10], (6,)))


def test_gradients_reach_all_inputs() -> None:
    lengths = (4, 0, 3)
    table = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    inputs = [x.requires_grad_() for x in (*drawn(lengths, head_dim=3), table)]

    def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out = decode_attention(q, k, v, packed_starts(lengths), integers(lengths), 4, position_bias=bias)
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(attended, inputs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=6),
    heads_k=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([1, 7, 16, 40]),
    magnitude=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_any_lengths_and_heads(lengths: list[int], heads_k: int, group: int, head_dim: int, magnitude: float) -> None:
    q, k, v = drawn(lengths, heads_k * group, heads_k, head_dim)
    q = q * magnitude
    out, _ = decode(q, k, v, packed_starts(lengths), integers(lengths), max(lengths, default=0))
    assert_close(out, by_pytorch(q, k, v, lengths))
