"""Linear: the eager row against numpy in fp64, the CPU row against eager by the 2x rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from padless.engine.contract import Call
from padless.engine.models.activations import ACTIVATIONS as CONFIG_NAMES
from padless.engine.ops.cpu import linear as cpu
from padless.engine.ops.linear import ACTIVATIONS, linear

EPILOGUES = tuple(ACTIVATIONS)


def activated(epilogue: str, x: np.ndarray) -> np.ndarray:
    """The formulas of the papers, in fp64."""
    if epilogue == "none":
        return x
    if epilogue == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))
    if epilogue == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if epilogue == "relu":
        return np.maximum(x, 0)
    if epilogue == "tanh":
        return np.tanh(x)
    if epilogue == "relu2":
        return np.maximum(x, 0) ** 2
    if epilogue == "relu6":
        return np.clip(x, 0, 6)
    if epilogue == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if epilogue == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if epilogue == "mish":
        return x * np.tanh(np.log1p(np.exp(x)))
    assert epilogue == "silu"
    return x / (1 + np.exp(-x))


def arguments(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    *,
    bias: bool = True,
    residual: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight = draw(rows, inputs) * 2, draw(outputs, inputs) / math.sqrt(inputs)
    b, r = draw(outputs), draw(rows, outputs)
    return x.to(dtype), weight.to(dtype), b.to(dtype) if bias else None, r.to(dtype) if residual else None


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 5), (1, 1, 1), (3, 17, 1), (7, 33, 65)])
def test_eager_is_the_formula(rows: int, inputs: int, outputs: int, residual: bool, bias: bool, epilogue: str) -> None:
    x, weight, b, r = arguments(rows, inputs, outputs, torch.float64, bias=bias, residual=residual)
    expected = x.numpy() @ weight.numpy().T
    expected = activated(epilogue, expected if b is None else expected + b.numpy())
    expected = expected if r is None else r.numpy() + expected
    out = linear(x, weight, b, epilogue=epilogue, residual=r)
    assert out.dtype == torch.float64
    assert out.shape == (rows, outputs)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_the_activations_of_a_configuration_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    # transformers writes sqrt(2 / pi) with ten digits where it is written as "gelu_accurate" and "gelu_fast".
    tolerance = 1e-9 if name in ("gelu_accurate", "gelu_fast") else 1e-13
    torch.testing.assert_close(ACTIVATIONS[CONFIG_NAMES[name]](x), ACT2FN[name](x), rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 4), (1, 1, 2), (7, 33, 66), (5, 1000, 10)])
def test_gated_is_the_activated_half_times_the_other(
    rows: int, inputs: int, outputs: int, residual: bool, epilogue: str
) -> None:
    x, weight, b, _ = arguments(rows, inputs, outputs, torch.float64)
    assert b is not None
    r = torch.randn(rows, outputs // 2, dtype=torch.float64) if residual else None
    product = x.numpy() @ weight.numpy().T + b.numpy()
    expected = activated(epilogue, product[:, : outputs // 2]) * product[:, outputs // 2 :]
    expected = expected if r is None else expected + r.numpy()
    out = linear(x, weight, b, epilogue=epilogue, gated=True, residual=r)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = [None if value is None else value.to(dtype) for value in (x, weight, b, r)]
        check_cpu_row(*narrow, epilogue, gated=True)  # type: ignore[arg-type]


def test_gelu_and_its_approximation_are_told_apart() -> None:
    x = torch.tensor([2.5], dtype=torch.float64)
    assert ACTIVATIONS["gelu"](x).item() == pytest.approx(2.5 * 0.5 * math.erfc(-2.5 / math.sqrt(2)), abs=1e-15)
    assert abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).item() > 1e-4


def prepared(weight: Tensor, bias: Tensor | None) -> tuple[Tensor | tuple[Tensor, ...], Tensor | None]:
    return cpu.prepare(weight, bias, call=Call("linear", "cpu", weight.dtype))


def check_cpu_row(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, epilogue: str, gated: bool = False
) -> Tensor:
    """max|cpu - ref64| <= 2 max|eager - ref64| + eps max|ref64|, and nothing but finite numbers."""
    actual = cpu.linear(x, *prepared(weight, bias), epilogue=epilogue, gated=gated, residual=residual)
    eager = linear(x, weight, bias, epilogue=epilogue, gated=gated, residual=residual)
    wide = [None if value is None else value.double() for value in (x, weight, bias, residual)]
    assert wide[0] is not None
    assert wide[1] is not None
    reference = linear(wide[0], wide[1], wide[2], epilogue=epilogue, gated=gated, residual=wide[3])
    assert actual.dtype == eager.dtype == x.dtype
    assert actual.shape == reference.shape
    assert actual.isfinite().all()
    if actual.numel():
        error = (actual.double() - reference).abs().max().item()
        eager_error = (eager.double() - reference).abs().max().item()
        allowed = 2 * eager_error + torch.finfo(x.dtype).eps * reference.abs().max().item()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g} (eager's own {eager_error:.3g})"
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_cpu_row_obeys_the_two_times_rule(
    rows: int, residual: bool, bias: bool, epilogue: str, dtype: torch.dtype
) -> None:
    check_cpu_row(*arguments(rows, 67, 129, dtype, bias=bias, residual=residual, seed=rows), epilogue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 40), (40, 1), (31, 33), (384, 1152), (1536, 384)])
def test_cpu_row_in_other_widths(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    check_cpu_row(*arguments(130, inputs, outputs, dtype, residual=True), "gelu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-6, 1e6])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_cpu_row_far_from_one(epilogue: str, magnitude: float, dtype: torch.dtype) -> None:
    x, weight, bias, residual = arguments(50, 67, 33, dtype, residual=True)
    check_cpu_row(x * magnitude, weight, bias, residual, epilogue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_cpu_row_takes_strided_rows_and_leaves_its_inputs_alone(
    epilogue: str, residual: bool, dtype: torch.dtype
) -> None:
    x, weight, bias, r = arguments(9, 64, 48, dtype, residual=residual)
    wider = torch.full((9, 200), torch.nan, dtype=dtype)
    wider[:, 3:67] = x
    strided = wider[:, 3:67]
    before = [None if value is None else value.clone() for value in (strided, weight, bias, r)]
    out = cpu.linear(strided, *prepared(weight, bias), epilogue=epilogue, residual=r)
    assert torch.equal(out, cpu.linear(x, *prepared(weight, bias), epilogue=epilogue, residual=r))
    for value, old in zip((strided, weight, bias, r), before, strict=True):
        if value is not None and old is not None:
            assert torch.equal(value, old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_row_takes_a_residual_with_strides(dtype: torch.dtype) -> None:
    x, weight, bias, r = arguments(9, 64, 48, dtype, residual=True)
    assert r is not None
    strided = torch.stack([r, torch.full_like(r, torch.nan)], dim=2)[..., 0]
    assert not strided.is_contiguous()
    for epilogue in EPILOGUES:
        expected = cpu.linear(x, *prepared(weight, bias), epilogue=epilogue, residual=r)
        assert torch.equal(cpu.linear(x, *prepared(weight, bias), epilogue=epilogue, residual=strided), expected)


def test_cpu_row_prepares_a_copy() -> None:
    x, weight, bias, _ = arguments(5, 32, 16, torch.float32)
    laid_out = prepared(weight, bias)
    before = cpu.linear(x, *laid_out)
    weight.zero_()
    assert torch.equal(cpu.linear(x, *laid_out), before)


def test_cpu_row_keeps_nan_and_infinity_in_their_row() -> None:
    x, weight, bias, _ = arguments(5, 32, 16, torch.float32)
    clean = cpu.linear(x, *prepared(weight, bias), epilogue="gelu")
    x[2, 7], x[3, 0] = torch.nan, torch.inf
    out = cpu.linear(x, *prepared(weight, bias), epilogue="gelu")
    assert torch.equal(out[[0, 1, 4]], clean[[0, 1, 4]])
    assert out[2].isnan().all()
    assert not out[3].isfinite().all()


def test_cpu_row_says_what_it_cannot_do() -> None:
    assert cpu.unsupported(Call("linear", "cpu", torch.float32)) == []
    for dtype in (torch.float64, torch.float16):
        (reason,) = cpu.unsupported(Call("linear", "cpu", dtype))
        assert reason == f"needs dtype float32 or bfloat16, got {str(dtype).removeprefix('torch.')}"
