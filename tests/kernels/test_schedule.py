"""The list of tiles against a sort of plain lists, entry by entry; T5's bias by distance against its buckets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import in_turn

from padless.engine.relative_position import relative_position_bucket
from padless.kernels.relative_bias import bias_by_distance
from padless.kernels.schedule import tile_list, tile_list_length

ROWS = (16, 32, 64, 128)
SHAPES: dict[str, list[int]] = {
    "one": [1],
    "one long": [300],
    "equal": [64] * 7,
    "zeros leading": [0, 0, 5, 130],
    "zeros inner": [70, 0, 0, 64, 0, 3],
    "zeros trailing": [129, 1, 0, 0],
    "one long among short": [3] * 20 + [700] + [2] * 20,
    "growing": list(range(40)),
    "falling": list(range(40, 0, -1)),
    "block edges": [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129],
    "ties": [5, 9, 5, 9, 9, 5, 0, 9],
    "more texts than are compared at once": [index * 7 % 50 for index in range(1100)],
}


def expected(lengths: list[int], rows: int) -> list[list[int]]:
    """Tiles of longer texts first, of equally long ones in their order, a text's own from its start."""
    order = sorted(range(len(lengths)), key=lambda text: (-lengths[text], text))
    return [[text, block] for text in order for block in range(-(-lengths[text] // rows))]


def check(lengths: list[int], rows: int) -> None:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    tokens = sum(lengths)
    tiles = tile_list(cu_seqlens, tokens, rows).tolist()
    wanted = expected(lengths, rows)
    assert tile_list_length(tokens, len(lengths), rows) == len(tiles) >= len(wanted)
    assert tiles[: len(wanted)] == wanted
    assert all(text == -1 for text, _ in tiles[len(wanted) :])


def drawn(seed: int) -> list[int]:
    """Ragged lengths, a third of them zero or at the edge of a tile."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 200, (int(torch.randint(1, 40, (1,), generator=draw)),), generator=draw).tolist()
    return [value if value % 3 else (0, 16, 64, 128)[value % 4] for value in lengths]


@pytest.mark.parametrize(("shape", "rows"), in_turn(SHAPES, ROWS))
def test_tiles_of_long_texts_come_first(shape: str, rows: int) -> None:
    check(SHAPES[shape], rows)


@pytest.mark.grid
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seed", range(100))
def test_tiles_of_drawn_texts(seed: int, rows: int) -> None:
    check(drawn(seed), rows)


LENGTHS = st.lists(st.one_of(st.integers(0, 300), st.sampled_from([0, 1, 15, 16, 17, 64, 128, 129])), min_size=1)


@given(lengths=LENGTHS, rows=st.sampled_from(ROWS))
@settings(max_examples=20, derandomize=True, database=None, deadline=None)
def test_tiles_of_any_texts(lengths: list[int], rows: int) -> None:
    check(lengths, rows)


@pytest.mark.grid
@given(lengths=LENGTHS, rows=st.sampled_from(ROWS))
@settings(max_examples=200, derandomize=True, database=None, deadline=None)
def test_tiles_of_many_texts(lengths: list[int], rows: int) -> None:
    check(lengths, rows)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 16), (32, 40), (6, 5), (64, 1000)])
def test_the_bias_of_every_distance_is_that_of_its_bucket(buckets: int, reach: int, bidirectional: bool) -> None:
    bias = torch.randn(buckets, 3, generator=torch.Generator().manual_seed(1))
    table, width = bias_by_distance(bias, reach, bidirectional)
    distance = torch.arange(-3 * reach, 3 * reach + 1)
    columns = distance.clamp(-width, width) + width
    of_bucket = bias[relative_position_bucket(distance, buckets, reach, bidirectional)].t()
    assert torch.equal(table[:, columns], of_bucket)
