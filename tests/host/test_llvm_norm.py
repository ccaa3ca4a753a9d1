"""Norms compiled by LLVM: against eager in fp64 by the 2x rule, a row's bits, and what is read and written."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.ops import norm as eager
from padless.engine.ops.cpu import vector_norm as row
from padless.kernels.llvm import host
from padless.kernels.llvm import norm as kernel
from padless.kernels.llvm.host import missing_features

NAN, INF = math.nan, math.inf
F32, BF16 = torch.float32, torch.bfloat16
KINDS = ("layer_norm", "layer_norm without bias", "rms_norm")


@pytest.fixture(params=[F32, BF16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    needs(request.param)
    return request.param


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
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


def random_rows(rows: int, hidden: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.3 + 2 * torch.randn(rows, hidden, generator=generator)).to(dtype)


def parameters(kind: str, hidden: int, dtype: torch.dtype) -> list[Tensor | None]:
    weight, bias = random_rows(2, hidden, dtype, seed=99)
    return {"layer_norm": [weight, bias], "layer_norm without bias": [weight, None], "rms_norm": [weight]}[kind]


def specified(
    kind: str, x: Tensor, given: list[Tensor | None], eps: float, residual: Tensor | None = None
) -> list[Tensor]:
    function = eager.rms_norm if kind == "rms_norm" else eager.layer_norm
    out = function(x, *given, eps=eps, residual=residual)  # pyright: ignore[reportArgumentType]
    return list(out) if isinstance(out, tuple) else [out]


def served(
    kind: str, x: Tensor, given: list[Tensor | None], eps: float, residual: Tensor | None = None
) -> list[Tensor]:
    op, function = ("rms_norm", row.rms_norm) if kind == "rms_norm" else ("norm", row.layer_norm)
    call = Call(op, "cpu", x.dtype, hidden=x.shape[1])
    assert row.unsupported(call) == []
    prepared = row.prepare(*given, call=call)  # pyright: ignore[reportArgumentType]
    out = function(x, *prepared, eps=eps, residual=residual)  # pyright: ignore[reportArgumentType]
    return list(out) if isinstance(out, tuple) else [out]


def assert_served_right(
    kind: str, x: Tensor, given: list[Tensor | None], eps: float = 1e-12, residual: Tensor | None = None
) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md."""
    copies = [None if one is None else one.clone() for one in (x, residual, *given)]
    found = served(kind, x, given, eps, residual)
    for one, copy in zip((x, residual, *given), copies, strict=True):
        assert one is None or (copy is not None and same_bits(one, copy))
    same = specified(kind, x, given, eps, residual)
    wide = [None if one is None else one.double() for one in given]
    references = specified(kind, x.double(), wide, eps, None if residual is None else residual.double())
    assert len(found) == len(same)
    for out, like, reference in zip(found, same, references, strict=True):
        assert out.dtype == like.dtype
        assert out.shape == like.shape
        if out.numel():
            errors = [(one.double() - reference).abs().max().item() for one in (out, like)]
            assert errors[0] <= 2 * errors[1] + torch.finfo(out.dtype).eps * reference.abs().max().item(), errors


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


# Against the specification.


@pytest.mark.parametrize("hidden", [16, 32, 48, 80, 384, 400, 1024])
def test_rows_of_any_width(hidden: int, kind: str, dtype: torch.dtype) -> None:
    for rows in (0, 1, 2, 33):
        assert_served_right(kind, random_rows(rows, hidden, dtype, seed=rows), parameters(kind, hidden, dtype))


@pytest.mark.parametrize(("x_dtype", "weight_dtype"), [(F32, BF16), (BF16, F32)])
def test_parameters_of_another_dtype(x_dtype: torch.dtype, weight_dtype: torch.dtype, kind: str) -> None:
    needs(BF16)
    x = random_rows(19, 96, x_dtype)
    assert_served_right(kind, x, parameters(kind, 96, weight_dtype))
    for other in (F32, BF16):
        residual = random_rows(19, 96, other, seed=1)
        assert_served_right(kind, x, parameters(kind, 96, weight_dtype), residual=residual)


def test_what_is_in_a_dtype_that_the_kernel_does_not_take_is_right_all_the_same(kind: str, dtype: torch.dtype) -> None:
    x = random_rows(5, 48, dtype)
    assert_served_right(kind, x, parameters(kind, 48, dtype), residual=random_rows(5, 48, torch.float64, seed=1))
    assert_served_right(kind, x, parameters(kind, 48, torch.float64))


def test_a_residual_is_added_first_and_returned(kind: str, dtype: torch.dtype) -> None:
    x, residual = random_rows(17, 80, dtype), random_rows(17, 80, dtype, seed=1)
    assert_served_right(kind, x, parameters(kind, 80, dtype), residual=residual)
    assert same_bits(served(kind, x, parameters(kind, 80, dtype), 1e-6, residual)[1], residual + x)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 3.0])
def test_eps_counts(eps: float, kind: str, dtype: torch.dtype) -> None:
    assert_served_right(kind, random_rows(9, 64, dtype) * 1e-3, parameters(kind, 64, dtype), eps=eps)


@pytest.mark.parametrize(("mean", "spread"), [(100, 1), (-1e4, 1), (1e4, 0.01), (0, 1e-6), (0, 1e12), (3, 1e-4)])
def test_a_large_mean_beside_a_small_variance(mean: float, spread: float, kind: str, dtype: torch.dtype) -> None:
    x = (mean + spread * torch.randn(21, 384, generator=torch.Generator().manual_seed(4))).to(dtype)
    assert_served_right(kind, x, parameters(kind, 384, dtype))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.7, 1e4, 1e-30])
@pytest.mark.parametrize("hidden", [48, 384, 1024])
def test_rows_of_one_number(value: float, hidden: int, kind: str, dtype: torch.dtype) -> None:
    x = torch.full((3, hidden), value).to(dtype)
    for eps in (1e-12, 1e-5):
        assert_served_right(kind, x, parameters(kind, hidden, dtype), eps=eps)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_row(poison: float, kind: str, dtype: torch.dtype) -> None:
    x = random_rows(7, 80, dtype)
    given = parameters(kind, 80, dtype)
    (before,) = served(kind, x, given, 1e-6)
    x[3, 41] = poison
    (after,) = served(kind, x, given, 1e-6)
    (expected,) = specified(kind, x, given, 1e-6)
    others = [0, 1, 2, 4, 5, 6]
    assert same_bits(after[others], before[others])
    assert torch.equal(after.isnan(), expected.isnan())
    assert after[3].isnan().any()


def test_poisoned_parameters_are_not_overlooked(kind: str, dtype: torch.dtype) -> None:
    given = parameters(kind, 48, dtype)
    assert given[0] is not None
    given[0][7] = NAN
    (out,) = served(kind, random_rows(3, 48, dtype), given, 1e-6)
    assert out.isnan().sum(0).nonzero().flatten().tolist() == [7]


def test_the_quotient_of_an_rms_norm_is_rounded_before_it_is_scaled() -> None:
    needs(BF16)
    x, weight = random_rows(40, 384, BF16), torch.full((384,), 1.3203125, dtype=BF16)
    (out,) = served("rms_norm", x, [weight], 1e-6)
    quotient = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-6).sqrt()
    twice, once = (quotient.to(BF16) * weight), (quotient * weight.double()).to(BF16)
    assert (twice != once).double().mean() > 0.1
    assert (out != twice).double().mean() < 0.005  # where fp32 falls on the other side of a tie


# MobileBERT's NoNorm.


@pytest.mark.parametrize("residual", [None, F32, BF16, torch.float64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("hidden", [16, 48, 128, 512])
def test_no_norm(residual: torch.dtype | None, wide: bool, hidden: int, dtype: torch.dtype) -> None:
    x = random_rows(13, hidden, dtype) * 1e4
    added = None if residual is None else random_rows(13, hidden, residual, seed=1)
    for weight_dtype in (F32, dtype):
        weight, bias = random_rows(2, hidden, weight_dtype, seed=2)
        prepared = row.prepare(weight, bias, call=Call("no_norm", "cpu", dtype, hidden=hidden))
        copies = [None if one is None else one.clone() for one in (x, added)]
        out = row.no_norm(x, *prepared, residual=added, wide=wide)  # pyright: ignore[reportArgumentType]
        for one, copy in zip((x, added), copies, strict=True):
            assert one is None or (copy is not None and same_bits(one, copy))
        same = eager.no_norm(x, weight, bias, residual=added, wide=wide)
        total = x.double() if added is None else added.double() + x.double()
        reference = total * weight.double() + bias.double()
        assert out.dtype == same.dtype
        errors = [(one.double() - reference).abs().max().item() for one in (out, same)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(out.dtype).eps * reference.abs().max().item(), errors
        turned = x.T.contiguous().T
        assert same_bits(row.no_norm(turned, *prepared, residual=added, wide=wide), out)  # pyright: ignore
        assert row.no_norm(x[:0], *prepared, wide=wide).shape == (0, hidden)  # pyright: ignore[reportArgumentType]


# What is read and written, and by whom.


def test_strided_rows_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    x = random_rows(11, 96, dtype)
    given = parameters(kind, 96, dtype)
    (expected,) = served(kind, x, given, 1e-6)
    beside = torch.cat([torch.full_like(x, NAN), x, torch.full_like(x, NAN)], dim=1)[:, 96:192]
    every_third = torch.stack([torch.full_like(x, NAN), x, torch.full_like(x, NAN)], dim=1).flatten(0, 1)[1::3]
    turned = x.T.contiguous().T
    alternating = torch.stack([x, torch.full_like(x, NAN)], dim=2)[..., 0]
    for strided in (beside, every_third, turned, alternating, x.flip(0).flip(0)):
        (out,) = served(kind, strided, given, 1e-6)
        assert out.is_contiguous()
        assert same_bits(out, expected)
    for one in (x[:1].expand(4, 96),):
        assert same_bits(served(kind, one, given, 1e-6)[0], expected[:1].expand(4, 96))


@pytest.mark.usefixtures("threads")
def test_a_rows_bits_depend_on_neither_neighbours_nor_threads(kind: str, dtype: torch.dtype) -> None:
    x = random_rows(23, 80, dtype)
    given = parameters(kind, 80, dtype)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found += served(kind, x, given, 1e-6)
        assert same_bits(found[-1], found[0])
    for place in (0, 11, 22):
        assert same_bits(served(kind, x[place : place + 1], given, 1e-6)[0][0], found[0][place])


@pytest.mark.parametrize("hidden", [16, 48, 128])
def test_nothing_around_the_rows_is_read_or_written(hidden: int, kind: str, dtype: torch.dtype) -> None:
    x = random_rows(5, hidden, dtype)
    around = torch.full((9, hidden), NAN, dtype=dtype)
    around[2:-2] = x
    copy = around.clone()
    given = [one for one in parameters(kind, hidden, F32) if one is not None]
    fenced = [torch.cat([torch.full((16,), NAN), one, torch.full((16,), NAN)]) for one in given]
    out = torch.full((9, hidden), 7.0, dtype=dtype)
    bf16, centred, shifted = dtype == BF16, kind != "rms_norm", kind == "layer_norm"
    run = kernel._kernel(hidden, bf16, bf16, centred, shifted)
    size = dtype.itemsize
    addresses = [one[16:].data_ptr() for one in fenced]
    run(around[2:].data_ptr(), addresses[0], addresses[1] if shifted else 0, out[2:].data_ptr(), hidden * size, 5, 1e-6)
    assert same_bits(around, copy)
    assert (out[:2] == 7.0).all()
    assert (out[-2:] == 7.0).all()
    bias = given[1] if shifted else None
    assert same_bits(out[2:-2], kernel.normalise(x, given[0], bias, eps=1e-6, centred=centred, dtype=dtype))
    assert out.isfinite().all()
