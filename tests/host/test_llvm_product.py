"""The bf16 product compiled by LLVM, and what follows it: against fp64, a row's bits, and what is read and written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.ops import linear as eager
from padless.engine.ops.cpu import vector_linear as row
from padless.kernels.llvm import host, product
from padless.kernels.llvm.host import has_tiles, missing_features
from padless.kernels.llvm.product import EPILOGUES, multiply, pack

NAN, INF = math.nan, math.inf
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def needs_bf16() -> None:
    if missing := missing_features(BF16):
        pytest.skip("; ".join(missing))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def gated(request: pytest.FixtureRequest) -> bool:
    return request.param


def made(
    tokens: int, outputs: int, inputs: int, *, gated: bool = False, dtype: torch.dtype = BF16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, weight, bias and residual; sums of about one."""
    generator = torch.Generator().manual_seed(100 * tokens + outputs)
    shapes = ((tokens, inputs), (outputs, inputs), (outputs,), (tokens, outputs // (2 if gated else 1)))
    x, weight, bias, residual = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.to(dtype), (weight / math.sqrt(inputs)).to(dtype), bias.to(dtype), residual.to(dtype)


def assert_twice_eager(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md."""
    same = eager.linear(x, weight, bias, **options)
    wide: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()
    }
    exact = eager.linear(x.double(), weight.double(), None if bias is None else bias.double(), **wide)
    assert out.dtype == same.dtype
    assert out.shape == same.shape
    errors = [(one.double() - exact).abs().max().item() for one in (out, same)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(out.dtype).eps * exact.abs().max().item(), errors


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


# Against the specification.


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"),
    [(1, 64, 8), (5, 128, 40), (6, 64, 384), (7, 192, 72), (37, 384, 64), (101, 64, 3072)],
)
def test_any_shape(tokens: int, outputs: int, inputs: int, gated: bool) -> None:
    x, weight, bias, _ = made(tokens, outputs, inputs, gated=gated)
    assert_twice_eager(multiply(x, pack(weight, bias, gated=gated)), x, weight, bias, gated=gated)
    assert_twice_eager(multiply(x, pack(weight, None, gated=gated)), x, weight, None, gated=gated)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_all_that_follows_it(epilogue: str, wide: bool, added: bool, gated: bool) -> None:
    x, weight, bias, residual = made(23, 128, 48, gated=gated)
    packed = pack(weight, bias, gated=gated)
    residual = residual if added else None
    out = multiply(x, packed, epilogue=epilogue, residual=residual, wide=wide)
    options = {"epilogue": epilogue, "gated": gated, "residual": residual, "wide": wide}
    assert_twice_eager(out, x, weight, bias, **options)
    assert len(multiply(x[:0], packed, epilogue=epilogue, residual=None, wide=wide)) == 0


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gelu_tanh"])
def test_a_wide_result_has_the_places_of_fp32(epilogue: str, gated: bool) -> None:
    x, weight, bias, _ = made(23, 128, 48, gated=gated)
    out = multiply(x, pack(weight, bias, gated=gated), epilogue=epilogue, wide=True)
    exact = eager.linear(x.double(), weight.double(), bias.double(), epilogue=epilogue, gated=gated)
    assert (out.double() - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_more_rows_than_stay_in_the_cache_together() -> None:
    x, weight, bias, residual = made(200, 64, 1536)
    assert product.BLOCK_BYTES // (2 * 1536) < 100
    assert_twice_eager(
        multiply(x, pack(weight, bias, gated=False), residual=residual), x, weight, bias, residual=residual
    )


def test_what_is_not_finite_stays_in_its_row_and_its_column(gated: bool) -> None:
    x, weight, bias, _ = made(9, 128, 16, gated=gated)
    x[2, 3], x[5, 0], weight[70, 1] = NAN, INF, NAN
    out = multiply(x, pack(weight, bias, gated=gated), epilogue="relu").isfinite()
    columns = [70 - 64] if gated else [70]
    assert torch.equal(out[:, columns].any(), torch.tensor(False))
    assert not out[2].any()
    others = [column for column in range(out.shape[1]) if column not in columns]
    assert out[[0, 1, 3, 4, 6, 7, 8]][:, others].all()
    assert multiply(x, pack(weight, bias, gated=gated), epilogue="relu")[2].isnan().all()


# A row's bits.


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("tokens", [3, 14, 95])
def test_a_rows_bits_depend_on_neither_neighbours_nor_threads(
    tokens: int, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "WORTH_A_THREAD", 1)
    x, weight, bias, residual = made(tokens, 192, 1536, gated=gated)
    packed = pack(weight, bias, gated=gated)
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(multiply(x, packed, epilogue="gelu", residual=residual))
        assert same_bits(found[-1], found[0])
    for place in (0, tokens // 2, tokens - 1):
        alone = slice(place, place + 1)
        out = multiply(x[alone], packed, epilogue="gelu", residual=residual[alone])
        assert same_bits(out[0], found[0][place])


# What is read and written.


def test_rows_that_lie_apart_are_read_where_they_are_and_nothing_else(gated: bool) -> None:
    x, weight, bias, residual = made(13, 128, 24, gated=gated)
    packed = pack(weight, bias, gated=gated)
    expected = multiply(x, packed, residual=residual)
    features = residual.shape[1]
    around = [torch.full((17, width + 9), NAN, dtype=BF16) for width in (24, features)]
    apart = [whole[2:-2, 5:-4] for whole in around]
    for view, values in zip(apart, (x, residual), strict=True):
        view.copy_(values)
    assert same_bits(multiply(apart[0], packed, residual=apart[1]), expected)
    turned = [values.T.contiguous().T for values in (x, residual)]
    assert turned[0].stride(1) != 1
    assert same_bits(multiply(turned[0], packed, residual=turned[1]), expected)


@pytest.mark.parametrize("wide", [False, True])
def test_nothing_but_the_result_is_written(gated: bool, wide: bool) -> None:
    x, weight, bias, residual = made(8, 192, 16, gated=gated)
    packed = pack(weight, bias, gated=gated)
    features = residual.shape[1]
    out = torch.full((12, features + 6), 7.0, dtype=F32 if wide else BF16)
    inner = out[2:-2, 3:-3]
    run = product._kernel(16, "none", gated, True, True, wide)
    assert packed.bias is not None
    tensors = (x, packed.panels, packed.bias, residual, inner)
    strides = (2 * 16, 2 * features, out.stride(0) * out.element_size())
    # The panel in the middle, and rows 1 to 6.
    run(*(one.data_ptr() for one in tensors), *strides, 1, 2, 1, 7)
    written = torch.zeros_like(out, dtype=torch.bool)
    panel = product.PANEL // (2 if gated else 1)
    written[3:9, 3 + panel : 3 + 2 * panel] = True
    assert (out[~written] == 7.0).all()
    expected = multiply(x, packed, residual=residual, wide=wide)[1:7, panel : 2 * panel]
    assert same_bits(inner[1:7, panel : 2 * panel], expected)


def test_what_would_read_behind_its_tensors_is_refused() -> None:
    x, weight, bias, residual = made(5, 64, 16)
    packed = pack(weight, bias, gated=False)
    with pytest.raises(ValueError, match=r"x: expected bfloat16 \[5, 16\], got torch.bfloat16 \[5, 8\]"):
        multiply(x[:, :8], packed)
    with pytest.raises(ValueError, match=r"x: expected bfloat16 \[5, 16\], got torch.float32"):
        multiply(x.float(), packed)
    for wrong in (residual[:4], residual[:, :32], residual.float()):
        with pytest.raises(ValueError, match=r"residual: expected bfloat16 \[5, 64\]"):
            multiply(x, packed, residual=wrong)


# The row of the table.


def call(**facts: Any) -> Call:
    return Call("linear", "cpu", **{"dtype": BF16, "hidden": 128, "inner": 40, "epilogue": "none", **facts})


def needs_no_tiles() -> None:
    if has_tiles():
        pytest.skip("this CPU has AMX, whose products are left to oneDNN")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("added", [None, BF16, F32])
@pytest.mark.parametrize("epilogue", ["none", "gelu"])
@pytest.mark.parametrize("wide", [False, True])
def test_the_row_whoever_takes_the_product(epilogue: str, added: torch.dtype | None, wide: bool, gated: bool) -> None:
    x, weight, bias, residual = made(11, 128, 40, gated=gated)
    given = None if added is None else residual.to(added)
    facts = call(epilogue=epilogue, gated=gated, deterministic=True)
    assert row.unsupported(facts) == []
    options = {"epilogue": epilogue, "gated": gated, "residual": given, "wide": wide}
    copies = [one.clone() for one in (x, weight, bias)]
    for cores, deterministic in ((1, False), (2, False), (2, True)):
        torch.set_num_threads(cores)
        prepared = row.Weights(weight, bias, gated, deterministic), bias
        assert prepared[0].compiled(len(x)) == (cores == 1 or deterministic)
        out = row.linear(x, *prepared, **options)
        assert_twice_eager(out, x, weight, bias, **options)
        with_statistics = row.linear(x, *prepared, **options, statistics=True)
        assert with_statistics[1] is None
        assert same_bits(with_statistics[0], out)
        empty = row.linear(x[:0], *prepared, **{**options, "residual": None if given is None else given[:0]})
        assert empty.shape == (0, 64 if gated else 128)
    assert all(same_bits(one, copy) for one, copy in zip((x, weight, bias), copies, strict=True))


@pytest.mark.usefixtures("threads")
def test_a_rotation_behind_it() -> None:
    x, weight, bias, _ = made(9, 192, 64)
    generator = torch.Generator().manual_seed(3)
    angles = torch.randn(9, 16, generator=generator)
    rope = (torch.arange(9, dtype=torch.int32), angles.cos(), angles.sin())
    facts = call(hidden=192, inner=64, rope=True, head_dim=32, deterministic=True)
    assert row.unsupported(facts) == []
    for deterministic in (True, False):
        prepared = row.Weights(weight, bias, False, deterministic), bias
        torch.set_num_threads(2)
        out = row.linear(x, *prepared, rope=rope, turned=128)
        assert_twice_eager(out, x, weight, bias, rope=rope, turned=128)
        assert row.linear(x[:0], *prepared, rope=(rope[0][:0], *rope[1:]), turned=128).shape == (0, 192)


def test_large_products_are_compiled_whatever_the_number_of_threads() -> None:
    needs_no_tiles()
    _, weight, bias, _ = made(1, 1536, 384)
    weights = row.prepare(weight, bias, call=call(hidden=1536, inner=384))[0]
    assert isinstance(weights, row.Weights)
    assert [weights.compiled(tokens) for tokens in (1, 10_000)] == [torch.get_num_threads() == 1, True]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"hidden": 96}, "needs bfloat16 and features in multiples of 64 from multiples of 8 where deterministic=True"),
        ({"inner": 36}, "needs bfloat16 and features in multiples of 64 from multiples of 8 where deterministic=True"),
        ({"dtype": F32}, "needs bfloat16 and features in multiples of 64 from multiples of 8 where deterministic=True"),
        ({"epilogue": "tanh"}, "needs rope, or epilogue none or relu or gelu or gelu_tanh, got tanh"),
        ({"rope": True, "head_dim": 48}, "needs head_dim a multiple of 32, got 48"),
    ],
)
def test_what_it_does_not_promise(facts: dict[str, Any], reason: str) -> None:
    assert row.unsupported(call(**facts, deterministic=True)) == [reason]


def test_where_the_cpu_has_tiles_they_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_features", lambda: dict.fromkeys(
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "amx-bf16"), True))  # fmt: skip
    assert row.unsupported(call()) == ["needs rope, or epilogue gelu or gelu_tanh, got none"]
    assert row.unsupported(call(deterministic=True)) == []
