"""The moving parts of an encode call: pieces of text tokenised ahead, batches planned, packed and run.

Texts are ordered by length in characters and cut into pieces; each piece is tokenised by a thread while the device runs
the one before. Inside a piece the plan is made on token counts, so a batch holds texts of like length and no padding.

On a CPU several batches run at once, each in a thread of its own and on one core. The other way, every operator of one
batch split over all cores, has them wait for each other some fifteen times a layer; whole batches never wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..batch import PackedBatch, TokenizedTexts, pack, padded_tokens, plan_batches
from ..tokenizer import Tokenizer
from .memory import SplitOnOutOfMemory
from .prefetch import Workers, prefetch

__all__ = ["EncodeStats", "EncodedBatch", "encode_stream"]

T = TypeVar("T")

BATCHES_PER_PIECE = 4
"""Token budgets' worth of text tokenised at once: enough for a good plan, little enough to start at once."""

CHARACTERS_PER_TOKEN = 4
"""A rough figure for cutting pieces; being wrong costs a smaller or larger piece, nothing else."""


@dataclass
class EncodeStats:
    """What happened, added up over the calls that share it.

    Attributes:
        texts: texts encoded.
        tokens: tokens computed, every one of them real.
        padded_tokens: what batches of 32 in input order would have computed.
        truncated: texts cut to the model's maximum.
        repaired: texts in which lone surrogates were replaced by U+FFFD.
        tokenise_seconds: spent in the tokenising thread.
        compute_seconds: spent on packing, the model and copying back, added up over threads.
        wait_seconds: in which the planning of batches stood still for the tokenising thread.
        retries: batches that ran out of memory and were computed in halves.
        fallbacks: texts computed again in fp32, because their result was not finite.
    """

    texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    truncated: int = 0
    repaired: int = 0
    tokenise_seconds: float = 0.0
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0
    retries: int = 0
    fallbacks: int = 0

    def add(self, other: EncodeStats) -> None:
        """Add what another call has counted."""
        for counter in fields(self):
            setattr(self, counter.name, getattr(self, counter.name) + getattr(other, counter.name))


@dataclass(frozen=True)
class EncodedBatch:
    """Some of the texts, done.

    Attributes:
        rows: which of the caller's texts, `[batch]`.
        vectors: float32 `[batch, dimension]`, on the CPU.
        tokens: how many tokens they had.
    """

    rows: np.ndarray
    vectors: Tensor
    tokens: int


def encode_stream(
    texts: list[str],
    tokenizer: Tokenizer,
    run: Callable[[PackedBatch], Tensor],
    *,
    workers: Workers,
    prompt: str,
    device: torch.device,
    token_budget: int,
    batch_size: int | None,
    stats: EncodeStats,
    on_truncated: Callable[[int], None] | None = None,
    alike: bool = False,
) -> Iterator[EncodedBatch]:
    """Encode texts, longest first.

    Args:
        texts: strings, in the caller's order.
        tokenizer: texts to ids.
        run: a packed batch on the host to fp32 vectors `[texts, dimension]`; called from several threads at once.
        workers: threads for the batches on a CPU.
        prompt: put before each text.
        device: where `run` computes.
        token_budget: most tokens in a batch; a longer text gets a batch of its own.
        batch_size: most texts in a batch, or None.
        stats: counters to add to, complete once the stream is exhausted.
        on_truncated: called with the row of each text that was cut, before it is computed.
        alike: as of `Workers.at_once`.

    Yields:
        Batches in the order of the plan; together they hold each text exactly once.

    Raises:
        MemoryLimitError: a text does not fit in memory, not even alone; its row is one of `texts`.
    """
    characters = _characters(texts, tokenizer)
    lengths = np.zeros(len(texts), dtype=np.int64)

    def vectors_of(tokenised: TokenizedTexts, chosen: np.ndarray) -> Tensor:
        return run(pack(tokenised, chosen)).to("cpu", torch.float32)

    compute = SplitOnOutOfMemory(vectors_of, torch.cat, device)

    def run_batch(rows: np.ndarray, tokenised: TokenizedTexts, chosen: np.ndarray) -> tuple[EncodedBatch, float]:
        begin = time.perf_counter()
        vectors = compute(rows, tokenised, chosen)
        tokens = int(tokenised.lengths[chosen].sum())
        return EncodedBatch(rows[chosen], vectors, tokens), time.perf_counter() - begin

    likely_batches = int(characters.sum()) // (CHARACTERS_PER_TOKEN * token_budget)
    # Another device runs one batch at a time; its host side is the caller's thread.
    at_once = workers.at_once(likely_batches, alike) if device.type == "cpu" else 1

    def planned() -> Iterator[tuple[np.ndarray, TokenizedTexts, np.ndarray]]:
        pieces = _tokenised_pieces(texts, characters, tokenizer, prompt, BATCHES_PER_PIECE * token_budget, stats)
        following = int(characters.sum())
        for rows, tokenised in _timed(prefetch(pieces), stats):
            following -= int(characters[rows].sum())
            lengths[rows] = tokenised.lengths
            _count(tokenised, stats)
            if on_truncated is not None:
                for row in rows[tokenised.truncated].tolist():
                    on_truncated(row)
            later = following // CHARACTERS_PER_TOKEN
            for chosen in plan_batches(tokenised.lengths, token_budget, at_once=at_once, following=later):
                for start in range(0, len(chosen), batch_size or len(chosen)):
                    yield rows, tokenised, chosen[start : start + (batch_size or len(chosen))]

    for encoded, seconds in workers.run(run_batch, planned(), at_once):
        stats.compute_seconds += seconds
        yield encoded
    stats.retries += compute.splits
    stats.padded_tokens += padded_tokens(lengths)


def _characters(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """int64 `[texts]`: characters that matter for planning, and a little more so that no text counts as nothing."""
    characters = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    if tokenizer.max_length is not None:
        # Beyond this every text is cut to the same number of tokens, and the order no longer matters.
        characters = characters.clip(max=CHARACTERS_PER_TOKEN * tokenizer.max_length)
    return characters + 2 * CHARACTERS_PER_TOKEN


def _timed(items: Iterator[T], stats: EncodeStats) -> Iterator[T]:
    """The items; the time spent waiting for them is counted."""
    while True:
        begin = time.perf_counter()
        item = next(items, None)
        stats.wait_seconds += time.perf_counter() - begin
        if item is None:
            return
        yield item


def _tokenised_pieces(
    texts: list[str],
    characters: np.ndarray,
    tokenizer: Tokenizer,
    prompt: str,
    piece_tokens: int,
    stats: EncodeStats,
) -> Iterator[tuple[np.ndarray, TokenizedTexts]]:
    for rows in plan_batches(characters, CHARACTERS_PER_TOKEN * piece_tokens):
        begin = time.perf_counter()
        tokenised = tokenizer.encode([texts[row] for row in rows.tolist()], prompt=prompt)
        stats.tokenise_seconds += time.perf_counter() - begin
        yield rows, tokenised


def _count(tokenised: TokenizedTexts, stats: EncodeStats) -> None:
    stats.texts += len(tokenised)
    stats.tokens += len(tokenised.input_ids)
    stats.truncated += int(tokenised.truncated.sum())
    stats.repaired += int(tokenised.repaired.sum())
