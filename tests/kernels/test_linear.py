"""Linear's kernel in the interpreter: the eager op in fp64 by the 2x rule, with each thing it does to a product."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_cases import (
    RESIDUAL_LAYOUTS,
    RESIDUALS,
    ROWS,
    X_LAYOUTS,
    Case,
    RopeCase,
    assert_right,
    facts,
    kernel,
    operands,
    quarter_turns,
    rope_operands,
    small_integers,
)
from operands import DTYPES, LAYOUTS, alike, distinct, grid, laid_out, normal, sampled, sparse, spread
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.ops.linear import ACTIVATIONS
from padless.engine.ops.linear import linear as eager
from padless.kernels import linear as kernel_file
from padless.kernels.launch import Config

EPILOGUES = tuple(ACTIVATIONS)
TOKENS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
INPUTS = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 160, 200)
OUTPUTS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 72, 127, 128, 129, 191)

CASES = sampled(
    Case, 444, seed=1, dtype=DTYPES, tokens=TOKENS, inputs=INPUTS, outputs=OUTPUTS, bias=(True, True, False),
    epilogue=EPILOGUES, gated=(False, True), wide=(False, False, True), residual=RESIDUALS,
    residual_layout=RESIDUAL_LAYOUTS, x=X_LAYOUTS, weight=LAYOUTS, magnitude=(1e-4, 1.0, 1.0, 300.0),
)  # fmt: skip
ROTATIONS = sampled(
    RopeCase, 222, seed=2, dtype=DTYPES, tokens=TOKENS, inputs=INPUTS, head_dim=(2, 6, 16, 24, 64),
    heads=((1, 1, 1), (2, 2, 2), (3, 1, 2), (1, 1, 0), (2, 1, 1), (1, 1, 3), (5, 5, 5)), bias=(True, False),
    rows=ROWS, tables=LAYOUTS, x=X_LAYOUTS, magnitude=(1e-4, 1.0, 1.0, 300.0),
)  # fmt: skip

PLAIN = Case(torch.float16, 37, 40, 50, True, "none", False, False, "none", "dense", "dense", "dense", 1.0)


def changed(case: Case = PLAIN, **fields: Any) -> Case:
    return Case(**{**vars(case), **fields})


def smallest(call: Call) -> Config:
    """The shipped configuration with tiles of 16 by 16: many of them even where operands are small."""
    config = kernel_file.default_config(call)
    blocks = tuple((name, min(size, 16) if name.startswith("BLOCK") else size) for name, size in config.blocks)
    return Config(blocks, config.num_warps, config.num_stages, config.max_registers)


@pytest.mark.parametrize("case", grid(CASES))
def test_two_times_rule(case: Case) -> None:
    tensors, options = operands(case)
    assert_right(*tensors, **options)


@pytest.mark.parametrize("case", grid(ROTATIONS, unmarked=25))
def test_two_times_rule_of_rotations(case: RopeCase) -> None:
    tensors, options = rope_operands(case)
    assert_right(*tensors, **options)


@pytest.mark.parametrize(("epilogue", "gated", "dtype"), spread(4, EPILOGUES, (False, True), DTYPES))
def test_every_epilogue_in_every_form(epilogue: str, gated: bool, dtype: torch.dtype) -> None:
    for wide, residual in itertools.product((False, True), ("none", "same", "fp32", "other")):
        case = changed(
            dtype=dtype, tokens=5, inputs=19, outputs=13, epilogue=epilogue, gated=gated, wide=wide, residual=residual
        )
        tensors, options = operands(case)
        assert_right(*tensors, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_an_epilogue_over_its_whole_range(epilogue: str, dtype: torch.dtype) -> None:
    # The product is x itself. Each stretch of arguments has its own bound: a large result excuses no small one.
    ones = torch.ones(1, 1, dtype=dtype)
    sizes = torch.logspace(-6 if dtype != torch.float16 else -3, 2.1, 320, dtype=torch.float64)
    x = torch.cat([-sizes.flip(0), sizes]).to(dtype)[:, None]
    got, same = kernel(x, ones, None, epilogue=epilogue), eager(x, ones, None, epilogue=epilogue)
    exact = eager(x.double(), ones.double(), None, epilogue=epilogue)
    for part in range(0, len(x), 16):
        stretch = slice(part, part + 16)
        # x times 1 + erf, where that is nearly 0, errs by x in fp32's last place.
        size = x[stretch].abs().max().item() * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps
        what = f"{epilogue} from {x[part].item()}"
        assert_two_times_rule(got[stretch], same[stretch], exact[stretch], what, size=size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_whole_numbers_are_exact(gated: bool, dtype: torch.dtype) -> None:
    for tokens, inputs, outputs in ((3, 7, 5), (33, 31, 66), (130, 17, 40), (17, 9, 258)):
        x, weight = (small_integers(rows, inputs, seed=rows, dtype=dtype) for rows in (tokens, outputs * (1 + gated)))
        bias, residual = (small_integers(*shape, seed=1, dtype=dtype) for shape in ((len(weight),), (tokens, outputs)))
        for epilogue in ("none", "relu"):
            product = x.double() @ weight.double().T + bias.double()
            expected = product.clamp_min(0) if epilogue == "relu" else product
            expected = expected[:, :outputs] * product[:, outputs:] if gated else expected
            got = kernel(x, weight, bias, epilogue=epilogue, gated=gated, residual=residual, wide=True)
            assert got.dtype == torch.float32
            assert torch.equal(got.double(), expected + residual.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 6, 16, 24, 64])
def test_quarter_turns_of_whole_numbers_are_exact(head_dim: int, dtype: torch.dtype) -> None:
    heads, half = 2, head_dim // 2
    x = small_integers(37, 15, seed=1, dtype=dtype)
    weight, bias = (small_integers(3 * heads * head_dim, *more, seed=2, dtype=dtype) for more in ((15,), ()))
    cos, sin = quarter_turns(half, 50)
    rows = torch.arange(49, 12, -1)
    product = (x @ weight.T + bias).view(37, 3 * heads, head_dim)
    first, second = product[..., :half].float(), product[..., half:].float()
    cosine, sine = cos[rows][:, None], sin[rows][:, None]
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(dtype)
    turned[:, 2 * heads :] = product[:, 2 * heads :]
    got = kernel(x, weight, bias, rope=(rows, cos, sin), turned=2 * heads * head_dim)
    assert torch.equal(got, turned.flatten(1))
    everything = kernel(x, weight, bias, rope=(rows, cos, sin), turned=3 * heads * head_dim)
    assert torch.equal(everything[:, : 2 * heads * head_dim], got[:, : 2 * heads * head_dim])
    assert not torch.equal(everything, got)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual", ["none", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(0, 24, 16), (3, 24, 0), (3, 0, 16), (0, 0, 0)])
def test_empty_operands(tokens: int, inputs: int, outputs: int, dtype: torch.dtype, residual: str, gated: bool) -> None:
    case = changed(dtype=dtype, tokens=tokens, inputs=inputs, outputs=outputs, residual=residual, gated=gated)
    tensors, options = operands(case)
    assert assert_right(*tensors, **options).shape == (tokens, outputs)


def test_no_tokens_to_turn() -> None:
    tensors, options = rope_operands(
        RopeCase(torch.float16, 0, 24, 16, (2, 1, 1), True, "positions", "dense", "dense", 1.0)
    )
    assert kernel(*tensors, **options).shape == (0, 64)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_what_is_not_finite_stays_in_its_row(epilogue: str, gated: bool) -> None:
    (x, weight, bias), options = operands(changed(dtype=torch.float32, epilogue=epilogue, gated=gated))
    before = kernel(x, weight, bias, **options)
    for value, row in ((torch.nan, 7), (torch.inf, 0), (-torch.inf, 36)):
        struck = x.clone()
        struck[row, 39] = value
        got, expected = (op(struck, weight, bias, **options) for op in (kernel, eager))
        others = torch.arange(37) != row
        assert torch.equal(got[others], before[others])
        if value != value:
            assert got[row].isnan().all()
        known = ~expected[row].isnan()
        torch.testing.assert_close(got[row][known], expected[row][known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_in_a_residual_stays_in_its_place(dtype: torch.dtype) -> None:
    (x, weight, bias), options = operands(changed(dtype=dtype, residual="same"))
    before = kernel(x, weight, bias, **options)
    options["residual"][36, 49], options["residual"][0, 0] = torch.nan, -torch.inf
    got = kernel(x, weight, bias, **options)
    struck = torch.zeros(37, 50, dtype=torch.bool)
    struck[36, 49] = struck[0, 0] = True
    assert torch.equal(~got.isfinite(), struck)
    assert torch.equal(got[~struck], before[~struck])


def test_what_is_not_finite_turns_within_its_row() -> None:
    (x, weight, bias), options = rope_operands(
        RopeCase(torch.float32, 37, 24, 16, (2, 1, 1), True, "positions", "dense", "dense", 1.0)
    )
    before = kernel(x, weight, bias, **options)
    x[33, 23] = torch.nan
    got, others = kernel(x, weight, bias, **options), torch.arange(37) != 33
    assert got[33].isnan().all()
    assert torch.equal(got[others], before[others])


FORMS: dict[str, dict[str, Any]] = {
    "bias": {},
    "gelu and residual": {"epilogue": "gelu", "residual": "fp32"},
    "gated silu": {"epilogue": "silu", "gated": True, "wide": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype, form: str) -> None:
    case = changed(dtype=dtype, tokens=150, inputs=130, outputs=70, **FORMS[form])
    (x, weight, bias), options = operands(case)
    batch, residual = kernel(x, weight, bias, **options), options.pop("residual")
    for start, stop in ((0, 1), (149, 150), (5, 22), (100, 150)):
        part = None if residual is None else residual[start:stop]
        assert torch.equal(kernel(x[start:stop], weight, bias, residual=part, **options), batch[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_turned_row_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    case = RopeCase(dtype, 150, 70, 24, (2, 1, 1), True, "permuted", "columns", "dense", 1.0)
    (x, weight, bias), options = rope_operands(case)
    batch, (rows, *tables) = kernel(x, weight, bias, **options), options["rope"]
    for start, stop in ((0, 1), (149, 150), (5, 22), (100, 150)):
        part = {**options, "rope": (rows[start:stop], *tables)}
        assert torch.equal(kernel(x[start:stop], weight, bias, **part), batch[start:stop])


def rotated_case(dtype: torch.dtype) -> RopeCase:
    return RopeCase(dtype, 70, 50, 6, (5, 2, 2), True, "permuted", "dense", "columns", 1.0)


@pytest.mark.parametrize(("dtype", "form"), spread(4, DTYPES, ("gated", "turned")))
def test_every_candidate_obeys_the_rule(dtype: torch.dtype, form: str) -> None:
    # 88 channels begin at multiples of 16 bytes, which tensor descriptors ask for.
    gated = changed(dtype=dtype, tokens=70, inputs=88, outputs=65, epilogue="gelu", gated=True, residual="same")
    tensors, options = operands(gated) if form == "gated" else rope_operands(rotated_case(dtype))
    for config in distinct(kernel_file.CANDIDATES):
        assert_right(*tensors, config=config, **options)


SHAPES = ((1, 170), (150, 1), (150, 40), (40, 170), (81, 97), (300, 33))


@pytest.mark.parametrize(("shape", "form", "dtype"), spread(7, SHAPES, FORMS, DTYPES))
def test_many_tiles(shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    # More tiles than programs, and groups of them that no border fits.
    case = changed(dtype=dtype, tokens=shape[0], inputs=17, outputs=shape[1], **FORMS[form])
    tensors, options = operands(case)
    assert_right(*tensors, config=smallest(facts(*tensors[:2], **options)), **options)


@pytest.mark.parametrize(("head_dim", "dtype"), spread(4, (6, 24, 64), DTYPES))
def test_heads_that_tiles_cut_in_two(head_dim: int, dtype: torch.dtype) -> None:
    case = RopeCase(dtype, 40, 17, head_dim, (1, 1, 1), True, "permuted", "dense", "dense", 1.0)
    tensors, options = rope_operands(case)
    assert_right(*tensors, config=smallest(facts(*tensors[:2], **options)), **options)


def test_thousands_of_tokens() -> None:
    case = changed(dtype=torch.bfloat16, tokens=2051, inputs=20, outputs=9, epilogue="gelu", residual="same")
    tensors, options = operands(case)
    assert_right(*tensors, **options)


def far_apart(x: Tensor, folder: Path) -> Tensor:
    """The rows of `x` 2^28 elements apart: the last ones lie where a 32-bit offset has wrapped around."""
    apart, (rows, width) = 2**28, x.shape
    return sparse(folder, (rows - 1) * apart + width, x.dtype).as_strided((rows, width), (apart, 1)).copy_(x)


@pytest.mark.parametrize("operand", ["x", "residual", "weight"])
def test_operands_beyond_two_to_the_31_elements(operand: str, tmp_path: Path) -> None:
    case = changed(tokens=19, inputs=24, outputs=18, residual="same", epilogue="gelu")
    (x, weight, bias), options = operands(case)
    expected = kernel(x, weight, bias, **options)
    if operand == "x":
        x = far_apart(x, tmp_path)
    elif operand == "weight":
        weight = far_apart(weight, tmp_path)
    else:
        options["residual"] = far_apart(options["residual"], tmp_path)
    assert torch.equal(kernel(x, weight, bias, **options), expected)


def test_turns_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    case = RopeCase(torch.float16, 5, 24, 20, (1, 1, 1), True, "positions", "dense", "dense", 1.0)
    (x, weight, bias), options = rope_operands(case)
    rows, cos, sin = options["rope"]
    far_rows = torch.tensor([0, 2**28 - 1, 2**27 + 5, 1, 2**28 - 2])
    memory = sparse(tmp_path, 2**28 * 20, torch.float32).view(-1, 20)
    memory[far_rows] = torch.cat([cos[rows], sin[rows]], dim=1)
    far = {**options, "rope": (far_rows, memory[:, :10], memory[:, 10:])}
    assert torch.equal(kernel(x, weight, bias, **far), kernel(x, weight, bias, **options))


def test_a_view_of_a_larger_table_lies_as_it_lies() -> None:
    (x, weight, bias), options = rope_operands(rotated_case(torch.float32))
    rows, cos, sin = options["rope"]
    expected = kernel(x, weight, bias, **options)
    spread = torch.stack([rows, rows + 10**6], dim=1)[:, 0]
    other = {**options, "rope": (spread, laid_out(cos, "columns"), laid_out(sin, "every second"))}
    assert alike(kernel(x, weight, bias, **other), expected)
    other["rope"] = (rows.int(), cos, sin)
    assert alike(kernel(x, weight, bias, **other), expected)


X, WEIGHT, BIAS = (normal(*shape, seed=1, dtype=torch.float32) for shape in ((6, 8), (12, 8), (12,)))
TURN = (torch.arange(6), torch.ones(6, 2), torch.zeros(6, 2))

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fp64": ({"x": X.double(), "weight": WEIGHT.double(), "bias": BIAS.double()}, "float32, float16.*float64"),
    "integers": ({"x": X.int(), "weight": WEIGHT.int(), "bias": None}, "float32, float16, bfloat16.*int32"),
    "weight of another dtype": ({"weight": WEIGHT.half()}, "float32.*float16"),
    "x of another dtype": ({"x": X.bfloat16()}, "bfloat16.*float32"),
    "bias of another dtype": ({"bias": BIAS.half()}, "bias.*float16"),
    "x 1-D": ({"x": X[0]}, "x.*8"),
    "x 3-D": ({"x": X[None]}, "x.*1, 6, 8"),
    "x narrower": ({"x": X[:, :-1]}, "x.*6, 7"),
    "bias longer": ({"bias": BIAS.repeat(2)}, "bias.*24"),
    "bias 2-D": ({"bias": BIAS[None]}, "bias.*1, 12"),
    "residual of fewer rows": ({"residual": torch.zeros(5, 12)}, "residual.*6, 12.*5, 12"),
    "residual of one row": ({"residual": torch.zeros(1, 12)}, "residual.*6, 12.*1, 12"),
    "residual narrower": ({"residual": torch.zeros(6, 11)}, "residual.*6, 12.*6, 11"),
    "residual of the ungated width": ({"residual": torch.zeros(6, 12), "gated": True}, "residual.*6, 6.*6, 12"),
    "residual int": ({"residual": torch.zeros(6, 12).int()}, "residual.*int32"),
    "residual elsewhere": ({"residual": torch.zeros(6, 12, device="meta")}, "residual.*cpu.*meta"),
    "bias elsewhere": ({"bias": BIAS.to("meta")}, "cpu.*meta|meta.*cpu"),
    "weight elsewhere": ({"weight": WEIGHT.to("meta"), "bias": None}, "cpu.*meta|meta.*cpu"),
    "an unknown epilogue": ({"epilogue": "swish"}, "epilogue.*swish"),
    "an odd number to halve": ({"weight": WEIGHT[1:], "bias": None, "gated": True}, "11"),
    "turned by half a head": ({"rope": TURN, "turned": 6}, "turned.*6"),
    "turned beyond the end": ({"rope": TURN, "turned": 16}, "turned.*16"),
    "turned without rope": ({"turned": 4}, "turned.*4"),
    "too few rows": ({"rope": (TURN[0][1:], *TURN[1:]), "turned": 8}, r"\[6\].*\[5\]"),
    "rows float": ({"rope": (TURN[0].float(), *TURN[1:]), "turned": 8}, "float32"),
    "tables in bf16": ({"rope": (TURN[0], TURN[1].bfloat16(), TURN[2].bfloat16()), "turned": 8}, "bfloat16"),
    "sines narrower": ({"rope": (*TURN[:2], TURN[2][:, 1:]), "turned": 8}, r"6, 1\]"),
    "sines elsewhere": ({"rope": (*TURN[:2], TURN[2].to("meta")), "turned": 8}, "meta"),
    "rope with a residual": ({"rope": TURN, "turned": 8, "residual": torch.zeros(6, 12)}, "rope"),
    "rope with an epilogue": ({"rope": TURN, "turned": 8, "epilogue": "gelu"}, "rope"),
    "rope with a gate": ({"rope": TURN, "turned": 4, "gated": True}, "rope"),
    "gradient of x": ({"x": X.clone().requires_grad_()}, "gradient"),
    "gradient of a residual": ({"residual": torch.zeros(6, 12, requires_grad=True)}, "gradient"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_served_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    assert kernel(X, WEIGHT, BIAS, residual=torch.zeros(6, 12)).isfinite().all()
    with pytest.raises(InputError, match=f"^linear: .*{message}") as refusal:
        kernel(**{"x": X, "weight": WEIGHT, "bias": BIAS, **change})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_parameters_are_served_where_no_gradient_is_recorded() -> None:
    x, weight, bias = (value.clone().requires_grad_() for value in (X, WEIGHT, BIAS))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(kernel(x, weight, bias), eager(X, WEIGHT, BIAS), rtol=1e-5, atol=1e-5)


def test_what_the_row_serves_and_what_it_leaves_to_others() -> None:
    (reason,) = kernel_file.unsupported(Call("linear", "cuda", torch.float64, sm=90, hidden=64, inner=64))
    assert "got float64" in reason
    for dtype in DTYPES:
        assert kernel_file.unsupported(Call("linear", "cuda", dtype, sm=90, hidden=64, inner=64)) == []
    # A plain product is that of a library that was tuned for years.
    plain = {"sm": 90, "hidden": 768, "inner": 768, "epilogue": "none"}
    for dtype in (torch.float16, torch.bfloat16):
        assert kernel_file.defers(Call("linear", "cuda", dtype, **plain))
        for fused in ({"epilogue": "gelu"}, {"gated": True}, {"rope": True, "head_dim": 64}):
            assert kernel_file.defers(Call("linear", "cuda", dtype, **{**plain, **fused})) == []
