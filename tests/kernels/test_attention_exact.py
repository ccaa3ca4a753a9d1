"""What the attention kernel must give exactly: zeros, edges of windows, and the same bits whatever surrounds a text."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import CONFIGS, KINDS, SMALL, Case, attend, combinations, operands_of, options_of
from lengths import HOSTILE, Packed, packed
from operands import DTYPES, alike, sparse
from torch import Tensor

from padless.engine.ops.attention import varlen_attention as eager
from padless.kernels.attention import varlen_attention
from padless.kernels.launch import Config

WITH_DESCRIPTORS = Config.of(BLOCK_M=16, BLOCK_N=16, TMA=1)
THREE = (SMALL, WITH_DESCRIPTORS, None)


def alone(data: Packed, text: int) -> Packed:
    """One text of a batch, in memory of its own."""
    first, last = sum(data.lengths[:text]), sum(data.lengths[: text + 1])
    if data.lengths_k is None:
        q, k, v = (x[first:last].clone() for x in (data.q, data.k, data.v))
        return Packed(q, k, v, (last - first,))
    first_k, last_k = sum(data.lengths_k[:text]), sum(data.lengths_k[: text + 1])
    k, v = data.k[first_k:last_k].clone(), data.v[first_k:last_k].clone()
    return Packed(data.q[first:last].clone(), k, v, (last - first,), (last_k - first_k,))


def part(result: tuple[Tensor, Tensor], lengths: tuple[int, ...], text: int) -> tuple[Tensor, Tensor]:
    """The output and log-sum-exp of one text of a batch."""
    first, last = sum(lengths[:text]), sum(lengths[: text + 1])
    return result[0][first:last], result[1][:, first:last]


def assert_same_bits(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y), (x - y).abs().max()


BATCH = (17, 0, 33, 1, 48, 5)
BATCH_K = (40, 12, 0, 3, 16, 31)
BIAS: dict[str, Any] = {"bias": (12, 20, True)}


@pytest.mark.parametrize(
    ("kind", "dtype", "config"), combinations(("full", "sliding", "causal", "bias"), DTYPES, THREE, every=4)
)
def test_a_text_has_the_same_bits_alone_and_in_a_batch(kind: str, dtype: torch.dtype, config: Config | None) -> None:
    case = Case(BATCH, dtype=dtype, head_dim=24, **(BIAS if kind == "bias" else KINDS[kind]))
    data, options = operands_of(case), options_of(case, dtype)
    together = attend(data, config, **options)
    for text in range(len(BATCH)):
        assert_same_bits(part(together, BATCH, text), attend(alone(data, text), config, **options))


@pytest.mark.parametrize(("kind", "dtype"), combinations(("full", "sliding", "causal"), DTYPES, every=3))
def test_a_text_with_keys_of_others_has_the_same_bits_alone_and_in_a_batch(kind: str, dtype: torch.dtype) -> None:
    case = Case(BATCH, BATCH_K, dtype=dtype, heads_k=1, **KINDS[kind])
    data, options = operands_of(case), options_of(case, dtype)
    together = attend(data, **options)
    for text in range(len(BATCH)):
        assert_same_bits(part(together, BATCH, text), attend(alone(data, text), **options))


@pytest.mark.parametrize("order", [(5, 4, 3, 2, 1, 0), (2, 0, 4, 5, 1, 3)])
def test_the_order_of_texts_changes_no_bit(order: tuple[int, ...]) -> None:
    data = packed(BATCH, dtype=torch.bfloat16, head_dim=32)
    texts = [alone(data, text) for text in order]
    q, k, v = (torch.cat([getattr(text, name) for text in texts]) for name in ("q", "k", "v"))
    shuffled = Packed(q, k, v, tuple(BATCH[text] for text in order))
    for config in THREE:
        got, expected = attend(shuffled, config), attend(data, config)
        for place, text in enumerate(order):
            assert_same_bits(part(got, shuffled.lengths, place), part(expected, BATCH, text))


def test_a_text_of_a_large_ragged_batch_has_the_bits_it_has_alone() -> None:
    lengths = HOSTILE["one long among many short"] * 3
    data = packed(lengths, heads=1, dtype=torch.float16, head_dim=64)
    together = attend(data, None)
    for text in (0, 4, 14, 24, 29):
        assert_same_bits(part(together, lengths, text), attend(alone(data, text), None))


@pytest.mark.parametrize(
    ("kind", "config", "poison"),
    combinations(("full", "sliding", "causal", "bias"), THREE, (math.nan, math.inf, -math.inf), every=3),
)
def test_what_neighbours_hold_changes_no_bit(kind: str, config: Config | None, poison: float) -> None:
    case = Case((19, 21, 18), head_dim=32, **(BIAS if kind == "bias" else KINDS[kind]))
    options = options_of(case, case.dtype)
    data = operands_of(case)
    expected = part(attend(data, config, **options), case.lengths, 1)
    for x in (data.q, data.k, data.v):
        x[:19] = poison
        x[40:] = poison
    got = part(attend(data, config, **options), case.lengths, 1)
    assert got[0].isfinite().all()
    assert_same_bits(got, expected)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("config", THREE)
def test_what_neighbours_hold_changes_no_bit_where_keys_are_others(config: Config | None, poison: float) -> None:
    # The text in the middle has no key: zeros, in whatever company.
    data = packed((9, 4, 20), 2, 1, 48, torch.bfloat16, lengths_k=(11, 0, 23))
    expected = attend(data, config)
    data.k[:11], data.v[:11], data.q[:9] = poison, poison, poison
    got = attend(data, config)
    for text in (1, 2):
        assert_same_bits(part(got, data.lengths, text), part(expected, data.lengths, text))
    assert not part(got, data.lengths, 1)[0].any()


@pytest.mark.parametrize(("kind", "dtype"), combinations(tuple(KINDS), DTYPES, every=4))
def test_block_m_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    """So that tuning may choose it by the longest text of a batch."""
    case = Case((50, 3, 0, 31), dtype=dtype, **KINDS[kind])
    data, options = operands_of(case), options_of(case, dtype)
    expected = attend(data, SMALL, **options)
    for rows in (32, 64, 128):
        assert_same_bits(attend(data, Config.of(BLOCK_M=rows, BLOCK_N=16), **options), expected)


@pytest.mark.parametrize("both", [True, False])
def test_block_m_changes_no_bit_under_a_bias(both: bool) -> None:
    case = Case((130, 20), heads=1, heads_k=1, bias=(8, 12, both))
    data, options = operands_of(case), options_of(case, case.dtype)
    expected = attend(data, SMALL, **options)
    for rows in (32, 128):
        assert_same_bits(attend(data, Config.of(BLOCK_M=rows, BLOCK_N=16), **options), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_descriptors_warps_and_stages_change_no_bit(dtype: torch.dtype) -> None:
    data = packed((50, 3, 0, 31), dtype=dtype, head_dim=64)
    expected = attend(data, SMALL, window=(9, 9))
    for config in (WITH_DESCRIPTORS, Config.of(num_warps=8, num_stages=4, BLOCK_M=16, BLOCK_N=16)):
        assert_same_bits(attend(data, config, window=(9, 9)), expected)


def test_a_longest_text_that_is_given_too_long_changes_no_bit() -> None:
    data = packed((20, 0, 37))
    q, k, v, cu_seqlens, _ = data.arguments
    for config in CONFIGS:
        expected = attend(data, config)
        got = varlen_attention(q, k, v, cu_seqlens, 500, return_lse=True, config=config)
        assert isinstance(got, tuple)
        assert_same_bits(got, expected)


def test_the_output_is_the_same_with_and_without_log_sum_exp() -> None:
    data = packed((20, 0, 37), dtype=torch.bfloat16)
    for config in CONFIGS:
        output = varlen_attention(*data.arguments, config=config)
        assert isinstance(output, Tensor)
        assert torch.equal(output, attend(data, config)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_a_fused_buffer_give_the_bits_of_copies(dtype: torch.dtype) -> None:
    views = packed((20, 0, 37), 4, 2, 40, dtype, fused=True)
    assert not views.k.is_contiguous()
    copies = replace(views, q=views.q.contiguous(), k=views.k.contiguous(), v=views.v.contiguous())
    for config in (SMALL, None):
        assert_same_bits(attend(views, config), attend(copies, config))


def test_inputs_are_left_as_they_are() -> None:
    data = packed((20, 0, 37), fused=True)
    before = [x.clone() for x in (data.q, data.k, data.v)]
    attend(data, None)
    assert all(torch.equal(x, y) for x, y in zip((data.q, data.k, data.v), before, strict=True))


@pytest.mark.parametrize(
    ("length", "window", "config"),
    combinations(
        (64, 65, 66, 128, 129, 130, 200),
        ((64, 64), (64, 0), (0, 64), (3, 70)),
        (None, Config.of(BLOCK_M=32, BLOCK_N=32)),
        every=4,
    ),
)
def test_an_outlier_is_seen_at_the_edge_of_the_window_and_not_beyond(
    length: int, window: tuple[int, int], config: Config | None
) -> None:
    left, right = window
    for outlier in sorted({0, length // 2, length - 1}):
        data = packed((length,), 1, head_dim=16)
        # All scores are 0 but the outlier's, which is 200: where it is seen nothing else counts, to the last bit.
        data.q.fill_(1.0)
        data.k.zero_()[outlier] = 50.0
        data.v.zero_()[outlier] = 1.0
        output, lse = attend(data, config, window=window)
        for query in range(length):
            seen = query - left <= outlier <= query + right
            others = min(length - 1, query + right) - max(0, query - left) + 1
            assert output[query].tolist() == [[1.0 if seen else 0.0] * 16], (query, outlier)
            assert lse[0, query].item() == pytest.approx(200.0 if seen else math.log(others), abs=2e-5)


def test_distance_64_is_seen_and_65_is_not_in_half_precision() -> None:
    """As ModernBERT has it: 64 to the left, the query itself, 64 to the right."""
    for dtype in (torch.float16, torch.bfloat16):
        data = packed((131,), 1, head_dim=64, dtype=dtype)
        data.q.fill_(1.0)
        data.k.zero_()[65] = 16.0
        data.v.zero_()[65] = 1.0
        output, _ = attend(data, None, window=(64, 64))
        assert not output[0].any()
        assert (output[1:130] == 1).all()
        assert not output[130].any()


def test_a_causal_query_sees_itself_and_nothing_later() -> None:
    data = packed((40,), 1, head_dim=16)
    data.q.zero_()
    data.v.copy_(torch.arange(40.0)[:, None, None].expand(40, 1, 16))
    for config in CONFIGS:
        output, lse = attend(data, config, causal=True)
        torch.testing.assert_close(output[:, 0, 0], torch.arange(40.0) / 2, rtol=1e-6, atol=0)
        torch.testing.assert_close(lse[0], torch.arange(1.0, 41.0).log(), rtol=1e-6, atol=1e-7)


def test_log_sum_exp_is_a_natural_logarithm() -> None:
    data = packed((1, 37, 0, 12), 2, head_dim=32)
    _, lse = attend(data)
    position = 0
    for length in data.lengths:
        q, k = (x[position : position + length].double() for x in (data.q, data.k))
        expected = torch.logsumexp(torch.einsum("qhd,khd->hqk", q, k) / 32**0.5, dim=-1)
        torch.testing.assert_close(lse[:, position : position + length].double(), expected, rtol=1e-6, atol=1e-6)
        position += length
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", THREE)
def test_queries_that_see_no_key_give_zeros(dtype: torch.dtype, config: Config | None) -> None:
    data = packed((20, 5, 33), 2, 1, 32, dtype, lengths_k=(17, 0, 3))
    for options, blind in (
        ({"causal": True}, (3, 5, 30)),
        ({"window": (4, 0)}, (3, 5, 30)),
        ({"window": (-1, 2)}, (1, 5, 28)),
        ({"window": (2, -1)}, (0, 5, 0)),
        ({}, (0, 5, 0)),
    ):
        output, lse = attend(data, config, **options)
        expected = torch.zeros(58, dtype=torch.bool)
        for first, count in zip((0, 20, 25), blind, strict=True):
            expected[first : first + count] = True
        assert torch.equal(lse.isneginf(), expected.expand(2, 58)), options
        assert lse[:, ~expected].isfinite().all()
        assert not output[expected].any()
        assert output[~expected].isfinite().all()


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
@pytest.mark.parametrize("lengths_k", [None, "some"])
def test_a_batch_without_tokens(lengths: tuple[int, ...], lengths_k: str | None) -> None:
    data = packed(lengths, 3, 3, 24, torch.bfloat16, lengths_k=(4, 0, 2)[: len(lengths)] if lengths_k else None)
    output, lse = attend(data, None)
    assert output.shape == (0, 3, 24)
    assert output.dtype == torch.bfloat16
    assert lse.shape == (3, 0)
    assert lse.dtype == torch.float32


def test_texts_of_which_none_has_keys() -> None:
    data = packed((4, 0, 3), 2, head_dim=16, lengths_k=(0, 0, 0))
    for config in CONFIGS:
        output, lse = attend(data, config)
        assert torch.equal(output, torch.zeros(7, 2, 16))
        assert lse.isneginf().all()


def far_apart(folder: Path, near: Packed, stride_token: int, stride_head: int) -> Packed:
    """The same values in one file of holes, tokens and heads this many elements apart."""
    values = torch.cat([near.q, near.k, near.v], dim=1)
    strides = (stride_token, stride_head, 1)
    last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    far = sparse(folder, last + 1, values.dtype).as_strided(values.shape, strides).copy_(values)
    q, k, v = far.split([x.shape[1] for x in (near.q, near.k, near.v)], dim=1)
    return replace(near, q=q, k=k, v=v)


# Also where strides are divided by what all of them are multiples of, say 16, before an offset is computed.
FAR_APART = ((2**31, 16), (2**28 + 1, 16), (16, 2**33), (16, 2**30 + 1))


@pytest.mark.parametrize(("stride_token", "stride_head"), FAR_APART)
@pytest.mark.parametrize("config", THREE)
def test_elements_beyond_two_to_the_31(
    tmp_path: Path, stride_token: int, stride_head: int, config: Config | None
) -> None:
    near = packed((17, 3), 3, 3, 16, torch.float16)
    far = far_apart(tmp_path, near, stride_token, stride_head)
    for x in (far.q, far.k, far.v):
        assert 17 * x.stride(0) + 2 * x.stride(1) >= 2**31
    for options in ({}, {"window": (4, 4)}):
        assert_same_bits(attend(far, config, **options), attend(near, config, **options))


def test_keys_beyond_two_to_the_31(tmp_path: Path) -> None:
    near = packed((5, 4), 1, 1, 16, torch.float32, lengths_k=(11, 9))
    memory = sparse(tmp_path, 19 * 2**28 + 32, torch.float32)
    far = memory.as_strided((20, 2, 16), (2**28, 16, 1)).copy_(torch.cat([near.k, near.v], dim=1))
    assert_same_bits(attend(replace(near, k=far[:, :1], v=far[:, 1:])), attend(near))


def test_nan_in_a_text_shows_in_that_text() -> None:
    """NaN that a query does see is not hidden, by eager or by the kernel."""
    data = packed((9, 12), dtype=torch.float32)
    data.v[3] = math.nan
    expected = eager(*data.arguments)
    assert isinstance(expected, Tensor)
    got = attend(data)[0]
    assert alike(got.isnan(), expected.isnan())
    assert got[:9].isnan().all()
    assert got[9:].isfinite().all()
