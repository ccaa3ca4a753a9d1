"""The ground the other tests of this folder stand on: the interpreter computes bf16 as a GPU does, and the guard bites.

A new Triton that undoes the patch, or a guard that no longer sees anything, fails here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from guard import OutOfBoundsError, RaceError, watched
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor
from two_times_rule import assert_two_times_rule

from padless.kernels.interpreter import apply
from padless.kernels.launch import Config, launch

SMALL = Config.of(num_warps=1)
RULE = "cast to fp32 first"


def run(kernel: Any, *arguments: Any, grid: int = 1, **constants: Any) -> None:
    names = kernel.arg_names[: len(arguments)]
    launch(kernel, (grid,), dict(zip(names, arguments, strict=True)), constants, SMALL)


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a = tl.load(a_ptr + rows * N + columns)
    b = tl.load(b_ptr + rows * N + columns)
    product = tl.dot(a, tl.trans(b), input_precision="ieee")
    tl.store(out_ptr + rows * N + columns, product.to(out_ptr.dtype.element_ty))


@triton.jit
def _cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dot_of_known_integers_is_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 10, (32, 32), generator=generator) for _ in range(2))
    out = torch.empty(32, 32)
    run(_dot_kernel, a.to(dtype), b.to(dtype), out, N=32)
    assert torch.equal(out, (a @ b.T).float())


@triton.jit
def _tall_dot_kernel(a_ptr, b_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    rows += tl.program_id(0) * M
    a = tl.load(a_ptr + rows[:, None] * K + inner[None, :])
    b = tl.load(b_ptr + inner[:, None] * N + columns[None, :])
    product = tl.dot(a, b, tl.zeros([M, N], tl.float32), input_precision="ieee")
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], product)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [16, 64, 256])
def test_a_row_of_a_dot_has_the_same_bits_however_many_rows_there_are(dtype: torch.dtype, inner: int) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(128, inner, generator=generator).to(dtype), torch.randn(inner, 64, generator=generator).to(dtype)
    results = []
    for rows in (16, 32, 128):
        results.append(torch.empty(128, 64))
        run(_tall_dot_kernel, a, b, results[-1], grid=128 // rows, M=rows, N=64, K=inner)
        assert torch.equal(results[-1], results[0])
    torch.testing.assert_close(results[0].double(), a.double() @ b.double(), rtol=0, atol=1e-4)


def test_a_cast_to_bf16_rounds_to_nearest_and_ties_to_even() -> None:
    # 1 + 2^-8 lies half way between 1 and 1 + 2^-7, 1 + 3 * 2^-8 half way between 1 + 2^-7 and 1 + 2^-6.
    tie, odd_tie, up, down = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 1 + 2.0**-8 - 2.0**-23
    x = torch.tensor([tie, -tie, odd_tie, up, down, 3.4e38, -3.4e38, 1e-40], dtype=torch.float32)
    out = torch.empty(8, dtype=torch.bfloat16)
    run(_cast_kernel, x, out, N=8)
    expected = [1.0, -1.0, 1 + 2.0**-6, 1 + 2.0**-7, 1.0, torch.inf, -torch.inf, x[7].bfloat16().item()]
    assert out.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int32])
def test_casts_from_and_to_bf16_are_those_of_torch(dtype: torch.dtype) -> None:
    x = (torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 1000).to(dtype)
    narrow, back = torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=dtype)
    run(_cast_kernel, x, narrow, N=4096)
    assert torch.equal(narrow, x.bfloat16())
    run(_cast_kernel, narrow, back, N=4096)
    assert torch.equal(back, narrow.to(dtype))


def test_nan_and_infinities_survive_the_casts() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan])
    narrow, back = torch.empty(4, dtype=torch.bfloat16), torch.empty(4)
    run(_cast_kernel, x, narrow, N=4)
    run(_cast_kernel, narrow, back, N=4)
    assert back.isnan().tolist() == [True, False, False, True]
    assert back[1:3].tolist() == [torch.inf, -torch.inf]


@triton.jit
def _constant_kernel(x_ptr, out_ptr, limit, N: tl.constexpr):
    offs = tl.arange(0, N)
    x = tl.load(x_ptr + offs, mask=offs < limit, other=-2.0)
    tl.store(out_ptr + offs, tl.where(offs < N - 1, x, tl.full([N], 1.5, tl.bfloat16)))


def test_constants_and_select_of_bf16() -> None:
    x, out = torch.tensor([0.25, 3.0, 9.0, 9.0]).bfloat16(), torch.empty(4, dtype=torch.bfloat16)
    run(_constant_kernel, x, out, 2, N=4)
    assert out.tolist() == [0.25, 3.0, -2.0, 1.5]


@triton.jit
def _arithmetic_kernel(x_ptr, out_ptr, WHICH: tl.constexpr):
    offs = tl.arange(0, 16)
    x = tl.load(x_ptr + offs)
    y = x
    if WHICH == "add":
        y = x + x
    elif WHICH == "multiply":
        y = x * x
    elif WHICH == "compare":
        y = x >= tl.load(x_ptr + offs)
    elif WHICH == "negate":
        y = -x
    elif WHICH == "fma":
        y = tl.fma(x, x, x)
    elif WHICH == "sum":
        y = tl.sum(x, 0)
    elif WHICH == "add constant":
        y = x + 1.0
    tl.store(out_ptr + offs, y.to(tl.float32))


@pytest.mark.parametrize("which", ["add", "multiply", "compare", "negate", "fma", "sum", "add constant"])
def test_arithmetic_on_bf16_is_refused_by_naming_the_rule(which: str) -> None:
    out = torch.zeros(16)
    run(_arithmetic_kernel, torch.ones(16), out, WHICH="add")
    assert out.tolist() == [2.0] * 16
    with pytest.raises(InterpreterError, match=f"NotImplementedError.*{RULE}"):
        run(_arithmetic_kernel, torch.ones(16).bfloat16(), out, WHICH=which)


@triton.jit
def _extremes_kernel(x_ptr, out_ptr):
    x = tl.load(x_ptr + tl.arange(0, 16))
    tl.store(out_ptr, tl.max(x, 0))
    tl.store(out_ptr + 1, tl.min(x, 0))


def test_extremes_of_bf16_which_triton_takes_in_fp32() -> None:
    x, out = torch.linspace(-3, -2, 16).bfloat16(), torch.empty(2)
    run(_extremes_kernel, x, out)
    assert out.tolist() == [-2.0, -3.0]


@triton.jit
def _maximum_of_two_kernel(x_ptr, out_ptr, KEEPS: tl.constexpr):
    offs = tl.arange(0, 16)
    x = tl.load(x_ptr + offs)
    ones = tl.full([16], 1.0, tl.float32)
    if KEEPS:
        high = tl.maximum(x, ones, propagate_nan=tl.PropagateNan.ALL)
        low = tl.minimum(ones, x, propagate_nan=tl.PropagateNan.ALL)
    else:
        high, low = tl.maximum(x, ones), tl.minimum(ones, x)
    tl.store(out_ptr + offs, high)
    tl.store(out_ptr + 16 + offs, low)


@pytest.mark.parametrize("keeps", [False, True])
def test_of_a_number_and_nan_the_extreme_is_the_number_unless_nan_is_asked_for(keeps: bool) -> None:
    """As PTX has it: `max.f32` drops NaN, `max.NaN.f32` keeps it."""
    x = torch.tensor([math.nan, 5.0, -5.0, math.inf] * 4)
    out = torch.empty(32)
    run(_maximum_of_two_kernel, x, out, KEEPS=keeps)
    lost = math.nan if keeps else 1.0
    expected = torch.tensor([lost, 5.0, 1.0, math.inf] * 4 + [lost, 1.0, -5.0, 1.0] * 4)
    assert torch.equal(out.nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))


def test_applying_the_patch_again_changes_nothing() -> None:
    builder = interpreter.InterpreterBuilder
    before = builder.cast_impl, builder.create_dot, builder.binary_op
    apply()
    assert (builder.cast_impl, builder.create_dot, builder.binary_op) == before


@triton.jit
def _masked_infinities_kernel(x_ptr, out_ptr):
    offs = tl.arange(0, 16)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, tl.where(offs < 8, x - x, 1.0 / (x * 0.0)))


@triton.jit
def _maximum_kernel(x_ptr, out_ptr):
    tl.store(out_ptr, tl.max(tl.load(x_ptr + tl.arange(0, 16)), 0))


def test_a_kernel_warns_of_nan_no_more_than_a_gpu_does() -> None:
    out = torch.empty(16)
    run(_masked_infinities_kernel, torch.full((16,), torch.inf), out)
    assert out.isnan().all()
    run(_maximum_kernel, out, out[:1])
    assert out[:1].isnan().all()


@triton.jit
def _copy_kernel(x_ptr, out_ptr, length, LOAD_TO, STORE_TO, N: tl.constexpr, PLAIN: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    if PLAIN:
        tl.store(out_ptr + offs, tl.load(x_ptr + offs))
    else:
        x = tl.load(x_ptr + offs, mask=offs < LOAD_TO, other=0.0)
        tl.store(out_ptr + offs, x, mask=offs < STORE_TO)


def copy(x: Tensor, out: Tensor, load_to: int, store_to: int, *, plain: int = 0, grid: int = 2) -> None:
    run(_copy_kernel, x, out, x.numel(), load_to, store_to, grid=grid, N=8, PLAIN=plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_a_masked_load_and_store_within_bounds_pass(dtype: torch.dtype) -> None:
    x, out = torch.arange(13).to(dtype), torch.empty(13, dtype=dtype)
    copy(x, out, 13, 13)
    assert torch.equal(out, x)


def test_an_active_lane_that_loads_out_of_bounds_is_found() -> None:
    with pytest.raises(OutOfBoundsError, match=r"\(1, 0, 0\): load of 1 of 6 .* 0 bytes behind the end of x_ptr"):
        copy(torch.zeros(13), torch.empty(16), 14, 16)


def test_an_active_lane_that_stores_out_of_bounds_is_found() -> None:
    with pytest.raises(OutOfBoundsError, match=r"store of 2 of 8 .* behind the end of out_ptr"):
        copy(torch.zeros(16), torch.empty(14), 16, 16)


@pytest.mark.parametrize(("x_size", "out_size", "what"), [(15, 16, "load"), (16, 15, "store")])
def test_a_load_or_store_without_a_mask_is_checked(x_size: int, out_size: int, what: str) -> None:
    with pytest.raises(OutOfBoundsError, match=f"{what} of 1 of 8"):
        copy(torch.zeros(x_size), torch.empty(out_size), 0, 0, plain=1)


def test_what_lies_before_a_view_or_behind_it_is_out_of_bounds() -> None:
    memory = torch.zeros(64)
    with pytest.raises(OutOfBoundsError, match="load of 6 of 8"):
        copy(memory[8:18], torch.empty(16), 16, 16)
    # Strided rows: from the first to the last element of the view.
    copy(memory.view(8, 8)[:2, :8].reshape(-1), torch.empty(16), 16, 16)


def test_an_empty_tensor_has_no_memory() -> None:
    with pytest.raises(OutOfBoundsError, match="load of 1 of 1"):
        copy(torch.zeros(0), torch.empty(16), 1, 16)


@triton.jit
def _shifted_kernel(out_ptr, shift, N: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out_ptr + program * shift + tl.arange(0, N), program.to(tl.float32))


def test_two_programs_that_store_to_one_address_are_found() -> None:
    out = torch.empty(16)
    run(_shifted_kernel, out, 8, grid=2, N=8)
    assert out.tolist() == [0.0] * 8 + [1.0] * 8
    with pytest.raises(RaceError, match=r"programs 0 and 1 .*byte 28 of out_ptr"):
        run(_shifted_kernel, out, 7, grid=2, N=8)


@triton.jit
def _collapsing_kernel(x_ptr, out_ptr):
    offs = tl.arange(0, 8)
    tl.store(out_ptr + offs // 2, tl.load(x_ptr + offs))


def test_lanes_that_disagree_about_an_address_are_found() -> None:
    run(_collapsing_kernel, torch.ones(8), torch.empty(4))
    with pytest.raises(RaceError, match="lanes store different values"):
        run(_collapsing_kernel, torch.arange(8.0), torch.empty(4))


@triton.jit
def _descriptor_kernel(x, out_ptr, first):
    tile = x.load([first, 0])
    rows, columns = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    tl.store(out_ptr + rows * 8 + columns, tile)


needs_descriptors = pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of triton 3.6 cannot load by descriptor with numpy 2.4",
)


@needs_descriptors
def test_a_descriptor_pads_at_its_edge_and_is_checked_beyond_the_tensor() -> None:
    x, out = torch.ones(6, 8), torch.empty(4, 8)
    run(_descriptor_kernel, TensorDescriptor(x, [6, 8], [8, 1], [4, 8]), out, 4)
    assert out.sum(1).tolist() == [8.0, 8.0, 0.0, 0.0]
    claims_too_much = TensorDescriptor(x, [7, 8], [8, 1], [4, 8])
    with pytest.raises(OutOfBoundsError, match="load of 8 of 24"):
        run(_descriptor_kernel, claims_too_much, out, 4)


def test_an_output_that_nobody_wrote_is_seen() -> None:
    x = torch.ones(16)
    out = torch.empty_like(x)
    copy(x, out, 16, 12)
    assert out[:12].tolist() == [1.0] * 12
    assert out[12:].isnan().all()
    with pytest.raises(AssertionError, match="NaN in other places"):
        assert_two_times_rule(out, x, x.double())


def test_every_way_to_ask_for_memory_is_poisoned() -> None:
    like = torch.zeros(3, dtype=torch.bfloat16)
    for memory in (torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty_strided((3,), (2,))):
        assert memory.isnan().all()
    assert torch.empty(2, dtype=torch.int32).tolist() == [-(2**31)] * 2


def test_the_guard_can_be_entered_within_itself() -> None:
    with watched():
        copy(torch.zeros(16), torch.empty(16), 16, 16)


def test_the_two_times_rule_is_as_tight_as_it_says() -> None:
    reference = torch.tensor([1.0, -2.0], dtype=torch.float64)
    eager = (reference + 1e-3).float()
    assert_two_times_rule((reference - 1.99e-3).float(), eager, reference)
    with pytest.raises(AssertionError, match="error 2"):
        assert_two_times_rule((reference - 2.01e-3).float(), eager, reference)
    assert_two_times_rule(reference.float(), reference.float(), reference)
    with pytest.raises(AssertionError, match="above"):
        assert_two_times_rule((reference + 1e-6).float(), reference.float(), reference)
    with pytest.raises(AssertionError, match="infinite in other places"):
        assert_two_times_rule(torch.tensor([1.0, -torch.inf]), eager, reference)
    both = torch.tensor([torch.inf])
    with pytest.raises(AssertionError, match="another sign"):
        assert_two_times_rule(both, -both, -both.double())
    with pytest.raises(AssertionError):
        assert_two_times_rule(reference.bfloat16(), eager, reference)
