"""Rotation and NoNorm compiled by LLVM: against eager in fp64 by the 2x rule, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.ops import norm as eager_norm
from padless.engine.ops.cpu import vector_linear, vector_norm
from padless.engine.ops.linear import linear as eager_linear
from padless.engine.ops.rope import rotated
from padless.kernels.llvm import host
from padless.kernels.llvm.host import missing_features
from padless.kernels.llvm.rope import rotate

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=[F32, BF16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if missing := missing_features(request.param):
        pytest.skip("; ".join(missing))
    return request.param


def tables(half: int, length: int = 50) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return angles.cos(), angles.sin()


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_close_as_eager(found: Tensor, same: Tensor, reference: Tensor) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md: twice the error of eager, or its rounding."""
    error, allowed = (found.double() - reference).abs().max(), (same.double() - reference).abs().max()
    rounding = torch.finfo(found.dtype).eps * reference.abs().max() / 2
    assert error <= torch.maximum(2 * allowed, rounding), (error.item(), allowed.item())


@pytest.mark.parametrize("tokens", [1, 2, 17, 131])
@pytest.mark.parametrize("half", [16, 32, 64])
def test_turns_queries_and_keys_and_nothing_else(dtype: torch.dtype, tokens: int, half: int) -> None:
    heads = 6  # three of queries, three of keys
    turned, width = heads * 2 * half, 9 * 2 * half
    buffer = numbers(tokens + 2, width + 5, dtype=dtype)
    before = buffer.clone()
    x = buffer[1:-1, :width]
    rows = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(1))
    cos, sin = tables(half)
    rotate(x, turned, rows, cos, sin)
    given = before[1:-1, :turned].unflatten(1, (heads, 2 * half))
    reference = rotated(given.double(), rows, cos.double(), sin.double()).flatten(1)
    assert_close_as_eager(x[:, :turned], rotated(given, rows, cos, sin).flatten(1), reference)
    buffer[1:-1, :turned] = before[1:-1, :turned]
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_rotated_row_has_the_same_bits_anywhere(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, cos_sin = numbers(37, 256, dtype=dtype), tables(32)
    rows = torch.arange(37)
    together = x.clone()
    rotate(together, 128, rows, *cos_sin)
    for row in range(37):
        alone = x[row : row + 1].clone()
        rotate(alone, 128, rows[row : row + 1], *cos_sin)
        assert torch.equal(alone[0], together[row])


def test_the_row_of_linear_turns_behind_its_product(dtype: torch.dtype) -> None:
    call = Call("linear", "cpu", dtype, head_dim=64, hidden=3 * 128, inner=48, epilogue="none", rope=True)
    assert vector_linear.unsupported(call) == []
    x, weight = numbers(19, 48, dtype=dtype), numbers(3 * 128, 48, dtype=dtype, seed=2)
    cos, sin = tables(32)
    rope = torch.arange(19) % 7, cos, sin
    prepared, bias = vector_linear.prepare(weight, None, call=call)
    found = vector_linear.linear(x, prepared, bias, rope=rope, turned=256)
    same = eager_linear(x, weight, None, rope=rope, turned=256)
    wide = eager_linear(x.double(), weight.double(), None, rope=(rope[0], cos.double(), sin.double()), turned=256)
    assert_close_as_eager(found, same, wide)
    empty = vector_linear.linear(x[:0], prepared, bias, rope=(rope[0][:0], cos, sin), turned=256)
    assert empty.shape == (0, 3 * 128)


def test_heads_that_are_no_whole_vectors_are_refused(dtype: torch.dtype) -> None:
    call = Call("linear", "cpu", dtype, head_dim=48, hidden=144, inner=48, epilogue="none", rope=True)
    assert vector_linear.unsupported(call) == ["needs head_dim a multiple of 32, got 48"]


@pytest.mark.parametrize("residual_dtype", [None, F32, BF16], ids=["alone", "fp32", "bf16"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("hidden", [16, 48, 128, 512])
def test_no_norm(dtype: torch.dtype, residual_dtype: torch.dtype | None, wide: bool, hidden: int) -> None:
    call = Call("no_norm", "cpu", dtype, hidden=hidden)
    assert vector_norm.unsupported(call) == []
    x, weight, bias = (
        numbers(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate([(23, hidden), *[(hidden,)] * 2])
    )
    residual = None if residual_dtype is None else 1e4 * numbers(23, hidden, dtype=residual_dtype, seed=3)
    copies = x.clone(), None if residual is None else residual.clone()
    found = vector_norm.no_norm(x, *vector_norm.prepare(weight, bias, call=call), residual=residual, wide=wide)
    same = eager_norm.no_norm(x, weight, bias, residual=residual, wide=wide)
    beside = None if residual is None else residual.double()
    reference = eager_norm.no_norm(x.double(), weight.double(), bias.double(), residual=beside, wide=wide)
    assert found.dtype == same.dtype
    assert_close_as_eager(found, same, reference)
    assert torch.equal(x, copies[0])
    assert residual is None or torch.equal(residual, copies[1])


def test_no_norm_of_strided_rows_and_of_none(dtype: torch.dtype) -> None:
    x, weight, bias = numbers(10, 96, dtype=dtype)[:, ::2], *numbers(2, 48, dtype=dtype, seed=1)
    prepared = vector_norm.prepare(weight, bias, call=Call("no_norm", "cpu", dtype, hidden=48))
    assert torch.equal(vector_norm.no_norm(x, *prepared), vector_norm.no_norm(x.contiguous(), *prepared))
    assert vector_norm.no_norm(x[:0], *prepared).shape == (0, 48)


def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    x, weight, bias = numbers(5, 32, dtype=dtype), *numbers(2, 32, dtype=dtype, seed=1)
    prepared = vector_norm.prepare(weight, bias, call=Call("no_norm", "cpu", dtype, hidden=32))
    clean = vector_norm.no_norm(x, *prepared)
    x[2, 7], x[3, 0] = float("nan"), float("inf")
    found = vector_norm.no_norm(x, *prepared)
    assert found[2, 7].isnan()
    assert not found[3, 0].isfinite()
    found[2, 7], found[3, 0] = clean[2, 7], clean[3, 0]
    assert torch.equal(found, clean)
