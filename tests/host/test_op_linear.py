"""Linear: the eager row against numpy in fp64, the CPU row against eager by the 2x rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from padless.engine.contract import Call
from padless.engine.models.activations import ACTIVATIONS as CONFIG_NAMES
from padless.engine.ops.cpu import linear as cpu
from padless.engine.ops.linear import ACTIVATIONS, linear
from padless.engine.ops.rope import rope

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


# Rotation, width, and residuals of another dtype.


def a_rotation(tokens: int, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two tables of cosines and sines, scaled, of which no token has the first."""
    generator = torch.Generator().manual_seed(tokens)
    angles = torch.rand(tokens + 5, half, generator=generator, dtype=torch.float64) * 7
    return torch.randperm(tokens + 4, generator=generator)[:tokens] + 1, angles.cos() * 1.5, angles.sin() * 1.5


def turned_by_hand(product: np.ndarray, rotation: tuple[Tensor, Tensor, Tensor], turned: int) -> np.ndarray:
    """Each pair of channels as one complex number, times that of its token and place."""
    rows, cos, sin = (table.numpy() for table in rotation)
    half = cos.shape[1]
    out = product.copy()
    for token, row in enumerate(rows):
        for start in range(0, turned, 2 * half):
            first, second = slice(start, start + half), slice(start + half, start + 2 * half)
            pairs = (product[token, first] + 1j * product[token, second]) * (cos[row] + 1j * sin[row])
            out[token, first], out[token, second] = pairs.real, pairs.imag
    return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_dim", [2, 6, 24, 64])
@pytest.mark.parametrize(("queries", "keys", "values"), [(2, 2, 2), (3, 1, 1), (1, 1, 0), (1, 1, 4)])
def test_rope_turns_queries_and_keys_alone(queries: int, keys: int, values: int, head_dim: int, bias: bool) -> None:
    turned = (queries + keys) * head_dim
    x, weight, b, _ = arguments(7, 11, turned + values * head_dim, torch.float64, bias=bias)
    rotation = a_rotation(7, head_dim // 2)
    product = x.numpy() @ weight.numpy().T + (0 if b is None else b.numpy())
    out = linear(x, weight, b, rope=rotation, turned=turned)
    np.testing.assert_allclose(out.numpy(), turned_by_hand(product, rotation, turned), rtol=1e-12, atol=1e-12)
    # As the op that turns queries and keys which were projected before.
    plain = linear(x, weight, b)
    q, k = plain[:, :turned].unflatten(1, (-1, head_dim)).split([queries, keys], dim=1)
    expected = [part.flatten(1) for part in rope(q, k, *rotation)]
    assert torch.equal(out, torch.cat([*expected, plain[:, turned:]], dim=1))


def test_rope_is_that_of_transformers() -> None:
    # Their tables repeat each half, and hold a row for each token of each text.
    x, weight, b, _ = arguments(9, 16, 3 * 4 * 8, torch.float64)
    rows, cos, sin = a_rotation(9, 4)
    projected = linear(x, weight, b).view(1, 9, 12, 8).transpose(1, 2)
    their_cos, their_sin = (table[rows].repeat(1, 2)[None] for table in (cos, sin))
    theirs = apply_rotary_pos_emb(projected[:, :4], projected[:, 4:8], their_cos, their_sin)
    out = linear(x, weight, b, rope=(rows, cos, sin), turned=64).view(9, 12, 8)
    torch.testing.assert_close(out[:, :8], torch.cat(theirs, dim=1)[0].transpose(0, 1), rtol=0, atol=1e-13)
    assert torch.equal(out[:, 8:], projected[0, 8:].transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epilogue", ["gelu_tanh", "gelu", "none"])
def test_a_gate_beyond_half_precision_is_wide(epilogue: str, dtype: torch.dtype) -> None:
    # As mT5's: halves of some 260, whose product is beyond the 65,504 that fp16 holds.
    x = torch.tensor([[265.0, 264.0], [3.0, -2.0]], dtype=dtype)
    halves = torch.eye(2, dtype=dtype)
    out = linear(x, halves, None, epilogue=epilogue, gated=True, wide=True)
    assert out.dtype == torch.float32
    expected = activated(epilogue, x[:, :1].double().numpy()) * x[:, 1:].double().numpy()
    assert expected.max() == 69960 if dtype == torch.float16 else expected.max() > 65504
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=1e-6)
    narrow = linear(x, halves, None, epilogue=epilogue, gated=True)
    assert narrow.dtype == dtype
    assert narrow[0].isinf().all() if dtype == torch.float16 else narrow[0].isfinite().all()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("stream", [None, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_as_wide_as_what_it_is_made_of(
    dtype: torch.dtype, stream: torch.dtype | None, wide: bool
) -> None:
    size = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4, torch.float64: 8}
    x, weight, b, r = arguments(3, 5, 4, dtype, residual=True)
    assert r is not None
    for gated in (False, True):
        added = None if stream is None else r[:, : 2 if gated else 4].to(stream)
        out = linear(x, weight, b, gated=gated, residual=added, wide=wide)
        widest = max(size[dtype], size[stream or dtype], 4 if wide else 2)
        # fp16 holds what bf16 does not, and the other way round: only fp32 holds both.
        mixed = {dtype, stream} == {torch.float16, torch.bfloat16}
        assert out.dtype.itemsize == max(widest, 4 if mixed else 2)
        assert out.dtype in ({dtype, stream} if out.dtype.itemsize == 2 else {torch.float32, torch.float64})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_residual_stream_in_fp32_is_not_rounded(dtype: torch.dtype) -> None:
    x, weight, b, _ = arguments(3, 5, 4, dtype)
    stream = torch.tensor([[1e7, 1 + 2**-20, -3e-9, 70000.0]]).repeat(3, 1)
    assert torch.equal(linear(x * 0, weight, None, residual=stream), stream)
    assert torch.equal(linear(x, weight, b, residual=stream), stream + linear(x, weight, b).float())


WAYS: dict[str, dict[str, Any]] = {
    "rope": {"rope": True},
    "rope with bias": {"rope": True, "bias": True},
    "wide": {"wide": True, "bias": True},
    "wide gelu": {"wide": True, "epilogue": "gelu"},
    "wide gated silu": {"wide": True, "epilogue": "silu", "gated": True, "bias": True},
    "stream in fp32": {"stream": torch.float32, "epilogue": "none", "bias": True},
    "stream in fp32 behind gelu": {"stream": torch.float32, "epilogue": "gelu", "wide": True},
    "stream in fp32 behind a gate": {"stream": torch.float32, "epilogue": "gelu_tanh", "gated": True},
    "stream in bf16": {"stream": torch.bfloat16, "epilogue": "relu", "bias": True},
    "stream in fp16": {"stream": torch.float16, "epilogue": "none"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "inputs"), [(0, 67), (1, 67), (33, 67), (150, 900)])
def test_cpu_row_turns_widens_and_adds_by_the_two_times_rule(
    rows: int, inputs: int, way: str, dtype: torch.dtype
) -> None:
    facts = {"bias": False, "rope": False, "wide": False, "epilogue": "none", "gated": False, "stream": None}
    facts |= WAYS[way]
    outputs = 72
    x, weight, b, _ = arguments(rows, inputs, outputs, dtype, bias=facts["bias"])
    options: dict[str, Any] = {name: facts[name] for name in ("epilogue", "gated", "wide")}
    if facts["rope"]:
        places, *tables = a_rotation(rows, 6)
        options |= {"rope": (places, *(table.float() for table in tables)), "turned": 48}
    if facts["stream"] is not None:
        width = outputs // 2 if facts["gated"] else outputs
        options["residual"] = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(facts["stream"])
    kept = [value.clone() for value in (x, options.get("residual", x))]
    actual, eager = cpu.linear(x, *prepared(weight, b), **options), linear(x, weight, b, **options)
    exact = dict(options)
    if "residual" in exact:
        exact["residual"] = exact["residual"].double()
    if "rope" in exact:
        exact["rope"] = (exact["rope"][0], *(table.double() for table in exact["rope"][1:]))
    reference = linear(x.double(), weight.double(), None if b is None else b.double(), **exact)
    assert (actual.dtype, actual.shape) == (eager.dtype, eager.shape)
    assert torch.equal(x, kept[0])
    assert torch.equal(options.get("residual", x), kept[1])
    if rows:
        errors = [(out.double() - reference).abs().max().item() for out in (actual, eager)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(actual.dtype).eps * reference.abs().max().item()
