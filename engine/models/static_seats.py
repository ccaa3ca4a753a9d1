"""Which sequence lies in which slot: the host's side of a room for decoding (`static_room.py`)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

__all__ = ["Seats"]


class Seats:
    """The running sequences, one a row: int64 `[sequences]` each, on the host.

    Attributes:
        slots: where each lies; no two share one.
        lengths: tokens of each.
        text_starts: first row of each one's text; 0 without texts.
        text_sizes: tokens of it; 0 without.
    """

    TABLES: ClassVar[int] = 5
    """Rows of `tables`."""

    def __init__(self, slots: int) -> None:
        """Nobody is there."""
        self.count = slots
        nobody = np.zeros(0, dtype=np.int64)
        self.slots = self.lengths = self.text_starts = self.text_sizes = nobody

    def enter(self, lengths: np.ndarray, texts: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """New sequences, in the first slots.

        Args:
            lengths: tokens of each.
            texts: tokens of each text, which lie one after the other, and the text of each sequence.
        """
        self.slots = np.arange(len(lengths))
        self.lengths = lengths.astype(np.int64)
        self.text_starts = self.text_sizes = np.zeros(len(lengths), dtype=np.int64)
        if texts is not None:
            sizes = texts[0].astype(np.int64)
            self.text_starts, self.text_sizes = (x[texts[1]] for x in (sizes.cumsum() - sizes, sizes))

    def reorder(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sequence i goes on from what was sequence `rows[i]`.

        Returns:
            Slots to copy, and those to copy them to. None of the latter is among the former.
        """
        self.lengths, self.text_starts, self.text_sizes = (
            x[rows] for x in (self.lengths, self.text_starts, self.text_sizes)
        )
        wanted = self.slots[rows]
        repeated = np.ones(len(rows), dtype=bool)
        repeated[np.unique(wanted, return_index=True)[1]] = False
        self.slots = wanted.copy()
        self.slots[repeated] = self._free(wanted)[: int(repeated.sum())]
        return wanted[repeated], self.slots[repeated]

    def tables(self, rows: int, capacity: int) -> np.ndarray:
        """int64 `[5, slots]`: of each row its first token's place, the position of the token to come, how many tokens a
        step adds, and its text's first row and size. Behind the sequences come fillers, up to `rows`.
        """
        here = len(self.slots)
        tables = np.zeros((self.TABLES, self.count), dtype=np.int64)
        tables[0, :here] = self.slots
        tables[0, here:rows] = self._free(self.slots)[: rows - here]
        tables[0] *= capacity
        tables[1, :here] = self.lengths
        tables[2, :here] = 1
        tables[3, :here] = self.text_starts
        tables[4, :here] = self.text_sizes
        return tables

    def _free(self, used: np.ndarray) -> np.ndarray:
        """Slots that are not among `used`."""
        free = np.ones(self.count, dtype=bool)
        free[used] = False
        return free.nonzero()[0]
