"""Cuts the stream of rows into windows: as much as is in memory at once, never across the edge of a shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .inputs.rows import Row

__all__ = ["WINDOW_CHARACTERS", "WINDOW_ROWS", "Window", "cut_windows"]

WINDOW_ROWS = 8192
"""Most rows in one window: enough for sorting by length to pay, little enough to hold."""

WINDOW_CHARACTERS = 1 << 24
"""A window ends with the row that reaches this many characters of text, so that long documents stay few."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive rows of one shard, at least one.

    Attributes:
        shard: number of the shard, from 0.
        rows: the rows.
        ends_shard: whether the shard is full with these; the last shard may end without.
    """

    shard: int
    rows: list[Row]
    ends_shard: bool = False


def cut_windows(
    rows: Iterable[Row], rows_per_shard: int, window_rows: int = WINDOW_ROWS, window_characters: int = WINDOW_CHARACTERS
) -> Iterator[Window]:
    """Group rows, numbered from 0, into windows; shard `i` covers rows `[i * rows_per_shard, (i+1) * rows_per_shard)`.

    The cut depends on the rows of its own shard only, so that a shard done again gets the same batches.
    """
    held: list[Row] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += row.characters
        ends_shard = (row.number + 1) % rows_per_shard == 0
        if ends_shard or len(held) >= window_rows or characters >= window_characters:
            yield Window(row.number // rows_per_shard, held, ends_shard)
            held, characters = [], 0
    if held:
        yield Window(held[0].number // rows_per_shard, held)
