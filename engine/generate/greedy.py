"""Sequences written one token at a time, each on its own: the likeliest token of each step, or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptionError
from .decoder import Decoder
from .options import GenerationOptions
from .processors import process, processors
from .running import Running

__all__ = ["Choice", "Written", "likeliest", "write"]

Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores `[rows, vocab]`, and int64 `[rows]` on the host, the sequence each row belongs to, to tokens int64 `[rows]`
and whether each is one that may be chosen, bool `[rows]`."""


@dataclass(frozen=True)
class Written:
    """What a search found: for each prompt `num_return_sequences` sequences, one after the other.

    Attributes:
        tokens: the new tokens of each sequence, int64, up to its end token and with it.
        scores: of each step, fp32, zeros for a sequence that had ended; see `Generated`. Empty unless asked for.
        sequences_scores: fp32 `[sequences]`, of a beam search.
        beam_indices: of a beam search, for each token the row of `scores` that it was chosen from.
    """

    tokens: list[Tensor]
    scores: tuple[Tensor, ...] = ()
    sequences_scores: Tensor | None = None
    beam_indices: list[Tensor] | None = None


def likeliest(scores: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the greatest score; a `Choice`."""
    best, tokens = scores.max(dim=-1)
    return tokens, best > float("-inf")


def write(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    options: GenerationOptions,
    choose: Choice = likeliest,
) -> Written:
    """Write `num_return_sequences` sequences for each prompt; finished ones leave the batch.

    Args:
        decoder: fresh.
        prompts: int64 `[tokens]` each, on the decoder's device; at least one.
        options: checked with these prompts.
        choose: gives the tokens of a step.

    Raises:
        OptionError: a sequence for which no token is left, or whose scores are no numbers.
    """
    copies = options.num_return_sequences
    running = Running.of(prompts, options)
    steps, total = int((running.longest - running.prompts).max()) - 1, len(prompts) * copies
    logits = decoder.start(prompts, steps=steps, sequences=total)
    device = logits.device
    steps_of_scores = processors(options, device)
    ends = torch.tensor(options.eos_token_id, dtype=torch.int64, device=device)
    # Which sequence each row is, and which of the decoder's rows it continues.
    sequences = torch.arange(total)
    rows = sequences // copies
    if copies > 1:
        running, logits = running.take(rows), logits[rows.to(device)]
    moved = copies > 1
    tokens: list[Tensor] = [torch.empty(0)] * total
    kept_scores: list[Tensor] = []
    while True:
        scores = process(steps_of_scores, running, logits)
        if options.output_scores:
            kept_scores.append(in_full(scores, sequences, total))
        chosen, allowed = choose(scores, sequences)
        running = running.append(chosen)
        ended, allowed = torch.stack((torch.isin(chosen, ends), allowed)).cpu()
        if not allowed.all():
            refuse(int(sequences[~allowed][0]) // copies, running.new)
        ended |= running.full
        if ended.any():
            for sequence, written in zip(
                sequences[ended].tolist(), running.take(ended.nonzero()[:, 0]).written, strict=True
            ):
                tokens[sequence] = written
            on = (~ended).nonzero()[:, 0]
            if not len(on):
                return Written(tokens, tuple(kept_scores))
            running, chosen, sequences, rows = running.take(on), chosen[on.to(device)], sequences[on], rows[on]
            moved = True
        if moved:
            decoder.reorder(rows.to(device))
            rows, moved = torch.arange(len(rows)), False
        logits = decoder.step(chosen)


def in_full(scores: Tensor, rows: Tensor, total: int) -> Tensor:
    """A copy of `scores` as `[total, vocab]`, zeros for rows that are not among `rows`."""
    full = scores.new_zeros(total, scores.shape[1])
    full[rows.to(scores.device)] = scores
    return full


def refuse(prompt: int, step: int) -> None:
    """Raise OptionError for a prompt that cannot go on."""
    reason = "the options forbid all, or the model gives no numbers"
    raise OptionError(f"generate: prompt {prompt}, step {step}: no token is left; {reason}")
