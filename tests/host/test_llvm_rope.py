"""The rotation compiled by LLVM, and the row of `linear` that uses it: against eager in fp64, and what it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.ops import linear as eager
from padless.engine.ops.cpu import vector_linear as row
from padless.engine.ops.rope import rotated
from padless.kernels.llvm import host
from padless.kernels.llvm.host import missing_features
from padless.kernels.llvm.rope import rotate


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if missing := missing_features(request.param):
        pytest.skip("; ".join(missing))
    return request.param


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tables(half: int) -> tuple[Tensor, Tensor]:
    """Of 90 positions, times an attention scaling."""
    angles = torch.arange(90.0)[:, None] * 10000 ** (-torch.arange(half) / half)
    return 1.1 * angles.cos(), 1.1 * angles.sin()


def random_rows(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def positions(tokens: int) -> Tensor:
    return torch.randint(0, 90, (tokens,), generator=torch.Generator().manual_seed(1))


def turned_by(x: Tensor, turned: int, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = x[:, :turned].unflatten(1, (-1, 2 * cos.shape[1]))
    return torch.cat([rotated(heads, rows, cos, sin).flatten(1), x[:, turned:]], dim=1)


def assert_twice_eager(out: Tensor, reference: Tensor, same_dtype: Tensor) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md."""
    assert out.dtype == same_dtype.dtype
    assert out.shape == same_dtype.shape
    errors = [(x.double() - reference).abs().max().item() for x in (out, same_dtype)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(out.dtype).eps * reference.abs().max().item(), errors


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


@pytest.mark.parametrize("half", [16, 32, 48, 128])
@pytest.mark.parametrize("heads", [0, 1, 3, 4])
def test_heads_of_any_width_and_number(half: int, heads: int, dtype: torch.dtype) -> None:
    cos, sin = tables(half)
    for tokens in (1, 2, 17):
        x = random_rows((tokens, heads * 2 * half + 24), dtype)
        found, rows = x.clone(), positions(tokens)
        rotate(found, heads * 2 * half, rows, cos, sin)
        wide = turned_by(x.double(), heads * 2 * half, rows, cos.double(), sin.double())
        assert_twice_eager(found, wide, turned_by(x, heads * 2 * half, rows, cos, sin))
        assert same_bits(found[:, heads * 2 * half :], x[:, heads * 2 * half :])


@pytest.mark.usefixtures("threads")
def test_only_what_is_turned_is_read_and_written_by_any_number_of_threads(dtype: torch.dtype) -> None:
    cos, sin = tables(16)
    x, rows = random_rows((23, 96), dtype), positions(23)
    expected = x.clone()
    rotate(expected, 64, rows, cos, sin)
    nothing = torch.full_like(cos, math.nan)
    poisoned = [torch.cat([nothing, table, nothing]) for table in (cos, sin)]
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        around = torch.full((27, 160), math.nan, dtype=dtype)
        around[2:-2, 32:128] = x
        rotate(around[2:-2, 32:128], 64, rows, *(table[90:180] for table in poisoned))
        assert same_bits(around[2:-2, 32:128], expected)
        around[2:-2, 32:128] = math.nan
        assert around.isnan().all()


@pytest.mark.parametrize("turned", [64, 128])
def test_a_product_whose_queries_and_keys_are_turned(turned: int, dtype: torch.dtype) -> None:
    call = Call("linear", "cpu", dtype, hidden=152, epilogue="none", inner=72, rope=True, head_dim=32)
    if missing := row.unsupported(call):
        pytest.skip("; ".join(missing))
    x, weight, bias = (random_rows(shape, dtype, seed=len(shape)) for shape in ((29, 72), (152, 72), (152,)))
    cos, sin = tables(16)
    rope = (positions(29), cos, sin)
    prepared = row.prepare(weight, bias, call=call)
    strided = (rope[0].repeat_interleave(2)[::2], cos.T.contiguous().T, sin.repeat_interleave(2, 0)[::2])
    found = row.linear(x, *prepared, rope=rope, turned=turned)
    wide = (rope[0], cos.double(), sin.double())
    reference = eager.linear(x.double(), weight.double(), bias.double(), rope=wide, turned=turned)
    assert_twice_eager(found, reference, eager.linear(x, weight, bias, rope=rope, turned=turned))
    assert same_bits(row.linear(x, *prepared, rope=strided, turned=turned), found)
    empty = (rope[0][:0], cos, sin)
    assert row.linear(x[:0], *prepared, rope=empty, turned=turned).shape == (0, 152)
