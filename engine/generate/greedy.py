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

__all__ = ["Choice", "NoTokenLeftError", "Written", "likeliest", "write"]

Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores `[rows, vocab]`, and int64 `[rows]` on the host, the sequence each row belongs to, to tokens int64 `[rows]`
and whether each is one that may be chosen, bool `[rows]`."""


class NoTokenLeftError(OptionError):
    """A prompt that cannot go on: the options forbid every token, or the model's logits are no numbers.

    Attributes:
        prompt: its number.
        step: at which nothing could be chosen, from 1.
    """

    def __init__(self, prompt: int, step: int) -> None:
        reason = "the options forbid all, or the model gives no numbers"
        super().__init__(f"generate: prompt {prompt}, step {step}: no token is left; {reason}")
        self.prompt, self.step = prompt, step


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
    # NaN and both infinities: of a score that overflowed nobody knows which token it would have been.
    return tokens, best.isfinite()


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
    total = len(prompts) * copies
    running = Running.of(prompts, options)
    logits = decoder.start(prompts, steps=running.steps, sequences=total)
    one_more = _Step(options, total, choose, logits.device)
    sequences = torch.arange(total)  # which one each row is
    rows: Tensor | None = None  # of the decoder, that each row continues; None: they are the same
    if copies > 1:
        rows = sequences // copies
        running, logits = running.take(rows), logits[rows.to(logits.device)]
    tokens: list[Tensor] = [torch.empty(0)] * total
    while True:
        running, ended = one_more(running, sequences, logits)
        if ended.any():
            on, off = (~ended).nonzero()[:, 0], ended.nonzero()[:, 0]
            for sequence, written in zip(sequences[off].tolist(), running.take(off).written, strict=True):
                tokens[sequence] = written
            if not len(on):
                return Written(tokens, tuple(one_more.scores))
            running, sequences = running.take(on), sequences[on]
            rows = on if rows is None else rows[on]
        if rows is not None:
            decoder.reorder(rows.to(logits.device))
            rows = None
        logits = decoder.step(running.last)


class _Step:
    """One more token for every row, and the scores it was chosen by where they are to be kept."""

    def __init__(self, options: GenerationOptions, total: int, choose: Choice, device: torch.device) -> None:
        self.options, self.total, self.choose = options, total, choose
        self.processors = processors(options, device)
        self.ends = torch.tensor(options.eos_token_id, dtype=torch.int64, device=device)
        self.scores: list[Tensor] = []

    def __call__(self, running: Running, sequences: Tensor, logits: Tensor) -> tuple[Running, Tensor]:
        """The rows one token longer, and which of them end with it, bool `[rows]` on the host."""
        scores = process(self.processors, running, logits)
        if self.options.output_scores:
            self.scores.append(in_full(scores, sequences, self.total))
        chosen, allowed = self.choose(scores, sequences)
        running = running.append(chosen)
        # The only time in a step that the host waits for the device.
        ended, allowed = torch.stack((torch.isin(chosen, self.ends), allowed)).cpu()
        if not allowed.all():
            refuse(int(sequences[~allowed][0]) // self.options.num_return_sequences, running.new)
        return running, ended | running.full


def in_full(scores: Tensor, rows: Tensor, total: int) -> Tensor:
    """A copy of `scores` as `[total, vocab]`, zeros for rows that are not among `rows`."""
    full = scores.new_zeros(total, scores.shape[1])
    full[rows.to(scores.device)] = scores
    return full


def refuse(prompt: int, step: int) -> None:
    """Raise NoTokenLeftError for a prompt that cannot go on."""
    raise NoTokenLeftError(prompt, step)
