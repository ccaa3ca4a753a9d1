"""The list of tiles, against the few lines of Python that say what it is."""

from __future__ import annotations

import pytest
import torch
from lengths import HOSTILE, cumulated

from padless.kernels import schedule
from padless.kernels.launch import Config
from padless.kernels.schedule import tile_list, tile_list_length


def expected(lengths: tuple[int, ...], rows: int) -> list[tuple[int, int]]:
    """Texts by length, long ones first and equal ones in their order; of each the blocks in their order."""
    texts = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    return [(text, block) for text in texts for block in range(-(-lengths[text] // rows))]


def assert_right(lengths: tuple[int, ...], rows: int) -> None:
    right = expected(lengths, rows)
    unused = tile_list_length(sum(lengths), len(lengths), rows) - len(right)
    assert unused >= 0
    got = tile_list(cumulated(lengths), sum(lengths), rows)
    assert got.dtype == torch.int32
    assert [tuple(entry) for entry in got.tolist()] == [*right, *[(-1, 0)] * unused]


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("lengths", [lengths for lengths in HOSTILE.values() if lengths], ids=str)
def test_long_texts_first(lengths: tuple[int, ...], rows: int) -> None:
    assert_right(lengths, rows)


@pytest.mark.parametrize(
    "lengths",
    [(3, 40, 1, 0, 17) * 3 + (1,) * 18 + (33, 2), (5, 16 * 35 + 1, 16 * 16, 0, 7), (0,) * 20 + (16 * 33,)],
    ids=["texts compared", "tiles written", "entries marked"],
)
def test_more_than_are_taken_at_once(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 16 a step, for the interpreter takes seconds over the thousands of texts that 1,024 a step would need."""
    monkeypatch.setattr(schedule, "default_config", lambda: Config.of(BLOCK=16))
    assert_right(lengths, 16)


def test_texts_that_end_beyond_the_tokens_write_nothing_beyond_the_list() -> None:
    """What is wrong stays where it is: the tests of this folder watch every store."""
    got = tile_list(cumulated((40, 70, 9)), 48, 16)
    assert [tuple(entry) for entry in got.tolist()] == expected((40, 70, 9), 16)[: len(got)]
