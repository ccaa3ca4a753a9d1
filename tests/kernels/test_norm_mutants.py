"""Pointed tests of the norms' kernels: small errors that grids of random numbers would let pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from norm_cases import OPS, results
from operands import DTYPES, laid_out, normal
from torch import Tensor

from padless.kernels import norm as kernel_file
from padless.kernels.norm import layer_norm, no_norm, rms_norm

HALVES = (torch.float16, torch.bfloat16)


def one(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_variance_is_that_of_all_and_eps_is_under_the_root(dtype: torch.dtype) -> None:
    # Deviations of 3 and 4: with eps, a variance of 16 or 25, whose roots are whole.
    for size, eps in ((4.0, 0.0), (3.0, 7.0), (4.0, 9.0)):
        root = (size**2 + eps) ** 0.5
        for width in (2, 6, 24, 130):
            signs = torch.tensor([1.0, -1.0]).repeat(width // 2)
            x = (signs * size)[None].to(dtype)
            weight = torch.full((width,), root, dtype=dtype)
            for value in (one(layer_norm(x + 8, weight, None, eps=eps)), one(rms_norm(x, weight, eps=eps))):
                torch.testing.assert_close(value, x, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_does_not_centre(dtype: torch.dtype) -> None:
    x = torch.full((3, 50), 7.0, dtype=dtype)
    assert torch.equal(one(rms_norm(x, torch.ones(50, dtype=dtype), eps=0.0)), torch.ones(3, 50, dtype=dtype))


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", HALVES)
def test_rms_norm_rounds_its_quotient_as_t5_was_trained(dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    # A weight of 1 + 2^-7 makes the rounding before it and the one behind it two: the bits are those of eager.
    x = normal(40, 96, seed=1, dtype=x_dtype)
    weight = torch.full((96,), 1 + 2**-7, dtype=dtype)
    quotient = x.double() / (x.double().square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    expected = (quotient.to(dtype).double() * weight.double()).to(dtype)
    once = (quotient * weight.double()).to(dtype)
    got = one(rms_norm(x, weight, eps=1e-6))
    assert (got != expected).float().mean() < 0.002
    assert (once != expected).float().mean() > 0.05


@pytest.mark.parametrize("weights", HALVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_is_rounded_once(dtype: torch.dtype, weights: torch.dtype) -> None:
    x, weight, bias = (
        normal(40, 96, seed=1, dtype=dtype),
        normal(96, seed=2, dtype=weights),
        normal(96, seed=3, dtype=weights),
    )
    values = x.double()
    centred = values - values.mean(dim=1, keepdim=True)
    exact = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
    got = one(layer_norm(x, weight, bias, eps=1e-5)).double()
    place = torch.finfo(weights).eps * torch.exp2(exact.abs().clamp_min(2.0**-14).log2().floor())
    assert ((got - exact).abs() <= 0.5 * place + 2e-6).all()


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_normalised_is_the_sum_that_is_returned(dtype: torch.dtype, op: str) -> None:
    # 4096 and less than half of its last place: what is lost in the sum is not in the norm either.
    x = torch.tensor([[0.5, -0.5, 0.25, -0.25]], dtype=dtype)
    residual = torch.full((1, 4), 4096.0, dtype=dtype)
    weight = torch.ones(4, dtype=dtype)
    out, total = results(OPS[op][0](x, weight, *((None,) if op == "layer_norm" else ()), eps=1e-6, residual=residual))
    assert torch.equal(total, residual)
    assert torch.equal(out, torch.full((1, 4), 0.0 if op == "layer_norm" else 1.0, dtype=dtype))


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("stream", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_rounded_to_the_wider_dtype_alone(dtype: torch.dtype, stream: torch.dtype, op: str) -> None:
    x, residual = normal(9, 40, seed=1, dtype=dtype), normal(9, 40, seed=2, dtype=stream)
    weight = torch.ones(40, dtype=torch.bfloat16)
    _, total = results(OPS[op][0](x, weight, *((None,) if op == "layer_norm" else ()), eps=1e-6, residual=residual))
    wider = torch.promote_types(dtype, stream)
    assert total.dtype == wider
    assert torch.equal(total, (x.float() + residual.float()).to(wider))


@pytest.mark.parametrize("op", OPS)
def test_x_residual_and_results_have_row_distances_of_their_own(op: str) -> None:
    x, residual = normal(21, 40, seed=1, dtype=torch.float32), normal(21, 40, seed=2, dtype=torch.float32)
    weights = [normal(40, seed=seed, dtype=torch.float32) for seed in (3, 4)][: 1 if op == "rms_norm" else 2]
    options = {} if op == "no_norm" else {"eps": 1e-5}
    expected = results(OPS[op][0](x, *weights, residual=residual, **options))
    for layout_x, layout in itertools.permutations(("dense", "columns", "every second", "transposed"), 2):
        got = OPS[op][0](laid_out(x, layout_x), *weights, residual=laid_out(residual, layout), **options)
        for view, same in zip(results(got), expected, strict=True):
            assert torch.equal(view, same)


@pytest.mark.parametrize("op", OPS)
def test_results_are_contiguous_and_of_their_own(op: str) -> None:
    x = laid_out(normal(5, 24, seed=1, dtype=torch.float32), "columns")
    weights = [torch.ones(24), torch.zeros(24)][: 1 if op == "rms_norm" else 2]
    options = {} if op == "no_norm" else {"eps": 1e-5}
    for residual in (None, x):
        got = results(OPS[op][0](x, *weights, residual=residual, **options))
        assert all(value.is_contiguous() for value in got)
        assert len({value.data_ptr() for value in (x, *got)}) == 1 + len(got)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 65])
@pytest.mark.parametrize("op", OPS)
def test_each_row_is_its_own(op: str, tokens: int) -> None:
    # Every row another multiple of one row: only who reads or writes the wrong row is seen.
    row = normal(1, 24, seed=1, dtype=torch.float32)
    scales = torch.arange(1.0, tokens + 1)[:, None]
    weights = [torch.ones(24), torch.zeros(24)][: 1 if op == "rms_norm" else 2]
    options = {} if op == "no_norm" else {"eps": 1e-5}
    for config in (None, kernel_file.CANDIDATES[0], kernel_file.CANDIDATES[-1]):
        got = results(OPS[op][0](row * scales, *weights, residual=-row.expand(tokens, 24), config=config, **options))
        total = row * scales - row
        torch.testing.assert_close(got[-1] if len(got) == 2 else got[0], total, rtol=0, atol=0)
        for i in {0, tokens // 2, tokens - 1}:
            alone, *_ = results(OPS[op][0](total[i : i + 1], *weights, **options))
            assert torch.equal(got[0][i : i + 1], alone)


@pytest.mark.parametrize("dtype", HALVES)
def test_no_norm_is_rounded_once_and_not_at_all_where_wide(dtype: torch.dtype) -> None:
    x, residual = normal(30, 40, seed=1, dtype=dtype), normal(30, 40, seed=2, dtype=dtype)
    weight, bias = normal(40, seed=3, dtype=dtype), normal(40, seed=4, dtype=dtype)
    exact = (x.double() + residual.double()) * weight.double() + bias.double()
    got = no_norm(x, weight, bias, residual=residual)
    assert (got.double() != exact.to(dtype).double()).float().mean() < 0.002
    wide = no_norm(x, weight, bias, residual=residual, wide=True)
    assert wide.dtype == torch.float32
    assert (wide - exact).abs().max() < 2e-6


def test_no_norm_goes_through_rows_of_any_width() -> None:
    # Channels in steps: each of them with the weight and the bias of its own place, the last step cut short.
    for width in (1, 127, 1023, 1024, 1025, 2047, 2048, 2049, 5000):
        place = torch.arange(width, dtype=torch.float32)
        x = torch.ones(3, width) * torch.tensor([[1.0], [2.0], [3.0]])
        assert torch.equal(no_norm(x, place, place + 0.5), x * place + place + 0.5)
        assert torch.equal(no_norm(x, place, place + 0.5, residual=x), 2 * x * place + place + 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_and_a_bias_of_two_dtypes(dtype: torch.dtype) -> None:
    x, weight, bias = (
        normal(5, 24, seed=1, dtype=dtype),
        normal(24, seed=2, dtype=dtype),
        normal(24, seed=3, dtype=dtype),
    )
    expected = one(layer_norm(x, weight.float(), bias.float(), eps=1e-5)).to(dtype)
    assert torch.equal(one(layer_norm(x, weight, bias, eps=1e-5)), expected)
    assert torch.equal(no_norm(x, weight.float(), bias.float()), no_norm(x, weight, bias))
