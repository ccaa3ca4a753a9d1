"""Pointed tests of norm_linear: small errors that grids of random numbers would let pass; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import in_fp64, quarter_turns
from norm_linear_cases import HALVES, NORMS, STATISTICS, handed_on, kernel, tiles_of, weights_of
from operands import alike, normal

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.ops.norm_linear import norm_linear as eager
from padless.kernels import norm_linear as kernel_file
from padless.kernels.norm_linear import norm_linear, prepare


def call_of(norm: str = "layer_norm", dtype: torch.dtype = torch.float16, **facts: Any) -> Call:
    return Call("norm_linear", "cpu", dtype, norm=norm, **facts)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (3, 1), (2, 2), (5, 3)])
def test_each_row_has_its_own_mean_and_deviation(rows: int, columns: int, statistics: str) -> None:
    # Row i is i plus and minus i + 1: whichever row's numbers another one got, it would tell.
    tokens = 16 * rows - 3
    places = torch.arange(tokens, dtype=torch.float64)[:, None] % 97
    signs = torch.tensor([1.0, -1.0] * 16, dtype=torch.float64)
    x = (places + (places + 1) * signs).to(torch.float16)
    weight = torch.stack([signs * (1 + column % 3) for column in range(16 * columns)]).to(x.dtype)
    ones = torch.ones(32, dtype=x.dtype)
    got = kernel(
        x, (ones, None, weight, None), norm="layer_norm", eps=0.0, statistics=handed_on(x, statistics),
        config=tiles_of(16, 16, group=2),
    )  # fmt: skip
    expected = 32.0 * (1 + torch.arange(16 * columns) % 3)
    assert torch.equal(got, expected.expand(tokens, -1).to(x.dtype))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_eps_is_added_to_the_variance(norm: str, statistics: str) -> None:
    # Of a variance of 1: 1 / sqrt(1 + 3); of 0: 1 / sqrt(4).
    x = torch.tensor([[1.0, -1.0] * 10], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, -1.0] * 10], dtype=torch.bfloat16)
    options: dict[str, Any] = {"norm": norm, "statistics": handed_on(x, statistics)}
    ones = torch.ones(20, dtype=torch.bfloat16)
    assert kernel(x, (ones, None, weight, None), eps=3.0, **options).tolist() == [[10.0]]
    assert kernel(x, (ones, None, weight, None), eps=0.0, **options).tolist() == [[20.0]]


def test_the_mean_is_taken_from_a_layer_norm_alone() -> None:
    x = torch.tensor([[3.0, 5.0] * 8], dtype=torch.float16)
    weights = torch.ones(16, dtype=x.dtype), None, torch.ones(1, 16, dtype=x.dtype), None
    for statistics in STATISTICS:
        given = handed_on(x, statistics)
        assert kernel(x, weights, norm="layer_norm", eps=0.0, statistics=given).tolist() == [[0.0]]
        # 64 over the root of (9 + 25) / 2.
        got = kernel(x, weights, norm="rms_norm", eps=0.0, statistics=given)
        assert got.item() == pytest.approx(64 / 17**0.5, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_that_are_given_are_used(norm: str) -> None:
    x = normal(20, 70, seed=1, dtype=torch.float16)
    weights = weights_of(30, 70, x.dtype, norm, True, True, False, seed=1)
    options: dict[str, Any] = {"norm": norm, "eps": 1e-5}
    plain = kernel(x, weights, **options)
    doubled = handed_on((x.float() * 2).half(), "handed on")
    assert not torch.equal(kernel(x, weights, statistics=doubled, **options), plain)
    swapped = handed_on(x, "handed on")
    assert swapped is not None
    assert not torch.equal(kernel(x, weights, statistics=swapped.flip(0), **options), plain)


@pytest.mark.parametrize("norm", NORMS)
def test_runs_may_be_of_any_power_of_two(norm: str) -> None:
    x = normal(20, 83, seed=1, dtype=torch.float16) + 3
    weights = weights_of(30, 83, x.dtype, norm, True, True, False, seed=1)
    options: dict[str, Any] = {"norm": norm, "eps": 1e-5}
    expected = kernel(x, weights, **options).double()
    for run in (1, 2, 4, 8, 16, 32, 64, 128):
        parts = x.double().split(run, dim=1)
        means = torch.stack([part.mean(dim=1) for part in parts], dim=1)
        squares = torch.stack([part.var(dim=1, correction=0) * part.shape[1] for part in parts], dim=1)
        got = kernel(x, weights, statistics=torch.stack([means, squares], dim=2).float(), **options)
        assert ((got.double() - expected).abs() <= 2e-3 * expected.abs().clamp_min(1)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gated", [False, True])
def test_bias_and_sums_belong_to_their_columns(norm: str, gated: bool) -> None:
    # More columns than a tile has; a row of zeros shows the bias, and one of its neighbours' signs the sums.
    x = torch.zeros(18, 8, dtype=torch.float16)
    x[5] = torch.tensor([4.0, 2.0] * 4)
    rows = 80 * (1 + gated)
    weight = (torch.arange(rows * 8).view(rows, 8) % 7 - 3).to(x.dtype)
    bias = (torch.arange(rows) % 50).to(x.dtype)
    weights = torch.ones(8, dtype=x.dtype), None, weight, bias
    exact = eager(*map(in_fp64, (x, *weights)), norm=norm, eps=1.0, gated=gated)
    for config in (None, tiles_of(16, 32, parts=2), tiles_of(16, 64, parts=4)):
        got = kernel(x, weights, norm=norm, eps=1.0, gated=gated, config=config)
        assert torch.equal(got[0], exact[0].half())
        assert ((got - exact).abs() <= 0.01 * exact.abs().clamp_min(1)).all()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_sums_that_are_not_small_take_the_mean_away(statistics: str, gated: bool) -> None:
    # Weights as nobody prepares them: rows whose sums are large, each another.
    signs = torch.tensor([1.0, -1.0] * 16)
    x = (torch.arange(40.0)[:, None] % 7 + 2 * signs).half()
    weight = torch.stack([(1 + row % 5) + signs * (row % 3) for row in range(80)]).half()
    got = norm_linear(
        x, weight, weight.float().sum(dim=1), None, norm="layer_norm", eps=0.0, gated=gated,
        statistics=handed_on(x, statistics), config=tiles_of(16, 32, parts=2),
    )  # fmt: skip
    product = 32.0 * (torch.arange(80) % 3)
    expected = product[::2] * product[1::2] if gated else product
    assert torch.equal(got, expected.half().expand(40, -1))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wide", [False, True])
def test_prepared_weights_are_what_the_docstring_says(wide: bool, norm: str, dtype: torch.dtype) -> None:
    scale, shift, weight, bias = weights_of(70, 50, dtype, norm, True, True, wide, seed=1)
    before = [None if value is None else value.clone() for value in (scale, shift, weight, bias)]
    assert bias is not None
    folded, sums, moved = prepare(scale, shift, weight, bias, call=call_of(norm, dtype))
    exact = weight.double() * scale.double()
    if norm == "layer_norm":
        assert shift is not None
        assert sums is not None
        exact -= exact.mean(dim=1, keepdim=True)
        assert torch.equal(sums.double(), folded.double().sum(dim=1).float().double())
        expected = bias.double() + weight.double() @ shift.double()
    else:
        assert sums is None
        expected = bias.double()
    assert moved is not None
    assert (folded.dtype, moved.dtype) == (dtype, torch.float32)
    assert ((folded - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all()
    assert ((moved - expected).abs() <= 1e-6 * expected.abs().clamp_min(1)).all()
    # None where there is none.
    assert prepare(scale, None, weight, None, call=call_of(norm, dtype))[2] is None
    again = prepare(scale, None, weight, bias, call=call_of(norm, dtype))[2]
    assert again is not None
    assert torch.equal(again, bias.float())
    for value, old in zip((scale, shift, weight, bias), before, strict=True):
        assert value is None or old is None or alike(value, old)


def test_prepared_weights_lie_as_those_of_linear() -> None:
    ones = torch.ones(1, dtype=torch.float16)
    weight = torch.arange(8.0).half()[:, None]
    gated = prepare(ones, None, weight, weight[:, 0], call=call_of("rms_norm", gated=True))
    assert gated[0].flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert gated[2] is not None
    assert gated[2].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    two = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0], [3.0, 7.0]]).half()
    turned = prepare(ones.repeat(2), ones.repeat(2), two, None, call=call_of(rope=True, head_dim=4))
    assert turned[0].tolist() == [[-0.5, 0.5], [-1.5, 1.5], [-1.0, 1.0], [-2.0, 2.0]]
    assert turned[1] is not None
    assert turned[1].tolist() == [0.0] * 4
    assert turned[2] is not None
    assert turned[2].tolist() == [1.0, 7.0, 4.0, 10.0]


@pytest.mark.parametrize("statistics", STATISTICS)
def test_turns_are_of_what_is_normalised(statistics: str) -> None:
    # A quarter turn takes the second half of a head to the first with its sign, after the bias.
    x = torch.tensor([[7.0, 3.0] * 12] * 20, dtype=torch.float16)
    weight = torch.stack([torch.tensor([1.0, -1.0] * 12) * (row + 1) for row in range(12)]).half()
    bias = torch.arange(12.0).half()
    cos, sin = quarter_turns(2, 8)
    rows = torch.arange(20) % 8
    product = 24.0 * torch.arange(1, 13) + bias.double()
    expected = product.expand(20, 12).clone().view(20, 3, 4)
    first, second = expected[:, :2, :2].clone(), expected[:, :2, 2:].clone()
    cosine, sine = cos[rows][:, None], sin[rows][:, None]
    expected[:, :2, :2], expected[:, :2, 2:] = first * cosine - second * sine, second * cosine + first * sine
    got = kernel(
        x, (torch.ones(24).half(), None, weight, bias), norm="layer_norm", eps=0.0, rope=(rows, cos, sin), turned=8,
        statistics=handed_on(x, statistics),
    )  # fmt: skip
    assert torch.equal(got.double(), expected.flatten(1))


X, WEIGHT = normal(6, 80, seed=1, dtype=torch.float16), normal(12, 80, seed=2, dtype=torch.float16)
SUMS, BIAS, FOUND = torch.zeros(12), torch.zeros(12), torch.ones(6, 2, 2)
TURN = (torch.arange(6), torch.ones(6, 2), torch.zeros(6, 2))

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fp32": ({"x": X.float(), "weight": WEIGHT.float()}, "x: expected float16 or bfloat16, got float32"),
    "fp64": ({"x": X.double(), "weight": WEIGHT.double()}, "float64"),
    "weight of another dtype": ({"weight": WEIGHT.bfloat16()}, "x float16, weight bfloat16"),
    "bias in half precision": ({"bias": BIAS.half()}, "bias: expected float32, got float16"),
    "sums in half precision": ({"sums": SUMS.half()}, "sums: expected float32, got float16"),
    "statistics in half precision": ({"statistics": FOUND.half()}, "statistics: expected float32, got float16"),
    "statistics in fp64": ({"statistics": FOUND.double()}, "statistics: expected float32, got float64"),
    "an unknown norm": ({"norm": "no_norm"}, "norm: expected one of layer_norm, rms_norm, got 'no_norm'"),
    "layer norm without sums": ({"sums": None}, "sums: expected them for layer_norm alone, got layer_norm without"),
    "rms norm with sums": ({"norm": "rms_norm"}, "sums: expected them for layer_norm alone, got rms_norm with them"),
    "x 1-D": ({"x": X[0]}, "x.*80"),
    "x narrower": ({"x": X[:, :-1]}, "x.*6, 79"),
    "x without columns": ({"x": X[:, :0], "weight": WEIGHT[:, :0]}, "x: expected rows 1 to 8192 wide, got 0"),
    "x wider than a program": ({"x": X.new_zeros(2, 8193), "weight": X.new_zeros(12, 8193)}, "8192 wide, got 8193"),
    "bias longer": ({"bias": BIAS.repeat(2)}, "bias.*24"),
    "sums longer": ({"sums": SUMS.repeat(2)}, "sums.*24"),
    "sums 2-D": ({"sums": SUMS[None]}, r"sums.*\[1, 12\]"),
    "statistics of fewer rows": ({"statistics": FOUND[1:]}, r"statistics.*\[6, any, 2\].*\[5, 2, 2\]"),
    "statistics of three numbers": ({"statistics": torch.ones(6, 2, 3)}, r"statistics.*\[6, 2, 3\]"),
    "statistics 2-D": ({"statistics": FOUND[:, 0]}, r"statistics.*\[6, 2\]"),
    "no runs": ({"statistics": FOUND[:, :0]}, "statistics: expected runs of a power of two of 80 columns, got 0"),
    "runs of no power of two": ({"statistics": torch.ones(6, 4, 2)}, "statistics: .*80 columns, got 4"),
    "more runs than columns": ({"statistics": torch.ones(6, 81, 2)}, "statistics: .*80 columns, got 81"),
    "statistics elsewhere": ({"statistics": FOUND.to("meta")}, "statistics: expected device cpu.*meta"),
    "sums elsewhere": ({"sums": SUMS.to("meta")}, "sums: expected device cpu.*meta"),
    "bias elsewhere": ({"bias": BIAS.to("meta")}, "bias: expected device cpu.*meta"),
    "weight elsewhere": ({"weight": WEIGHT.to("meta")}, "meta"),
    "an unknown epilogue": ({"epilogue": "swish"}, "epilogue.*swish"),
    "an odd number to halve": ({"weight": WEIGHT[1:], "gated": True}, "11"),
    "turned by half a head": ({"rope": TURN, "turned": 6}, "turned.*6"),
    "turned without rope": ({"turned": 4}, "turned.*4"),
    "too few rows": ({"rope": (TURN[0][1:], *TURN[1:]), "turned": 8}, r"\[6\].*\[5\]"),
    "rope with a gate": ({"rope": TURN, "turned": 4, "gated": True}, "rope"),
    "gradient of x": ({"x": X.clone().requires_grad_()}, "gradient"),
    "gradient of the sums": ({"sums": SUMS.clone().requires_grad_()}, "gradient"),
    "gradient of statistics": ({"statistics": FOUND.clone().requires_grad_()}, "gradient"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_served_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, "sums": SUMS, "bias": BIAS, "norm": "layer_norm", "eps": 0.1}
    assert norm_linear(**arguments, statistics=FOUND).isfinite().all()
    with pytest.raises(InputError, match=f"^norm_linear: .*{message}") as refusal:
        norm_linear(**{**arguments, **change})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((WEIGHT[0, :-1], None, WEIGHT, None), r"norm_weight: expected shape \[80\], got \[79\]"),
        ((WEIGHT[0], WEIGHT[:, 0], WEIGHT, None), r"norm_bias: expected shape \[80\], got \[12\]"),
        ((WEIGHT[0], None, WEIGHT[0], None), r"weight: expected shape \[any, any\], got \[80\]"),
        ((WEIGHT[0], None, WEIGHT, WEIGHT[0]), r"bias: expected shape \[12\], got \[80\]"),
    ],
    ids=("norm_weight", "norm_bias", "weight", "bias"),
)
def test_weights_that_do_not_fit_are_not_prepared(weights: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"^norm_linear: {message}$"):
        prepare(*weights, call=call_of())


def test_a_bias_of_an_rms_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"^norm_linear: norm_bias: expected None for rms_norm, got a tensor$"):
        prepare(WEIGHT[0], WEIGHT[1], WEIGHT, None, call=call_of("rms_norm"))


def test_what_the_row_serves_and_what_it_leaves_to_others() -> None:
    known: dict[str, Any] = {"hidden": 2304, "inner": 768, "epilogue": "none"}
    for dtype in HALVES:
        for norm in NORMS:
            assert kernel_file.unsupported(call_of(norm, dtype, **known)) == []
    for dtype in (torch.float32, torch.float64):
        (reason,) = kernel_file.unsupported(call_of(dtype=dtype, **known))
        assert reason.startswith("needs dtype float16 or bfloat16, got float")
    for change, found in (
        ({"norm": None}, "needs norm layer_norm or rms_norm, got None"),
        ({"norm": "no_norm"}, "needs norm layer_norm or rms_norm, got no_norm"),
        ({"residual": True}, "needs a call without residual and statistics of its results, got one"),
        ({"statistics": True}, "needs a call without residual and statistics of its results, got one"),
        ({"inner": 8193}, "needs rows 1 to 8192 wide, got 8193"),
        ({"inner": 0}, "needs rows 1 to 8192 wide, got 0"),
        ({"epilogue": "swish"}, "needs epilogue"),
        ({"gated": True, "hidden": 5}, "needs an even hidden"),
        ({"rope": True, "head_dim": 63}, "needs an even head_dim"),
    ):
        (reason,) = kernel_file.unsupported(call_of(**{"norm": "layer_norm", **known, **change}))
        assert reason.startswith(found)


def test_a_wide_plain_product_is_left_to_a_library() -> None:
    (reason,) = kernel_file.defers(call_of(hidden=1537, inner=768, epilogue="none"))
    assert reason == "leaves a wide plain product to cuBLAS behind a norm of its own: predicted, not measured"
    assert kernel_file.defers(call_of(hidden=1537, inner=768))
    for fused in ({"hidden": 1536}, {"epilogue": "gelu"}, {"gated": True}, {"rope": True, "head_dim": 64}):
        assert kernel_file.defers(call_of(**{"hidden": 4096, "inner": 768, "epilogue": "none", **fused})) == []


def test_parameters_are_served_where_no_gradient_is_recorded() -> None:
    x = X.clone().requires_grad_()
    weights = weights_of(12, 80, torch.float16, "layer_norm", True, True, False, seed=1)
    expected = kernel(X, weights, norm="layer_norm", eps=1e-5)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(kernel(x, weights, norm="layer_norm", eps=1e-5), expected)
