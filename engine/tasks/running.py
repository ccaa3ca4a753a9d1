"""Pieces through a model: planned by a token budget, packed, several batches at once on a CPU, order restored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..batch import PackedBatch, TokenizedTexts, pack, padded_tokens, plan_batches
from ..errors import InputError
from ..streaming.memory import SplitOnOutOfMemory
from ..streaming.prefetch import Workers
from ..streaming.stream import EncodeStats

__all__ = ["Score", "run_pieces"]

Score = Callable[[PackedBatch, np.ndarray], Sequence[Any]]
"""A batch on the host, and the numbers of the pieces it is made of, to one value for each, on the host; called from
several threads at once."""


def run_pieces(
    tokens: TokenizedTexts,
    score: Score,
    *,
    workers: Workers,
    device: torch.device,
    token_budget: int,
    batch_size: int | None = None,
    stats: EncodeStats,
    on_batch: Callable[[int, int], None] | None = None,
    alike: bool = False,
) -> list[Any]:
    """What `score` says of each piece, in the order of the pieces; an InputError of one that no memory is enough for.

    Args:
        tokens: the pieces.
        score: runs a batch.
        workers: threads for the batches on a CPU.
        device: where `score` computes.
        token_budget: most tokens in a batch; a longer piece gets a batch of its own.
        batch_size: most pieces in a batch, or None.
        stats: counters to add to.
        on_batch: called with (pieces, tokens) after each batch.
        alike: as of `Workers.at_once`.
    """

    everywhere = np.arange(len(tokens))
    compute = SplitOnOutOfMemory[list[Any]](
        lambda tokenised, chosen: list(score(pack(tokenised, chosen), chosen)),
        lambda parts: [*itertools.chain.from_iterable(parts)],
        device,
        lambda error: [InputError(f"out of memory with its {error.tokens:,} tokens alone ({error.reason})")],
    )

    def run(chosen: np.ndarray) -> tuple[np.ndarray, Sequence[Any], float]:
        begin = time.perf_counter()
        return chosen, compute(everywhere, tokens, chosen), time.perf_counter() - begin

    total = int(tokens.lengths.sum())
    # Another device runs one batch at a time; its host side is the caller's thread.
    at_once = workers.at_once(total // token_budget, alike) if device.type == "cpu" else 1
    planned = (
        (rows[start : start + (batch_size or len(rows))],)
        for rows in plan_batches(tokens.lengths, token_budget, at_once=at_once)
        for start in range(0, len(rows), batch_size or len(rows))
    )
    values: list[Any] = [None] * len(tokens)
    for chosen, found, seconds in workers.run(run, planned, at_once):
        for row, value in zip(chosen.tolist(), found, strict=True):
            values[row] = value
        stats.compute_seconds += seconds
        if on_batch is not None:
            on_batch(len(chosen), int(tokens.lengths[chosen].sum()))
    stats.retries += compute.splits
    stats.tokens += total
    stats.padded_tokens += padded_tokens(tokens.lengths)
    return values
