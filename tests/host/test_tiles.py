"""Rows through tiles: the rows of the whole, sizes that are proven, and a library that cannot keep the promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from padless.engine.errors import BackendError
from padless.engine.ops.cpu.tiles import SIZES, in_tiles

KEYS = itertools.count()


def recorded(compute: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """The function, and how many rows it was called with from then on."""
    calls: list[int] = []

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        return compute(x)

    return function, calls


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 48, 49, 63, 64, 65, 192, 193, 255, 256, 257, 600, 1_000])
def test_rows_come_back_in_order_and_tiles_have_few_sizes(count: int) -> None:
    x = torch.randn(count, 7)
    function, calls = recorded(lambda rows: rows.double() * 2)
    key = next(KEYS)
    in_tiles(function, (x,), width=7, key=key)
    calls.clear()
    assert torch.equal(in_tiles(function, (x,), width=7, key=key), x.double() * 2)
    assert set(calls) <= set(SIZES)
    assert count <= sum(calls) < count + 64 + 16


def test_every_tensor_is_cut_alike_and_several_come_out() -> None:
    x, y = torch.randn(333, 5), torch.arange(333)
    first, second = in_tiles(lambda a, b: (a + b[:, None], b * 2), (x, y), width=5, key=next(KEYS))
    assert torch.equal(first, x + y[:, None])
    assert torch.equal(second, y * 2)


def test_what_fills_up_a_tile_is_zero_and_every_tile_is_aligned() -> None:
    x = torch.full((401, 3), torch.nan)[1:]

    def function(rows: Tensor) -> Tensor:
        assert rows.is_contiguous()
        assert rows.data_ptr() % 64 == 0
        return rows.clone()

    assert torch.equal(in_tiles(function, (x,), width=3, key=next(KEYS)).isnan(), x.isnan())


def adds_the_place(rows: Tensor) -> Tensor:
    """What a library does that computes some places of a tile by other code."""
    return rows + torch.arange(len(rows))[:, None] * 2**-20


def adds_the_size(rows: Tensor) -> Tensor:
    """And one that sums in another order for another number of rows."""
    return rows + len(rows) * 2**-20


def adds_the_place_in_large_tiles(rows: Tensor) -> Tensor:
    return adds_the_place(rows) if len(rows) > 16 else rows.clone()


def test_a_library_that_depends_on_the_place_is_refused() -> None:
    with pytest.raises(BackendError, match=r"deterministic: rows \[3\] to 3 .* expected the same bits; try torch"):
        in_tiles(adds_the_place, (torch.randn(40, 3),), width=3, key=next(KEYS))


@pytest.mark.parametrize(("compute", "used"), [(adds_the_size, {256}), (adds_the_place_in_large_tiles, {16})])
def test_only_sizes_that_agree_are_used(compute: Callable[[Tensor], Tensor], used: set[int]) -> None:
    function, calls = recorded(compute)
    key = next(KEYS)
    x = torch.randn(300, 3)
    in_tiles(function, (x,), width=3, key=key)
    calls.clear()
    in_tiles(function, (x,), width=3, key=key)
    assert set(calls) == used


def test_no_row_gives_no_row() -> None:
    """Such as the positions of a masked language model that nobody asks for."""
    assert in_tiles(torch.clone, (torch.empty(0, 3),), width=3, key=next(KEYS)).shape == (0, 3)


def test_a_wide_result_comes_in_the_smallest_tiles() -> None:
    function, calls = recorded(lambda rows: rows.clone())
    in_tiles(function, (torch.randn(100, 3),), width=1 << 20, key=next(KEYS))
    assert set(calls) == {16}
