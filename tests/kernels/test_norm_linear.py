"""norm_linear's kernel in the interpreter: the eager op in fp64 by the 2x rule, with all that it does to a product."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_cases import ROWS, X_LAYOUTS, RopeCase, in_fp64
from norm_linear_cases import (
    HALVES,
    NORMS,
    STATISTICS,
    Case,
    TurnedCase,
    assert_right,
    handed_on,
    kernel,
    operands,
    tiles_of,
    turned_operands,
    weights_of,
)
from operands import LAYOUTS, distinct, grid, sampled, sparse, spread
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.ops.linear import ACTIVATIONS
from padless.engine.ops.norm_linear import norm_linear as eager
from padless.kernels import norm_linear as kernel_file
from padless.kernels.norm_linear import norm_linear, prepare

EPILOGUES = tuple(ACTIVATIONS)
TOKENS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
INPUTS = (1, 2, 3, 7, 16, 17, 24, 31, 33, 48, 63, 64, 65, 100, 127, 128, 129, 160, 200, 257)
OUTPUTS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 72, 127, 128, 129, 191)
OFFSETS = (0.0, 0.0, 1.0, -30.0)
"""Means, in deviations."""

CASES = sampled(
    Case, 444, seed=1, dtype=HALVES, norm=NORMS, tokens=TOKENS, inputs=INPUTS, outputs=OUTPUTS, shift=(True, False),
    bias=(True, False), wide_norm=(False, False, True), epilogue=EPILOGUES, gated=(False, True), statistics=STATISTICS,
    x=X_LAYOUTS, eps=(1e-12, 1e-6, 1e-5), magnitude=(1e-2, 1.0, 1.0, 300.0), offset=OFFSETS,
)  # fmt: skip
ROPES = sampled(
    RopeCase, 222, seed=2, dtype=HALVES, tokens=TOKENS, inputs=INPUTS, head_dim=(2, 6, 16, 24, 64),
    heads=((1, 1, 1), (2, 2, 2), (3, 1, 2), (1, 1, 0), (2, 1, 1), (1, 1, 3), (5, 5, 5)), bias=(True, False),
    rows=ROWS, tables=LAYOUTS, x=X_LAYOUTS, magnitude=(1e-2, 1.0, 1.0, 300.0),
)  # fmt: skip
ROTATIONS = sampled(TurnedCase, 222, seed=3, norm=NORMS, statistics=STATISTICS, offset=OFFSETS, of=ROPES)

PLAIN = Case(
    torch.float16, "layer_norm", 37, 40, 50, True, True, False, "none", False, "handed on", "dense", 1e-5, 1.0, 1.0
)
TURNED = TurnedCase(
    "layer_norm", "handed on", 1.0,
    RopeCase(torch.float16, 37, 24, 16, (2, 1, 1), True, "positions", "dense", "dense", 1.0),
)  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"epilogue": "gelu", "bias": False},
    "gated silu": {"epilogue": "silu", "gated": True},
}


def changed(case: Case = PLAIN, **fields: Any) -> Case:
    return Case(**{**vars(case), **fields})


def turned_case(
    case: TurnedCase = TURNED, *, norm: str | None = None, statistics: str | None = None, **of: Any
) -> TurnedCase:
    return TurnedCase(
        norm or case.norm, statistics or case.statistics, case.offset, RopeCase(**{**vars(case.of), **of})
    )


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    x, weights, options = operands(case)
    assert_right(x, weights, **options)


@pytest.mark.parametrize("case", grid(ROTATIONS, unmarked=25))
def test_two_times_rule_of_rotations(case: TurnedCase) -> None:
    x, weights, options = turned_operands(case)
    assert_right(x, weights, **options)


@pytest.mark.parametrize(("epilogue", "gated", "norm", "dtype"), spread(5, EPILOGUES, (False, True), NORMS, HALVES))
def test_every_epilogue_in_every_form(epilogue: str, gated: bool, norm: str, dtype: torch.dtype) -> None:
    for statistics, bias in itertools.product(STATISTICS, (False, True)):
        case = changed(
            dtype=dtype, tokens=5, inputs=19, outputs=13, epilogue=epilogue, gated=gated, norm=norm, bias=bias,
            statistics=statistics,
        )  # fmt: skip
        x, weights, options = operands(case)
        assert_right(x, weights, **options)


def whole_rows(tokens: int, inputs: int, mean: float, dtype: torch.dtype) -> Tensor:
    """Half of each row 2 above the mean and half of it 2 below, each row in an order of its own."""
    x = torch.full((tokens, inputs), mean - 2.0, dtype=dtype)
    for row in range(tokens):
        chosen = torch.randperm(inputs, generator=torch.Generator().manual_seed(row))[: inputs // 2]
        x[row, chosen] = mean + 2.0
    return x


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("norm", NORMS)
def test_whole_numbers_are_exact(norm: str, statistics: str, dtype: torch.dtype) -> None:
    # Deviations of 2 are halved: what is summed is +1 and -1 times whole numbers, and what is scaled 2 and -2 times.
    mean = 5.0 if norm == "layer_norm" else 0.0
    for tokens, inputs, outputs, gated in (
        (3, 4, 5, False),
        (33, 32, 66, False),
        (35, 48, 20, True),
        (17, 144, 9, True),
    ):
        x = whole_rows(tokens, inputs, mean, dtype)
        generator = torch.Generator().manual_seed(inputs)
        bias = torch.randint(-2, 3, (outputs * (1 + gated),), generator=generator).to(dtype)
        # Of each row half is 1 and half -1, and still so once it is scaled: there is no mean to take away.
        weight = whole_rows(len(bias), inputs // 2, 0.0, dtype).repeat(1, 2) / 2
        scale = torch.full((inputs,), 2.0, dtype=dtype)
        scale[: inputs // 2] = 1
        shift = torch.randint(-1, 2, (inputs,), generator=generator).to(dtype) if norm == "layer_norm" else None
        rows = (x.double() - mean) / 2 * scale.double() + (0 if shift is None else shift.double())
        product = rows @ weight.double().T + bias.double()
        expected = product[:, :outputs].clamp_min(0) * product[:, outputs:] if gated else product.clamp_min(0)
        got = kernel(
            x, (scale, shift, weight, bias), norm=norm, eps=0.0, epilogue="relu", gated=gated,
            statistics=handed_on(x, statistics),
        )  # fmt: skip
        assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize(("tokens", "outputs"), [(0, 16), (3, 0), (0, 0)])
def test_empty_operands(tokens: int, outputs: int, statistics: str, norm: str) -> None:
    x, weights, options = operands(changed(tokens=tokens, outputs=outputs, norm=norm))
    options["statistics"] = None if statistics == "own" else x.new_empty(tokens, 1, 2, dtype=torch.float32)
    assert assert_right(x, weights, **options).shape == (tokens, outputs)


def test_no_tokens_to_turn() -> None:
    x, weights, options = turned_operands(turned_case(statistics="own", tokens=0))
    assert kernel(x, weights, **options).shape == (0, 64)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gated", [False, True])
def test_what_is_not_finite_stays_in_its_row(gated: bool, norm: str, statistics: str) -> None:
    x, weights, options = operands(changed(epilogue="gelu", gated=gated, norm=norm))
    options["statistics"] = handed_on(x, statistics)
    before = kernel(x, weights, **options)
    for value, row in ((torch.nan, 7), (torch.inf, 0), (-torch.inf, 36)):
        struck = x.clone()
        struck[row, 39] = value
        options["statistics"] = handed_on(struck, statistics)
        got, others = kernel(struck, weights, **options), torch.arange(37) != row
        assert torch.equal(got[others], before[others])
        assert not got[row].isfinite().any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", NORMS)
def test_rows_of_zeros_are_what_the_bias_is(norm: str, dtype: torch.dtype) -> None:
    x, weights, options = operands(changed(dtype=dtype, norm=norm, tokens=5))
    x[3] = 0
    shift = prepare(*weights, call=Call("norm_linear", "cpu", dtype, norm=norm))[2]
    assert shift is not None
    for statistics in STATISTICS:
        got = kernel(x, weights, **{**options, "eps": 1e-12, "statistics": handed_on(x, statistics)})
        assert torch.equal(got[3], shift.to(dtype))


@pytest.mark.parametrize(("form", "norm", "statistics", "dtype"), spread(5, FORMS, NORMS, STATISTICS, HALVES))
def test_a_row_has_the_same_bits_alone_and_in_a_batch(
    form: str, norm: str, statistics: str, dtype: torch.dtype
) -> None:
    case = changed(dtype=dtype, tokens=150, inputs=130, outputs=70, norm=norm, statistics=statistics, **FORMS[form])
    x, weights, options = operands(case)
    batch, given = kernel(x, weights, **options), options.pop("statistics")
    for start, stop in ((0, 1), (149, 150), (5, 22), (100, 150)):
        alone = x[start:stop]
        found = handed_on(alone, statistics)
        if found is not None:
            assert torch.equal(found, given[start:stop])
        assert torch.equal(kernel(alone, weights, statistics=found, **options), batch[start:stop])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_a_turned_row_has_the_same_bits_alone_and_in_a_batch(norm: str, statistics: str) -> None:
    case = turned_case(norm=norm, statistics=statistics, tokens=150, inputs=70, head_dim=24, rows="permuted")
    x, weights, options = turned_operands(case)
    batch, (rows, *tables) = kernel(x, weights, **options), options["rope"]
    for start, stop in ((0, 1), (149, 150), (5, 22), (100, 150)):
        found = handed_on(x[start:stop], statistics)
        part = {**options, "rope": (rows[start:stop], *tables), "statistics": found}
        assert torch.equal(kernel(x[start:stop], weights, **part), batch[start:stop])


@pytest.mark.parametrize(("dtype", "form"), spread(2, HALVES, ("gated", "turned", "rms")))
def test_every_candidate_obeys_the_rule(dtype: torch.dtype, form: str) -> None:
    # 88 and 48 channels begin at multiples of 16 bytes, which tensor descriptors ask for.
    gated = changed(dtype=dtype, tokens=70, inputs=88, outputs=65, epilogue="gelu", gated=True)
    turned = turned_case(dtype=dtype, tokens=70, inputs=48, head_dim=6, heads=(5, 2, 2))
    rms = changed(gated, norm="rms_norm", gated=False, statistics="own")
    x, weights, options = turned_operands(turned) if form == "turned" else operands(gated if form == "gated" else rms)
    for config in distinct(kernel_file.CANDIDATES):
        assert_right(x, weights, config=config, **options)


SHAPES = ((1, 170), (150, 1), (150, 40), (40, 170), (81, 97), (300, 33))


@pytest.mark.parametrize(("shape", "form", "norm", "statistics"), spread(7, SHAPES, FORMS, NORMS, STATISTICS))
def test_many_tiles(shape: tuple[int, int], form: str, norm: str, statistics: str) -> None:
    # More tiles than programs, and groups of them that no border fits.
    tokens, outputs = shape
    case = changed(tokens=tokens, inputs=17, outputs=outputs, norm=norm, statistics=statistics, **FORMS[form])
    x, weights, options = operands(case)
    for parts in (1, 4):
        assert_right(x, weights, config=tiles_of(16, 64 if parts == 4 else 16, parts=parts, group=3), **options)


@pytest.mark.parametrize("inputs", [255, 256, 257, 300, 1100])
@pytest.mark.parametrize("norm", NORMS)
def test_more_runs_than_are_merged_at_once(norm: str, inputs: int) -> None:
    x, weights, options = operands(changed(norm=norm, inputs=inputs, statistics="short runs", offset=20.0))
    assert options["statistics"].shape[1] == -(-inputs // 16)
    assert_right(x, weights, **options)


def far_apart(x: Tensor, folder: Path) -> Tensor:
    """The rows of `x` 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around."""
    apart, (rows, width) = 2**28, x.shape
    return sparse(folder, (rows - 1) * apart + width, x.dtype).as_strided((rows, width), (apart, 1)).copy_(x)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("operand", ["x", "weight"])
def test_operands_beyond_two_to_the_31_elements(operand: str, statistics: str, tmp_path: Path) -> None:
    case = changed(tokens=19, inputs=24, outputs=18, epilogue="gelu", statistics=statistics)
    x, weights, options = operands(case)
    weight, sums, bias = prepare(*weights, call=Call("norm_linear", "cpu", x.dtype, norm=case.norm))
    expected = norm_linear(x, weight, sums, bias, **options)
    if operand == "x":
        x = far_apart(x, tmp_path)
    else:
        weight = far_apart(weight, tmp_path)
    assert torch.equal(norm_linear(x, weight, sums, bias, **options), expected)


LARGEST = 4000
"""Mean, in deviations, up to which the docstring of the kernel promises the 2x rule."""


def steps(tokens: int, inputs: int, ratio: float, dtype: torch.dtype) -> Tensor:
    """Rows of about 1.5, whose deviation is a share of that: in steps of the last place, few of them where it must."""
    generator = torch.Generator().manual_seed(inputs)
    place = torch.finfo(dtype).eps
    deviation = 1.5 / place / ratio
    if deviation >= 1:
        drawn = (torch.randn(tokens, inputs, generator=generator) * deviation).round()
    else:
        drawn = (torch.rand(tokens, inputs, generator=generator) < deviation**2).float()
        drawn *= torch.randint(0, 2, (tokens, inputs), generator=generator) * 2 - 1
        drawn[:, 0] = 1
    return (1.5 + place * drawn.double()).to(dtype)


@pytest.mark.parametrize(("statistics", "dtype", "inputs"), spread(5, STATISTICS, HALVES, (64, 768, 4096)))
def test_large_means(statistics: str, dtype: torch.dtype, inputs: int) -> None:
    # The mean meets the sum of a row of weights, which of random numbers is nearly 0: these have a mean of their own.
    scale, shift, weight, bias = weights_of(40, inputs, dtype, "layer_norm", True, True, False, seed=1)
    weight = (weight.double() + inputs**-0.5).to(dtype)
    for ratio in (30, 300, LARGEST):
        x = steps(12, inputs, ratio, dtype)
        found = x.double().mean(dim=1) / x.double().std(dim=1, correction=0)
        assert found.max() > 0.8 * ratio or inputs == 64
        options: dict[str, Any] = {"norm": "layer_norm", "eps": 1e-12, "statistics": handed_on(x, statistics)}
        assert_right(x, (scale, shift, weight, bias), **options)


@pytest.mark.parametrize("dtype", HALVES)
def test_planted_outliers(dtype: torch.dtype) -> None:
    # A few channels of all tokens hundreds of times the others, as in trained encoders' streams.
    for norm, statistics in itertools.product(NORMS, STATISTICS):
        x, weights, options = operands(changed(dtype=dtype, norm=norm, inputs=200, offset=0.0))
        x[:, 33], x[:, 150], x[4, 20] = 900.0, -400.0, -3000.0
        weights[2][17] *= 30
        options["statistics"] = handed_on(x, statistics)
        assert_right(x, weights, **options)


@pytest.mark.parametrize("norm", NORMS)
def test_the_product_is_rounded_once(norm: str) -> None:
    # Eager rounds the normalised row, the product and the activation.
    for dtype in HALVES:
        x, weights, options = operands(changed(dtype=dtype, norm=norm, inputs=200, outputs=70, epilogue="gelu"))
        got, same = kernel(x, weights, **options).double(), eager(x, *weights, **options).double()
        call = Call("norm_linear", "cpu", dtype, norm=norm)
        scaled, _, bias = in_fp64(prepare(*weights, call=call))
        without = torch.ones(200, dtype=torch.float64)
        exact = eager(x.double(), without, None, scaled, bias, **options)
        half = 0.5 * torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).smallest_normal)
        assert ((got - exact).abs() <= half + 2e-5).all()
        assert ((same - exact).abs() > half + 2e-5).any()


def test_statistics_may_be_a_view() -> None:
    x, weights, options = operands(changed(inputs=100))
    expected = kernel(x, weights, **options)
    given = options.pop("statistics")
    for view in (given.movedim(0, -1).contiguous().movedim(-1, 0), torch.stack([given, given + 1])[0]):
        assert torch.equal(kernel(x, weights, statistics=view, **options), expected)
