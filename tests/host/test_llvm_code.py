"""Loops over vectors compiled by LLVM: each operation of `Code` in a kernel of its own, against numpy or by hand."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.kernels.llvm.code import LANES, Code, Value, Variable
from padless.kernels.llvm.compiled import assembly, compiled_once
from padless.kernels.llvm.functions import power_of_two
from padless.kernels.llvm.host import in_parts, missing_features

if missing := missing_features(torch.float32):
    pytest.skip("; ".join(missing), allow_module_level=True)

NAN, INF = math.nan, math.inf
bf16 = pytest.mark.skipif(bool(missing_features(torch.bfloat16)), reason="needs a CPU with avx512bf16")


def written(body: Callable[..., None], *inputs: Tensor, out: Tensor, **integers: int) -> Tensor:
    """What `body(code, address of each input, address of out)` writes to `out`, and nothing beside it."""
    names = [f"input{place}" for place in range(len(inputs))]

    @compiled_once
    def kernel() -> Code:
        code = Code("kernel", dict.fromkeys([*names, "out"], "pointer") | dict.fromkeys(integers, "integer"))
        body(code, *(getattr(code, name) for name in [*names, "out"]))
        return code

    around = torch.full((len(out) + 32,), 77).to(out.dtype)
    inner = around[16:-16]
    inner.copy_(out)
    copies = [x.clone() for x in inputs]
    kernel()(*(x.data_ptr() for x in inputs), inner.data_ptr(), *integers.values())
    assert (around[:16] == 77).all()
    assert (around[-16:] == 77).all()
    assert all(torch.equal(x.view(torch.uint8), copy.view(torch.uint8)) for x, copy in zip(inputs, copies, strict=True))
    return inner


def lane_by_lane(operation: Callable[..., Value], *inputs: Tensor) -> Tensor:
    """`operation(code, vectors)` on inputs of 16 numbers or several times as many."""

    def body(code: Code, *pointers: Value) -> None:
        *given, out = pointers
        with code.range(0, len(inputs[0]), LANES) as first:
            code.store(operation(code, *(code.load(x + first * 4) for x in given)), out + first * 4)

    return written(body, *inputs, out=torch.zeros(len(inputs[0])))


def numbers(count: int = LANES, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def integers_of(operation: Callable[[Code], list[Value]], **given: int) -> list[int]:
    """At most 8 scalars that `operation(code)` gives."""

    def body(code: Code, out: Value) -> None:
        values = operation(code)
        count.append(len(values))
        for place, value in enumerate(values):
            code.store_words(code.narrow(value), out + place * 64)

    count: list[int] = []
    found = written(body, out=torch.zeros(16 * 8, dtype=torch.int32), **given).view(-1, LANES)
    assert (found == found[:, :1]).all()
    return found[: count[0], 0].tolist()


# Loops and integers.


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, 0, 1), (3, 3, 4), (5, 2, 1), (-4, 3, 2), (0, 7, 3), (0, 6, 3), (2, 3, 100)]
)
def test_a_range_is_pythons(start: int, stop: int, step: int) -> None:
    def body(code: Code, out: Value) -> None:
        count, total = (Variable(code, code.integer(0)) for _ in range(2))
        with code.range(code.start, code.stop, step) as index:
            count.set(count.get() + 1)
            total.set(total.get() * 10 + index)
        code.store_words(code.narrow(count.get()), out)
        code.store_words(code.narrow(total.get()), out + 64)

    found = written(body, out=torch.zeros(32, dtype=torch.int32), start=start, stop=stop).tolist()
    total = 0
    for index in range(start, stop, step):
        total = total * 10 + index
    assert found == [len(range(start, stop, step))] * 16 + [total] * 16


def test_a_loop_in_a_loop_has_variables_of_its_own() -> None:
    def body(code: Code, out: Value) -> None:
        total = Variable(code, code.integer(0))
        with code.range(0, code.count) as row:
            inner = Variable(code, code.integer(0))
            with code.range(row, code.count):
                inner.set(inner.get() + 1)
            total.set(total.get() * 10 + inner.get())
        code.store_words(code.narrow(total.get()), out)

    assert written(body, out=torch.zeros(16, dtype=torch.int32), count=4)[0] == 4321


def test_integers_and_constants_on_the_right() -> None:
    def operations(code: Code) -> list[Value]:
        a, b = code.a, code.b
        return [a + b, a - b, a * b, a + 5, a & 6, a // 4, code.where(a < b, a, b), code.where(a > 3, b, a)]

    assert integers_of(operations, a=23, b=-7) == [16, 30, -161, 28, 6, 5, -7, -7]
    assert integers_of(operations, a=2, b=9) == [11, -7, 18, 7, 2, 0, 2, 2]


def test_the_smaller_and_the_larger_of_integers() -> None:
    def operations(code: Code) -> list[Value]:
        a, b = code.a, code.b
        return [code.least(a, b), code.most(a, b), code.least(a, 4), code.most(a, 4), code.integer(-3)]

    assert integers_of(operations, a=-2, b=9) == [-2, 9, -2, 4, -3]
    assert integers_of(operations, a=9, b=-2) == [-2, 9, 4, 9, -3]


def test_addresses_go_both_ways_and_integers_are_read_with_their_sign() -> None:
    given = torch.tensor([11, -12, 13, -(2**31)], dtype=torch.int32)
    wide = torch.tensor([2**40 + 5, -6], dtype=torch.int64)

    def body(code: Code, x: Value, y: Value, out: Value) -> None:
        found = [code.load_integer(x + 4), code.load_integer(x + code.integer(12) - 4), code.load_integer(y + 8, 64)]
        found += [code.load_integer(x + 12) // 2**31 & 1, code.load_integer(y, 64) - 2**40]
        for place, value in enumerate(found):
            code.store_words(code.narrow(value), out + place * 64)

    found = written(body, given, wide, out=torch.zeros(80, dtype=torch.int32)).view(-1, LANES)[:, 0]
    # A negative integer divided as if it had no sign: its upper bits show that it was extended with one.
    assert found.tolist() == [-12, 13, -6, 1, 5]


def test_lanes_count_on_from_the_first() -> None:
    def body(code: Code, out: Value) -> None:
        code.store_words(code.lanes(code.first), out)

    assert written(body, out=torch.zeros(16, dtype=torch.int32), first=-3).tolist() == list(range(-3, 13))


# Lanes of fp32.


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda code, x, y: x + y, lambda x, y: x + y),
        (lambda code, x, y: x - y, lambda x, y: x - y),
        (lambda code, x, y: x * y, lambda x, y: x * y),
        (lambda code, x, y: x * 0.1 + -2, lambda x, y: x * 0.1 + -2),
        (lambda code, x, y: code.quotient(x, y), lambda x, y: x / y),
        (lambda code, x, y: code.root(code.absolute(y)), lambda x, y: y.double().abs().sqrt().float()),
        (lambda code, x, y: code.where(x < y, x, y * 2.0), lambda x, y: torch.where(x < y, x, y * 2)),
        (lambda code, x, y: code.where(x > 0.5, x, y), lambda x, y: torch.where(x > 0.5, x, y)),
    ],
    ids=["add", "subtract", "multiply", "constants", "divide", "root", "where less", "where more"],
)
def test_arithmetic_is_rounded_as_ieee_says(operation: Any, expected: Any) -> None:
    hostile = torch.tensor(
        [0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-40, 3e38, 1e38, 1.0, -1.0, 2.0, 0.5, 1e-38, 7.0, -3e38]
    )
    x = torch.cat([numbers(256), *[hostile.roll(step) for step in range(16)]])
    y = torch.cat([numbers(256, seed=1), *[hostile] * 16])
    found, wanted = lane_by_lane(operation, x, y), expected(x, y)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(7.0).view(torch.int32), wanted.nan_to_num(7.0).view(torch.int32))


def test_a_fused_product_and_sum_is_rounded_once() -> None:
    x, y = 1 + numbers(1024) * 2**-10, 1 + numbers(1024, seed=1) * 2**-10
    product = x.double() * y.double()  # exact
    found = lane_by_lane(lambda code, x, y, z: code.fma(x, y, z), x, y, -product.float())
    assert torch.equal(found.double(), product - product.float().double())
    assert found.abs().max() > 0


def test_of_a_nan_and_a_number_the_left_one_is_kept() -> None:
    x = torch.tensor([1.0, NAN, 2.0, NAN, -1.0, 5.0, INF, -INF, *[0.0] * 8])
    y = torch.tensor([NAN, 1.0, 3.0, NAN, -2.0, 4.0, 1.0, 1.0, *[0.0] * 8])
    least = lane_by_lane(lambda code, x, y: code.least(x, y), x, y)[:8]
    most = lane_by_lane(lambda code, x, y: code.most(x, y), x, y)[:8]
    equal = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(least, torch.tensor([1.0, NAN, 2.0, NAN, -2.0, 4.0, 1.0, -INF]), **equal)
    torch.testing.assert_close(most, torch.tensor([1.0, NAN, 3.0, NAN, -1.0, 5.0, INF, 1.0]), **equal)
    floor = lane_by_lane(lambda code, x, y: code.least(code.most(x, -1.5), 4.5), y, x)[:8]
    torch.testing.assert_close(floor, torch.tensor([NAN, 1.0, 3.0, NAN, -1.5, 4.0, 1.0, 1.0]), **equal)


def test_the_sign_alone_is_taken_away() -> None:
    x = torch.tensor([-0.0, 0.0, -1.0, 2.0, -INF, NAN, -1e-45, *[-3.0] * 9])
    found = lane_by_lane(lambda code, x: code.absolute(x), x)
    assert not found.signbit().any()
    torch.testing.assert_close(found, x.abs(), rtol=0, atol=0, equal_nan=True)


def test_a_reciprocal_is_good_to_fourteen_bits() -> None:
    x = torch.cat([1 + torch.arange(4096) / 4096, -(10 ** (torch.arange(-36, 36, 0.5))), torch.zeros(0)])
    found = lane_by_lane(lambda code, x: code.reciprocal(x), x).double()
    errors = (found * x.double() - 1).abs()
    assert errors.max() <= 2**-14
    assert errors.max() > 2**-20  # if it were exact, nobody would have to refine it


def test_powers_of_two_over_their_range() -> None:
    x = torch.linspace(-125, 127, 16 * 1000)
    reference = torch.exp2(x.double())
    for exact, bound in ((True, 2.0**-22), (False, 4e-6)):
        found = lane_by_lane(lambda code, x, exact=exact: power_of_two(code, x, exact=exact), x).double()
        assert ((found - reference).abs() / reference).max() <= bound
    special = torch.tensor([-INF, -1e30, -127.0, -1000.0, NAN, -125.0, 0.0, 1.0, *[-0.0] * 8])
    found = lane_by_lane(lambda code, x: power_of_two(code, x, exact=True), special)
    assert found[:4].tolist() == pytest.approx([2.0**-125] * 4, rel=1e-6)
    assert found[4].isnan()
    assert found[5:8].tolist() == pytest.approx([2.0**-125, 1.0, 2.0], rel=1e-6)


def test_an_integer_in_the_last_bits_is_an_exponent() -> None:
    whole = torch.tensor([-126, -125, -8, -7, -3, -2, -1, 0, 1, 2, 3, 7, 8, 100, 126, 127])
    shifted = whole + 1.5 * 2**23  # its last bits are the integer
    found = lane_by_lane(lambda code, x: code.power_of_integer(x), shifted)
    assert torch.equal(found.double(), torch.ldexp(torch.ones(16, dtype=torch.float64), whole))


# Between lanes.


def test_shuffles_count_on_into_the_right_one() -> None:
    x, y = torch.arange(16.0), torch.arange(16.0) + 100
    order = [31, 0, 16, 15, 5, 5, 20, 1, 2, 3, 4, 30, 29, 28, 27, 26]
    found = lane_by_lane(lambda code, x, y: code.shuffled(x, y, order), x, y)
    assert torch.equal(found, torch.cat([x, y])[order])


def test_sums_and_the_largest_of_lanes_stand_in_each() -> None:
    for place in range(LANES):
        x = torch.full((LANES,), -INF)
        x[place] = -float(place)
        assert lane_by_lane(lambda code, x: code.most_of_lanes(x), x).tolist() == [-float(place)] * LANES
    x = 2.0 ** torch.arange(16)  # every sum of some of them is another number
    assert lane_by_lane(lambda code, x: code.sum_of_lanes(x), x).tolist() == [2.0**16 - 1] * LANES
    found = lane_by_lane(lambda code, x: code.sum_of_lanes(x), numbers())
    torch.testing.assert_close(found.double(), numbers().double().sum().expand(LANES), rtol=0, atol=2e-6)
    assert len(set(found.tolist())) == 1


def test_sixteen_rows_become_sixteen_columns() -> None:
    def body(code: Code, x: Value, out: Value) -> None:
        rows = [code.load_words(x + row * 64) for row in range(LANES)]
        for row, value in enumerate(code.transposed(rows)):
            code.store_words(value, out + row * 64)

    x = torch.arange(256, dtype=torch.int32)
    found = written(body, x, out=torch.zeros(256, dtype=torch.int32))
    assert torch.equal(found.view(16, 16), x.view(16, 16).T)


# Memory.


@pytest.mark.parametrize("offset", [0, 1, 3, 15])
def test_vectors_need_no_alignment(offset: int) -> None:
    x = numbers(40)
    found = written(
        lambda code, x, out: code.store(code.load(x + offset * 4), out + 4 * offset), x, out=torch.zeros(40)
    )
    expected = torch.zeros(40)
    expected[offset : offset + 16] = x[offset : offset + 16]
    assert torch.equal(found, expected)


def test_one_number_stands_in_each_lane() -> None:
    x = torch.tensor([1.0, 2.5, 3.0])
    assert (
        written(lambda code, x, out: code.store(code.load_number(x + 4), out), x, out=torch.zeros(16)).unique() == 2.5
    )


def test_halves_and_words_are_taken_as_they_are() -> None:
    bits = torch.arange(-40, 40, dtype=torch.int16)

    def halves(code: Code, x: Value, out: Value) -> None:
        code.store_words(code.load_halves(x + 6), out)
        code.store_words(code.load_words(x + 46), out + 32)

    found = written(halves, bits, out=torch.zeros(48, dtype=torch.int16))
    assert torch.equal(found, torch.cat([bits[3:19], bits[23:55]]))


def test_every_bf16_number_is_read_exactly() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)

    def body(code: Code, x: Value, out: Value) -> None:
        with code.range(0, len(every), LANES) as first:
            code.store(code.load_bf16(x + first * 2), out + first * 4)

    found = written(body, every, out=torch.zeros(len(every)))
    assert torch.equal(found.view(torch.int32), every.view(torch.int16).to(torch.int32) << 16)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `store_bf16` writes, and what `as_bf16` gives as fp32."""

    def stored(code: Code, x: Value, out: Value) -> None:
        with code.range(0, len(x_), LANES) as first:
            code.store_bf16(code.load(x + first * 4), out + first * 2)

    x_ = x
    narrow = written(stored, x, out=torch.zeros(len(x), dtype=torch.bfloat16))
    return narrow, lane_by_lane(lambda code, x: code.as_bf16(x), x)


@bf16
def test_bf16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    # 1 + 2^-8 stands between 1 and 1 + 2^-7; the neighbour with an even last bit is 1. One step up it is the upper one.
    ties = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, -1 - 3 * 2**-8, 1 + 2**-8 + 2**-23, 1 + 3 * 2**-8 - 2**-22]
    )
    expected = torch.tensor([1.0, 1 + 2**-6, -1.0, -1 - 2**-6, 1 + 2**-7, 1 + 2**-7])
    x = torch.cat([ties, torch.zeros(10)])
    for found in rounded(x):
        assert torch.equal(found[:6].float(), expected)


@bf16
def test_bf16_is_rounded_as_torch_does_for_all_normal_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), generator=generator, dtype=torch.int64).to(torch.int32)
    halfway = (bits & ~0xFFFF) | 0x8000
    special = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 3.4e38, -3.4e38, 3.3961e38] * 2)
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7FC00000] * 4, dtype=torch.int32)
    x = torch.cat([bits.view(torch.float32), halfway.view(torch.float32), special, nans.view(torch.float32)])
    # AVX512_BF16 takes numbers below the normal ones for 0.
    x = torch.where((x.abs() < 2.0**-126) & (x != 0), 1.0, x)
    for found in rounded(x):
        wanted = x.to(torch.bfloat16).to(found.dtype)
        assert torch.equal(found.isnan(), x.isnan())
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found[~x.isnan()].signbit(), x[~x.isnan()].signbit())


@bf16
def test_products_of_pairs_are_added_in_fp32() -> None:
    x, y, total = numbers(64).bfloat16(), numbers(64, seed=1).bfloat16(), numbers(32, seed=2)

    def body(code: Code, x: Value, y: Value, total: Value, out: Value) -> None:
        for step in range(2):
            found = code.dot(
                code.load(total + 64 * step), code.load_pairs(x + 64 * step), code.load_pairs(y + 64 * step)
            )
            code.store(found, out + 64 * step)
        code.store(code.dot(code.floats(0.5), code.load_pair(x + 6), code.load_pairs(y + 2)), out + 128)

    found = written(body, x, y, total, out=torch.zeros(48)).double()
    products = x.double() * y.double()
    expected = total.double() + products.view(-1, 2).sum(1)
    torch.testing.assert_close(found[:32], expected, rtol=0, atol=1e-6)
    broadcast = 0.5 + (x[3:5].double() * y[1:33].view(-1, 2).double()).sum(1)
    torch.testing.assert_close(found[32:], broadcast, rtol=0, atol=1e-6)


# The compiler.


def test_a_parameter_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = Code("kernel", {"x": "pointer"}).nothing


def test_the_same_arguments_are_compiled_once_and_others_anew() -> None:
    made = []

    @compiled_once
    def kernel(value: int, *, times: int = 1) -> Code:
        made.append((value, times))
        code = Code("kernel", {"out": "pointer", "scale": "number"})
        code.store(code.splat(code.scale) * float(value), code.out)
        return code

    out = torch.zeros(16)
    for value in (3, 5, 3, 5):
        kernel(value)(out.data_ptr(), 0.5)
        assert out.tolist() == [value / 2] * 16
    assert made == [(3, 1), (5, 1)]


def test_what_could_not_be_written_is_tried_again() -> None:
    tries = []

    @compiled_once
    def kernel() -> Code:
        tries.append(len(tries))
        if len(tries) == 1:
            raise RuntimeError("not this time")
        return Code("kernel", {"out": "pointer"})

    with pytest.raises(RuntimeError, match="not this time"):
        kernel()
    kernel()(0)
    assert tries == [0, 1]


def test_the_instructions_can_be_read() -> None:
    code = Code("kernel", {"x": "pointer", "out": "pointer"})
    code.store(code.fma(code.load(code.x), code.floats(3.0), code.floats(1.0)), code.out)
    assert "vfmadd" in assembly(code)


# Parts.


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_parts_cover_everything_once_and_in_order(threads: int, count: int) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    try:
        torch.set_num_threads(threads)
        in_parts(count, 1 << 24, lambda first, end: seen.append((first, end)))
    finally:
        torch.set_num_threads(before)
    assert [item for first, end in sorted(seen) for item in range(first, end)] == list(range(count))
    assert len(seen) <= threads


def in_a_fork(answer: multiprocessing.SimpleQueue[list[int]]) -> None:
    seen: list[int] = []
    torch.set_num_threads(2)
    in_parts(4, 1 << 24, lambda first, end: seen.extend(range(first, end)))
    answer.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        in_parts(4, 1 << 24, lambda first, end: None)
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        child = context.Process(target=in_a_fork, args=(answer,))
        child.start()
        child.join(60)  # it takes milliseconds
        if child.is_alive():
            child.kill()
            pytest.fail("the forked process waits for threads that it does not have")
        assert answer.get() == [0, 1, 2, 3]
    finally:
        torch.set_num_threads(before)


def test_little_work_is_not_parted() -> None:
    seen: list[tuple[int, int]] = []
    in_parts(8, 1000, lambda first, end: seen.append((first, end)))
    assert seen == [(0, 8)]


def test_what_fails_in_a_part_is_raised() -> None:
    def fail(first: int, end: int) -> None:
        if end == 4:
            raise ValueError("the last part")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="the last part"):
            in_parts(4, 1 << 24, fail)
    finally:
        torch.set_num_threads(before)
