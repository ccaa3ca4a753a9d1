"""Attention: the eager row against loops over single queries in fp64, the CPU row against eager by the 2x rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from padless.engine.contract import Call
from padless.engine.errors import InputError, OptionError
from padless.engine.models.blocks import attention_op
from padless.engine.ops.attention import varlen_attention
from padless.engine.ops.cpu import attention as cpu
from padless.engine.relative_position import _look_up, bucket_table, relative_position_bucket

Bias = Callable[[int, int], np.ndarray]


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def random_qkv(
    lengths: Sequence[int],
    heads: int = 2,
    head_dim: int = 16,
    *,
    lengths_k: Sequence[int] | None = None,
    heads_k: int | None = None,
    dtype: torch.dtype = torch.float64,
    magnitude: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, tokens_k = sum(lengths), sum(lengths if lengths_k is None else lengths_k)
    shapes = ((tokens, heads, head_dim), *[(tokens_k, heads_k or heads, head_dim)] * 2)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return (q * magnitude).to(dtype), (k * magnitude).to(dtype), v.to(dtype)


def attend(*arguments: Any, **options: Any) -> Tensor:
    """The eager row where no log-sum-exp is asked for."""
    out = varlen_attention(*arguments, **options)
    assert isinstance(out, Tensor)
    return out


def one_query_at_a_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    lengths_k: Sequence[int] | None = None,
    *,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    scale: float | None = None,
    bias: Bias | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention written for one query and one head, in fp64; `bias(length_q, length_k)` is `[heads, q, k]`."""
    lengths_k = lengths if lengths_k is None else lengths_k
    queries, keys, values = (x.detach().double().numpy() for x in (q, k, v))
    heads, head_dim = queries.shape[1:]
    group = heads // keys.shape[1]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    out, lse = np.zeros_like(queries), np.full((heads, len(queries)), -np.inf)
    row = first_key = 0
    for length_q, length_k in zip(lengths, lengths_k, strict=True):
        added = None if bias is None else bias(length_q, length_k)
        for i in range(length_q):
            # The last query stands beside the last key.
            here = i + length_k - length_q
            lowest = 0 if window[0] < 0 else max(0, here - window[0])
            highest = length_k - 1 if window[1] < 0 else min(length_k - 1, here + window[1])
            if causal:
                highest = min(highest, here)
            seen = np.arange(lowest, highest + 1)
            for head in range(heads) if len(seen) else ():
                scores = scale * (keys[first_key + seen, head // group] @ queries[row + i, head])
                if added is not None:
                    scores = scores + added[head, i, seen]
                top = scores.max()
                weights = np.exp(scores - top)
                out[row + i, head] = weights @ values[first_key + seen, head // group] / weights.sum()
                lse[head, row + i] = top + np.log(weights.sum())
        row += length_q
        first_key += length_k
    return out, lse


def assert_eager_is_right(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    lengths_k: Sequence[int] | None = None,
    *,
    bias: Bias | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    softmax_scale: float | None = None,
    **options: Any,
) -> None:
    expected, expected_lse = one_query_at_a_time(
        q, k, v, lengths, lengths_k, window=window, causal=causal, scale=softmax_scale, bias=bias
    )
    if lengths_k is not None:
        options |= {"cu_seqlens_k": starts(lengths_k), "max_seqlen_k": max(lengths_k, default=0)}
    options |= {"window": window, "causal": causal, "softmax_scale": softmax_scale}
    arguments = (q, k, v, starts(lengths), max(lengths, default=0))
    out, lse = varlen_attention(*arguments, **options, return_lse=True)
    assert out.dtype == lse.dtype == torch.float64
    assert out.shape == q.shape
    assert lse.shape == (q.shape[1], q.shape[0])
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse.numpy(), expected_lse, rtol=1e-12, atol=1e-12)
    assert torch.equal(attend(*arguments, **options), out)


LENGTHS = (7, 1, 13, 2)


@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (-1, 3), (3, -1), (2, 5), (4, 0), (0, 4), (100, 100)])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_in_any_window(window: tuple[int, int], causal: bool) -> None:
    assert_eager_is_right(*random_qkv(LENGTHS), LENGTHS, window=window, causal=causal)


@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (-1, 3), (2, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_cross_attention_aligns_the_last_query_with_the_last_key(window: tuple[int, int], causal: bool) -> None:
    lengths, lengths_k = (5, 1, 9, 3), (2, 6, 9, 1)
    qkv = random_qkv(lengths, lengths_k=lengths_k, seed=1)
    assert_eager_is_right(*qkv, lengths, lengths_k, window=window, causal=causal)


def test_causal_is_bottom_right_in_a_case_worked_out_by_hand() -> None:
    # Two queries, four keys, all scores equal: the first query averages keys 0..2, the second keys 0..3.
    q, k = torch.zeros(2, 1, 1, dtype=torch.float64), torch.zeros(4, 1, 1, dtype=torch.float64)
    v = torch.tensor([3.0, 6.0, 9.0, 22.0], dtype=torch.float64).view(4, 1, 1)
    options = {"cu_seqlens_k": starts([4]), "max_seqlen_k": 4}
    out, lse = varlen_attention(q, k, v, starts([2]), 2, causal=True, return_lse=True, **options)
    assert out.flatten().tolist() == pytest.approx([6.0, 10.0], abs=1e-14)
    assert lse.flatten().tolist() == pytest.approx([math.log(3), math.log(4)], abs=1e-14)


@pytest.mark.parametrize("length", [64, 65, 66, 128, 129, 130])
def test_window_64_sees_distance_64_and_not_65(length: int) -> None:
    q, k, v = random_qkv((3, length), heads=1, head_dim=8, seed=length)
    assert_eager_is_right(q, k, v, (3, length), window=(64, 64))
    for outlier in (0, length - 1):
        # All other values are 0, so whoever sees the outlier, and only they, come out above it.
        keys, values = torch.zeros_like(k), torch.zeros_like(v)
        values[3 + outlier] = 1e6
        out = attend(q, keys, values, starts((3, length)), length, window=(64, 64))
        distances = (torch.arange(length) - outlier).abs()
        assert torch.equal(out[3:, 0, 0] > 0, distances <= 64)
        assert not out[:3].any()


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0), (0, 4), (4, 0), (3, 0, 0, 5), (0, 2, 0, 1, 0)])
def test_empty_texts_anywhere(lengths: tuple[int, ...]) -> None:
    assert_eager_is_right(*random_qkv(lengths), lengths)


def test_queries_without_keys_and_keys_without_queries() -> None:
    lengths, lengths_k = (3, 0, 2, 0, 4), (0, 5, 2, 0, 1)
    q, k, v = random_qkv(lengths, lengths_k=lengths_k)
    assert_eager_is_right(q, k, v, lengths, lengths_k)
    out, lse = varlen_attention(
        q, k, v, starts(lengths), 4, cu_seqlens_k=starts(lengths_k), max_seqlen_k=5, return_lse=True
    )
    assert torch.equal(out[:3], torch.zeros_like(out[:3]))
    assert torch.isneginf(lse[:, :3]).all()
    assert lse[:, 3:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_nothing_gives_zeros_and_minus_infinity(dtype: torch.dtype) -> None:
    # Five queries, two keys, causal: the first three queries stand left of every key.
    q, k, v = random_qkv((5,), lengths_k=(2,), dtype=dtype)
    options = {"cu_seqlens_k": starts([2]), "max_seqlen_k": 2, "causal": True}
    out, lse = varlen_attention(q, k, v, starts([5]), 5, return_lse=True, **options)
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(out[:3], torch.zeros_like(out[:3]))
    assert torch.isneginf(lse[:, :3]).all()
    expected, expected_lse = one_query_at_a_time(q, k, v, (5,), (2,), causal=True)
    tolerance = 8 * torch.finfo(dtype).eps
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, rtol=tolerance, atol=tolerance)


def test_gradients_are_finite_and_zero_for_a_query_that_sees_nothing() -> None:
    q, k, v = (x.requires_grad_() for x in random_qkv((4,), lengths_k=(2,)))
    options = {"cu_seqlens_k": starts([2]), "max_seqlen_k": 2, "causal": True}
    attend(q, k, v, starts([4]), 4, **options).sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert q.grad is not None
    assert not q.grad[:2].any()


def test_gradients_are_those_of_finite_differences() -> None:
    lengths = (3, 0, 2)
    inputs = tuple(x.requires_grad_() for x in random_qkv(lengths, heads=2, head_dim=3, heads_k=1))
    table = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return attend(q, k, v, starts(lengths), 3, window=(1, 2), position_bias=table)

    assert torch.autograd.gradcheck(run, (*inputs, table))


@pytest.mark.parametrize(("heads", "heads_k"), [(4, 2), (6, 1), (3, 3)])
def test_grouped_heads(heads: int, heads_k: int) -> None:
    assert_eager_is_right(*random_qkv(LENGTHS, heads, 5, heads_k=heads_k), LENGTHS, window=(3, -1))


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.37, -2.0])
def test_scale_is_used_as_it_is_given(scale: float) -> None:
    assert_eager_is_right(*random_qkv(LENGTHS, head_dim=9), LENGTHS, softmax_scale=scale)


def t5_bias(buckets: int, max_distance: int, bidirectional: bool, heads: int = 2) -> tuple[Tensor, Bias]:
    config = T5Config(
        num_heads=heads,
        d_kv=4,
        d_model=4 * heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    table = torch.randn(buckets, heads, dtype=torch.float64, generator=torch.Generator().manual_seed(buckets))
    theirs.relative_attention_bias.weight.data.copy_(table)

    def bias(length_q: int, length_k: int) -> np.ndarray:
        if not length_q:
            return np.zeros((heads, 0, length_k))
        # Where lengths differ, T5's queries are the last ones of as many positions as there are keys.
        whole = theirs.compute_bias(max(length_q, length_k), length_k).detach()[0]
        return whole[:, -length_q:].numpy()

    return table, bias


BIASES = [(32, 128, True), (32, 128, False), (8, 20, True), (8, 20, False), (31, 77, True), (5, 9, False)]
# Here a border lies where the logarithm of fp32 and that of fp64 round to different buckets.
BORDERS = [(54, 64, False), (108, 64, True), (108, 128, False)]


@pytest.mark.parametrize(("buckets", "max_distance", "bidirectional"), BIASES)
def test_position_bias_is_that_of_t5(buckets: int, max_distance: int, bidirectional: bool) -> None:
    lengths = (150, 1, 0, 9)
    table, bias = t5_bias(buckets, max_distance, bidirectional)
    options = {"position_bias": table, "bias_max_distance": max_distance, "bias_bidirectional": bidirectional}
    q, k, v = random_qkv(lengths, head_dim=4, seed=5)
    assert_eager_is_right(q, k, v, lengths, bias=bias, softmax_scale=1.0, causal=not bidirectional, **options)


def test_position_bias_of_queries_that_are_the_last_of_many_keys() -> None:
    table, bias = t5_bias(8, 20, bidirectional=False)
    lengths, lengths_k = (3, 1), (17, 30)
    q, k, v = random_qkv(lengths, lengths_k=lengths_k, head_dim=4)
    options = {"position_bias": table, "bias_max_distance": 20, "bias_bidirectional": False}
    assert_eager_is_right(q, k, v, lengths, lengths_k, bias=bias, causal=True, **options)


@pytest.mark.parametrize(("buckets", "max_distance", "bidirectional"), BIASES + BORDERS)
def test_buckets_are_those_of_t5(buckets: int, max_distance: int, bidirectional: bool) -> None:
    distances = torch.cat([torch.arange(-600, 601), torch.tensor([-(2**31), -(2**20), 2**20, 2**31])])
    theirs = T5Attention._relative_position_bucket(distances, bidirectional, buckets, max_distance)
    assert torch.equal(relative_position_bucket(distances, buckets, max_distance, bidirectional), theirs)


@pytest.mark.parametrize(("buckets", "max_distance", "bidirectional"), BIASES + BORDERS)
def test_the_table_says_what_the_formula_says(buckets: int, max_distance: int, bidirectional: bool) -> None:
    # Devices other than the CPU look distances up in it, as the kernels do.
    distances = torch.tensor([*range(-600, 601), -(2**31), 2**31]).view(3, -1)
    expected = relative_position_bucket(distances, buckets, max_distance, bidirectional)
    assert torch.equal(_look_up(distances, bucket_table(buckets, max_distance, bidirectional)), expected)
    assert relative_position_bucket(distances.to("meta"), buckets, max_distance, bidirectional).shape == (3, 401)


@pytest.mark.parametrize(
    ("buckets", "max_distance", "bidirectional", "words"),
    [
        (3, 128, True, "expected 4 or more buckets of a bidirectional bias, got 3"),
        (0, 128, True, "expected 4 or more buckets"),
        (1, 128, False, "expected 2 or more buckets of a unidirectional bias, got 1"),
        (32, 8, True, "expected more than 8"),
        (32, 16, False, "expected more than 16"),
        (32, -1, True, "expected more than 8"),
    ],
)
def test_buckets_that_cannot_be_are_refused(buckets: int, max_distance: int, bidirectional: bool, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        relative_position_bucket(torch.arange(4), buckets, max_distance, bidirectional)
    with pytest.raises(OptionError, match=words):
        bucket_table(buckets, max_distance, bidirectional)
    relative_position_bucket(torch.arange(4), 4 if bidirectional else 2, 128, bidirectional)


@pytest.mark.parametrize("size", [1e7, 1e12, 1e30])
def test_weights_sum_to_1_next_to_large_scores(size: float) -> None:
    q, k, v = random_qkv((5, 0, 3), dtype=torch.float32)
    out = attend(q, k, v, starts((5, 0, 3)), 5, position_bias=torch.full((32, 2), size), window=(2, 2))
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max() * (1 + 1e-6)
    ones = attend(q, k, torch.ones_like(v), starts((5, 0, 3)), 5, position_bias=torch.full((32, 2), -size))
    torch.testing.assert_close(ones, torch.ones_like(v))


@pytest.mark.parametrize("window", [(-1, -1), (3, -1), (3, 9), (-1, 9), (-5, -2)])
def test_a_causal_op_is_served_on_a_cpu(window: tuple[int, int]) -> None:
    q, k, v = random_qkv((7, 1, 13), dtype=torch.float32)
    op = attention_op(q.shape[2], window=window, causal=True, softmax_scale=0.3)
    op.bind(torch.device("cpu"), torch.float32, backend="auto", deterministic=False)
    arguments = (q, k, v, starts((7, 1, 13)), 13)
    out = op(*arguments)
    torch.testing.assert_close(out, attend(*arguments, window=window, causal=True, softmax_scale=0.3))
    assert op.resolution is not None
    # With an edge on the left it is a window like any other.
    sliding = window[0] >= 0
    assert op.resolution.call.window == ("sliding" if sliding else "causal")
    assert op.resolution.impl.name in (("cpu", "cpu_llvm") if sliding else ("eager",))


def test_an_op_knows_its_facts_by_its_options() -> None:
    op = attention_op(16, return_lse=True, cross=True)
    op.bind(torch.device("cpu"), torch.float32, backend="auto", deterministic=False)
    assert op.resolution is not None
    call = op.resolution.call
    assert (call.window, call.lse, call.cross, op.resolution.impl.name) == ("full", True, True, "eager")
    q, k, v = random_qkv((2, 3), lengths_k=(4, 0), dtype=torch.float32)
    _, lse = op(q, k, v, starts((2, 3)), 3, cu_seqlens_k=starts((4, 0)), max_seqlen_k=4)
    assert lse.shape == (2, 5)
    plain = attention_op(16, window=(-1, -3))
    plain.bind(torch.device("cpu"), torch.float32, backend="auto", deterministic=False)
    assert plain.resolution is not None
    call = plain.resolution.call
    assert (call.window, call.lse, call.cross, plain.options) == ("full", False, False, {})


def fused_views(lengths: Sequence[int], heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = random_qkv(lengths, heads, head_dim, dtype=dtype, seed=11)
    # The layout of one GEMM for all three, with unrelated columns behind it.
    fused = torch.full((sum(lengths), 3 * heads * head_dim + 5), torch.nan, dtype=dtype)
    fused[:, : 3 * heads * head_dim] = torch.stack([q, k, v], dim=1).flatten(1)
    q, k, v = fused[:, : 3 * heads * head_dim].unflatten(1, (3, heads, head_dim)).unbind(1)
    assert not any(view.is_contiguous() for view in (q, k, v))
    return q, k, v


def test_views_of_one_fused_buffer() -> None:
    q, k, v = fused_views(LENGTHS, 3, 5, torch.float64)
    assert_eager_is_right(q, k, v, LENGTHS)


# The CPU row.


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_cpu_row(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float | None = None, **options: Any
) -> tuple[Tensor, tuple[float, float, float]]:
    """The CPU row's output, and max|cpu - ref64|, max|eager - ref64|, max|ref64|."""
    arguments = (starts(lengths), max(lengths, default=0))
    actual = cpu.varlen_attention(q, k, v, *arguments, softmax_scale=scale, **options)
    eager = attend(q, k, v, *arguments, softmax_scale=scale, **options)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    reference = attend(q.double(), k.double(), v.double(), *arguments, softmax_scale=scale, **wide)
    assert actual.dtype == eager.dtype == q.dtype
    assert actual.shape == reference.shape
    assert actual.isfinite().all()
    figures = (actual.double() - reference, eager.double() - reference, reference)
    error, eager_error, largest = (figure.abs().max().item() if figure.numel() else 0.0 for figure in figures)
    return actual, (error, eager_error, largest)


def assert_two_times_rule(error: float, eager_error: float, largest: float, dtype: torch.dtype) -> None:
    allowed = 2 * eager_error + torch.finfo(dtype).eps * largest
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g} (eager's own {eager_error:.3g})"


def check_cpu_row(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float | None = None, **options: Any
) -> Tensor:
    out, errors = run_cpu_row(q, k, v, lengths, scale, **options)
    assert_two_times_rule(*errors, q.dtype)
    return out


DTYPES = [torch.float32, torch.bfloat16]
DRAWS = 12
"""Draws whose errors are taken together where the case is made up at random: one small draw's largest error is luck."""
RAGGED = [(1,), (1, 1, 1), (17, 128, 1, 65), (33,) * 9, (5, 5, 5, 6, 6, 1, 1, 5), (0, 3, 0, 0, 3, 2, 0), (), (0, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 24, 32, 40, 60, 64, 96])
@pytest.mark.parametrize("lengths", RAGGED, ids=str)
def test_cpu_row_obeys_the_two_times_rule(lengths: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> None:
    check_cpu_row(*random_qkv(lengths, 3, head_dim, dtype=dtype, seed=head_dim), lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_row_on_forty_draws_taken_as_one(dtype: torch.dtype) -> None:
    lengths = (64, 64, 31)
    draws = (random_qkv(lengths, 3, 16, dtype=dtype, seed=seed) for seed in range(40))
    errors = np.array([run_cpu_row(q, k, v, lengths)[1] for q, k, v in draws])
    error, eager_error, largest = errors.max(axis=0)
    assert_two_times_rule(error, eager_error, largest, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "threads"), [(1, 1), (3, 2)])
def test_cpu_row_on_one_text_of_1500(heads: int, threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    check_cpu_row(*random_qkv((1500,), heads, 32, dtype=dtype, seed=7), (1500,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scores", [1, 7, 64, 500, 1 << 12])
@pytest.mark.parametrize("lengths", [(6,) * 5 + (17,) * 3 + (1, 1), (70, 70, 23), (141,)], ids=str)
def test_cpu_row_in_small_blocks(
    lengths: tuple[int, ...], scores: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From one row of one head at a time to several texts at once; all heads of 128 rows fit only the largest.
    monkeypatch.setattr(cpu, "MIN_ROWS", 32)
    q, k, v = random_qkv(lengths, 5, 16, dtype=dtype)
    whole = check_cpu_row(q, k, v, lengths)
    monkeypatch.setattr(cpu, "SCORES_PER_BLOCK", scores)
    blocked = check_cpu_row(q, k, v, lengths)
    tolerance = 4 * torch.finfo(dtype).eps * v.abs().max().item()
    torch.testing.assert_close(blocked, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 3.0, 5.0, 8.0, 12.0, 17.0, 40.0])
def test_cpu_row_where_scores_grow_until_exponentials_overflow(magnitude: float, dtype: torch.dtype) -> None:
    lengths = (40, 40, 9, 1)
    check_cpu_row(*random_qkv(lengths, 2, 16, dtype=dtype, magnitude=magnitude, seed=3), lengths)


def constant_scores(score: float, lengths: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q and k such that every score is about `score`, with a little variation; a scale of 1 is meant."""
    q, k, v = random_qkv(lengths, 4, 16, seed=13)
    q, k = q * 0.1, k * 0.1
    q[..., -1], k[..., -1] = math.sqrt(abs(score)), math.copysign(math.sqrt(abs(score)), score)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", [1000.0, -1000.0, 88.0, -88.0, 68.0, 60.0, -41.0, -43.0, -100.0, -126.0, 1e4, -1e4])
def test_cpu_row_where_all_scores_are_huge_or_all_are_very_negative(score: float, dtype: torch.dtype) -> None:
    lengths = (90, 90, 41, 1)
    check_cpu_row(*constant_scores(score, lengths, dtype), lengths, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_row_where_scores_of_both_signs_are_huge(dtype: torch.dtype) -> None:
    lengths = (50, 50, 3)
    q, k, v = random_qkv(lengths, 2, 16, dtype=dtype, seed=19)
    check_cpu_row(q * 16, k * 16, v, lengths, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", [1000.0, -1000.0, 120.0, -70.0])
@pytest.mark.parametrize("row", [0, 29, 31])
def test_cpu_row_where_one_query_alone_is_extreme(row: int, score: float, dtype: torch.dtype) -> None:
    # Its neighbours in the same block are plain, so the look at the sums must not be an average.
    lengths = (30, 30, 5)
    q, k, v = random_qkv(lengths, 2, 16, dtype=torch.float64, seed=23)
    k[..., 0] = 1.0
    q[row] = 0.0
    q[row, :, 0] = score
    check_cpu_row(q.to(dtype), k.to(dtype), v.to(dtype), lengths, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [30.0, 60.0, 80.0, 87.0, 100.0])
@pytest.mark.parametrize("base", [0.0, -40.0, -60.0, -80.0, 30.0, 60.0])
def test_cpu_row_where_one_key_towers_over_the_others(base: float, gap: float, dtype: torch.dtype) -> None:
    lengths = (24, 24, 7)
    q, k, v = random_qkv(lengths, 2, 16, dtype=torch.float64, seed=29)
    q, k = q * 0.1, k * 0.1
    q[..., 0], k[..., 0] = 1.0, base
    k[5, :, 0] = base + gap
    check_cpu_row(q.to(dtype), k.to(dtype), v.to(dtype), lengths, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("score", [0.0, 60.0, -40.0])
def test_cpu_row_where_values_are_tiny_or_huge(score: float, magnitude: float, dtype: torch.dtype) -> None:
    # Sums that are divided only at the end must neither overflow nor vanish before.
    lengths = (90, 41)
    q, k, v = constant_scores(score, lengths, torch.float64)
    check_cpu_row(q.to(dtype), k.to(dtype), (v * magnitude).to(dtype), lengths, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 0.37, -0.5])
def test_cpu_row_uses_the_scale_it_is_given(scale: float, dtype: torch.dtype) -> None:
    lengths = (12, 12, 33)
    check_cpu_row(*random_qkv(lengths, 2, 24, dtype=dtype), lengths, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "heads_k"), [(4, 2), (6, 1)])
def test_cpu_row_with_grouped_heads(heads: int, heads_k: int, dtype: torch.dtype) -> None:
    lengths = (12, 12, 33)
    check_cpu_row(*random_qkv(lengths, heads, 16, heads_k=heads_k, dtype=dtype), lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_row_on_views_of_one_fused_buffer(dtype: torch.dtype) -> None:
    lengths = (20, 20, 20, 7, 0, 64)
    q, k, v = fused_views(lengths, 3, 24, dtype)
    old_q, old_k, old_v = (x.clone() for x in (q, k, v))
    out = check_cpu_row(q, k, v, lengths)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), (old_q, old_k, old_v), strict=True))
    assert torch.equal(out, cpu.varlen_attention(old_q, old_k, old_v, starts(lengths), 64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_row_keeps_infinity_and_nan_inside_their_text(dtype: torch.dtype) -> None:
    lengths = (9, 9, 9)
    q, k, v = random_qkv(lengths, 2, 16, dtype=dtype)
    clean = cpu.varlen_attention(q, k, v, starts(lengths), 9)
    q[10, 0, 3] = torch.nan
    v[12, 1, 3] = torch.inf
    out = cpu.varlen_attention(q, k, v, starts(lengths), 9)
    eps = torch.finfo(dtype).eps
    for text in (slice(0, 9), slice(18, 27)):
        torch.testing.assert_close(out[text], clean[text], rtol=0, atol=8 * eps)
    # And they are not hidden: the text that holds them shows it.
    assert out[10, 0].isnan().all()
    assert not out[9:18, 1, 3].isfinite().any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    exponent=st.floats(-3, 2.5),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 8, 24, 32]),
    block=st.sampled_from([50, 900, 1 << 20]),
    dtype=st.sampled_from(DTYPES),
)
def test_cpu_row_on_any_lengths_and_magnitudes(
    lengths: list[int], exponent: float, heads: int, head_dim: int, block: int, dtype: torch.dtype
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SCORES_PER_BLOCK", block)
        magnitude = 10**exponent
        draws = (
            random_qkv(lengths, heads, head_dim, dtype=dtype, magnitude=magnitude, seed=seed) for seed in range(DRAWS)
        )
        errors = np.array([run_cpu_row(q, k, v, lengths)[1] for q, k, v in draws])
    error, eager_error, largest = errors.max(axis=0)
    assert_two_times_rule(error, eager_error, largest, dtype)


WINDOWS = [(0, 0), (64, 64), (3, 0), (0, 7), (-1, 5), (20, -1), (1, 300), (400, 400)]
LONG = (390, 65, 64, 1, 129, 129, 130, 300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lengths", [LONG, (1, 1, 0, 2), (700,)], ids=str)
def test_cpu_row_in_a_window(lengths: tuple[int, ...], window: tuple[int, int], dtype: torch.dtype) -> None:
    draws = [random_qkv(lengths, 3, 24, dtype=dtype, seed=seed) for seed in range(3)]
    errors = np.array([run_cpu_row(*draw, lengths, window=window)[1] for draw in draws])
    error, eager_error, largest = errors.max(axis=0)
    assert_two_times_rule(error, eager_error, largest, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(-1, -1), (40, 3)], ids=str)
@pytest.mark.parametrize("scores", [64, 5000, 1 << 20])
def test_cpu_row_in_a_window_and_with_a_bias_in_small_blocks(
    scores: int, window: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SCORES_PER_BLOCK", scores)
    lengths = (70, 70, 23, 141, 1)
    bias = torch.randn(32, 2, generator=torch.Generator().manual_seed(2)).to(dtype)
    check_cpu_row(*random_qkv(lengths, dtype=dtype), lengths, window=window, position_bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.0, None])
@pytest.mark.parametrize(("buckets", "max_distance", "bidirectional"), BIASES)
def test_cpu_row_with_a_position_bias(
    buckets: int, max_distance: int, bidirectional: bool, scale: float | None, dtype: torch.dtype
) -> None:
    lengths = (130, 5, 5, 1, 0, 64)
    bias = (torch.randn(buckets, 4, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    options = {"position_bias": bias, "bias_max_distance": max_distance, "bias_bidirectional": bidirectional}
    draws = [random_qkv(lengths, 4, 32, dtype=dtype, seed=seed) for seed in range(DRAWS)]
    errors = np.array([run_cpu_row(*draw, lengths, scale, **options)[1] for draw in draws])
    error, eager_error, largest = errors.max(axis=0)
    assert_two_times_rule(error, eager_error, largest, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [60.0, -60.0, 200.0])
def test_cpu_row_where_a_bias_takes_the_exponentials_out_of_range(magnitude: float, dtype: torch.dtype) -> None:
    bias = torch.full((32, 2), magnitude).to(dtype)
    bias[3] = -magnitude
    lengths = (40, 3)
    check_cpu_row(*random_qkv(lengths, dtype=dtype), lengths, position_bias=bias)
    check_cpu_row(*random_qkv(lengths, dtype=dtype), lengths, window=(2, 2), position_bias=bias)


def test_cpu_row_refuses_in_one_line_what_it_does_not_serve() -> None:
    q, k, v = random_qkv((3, 2), dtype=torch.float32)
    refused: list[dict[str, Any]] = [{"causal": True}, {"return_lse": True}, {"cu_seqlens_k": starts((3, 2))}]
    for options in refused:
        with pytest.raises(InputError, match=f"the cpu row takes none of .* got {next(iter(options))}$"):
            cpu.varlen_attention(q, k, v, starts((3, 2)), 3, **options)
    whole: dict[str, Any] = {"cu_seqlens_k": None, "max_seqlen_k": None, "causal": False, "return_lse": False}
    out = cpu.varlen_attention(q, k, v, starts((3, 2)), 3, **whole)
    assert torch.equal(out, cpu.varlen_attention(q, k, v, starts((3, 2)), 3))


def test_cpu_row_says_what_it_cannot_do() -> None:
    served = Call("attention", "cpu", torch.float32, head_dim=32, window="full", bias="none")
    assert cpu.unsupported(served) == []
    refused = Call("attention", "cpu", torch.float64, head_dim=32, window="causal", bias="t5", cross=True, lse=True)
    reasons = cpu.unsupported(refused)
    assert len(reasons) == 4
    for reason, words in zip(reasons, ["float64", "causal", "cross", "log-sum-exp"], strict=True):
        assert reason.startswith("needs ")
        assert ", got " in reason
        assert words in reason
