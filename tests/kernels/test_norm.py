"""The norms' kernels in the interpreter: the eager ops in fp64 by the 2x rule, alone and with what is added before."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_cases import RESIDUAL_LAYOUTS, RESIDUALS, X_LAYOUTS, in_fp64
from norm_cases import OPS, Case, arguments, assert_right, results
from operands import DTYPES, distinct, grid, normal, sampled, sparse
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.kernels import norm as kernel_file

WIDTHS = (1, 2, 3, 16, 24, 127, 128, 129, 384, 512, 768, 1000, 1023, 1024, 1025, 4096, 8192)
SCALES: dict[str, Any] = {
    "layer_norm": {"magnitude": (1e-20, 1e-3, 1.0, 1.0, 300.0), "offset": (0.0, 0.0, 3.0, -100.0)},
    "rms_norm": {"magnitude": (1e-20, 1e-3, 1.0, 1.0, 300.0), "offset": (0.0, 0.0, 3.0)},
    "no_norm": {"magnitude": (1e-20, 1e-3, 1.0, 300.0, 1e7), "offset": (0.0, 0.0, 3.0)},
}

CASES = {
    op: sampled(
        Case, 444, seed=seed, dtype=DTYPES, weights=("same", "same", "next", "last"),
        tokens=(1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33), width=WIDTHS, bias=(True, False),
        eps=(1e-12, 1e-6, 1e-5, 0.3, 10.0), residual=RESIDUALS, x=X_LAYOUTS, residual_layout=RESIDUAL_LAYOUTS,
        strided=(False, False, True), wide=(False, True), **SCALES[op],
    )
    for seed, op in enumerate(OPS)
}  # fmt: skip

PLAIN = Case(torch.float32, "same", 33, 100, True, 1e-5, "none", "dense", "dense", False, 1.0, 0.0, False)


def changed(case: Case = PLAIN, **fields: Any) -> Case:
    return Case(**{**vars(case), **fields})


def check(op: str, case: Case) -> tuple[Tensor, ...]:
    tensors, options = arguments(op, case)
    return assert_right(op, *tensors, **options)


@pytest.mark.parametrize("case", grid(CASES["layer_norm"]))
def test_two_times_rule_of_layer_norm(case: Case) -> None:
    check("layer_norm", case)


@pytest.mark.parametrize("case", grid(CASES["rms_norm"]))
def test_two_times_rule_of_rms_norm(case: Case) -> None:
    check("rms_norm", case)


@pytest.mark.parametrize("case", grid(CASES["no_norm"]))
def test_two_times_rule_of_no_norm(case: Case) -> None:
    check("no_norm", case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["same", "next", "last"])
def test_every_combination_of_dtypes(weights: str, dtype: torch.dtype, op: str) -> None:
    for residual, bias, wide in itertools.product(("none", "same", "fp32", "other"), (True, False), (True, False)):
        check(op, changed(dtype=dtype, weights=weights, tokens=3, residual=residual, bias=bias, wide=wide))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("residual", ["none", "same"])
def test_every_small_width(residual: str, op: str) -> None:
    for width in range(1, 36):
        check(op, changed(tokens=3, width=width, residual=residual, dtype=DTYPES[width % 3]))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8191, 8192])
def test_wide_rows(width: int, dtype: torch.dtype, op: str) -> None:
    check(op, changed(dtype=dtype, tokens=3, width=width, residual="fp32"))


@pytest.mark.parametrize("op", OPS)
def test_thousands_of_tokens(op: str) -> None:
    check(op, changed(dtype=torch.bfloat16, tokens=3001, width=24, residual="same"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", ["none", "same", "fp32", "other"])
def test_no_tokens(residual: str, dtype: torch.dtype, op: str) -> None:
    got = check(op, changed(dtype=dtype, tokens=0, residual=residual))
    assert all(value.shape == (0, 100) for value in got)


@pytest.mark.parametrize("width", [24, 127, 768, 1023])
def test_rows_far_from_zero_keep_their_variance(width: int) -> None:
    # E[x^2] - E[x]^2 has no digit left where the mean is ten thousand times the deviation.
    out, *_ = check("layer_norm", changed(tokens=9, width=width, offset=1e4, magnitude=0.7))
    (x, weight, bias), _ = arguments("layer_norm", changed(tokens=9, width=width, offset=1e4, magnitude=0.7))
    assert x is not None
    assert weight is not None
    assert bias is not None
    values = x.double()
    expected = (values - values.mean(1, keepdim=True)) / values.std(1, correction=0, keepdim=True) * weight + bias
    assert (out - expected).abs().max() < 0.02


@pytest.mark.parametrize("width", [1, 3, 127, 768, 1023, 1024, 8192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_deviation_are_the_bias(dtype: torch.dtype, width: int) -> None:
    # Numbers of few digits, whose sums are exact: what is left of them is nothing, however small eps is.
    x = torch.tensor([3.0, -1000.0, 0.5, 0.0, 60000.0, -0.0625])[:, None].repeat(1, width).to(dtype)
    x[x.abs() > 3e4] = 57344.0
    weight, bias = normal(width, seed=1, dtype=dtype), normal(width, seed=2, dtype=dtype)
    for eps in (1e-12, 1e-5):
        assert torch.equal(OPS["layer_norm"][0](x, weight, bias, eps=eps), bias.expand_as(x))
        out, total = OPS["layer_norm"][0](x, weight, bias, eps=eps, residual=-x)
        assert torch.equal(out, bias.expand_as(x))
        assert not total.any()


@pytest.mark.parametrize("width", [24, 127, 1023])
def test_what_is_masked_takes_no_part_in_the_statistics(width: int) -> None:
    # All of a row far from zero: channels beyond the width, read as zeros, would be seen in mean and variance.
    x = normal(5, width, seed=1, dtype=torch.float32) + 1000
    out, _ = assert_right("layer_norm", x, torch.ones(width), None, eps=1e-5, residual=torch.zeros(5, width))
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.std(dim=1, correction=0), torch.ones(5), rtol=0, atol=1e-3)
    (out,) = assert_right("rms_norm", x, torch.ones(width), eps=1e-5)
    torch.testing.assert_close(out.square().mean(dim=1), torch.ones(5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("residual", ["same", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_outliers(dtype: torch.dtype, residual: str, op: str) -> None:
    # One channel of all tokens is thousands of times the others, as in trained encoders.
    tensors, options = arguments(op, changed(dtype=dtype, tokens=9, width=384, residual=residual))
    options["residual"][:, 77] = 3e4
    options["residual"][4, 78] = -1e4
    assert_right(op, *tensors, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_of_ten_million_keep_their_ratio(dtype: torch.dtype) -> None:
    # MobileBERT's stream, in fp32 also where the rest is half precision.
    x, weight, bias = (normal(*shape, seed=1, dtype=dtype) for shape in ((65, 128), (128,), (128,)))
    residual = normal(65, 128, seed=2, dtype=torch.float32)
    residual[:, 5] = 1e7 * (1 + torch.rand(65, generator=torch.Generator().manual_seed(3)))
    (out,) = assert_right("no_norm", x, weight, bias, residual=residual, wide=True)
    exact = (residual.double() + x.double()) * weight.double() + bias.double()
    assert out.dtype == torch.float32
    assert ((out[:, 5].double() / exact[:, 5]) - 1).abs().max() < 1e-6
    for op in ("layer_norm", "rms_norm"):
        tensors = (x, weight, bias)[: 2 + (op == "layer_norm")]
        normed, total = OPS[op][0](*tensors, eps=1e-6, residual=residual)
        exact = OPS[op][1](*in_fp64(tensors), eps=1e-6, residual=residual.double())
        assert torch.equal(total, residual + x)
        # Not by eager's error: one channel alone decides what both err by, 65 times by almost the same.
        allowed = (8 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps) * exact[0].abs().max()
        assert (normed - exact[0]).abs().max() <= allowed


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operand", ["x", "residual"])
def test_what_is_not_finite_stays_in_its_row(operand: str, value: float, dtype: torch.dtype, op: str) -> None:
    case = changed(dtype=dtype, residual="same")
    (x, *weights), options = arguments(op, case)
    assert x is not None
    before = results(OPS[op][0](x, *weights, **options))
    struck = x if operand == "x" else options["residual"]
    for row, channel in ((7, 99), (32, 0)):
        struck[row, channel] = value
    got = assert_right(op, x, *weights, **options)
    others = [row for row in range(33) if row not in (7, 32)]
    for one, old in zip(got, before, strict=True):
        assert torch.equal(one[others], old[others])
        assert not one[7, 99].isfinite()
        assert not one[32, 0].isfinite()
    if op == "layer_norm" or (op == "rms_norm" and value != value):
        assert got[0][[7, 32]].isnan().all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("residual", ["none", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype, residual: str, op: str) -> None:
    for width in (24, 100, 1030):
        (x, *weights), options = arguments(op, changed(dtype=dtype, tokens=37, width=width, residual=residual))
        assert x is not None
        batch, added = results(OPS[op][0](x, *weights, **options)), options.pop("residual")
        for start, stop in ((0, 1), (36, 37), (5, 22)):
            part = None if added is None else added[start:stop]
            alone = results(OPS[op][0](x[start:stop], *weights, residual=part, **options))
            for one, all_rows in zip(alone, batch, strict=True):
                assert torch.equal(one, all_rows[start:stop])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_candidate_obeys_the_rule(dtype: torch.dtype, op: str) -> None:
    for width in (100, 1025):
        tensors, options = arguments(op, changed(dtype=dtype, tokens=19, width=width, residual="same"))
        for config in distinct(kernel_file.CANDIDATES):
            assert_right(op, *tensors, config=config, **options)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("operand", ["x", "residual"])
def test_rows_beyond_two_to_the_31_elements(operand: str, op: str, tmp_path: Path) -> None:
    # Nineteen rows 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around.
    (x, *weights), options = arguments(op, changed(dtype=torch.float16, tokens=19, width=40, residual="same"))
    assert x is not None
    expected = results(OPS[op][0](x, *weights, **options))
    far = sparse(tmp_path, 18 * 2**28 + 40, torch.float16).as_strided((19, 40), (2**28, 1))
    if operand == "x":
        x = far.copy_(x)
    else:
        options["residual"] = far.copy_(options["residual"])
    for got, same in zip(results(OPS[op][0](x, *weights, **options)), expected, strict=True):
        assert torch.equal(got, same)


X, WEIGHT, BIAS = (normal(*shape, seed=1, dtype=torch.float32) for shape in ((6, 24), (24,), (24,)))

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "x fp64": ({"x": X.double()}, "float32, float16, bfloat16.*x float64"),
    "x int": ({"x": X.int()}, "float32, float16, bfloat16.*x int32"),
    "weight fp64": ({"weight": WEIGHT.double()}, "float32, float16, bfloat16.*weight float64"),
    "x 1-D": ({"x": X[0]}, "x: .*24"),
    "x 3-D": ({"x": X[None]}, "x: .*1, 6, 24"),
    "weight shorter": ({"weight": WEIGHT[1:]}, r"weight: .*\[24\].*\[23\]"),
    "weight 2-D": ({"weight": WEIGHT[None]}, r"weight: .*\[24\].*\[1, 24\]"),
    "weight elsewhere": ({"weight": WEIGHT.to("meta")}, "weight: .*cpu.*meta"),
    "residual of fewer rows": ({"residual": X[1:]}, r"residual: .*\[6, 24\].*\[5, 24\]"),
    "residual of one row": ({"residual": X[:1]}, r"residual: .*\[6, 24\].*\[1, 24\]"),
    "residual narrower": ({"residual": X[:, 1:]}, r"residual: .*\[6, 24\].*\[6, 23\]"),
    "residual int": ({"residual": X.int()}, "residual int32"),
    "residual elsewhere": ({"residual": X.to("meta")}, "residual: .*cpu.*meta"),
    "gradient of x": ({"x": X.clone().requires_grad_()}, "gradient"),
    "gradient of a weight": ({"weight": WEIGHT.clone().requires_grad_()}, "gradient"),
    "gradient of a residual": ({"residual": X.clone().requires_grad_()}, "gradient"),
}
REFUSED_BIAS: dict[str, tuple[dict[str, Any], str]] = {
    "bias longer": ({"bias": BIAS.repeat(2)}, r"bias: .*\[24\].*\[48\]"),
    "bias fp64": ({"bias": BIAS.double()}, "bias.*float64"),
    "bias elsewhere": ({"bias": BIAS.to("meta")}, "bias: .*cpu.*meta"),
    "gradient of a bias": ({"bias": BIAS.clone().requires_grad_()}, "gradient"),
}


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        pytest.param(op, *refused, id=f"{op}-{name}")
        for op in OPS
        for name, refused in {**REFUSED, **({} if op == "rms_norm" else REFUSED_BIAS)}.items()
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(op: str, change: dict[str, Any], message: str) -> None:
    call = {"x": X, "weight": WEIGHT, "bias": BIAS, "eps": 1e-5, **change}
    for name in {"layer_norm": (), "rms_norm": ("bias",), "no_norm": ("eps",)}[op]:
        del call[name]
    with pytest.raises(InputError, match=f"^{op}: .*{message}") as refusal:
        OPS[op][0](**call)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("op", OPS)
def test_parameters_are_served_where_no_gradient_is_recorded(op: str) -> None:
    tensors, options = arguments(op, changed(tokens=3))
    wanted = [None if value is None else value.clone().requires_grad_() for value in tensors]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            got, expected = (function(*wanted, **options) for function in OPS[op])
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_what_the_rows_serve_and_what_not(op: str) -> None:
    name = {"layer_norm": "norm"}.get(op, op)
    assert kernel_file.unsupported(Call(name, "cuda", torch.bfloat16, sm=90, hidden=8192)) == []
    (reason,) = kernel_file.unsupported(Call(name, "cuda", torch.float64, sm=90, hidden=768))
    assert "got float64" in reason
    too_wide = arguments(op, changed(tokens=1, width=8193, dtype=torch.float16))
    reasons = kernel_file.unsupported(Call(name, "cuda", torch.float16, sm=90, hidden=8193))
    if op == "no_norm":
        # No channel of it needs another: a row is never held whole.
        assert reasons == []
        assert_right(op, *too_wide[0], **too_wide[1])
    else:
        assert len(reasons) == 1
        assert "8192, got 8193" in reasons[0]
        with pytest.raises(InputError, match=f"^{op}: .*8192.*8193"):
            OPS[op][0](*too_wide[0], **too_wide[1])
