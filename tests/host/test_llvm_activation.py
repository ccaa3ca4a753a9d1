"""Activations compiled by LLVM: GELU and its gate against fp64, its far tail, and the row of `linear`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.ops import linear as eager
from padless.engine.ops.cpu import vector_linear as row
from padless.kernels.llvm import activation, host
from padless.kernels.llvm.activation import activate
from padless.kernels.llvm.host import missing_features

NAN, INF = math.nan, math.inf
NAMES = ("gelu", "gelu_tanh")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    needs(request.param)
    return request.param


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def needs(dtype: torch.dtype) -> None:
    if missing := missing_features(dtype):
        pytest.skip("; ".join(missing))


def reference(name: str, x: Tensor) -> Tensor:
    """In fp64, where nothing cancels."""
    x = x.double()
    if name == "gelu":
        return x / 2 * torch.special.erfc(-x / math.sqrt(2))
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def specified(x: Tensor, name: str, *, gated: bool) -> Tensor:
    return eager.finish(x, epilogue=name, gated=gated)


def assert_twice_eager(out: Tensor, reference: Tensor, same_dtype: Tensor) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md."""
    assert out.dtype == same_dtype.dtype
    assert out.shape == same_dtype.shape
    errors = [(x.double() - reference).abs().max().item() for x in (out, same_dtype)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(out.dtype).eps * reference.abs().max().item(), errors


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def random_rows(rows: int, features: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (3 * torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))).to(dtype)


def dense(dtype: torch.dtype) -> Tensor:
    """Every number of bf16 from -40 to 40, or a million of fp32, in rows of 16."""
    if dtype == torch.bfloat16:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.abs() <= 40]
    else:
        every = torch.linspace(-40, 40, 1 << 20)
    return every[: len(every) // 16 * 16].view(-1, 16)


def test_the_reference_is_what_mpmath_says() -> None:
    x = torch.tensor([-11.0, -7.3, -2.0, -0.7, -1e-5, 0.3, 4.0], dtype=torch.float64)
    with mpmath.workdps(40):
        numbers = [mpmath.mpf(value) for value in x.tolist()]
        exact = [value * mpmath.ncdf(value) for value in numbers]
        inner = [mpmath.sqrt(2 / mpmath.pi) * (value + mpmath.mpf(0.044715) * value**3) for value in numbers]
        tanh = [value / 2 * (1 + mpmath.tanh(y)) for value, y in zip(numbers, inner, strict=True)]
    assert reference("gelu", x).tolist() == pytest.approx([float(value) for value in exact], rel=1e-13)
    assert reference("gelu_tanh", x).tolist() == pytest.approx([float(value) for value in tanh], rel=1e-13)


# Against the specification.


def test_from_far_left_to_far_right(name: str, dtype: torch.dtype) -> None:
    x = dense(dtype)
    assert_twice_eager(activate(x.clone(), name, gated=False), reference(name, x), specified(x, name, gated=False))


def test_the_far_tail_keeps_its_digits(name: str, dtype: torch.dtype) -> None:
    x = dense(dtype)
    wanted = reference(name, x)
    found = activate(x.clone(), name, gated=False).double()
    counted = wanted.abs() > 1e-30
    assert x[counted].min() < -5
    errors = torch.where(counted, (found - wanted) / wanted, 0.0).abs()
    if dtype == torch.bfloat16:
        assert errors.max() <= 1.02 * 2**-8  # half a place of bf16
    else:
        # The exponent, up to 100, is known to a part in 2^24.
        assert errors.max() <= 1e-5
        assert errors[x > -1].max() <= 6e-7
    assert found[~counted].abs().max() <= 1e-30


@pytest.mark.parametrize("features", [16, 32, 48, 80, 112, 384])
@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_any_width(features: int, gated: bool, name: str, dtype: torch.dtype) -> None:
    for rows in (1, 2, 5, 33):
        x = random_rows(rows, features * (2 if gated else 1), dtype, seed=rows)
        wide = specified(x.double(), name, gated=gated)
        assert_twice_eager(activate(x.clone(), name, gated=gated), wide, specified(x, name, gated=gated))


@pytest.mark.parametrize("gated", [False, True])
def test_no_rows(gated: bool, name: str, dtype: torch.dtype) -> None:
    assert activate(torch.empty(0, 64, dtype=dtype), name, gated=gated).shape == (0, 32 if gated else 64)


def test_zeros_keep_their_sign_and_what_is_not_finite_stays_so(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[INF, -INF, NAN, -NAN, 0.0, -0.0, 3e38, -3e38, 1e20, -1e20, 1e-30, -1e-30, 1.0, -1.0, 100, -100]])
    x = x.to(dtype)
    out = activate(x.clone(), name, gated=False)[0]
    assert not out[:4].isfinite().any()
    assert out[2:4].isnan().all()
    assert out[4:6].tolist() == [0.0, 0.0]
    assert out[4:6].signbit().tolist() == [False, True]
    assert torch.equal(out[[6, 8, 14]], x[0, [6, 8, 14]])
    # What is left of a huge negative number is not more than the smallest normal number of it.
    for place in (7, 9, 15):
        assert out[place].abs() <= 2.0**-124 * x[0, place].abs()
        assert out[place] <= 0
    torch.testing.assert_close(out[10:14].double(), reference(name, x[0, 10:14]), rtol=2**-8, atol=0)


def test_numbers_below_the_normal_ones_are_halved_or_vanish(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1e-45, -1e-45, 1e-40, -1e-40, 1e-38, -1e-38, 1.1754e-38, -1.1754e-38, *[2e-38] * 8]]).to(dtype)
    out = activate(x.clone(), name, gated=False)
    assert ((out.double() - x.double() / 2).abs() <= (2.0**-126 if dtype == torch.bfloat16 else 2.0**-148)).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1, 0x7F800001])
@pytest.mark.parametrize("gated", [False, True])
def test_any_bits_of_nan_are_nan_behind_it(bits: int, gated: bool, name: str) -> None:
    needs(torch.float32)
    x = random_rows(3, 64, torch.float32)
    x.view(torch.int32)[1, 5] = bits
    x.view(torch.int32)[2, 40] = bits
    assert torch.equal(activate(x.clone(), name, gated=gated).isnan(), specified(x, name, gated=gated).isnan())


# What is read and written, and by whom.


def test_a_plain_one_is_in_place_and_a_gated_one_leaves_its_input(name: str, dtype: torch.dtype) -> None:
    x = random_rows(7, 64, dtype)
    plain = x.clone()
    assert activate(plain, name, gated=False) is plain
    assert not torch.equal(plain, x)
    gated = x.clone()
    out = activate(gated, name, gated=True)
    assert same_bits(gated, x)
    assert out.shape == (7, 32)
    assert out.data_ptr() != gated.data_ptr()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("features", [16, 48, 64])
def test_nothing_around_the_rows_is_read_or_written(gated: bool, features: int, name: str, dtype: torch.dtype) -> None:
    width = features * (2 if gated else 1)
    x = random_rows(5, width, dtype)
    around = torch.full((9, width), NAN, dtype=dtype)
    around[2:-2] = x
    out = torch.full((9, features), 7.0, dtype=dtype)
    run = activation._kernel(name, features, dtype == torch.bfloat16, gated)
    run(around[2:].data_ptr(), out[2:].data_ptr(), 5)
    assert same_bits(around[2:-2], x)
    assert (out[:2] == 7.0).all()
    assert (out[-2:] == 7.0).all()
    assert same_bits(out[2:-2], activate(x, name, gated=gated))
    if not gated:
        inside = around[2:-2]
        assert same_bits(activate(inside, name, gated=False), out[2:-2])
        assert around[:2].isnan().all()
        assert around[-2:].isnan().all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("gated", [False, True])
def test_a_rows_bits_depend_on_neither_neighbours_nor_threads(gated: bool, name: str, dtype: torch.dtype) -> None:
    x = random_rows(23, 96, dtype)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(activate(x.clone(), name, gated=gated))
        assert same_bits(found[-1], found[0])
    for place in (0, 11, 22):
        assert same_bits(activate(x[place : place + 1].clone(), name, gated=gated)[0], found[0][place])


# The row of the table.


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_with_what_follows_it(
    gated: bool, residual: torch.dtype | None, biased: bool, name: str, dtype: torch.dtype
) -> None:
    needs_product(dtype)
    tokens, features, inner = 37, 48, 72
    outputs = features * (2 if gated else 1)
    generator = torch.Generator().manual_seed(5)
    shapes = ((tokens, inner), (outputs, inner), (outputs,), (tokens, features))
    x, weight, bias, added = (torch.randn(shape, generator=generator) for shape in shapes)
    x, weight, bias = x.to(dtype), (weight / 6).to(dtype), bias.to(dtype)
    options: dict[str, Any] = {"epilogue": name, "gated": gated}
    given = None if residual is None else added.to(residual)
    copies = [one.clone() for one in (x, weight, bias)]
    call = Call("linear", "cpu", dtype, hidden=outputs, epilogue=name, gated=gated, inner=inner)
    assert row.unsupported(call) == []
    prepared = row.prepare(weight, bias if biased else None, call=call)
    out = row.linear(x, *prepared, **options, residual=given)
    wide = [None if one is None else one.double() for one in (x, weight, bias if biased else None, given)]
    same = eager.linear(x, weight, bias if biased else None, **options, residual=given)
    assert_twice_eager(out, eager.linear(*wide[:3], **options, residual=wide[3]), same)  # pyright: ignore[reportArgumentType]
    assert all(same_bits(one, copy) for one, copy in zip((x, weight, bias), copies, strict=True))
    if given is not None:
        assert same_bits(given, added.to(given.dtype))
    with_statistics = row.linear(x, *prepared, **options, residual=given, statistics=True)
    assert with_statistics[1] is None
    assert same_bits(with_statistics[0], out)
    wider = row.linear(x, *prepared, **options, residual=given, wide=True)
    assert wider.dtype == torch.float32
    empty = row.linear(x[:0], *prepared, **options, residual=None if given is None else given[:0])
    assert empty.shape == (0, features)


def needs_product(dtype: torch.dtype) -> None:
    if missing := row.unsupported(Call("linear", "cpu", dtype, epilogue="gelu")):
        pytest.skip("; ".join(missing))
