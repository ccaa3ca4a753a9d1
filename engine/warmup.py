"""What a model will need, made before its first batch: kernels are compiled, weights are prepared.

Triton compiles a kernel once for each set of its constants and for what it knows of its arguments. Most of that follows
from the model alone; the rest follows from a batch: whether its texts have one length, how many tokens they have
together, how long the longest is. `plan` lists batches that ask for all of it. tests/gate/test_warmup.py proves that no
other batch asks for more.

What is compiled lies in Triton's cache, on the disk, and serves later processes as well. Prepared weights belong to the
encoder. oneDNN, on a CPU, has code for each number of rows of a product: it has made some of it then, and goes on to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .batch import PackedBatch, TokenizedTexts, pack
from .compilations import compilations
from .cuda_graphs import CudaGraphs, wanted
from .embedding.encoder import Encoder
from .errors import OptionError

__all__ = ["Step", "Warmup", "plan", "warm_up"]

ODD = 17
"""Tokens of a text whose number no power of two divides."""


@dataclass(frozen=True)
class Step:
    """One batch, done.

    Attributes:
        number: of this batch, from 1 on.
        batches: how many there are.
        lengths: tokens of each of its texts.
        kernels: that were new to this process, compiled or read from Triton's cache.
        seconds: it took.
    """

    number: int
    batches: int
    lengths: tuple[int, ...]
    kernels: int
    seconds: float


@dataclass(frozen=True)
class Warmup:
    """What a warm-up did.

    Attributes:
        batches: that were computed.
        compiled: kernels that Triton compiled.
        cached: kernels that it had compiled in an earlier process, and read from its cache.
        seconds: all of it took.
    """

    batches: int
    compiled: int
    cached: int
    seconds: float

    @property
    def kernels(self) -> int:
        """Kernels that were new to this process."""
        return self.compiled + self.cached


def warm_up(encoder: Encoder, progress: Callable[[Step], None] | None = None) -> Warmup:
    """Compute the batches of `plan` as `Encoder.encode` computes its own, and drop the vectors.

    Kernels that this process has already are not counted: a second call finds none. On a CPU nothing is compiled by
    Triton.

    Args:
        encoder: as `padless.load` returns it; its `token_budget` and `max_seq_length` say how large batches can be.
        progress: called after each batch.

    Raises:
        OptionError: the token budget is below 1, or a batch of so many tokens does not fit into the device's memory.
    """
    begin = time.perf_counter()
    batches = plan(encoder.max_seq_length, encoder.token_budget)
    typed = encoder.tokenizer.encode([""]).token_type_ids is not None
    # Apart from the encoder's, which are to hold the sizes of real batches. What a batch is in a bucket may ask for
    # other kernels than the batch as it is, and either may come.
    graphs = CudaGraphs() if wanted(encoder.cuda_graphs, encoder.device) else None
    with torch.no_grad(), compilations() as found:
        for number, lengths in enumerate(batches, 1):
            start, before = time.perf_counter(), found.compiled + found.cached
            _compute(encoder, _batch(lengths, typed), graphs)
            if progress is not None:
                kernels = found.compiled + found.cached - before
                progress(Step(number, len(batches), lengths, kernels, time.perf_counter() - start))
    return Warmup(len(batches), found.compiled, found.cached, time.perf_counter() - begin)


def plan(longest: int | None, token_budget: int) -> list[tuple[int, ...]]:
    """Batches that together ask for every kernel that a batch of these limits can ask for, the largest first.

    A kernel that is chosen by a number of tokens has one of these on each side of its threshold: for the budget and
    each power of two below it there are texts of several lengths and texts of one length, and for the longest text and
    each power of two below it, or three quarters of one, that text alone: the sizes of `cuda_graphs/buckets.py`. One
    that is chosen by how unlike the texts are has a long text beside one or two that are as short as can be.

    Args:
        longest: tokens of the longest text; None where nothing limits it but the budget.
        token_budget: most tokens of a batch, unless a single text has more.

    Returns:
        Tokens of each text, for each batch.

    Raises:
        OptionError: `token_budget` is below 1.
    """
    if token_budget < 1:
        raise OptionError(f"token_budget: expected at least 1, got {token_budget}")
    longest = token_budget if longest is None else longest
    batches = [_of_many_lengths(token_budget, longest), _of_one_length(token_budget, longest), (longest,)]
    for tokens in _powers_of_two_below(token_budget):
        batches += [_of_many_lengths(max(tokens - 1, 1), longest), _of_one_length(tokens, longest)]
    for tokens in _powers_of_two_below(2 * longest):
        batches += [(size,) for size in (tokens, -(-3 * tokens // 4)) if size <= longest]
    batches += [(min(longest, token_budget - short), *[1] * short) for short in (1, 2) if token_budget > short]
    odd = min(ODD, longest, token_budget)
    batches += [(odd,), (odd,) * min(3, token_budget // odd)]
    return sorted(dict.fromkeys(batches), key=sum, reverse=True)


def _powers_of_two_below(limit: int) -> Iterator[int]:
    return (1 << place for place in range((limit - 1).bit_length()))


def _of_many_lengths(tokens: int, longest: int) -> tuple[int, ...]:
    """So many tokens in a text of half of them, or the longest, and shorter ones, over and over."""
    first = min(longest, -(-tokens // 2))
    pattern = (first, first // 2 + 1, first // 5 + 1, 1)
    whole, left = divmod(tokens, sum(pattern))
    rest: list[int] = []
    for length in pattern:
        rest.append(min(length, left - sum(rest)))
    return (*pattern * whole, *(length for length in rest if length))


def _of_one_length(tokens: int, longest: int) -> tuple[int, ...]:
    """At most so many tokens in 16 texts, in more where none can be as long, in fewer where none can be as short."""
    length = min(longest, max(tokens // 16, 1))
    return (length,) * (tokens // length)


def _batch(lengths: tuple[int, ...], typed: bool) -> PackedBatch:
    """Texts of these lengths, of the token that every vocabulary has."""
    ids = np.zeros(sum(lengths), dtype=np.int32)
    flags = np.zeros(len(lengths), dtype=bool)
    texts = TokenizedTexts(ids, np.array(lengths, dtype=np.int32), ids if typed else None, flags, flags)
    return pack(texts, np.arange(len(lengths)))


def _compute(encoder: Encoder, batch: PackedBatch, graphs: CudaGraphs | None) -> None:
    try:
        encoder.compute(batch.to(encoder.device)).to("cpu", torch.float32)
    except torch.OutOfMemoryError:
        raise OptionError(
            f"token_budget: a batch of {batch.tokens:,} tokens does not fit into the memory of {encoder.device}; "
            "expected a smaller budget"
        ) from None
    if graphs is not None:
        graphs.run(batch, encoder, longest=encoder.max_seq_length)
