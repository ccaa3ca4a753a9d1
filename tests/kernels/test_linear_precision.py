"""Linear's kernel where a number is rounded once too often, or is beyond what half precision holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import assert_right, in_fp64, kernel, turns
from operands import DTYPES, normal
from torch import Tensor

from padless.engine.ops.linear import linear as eager

HALVES = (torch.float16, torch.bfloat16)

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"epilogue": "gelu"},
    "gated": {"epilogue": "silu", "gated": True},
    "residual": {"residual": True, "epilogue": "tanh"},
    "gated with residual": {"residual": True, "epilogue": "gelu_tanh", "gated": True},
    "rope": {"rope": True},
}


def half_operands(form: str, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    x, bias = normal(70, 60, seed=1, dtype=dtype), normal(96, seed=3, dtype=dtype)
    weight = normal(96, 60, seed=2, dtype=dtype, magnitude=60**-0.5)
    options = dict(FORMS[form])
    if "residual" in options:
        options["residual"] = normal(70, 48 if "gated" in options else 96, seed=4, dtype=dtype)
    if "rope" in options:
        rows = torch.arange(70)
        options |= {"rope": (rows, *turns(70, 6, rows, seed=5)), "turned": 60}
    return (x, weight, bias), options


def last_place(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` at each fp64 number, none of them below the normal ones."""
    return torch.finfo(dtype).eps * torch.exp2(x.abs().clamp_min(torch.finfo(dtype).smallest_normal).log2().floor())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_rounded_once(form: str, dtype: torch.dtype) -> None:
    # Eager rounds up to four times; the product stays in fp32 until what is made of it is written.
    tensors, options = half_operands(form, dtype)
    got = assert_right(*tensors, **options).double()
    exact = eager(*map(in_fp64, tensors), **{name: in_fp64(value) for name, value in options.items()})
    assert ((got - exact).abs() <= 0.5 * last_place(exact, dtype) + 1e-5).all()
    same = eager(*tensors, **options).double()
    assert form == "plain" or ((same - exact).abs() > 0.5 * last_place(exact, dtype) + 1e-5).any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("form", [name for name in FORMS if name != "rope"])
def test_a_wide_result_is_not_rounded_to_half_precision(form: str, dtype: torch.dtype) -> None:
    tensors, options = half_operands(form, dtype)
    got = assert_right(*tensors, **options, wide=True)
    exact = eager(*map(in_fp64, tensors), **{name: in_fp64(value) for name, value in options.items()})
    assert got.dtype == torch.float32
    assert (got - exact).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_are_in_fp32(dtype: torch.dtype) -> None:
    # 4099 is no number of either dtype, and half way there the next 1 would be lost.
    ones, more = torch.ones(2, 4099, dtype=dtype), torch.ones(3, 4099, dtype=dtype)
    assert (kernel(ones, more, None, wide=True) == 4099).all()
    stream = torch.full((2, 3), 2.0**-10)
    assert (kernel(ones, more, None, residual=stream) == 4099 + 2.0**-10).all()


@pytest.mark.parametrize("epilogue", ["gelu_tanh", "gelu", "relu", "silu"])
def test_a_gate_beyond_half_precision_stays_finite(epilogue: str) -> None:
    # As mT5's: halves of some 265, whose product of 7e4 is beyond the 65,504 of fp16.
    x = normal(37, 24, seed=1, dtype=torch.float16)
    weight = normal(40, 24, seed=2, dtype=torch.float16, magnitude=0.2)
    x[:, 0], weight[::3, 0], x[5, 0] = 132.5, 2.0, -132.5
    for residual in (None, normal(37, 20, seed=3, dtype=torch.float32)):
        got = assert_right(x, weight, None, epilogue=epilogue, gated=True, wide=True, residual=residual)
        assert got.isfinite().all()
    narrow = kernel(x, weight, None, epilogue=epilogue, gated=True)
    both = torch.zeros(40, dtype=torch.bool)
    both[::3] = True
    assert torch.equal(narrow.isinf().any(dim=0), both[:20] & both[20:])
    assert not narrow.isnan().any()


@pytest.mark.parametrize("residual_dtype", [None, *DTYPES])
def test_activations_of_seventy_thousand_go_through_a_layer_in_fp32(residual_dtype: torch.dtype | None) -> None:
    # What comes behind that gate: mT5's `wo`, its weights and its stream in fp32.
    x = normal(37, 50, seed=1, dtype=torch.float32)
    x[:, 7] = 7e4
    weight, bias = normal(24, 50, seed=2, dtype=torch.float32, magnitude=0.2), normal(24, seed=3, dtype=torch.float32)
    residual = None if residual_dtype is None else normal(37, 24, seed=4, dtype=residual_dtype)
    got = assert_right(x, weight, bias, residual=residual)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    assert got.abs().max() > 1e4


@pytest.mark.parametrize("dtype", HALVES)
def test_a_stream_in_fp32_keeps_its_bits(dtype: torch.dtype) -> None:
    stream = torch.tensor([1e7, 1 + 2**-20, -3e-9, 70000.0, -2.5e7]).repeat(21, 7)
    x, weight = normal(21, 24, seed=1, dtype=dtype), normal(35, 24, seed=2, dtype=dtype)
    assert torch.equal(kernel(torch.zeros_like(x), weight, None, residual=stream), stream)
    for gated in (False, True):
        width = 35 // (1 + gated)
        got = assert_right(x, weight[: width * (1 + gated)], None, gated=gated, residual=stream[:, :width])
        exact = eager(x.double(), weight[: width * (1 + gated)].double(), None, gated=gated, residual=stream[:, :width])
        # The channels of ten million: 1e-3 of them is asked for, one place of fp32 is what a sum costs.
        assert ((got / exact - 1)[:, [0, 4]].abs() < 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_planted_outliers(form: str, dtype: torch.dtype) -> None:
    # One input channel of all tokens and one row of weights a thousand times the others, as in trained encoders.
    (x, weight, bias), options = half_operands(form, dtype)
    x[:, 33], x[4, 20] = 900.0, -3000.0
    weight[17] *= 30
    assert_right(x, weight, bias, **options, wide="rope" not in options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["tanh", "gelu", "silu", "relu", "mish", "gelu_tanh", "quick_gelu"])
def test_tiny_products_keep_their_digits(epilogue: str, dtype: torch.dtype) -> None:
    # 1 - 2 / (exp(2x) + 1) has no digit of them.
    x, weight = normal(20, 16, seed=1, dtype=dtype), normal(9, 16, seed=2, dtype=dtype, magnitude=1e-5)
    got = assert_right(x, weight, None, epilogue=epilogue, wide=True).double()
    exact = eager(x.double(), weight.double(), None, epilogue=epilogue)
    assert (got - exact).abs().max() < 1e-6 * exact.abs().max()
