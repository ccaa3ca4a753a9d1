"""The activations in Triton, each over all of fp32, against the formulas in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from padless.engine.ops.linear import ACTIVATIONS
from padless.kernels.activations import activate
from padless.kernels.launch import Config, launch

EPS = torch.finfo(torch.float32).eps
LARGEST = torch.finfo(torch.float32).max
ODD = ("none", "tanh")
SMOOTH = tuple(name for name in ACTIVATIONS if name not in ("none", "relu", "relu6", "relu2"))
LIMITS = {"none": -math.inf, "tanh": -1.0}
"""At minus infinity, where it is not 0; eager makes NaN of some of them."""
HIGHEST = {"tanh": 1.0, "sigmoid": 1.0, "relu6": 6.0}
"""At plus infinity, where it is not infinite."""


@triton.jit
def kernel(x_ptr, out_ptr, count, EPILOGUE: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)  # [BLOCK]
    tl.store(out_ptr + offs, activate(x, EPILOGUE), mask=mask)


def activated(x: Tensor, epilogue: str) -> Tensor:
    out = torch.empty_like(x)
    arguments = {"x_ptr": x, "out_ptr": out, "count": x.numel()}
    launch(kernel, (-(-x.numel() // 1024),), arguments, {"EPILOGUE": epilogue}, Config.of(BLOCK=1024))
    return out


def in_fp64(x: Tensor, epilogue: str) -> Tensor:
    """The eager activation; of the approximated gelu the same number without its cancellation, in fp64 too."""
    x = x.double()
    if epilogue == "gelu_tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return ACTIVATIONS[epilogue](x)


def everything() -> Tensor:
    """fp32 of every size and both signs, more of them where activations bend and where exponentials end."""
    sizes = torch.cat([
        torch.logspace(-38, 38.5, 4000, dtype=torch.float64), torch.linspace(0, 12, 6001, dtype=torch.float64),
        torch.linspace(12, 110, 2000, dtype=torch.float64),
        torch.tensor([0.0, 0.625, 20.0, 88.0, 88.73, 103.0, 104.0, LARGEST], dtype=torch.float64),
    ]).float()  # fmt: skip
    near = torch.nextafter(sizes[-8:], torch.tensor(0.0))
    return torch.cat([sizes, near, -sizes, -near])


def test_there_is_no_other_activation() -> None:
    # What a name that is not known would do, at compile time on a GPU too.
    with pytest.raises(interpreter.InterpreterError, match=r"EPILOGUE|assert") as refusal:
        activated(torch.zeros(3), "swish")
    assert not isinstance(refusal.value.__cause__, AttributeError | NameError)


@pytest.mark.parametrize("epilogue", ACTIVATIONS)
def test_every_number_has_its_activation(epilogue: str) -> None:
    x = everything()
    got, exact = activated(x, epilogue).double(), in_fp64(x, epilogue)
    assert not got.isnan().any()
    representable = exact.float().isfinite()
    assert torch.equal(got.isfinite(), representable)
    assert torch.equal(got[~representable], exact.float()[~representable].double())
    x, got, exact = x[representable].double(), got[representable], exact[representable]
    # An exponential turns what its argument is off by into as many times that of the result.
    amplified = 1 + torch.where(exact == 0, 0.0, (exact / torch.where(x == 0, 1.0, x)).abs().log().abs().nan_to_num())
    allowed = 4 * EPS * amplified * exact.abs()
    if epilogue == "gelu":
        # 1 + erf, where that is nearly 0, errs by the last place of 1, as eager's does.
        allowed += EPS * x.abs() * (x < 0)
    # Below it exp(-x) is infinite, and the quotient 0 instead of a number that is nearly none.
    allowed, error = allowed + 1e-36, (got - exact).abs()
    assert (error <= allowed).all(), (epilogue, x[error > allowed][:5].tolist())


@pytest.mark.parametrize("epilogue", SMOOTH)
def test_it_is_no_worse_than_eager_in_fp32(epilogue: str) -> None:
    # By stretches of arguments, so that what is large excuses nothing that is small.
    x = everything()
    x = x[(x.abs() < 80) & (x.abs() > 1e-30)].sort().values
    got, same, exact = activated(x, epilogue), ACTIVATIONS[epilogue](x), in_fp64(x, epilogue)
    for part in range(0, len(x), 200):
        stretch = slice(part, part + 200)
        errors = [(values[stretch].double() - exact[stretch]).abs().max() for values in (got, same)]
        ratio = (exact[stretch] / x[stretch]).abs().clamp_min(1e-300)
        amplified = 0.0 if epilogue == "gelu" else ratio.log().abs().max()
        bound = 2 * errors[1] + EPS * (2 + amplified) * exact[stretch].abs().max()
        assert errors[0] <= bound, (epilogue, x[part].item(), errors[0].item(), bound.item())


@pytest.mark.parametrize("epilogue", ACTIVATIONS)
def test_what_is_not_finite(epilogue: str) -> None:
    up, down, nothing = activated(torch.tensor([math.inf, -math.inf, math.nan]), epilogue)
    assert up == HIGHEST.get(epilogue, math.inf)
    assert down.isnan() or down == LIMITS.get(epilogue, 0.0)
    assert ACTIVATIONS[epilogue](torch.tensor(-math.inf)).isnan() or not down.isnan()
    assert nothing.isnan()


@pytest.mark.parametrize("epilogue", ODD)
def test_odd_activations_are_odd_to_the_bit(epilogue: str) -> None:
    x = everything()
    assert torch.equal(activated(-x, epilogue), -activated(x, epilogue))


@pytest.mark.parametrize(("epilogue", "lowest", "highest"), [("tanh", -1, 1), ("sigmoid", 0, 1), ("relu6", 0, 6)])
def test_bounded_activations_stay_within_their_bounds(epilogue: str, lowest: float, highest: float) -> None:
    out = activated(everything(), epilogue)
    assert out.min() == lowest
    assert out.max() == highest


@pytest.mark.parametrize("epilogue", ["none", "relu", "relu6", "relu2"])
def test_activations_without_a_series_are_exact(epilogue: str) -> None:
    x = everything()
    assert torch.equal(activated(x, epilogue), ACTIVATIONS[epilogue](x))


def test_gelu_and_its_approximations_are_told_apart() -> None:
    x = torch.tensor([2.5, -1.5, 0.7])
    exact, by_tanh, quick = (activated(x, name) for name in ("gelu", "gelu_tanh", "quick_gelu"))
    expected = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]
    torch.testing.assert_close(exact, torch.tensor(expected), rtol=1e-6, atol=0)
    assert (exact - by_tanh).abs().min() > 1e-5
    assert (by_tanh - quick).abs().min() > 1e-3
