"""Beam search: the `num_beams` likeliest beginnings of each prompt go on together.

The search of transformers, step by step and in the same arithmetic. In each step a prompt's candidates are its
likeliest continuations, twice the beams or more. Those that end (an end token, or the full length) may become
hypotheses if they are among the first `num_beams`; of the others the best go on. A prompt leaves the batch when its
hypotheses will not get better, by the rule that `early_stopping` names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptionError
from .decoder import Decoder
from .greedy import Written, in_full, refuse
from .hypotheses import UNLIKELY, Hypotheses, gather
from .options import GenerationOptions
from .processors import Processor, process, processors
from .running import Running
from .sampling import Draw

__all__ = ["search"]


@dataclass(frozen=True)
class Beams:
    """The prompts whose search goes on.

    Attributes:
        prompts: int64 `[prompts]` on the host, their numbers in the call.
        running: a row for each beam of each prompt; before the first step for each prompt.
        scores: fp32 `[prompts, beams]`, log probabilities, best first.
        origins: int64 `[prompts, beams, steps]`, as of `Hypotheses`.
        hypotheses: found so far.
    """

    prompts: Tensor
    running: Running
    scores: Tensor
    origins: Tensor
    hypotheses: Hypotheses


def search(decoder: Decoder, prompts: Sequence[Tensor], options: GenerationOptions) -> Written:
    """The best `num_return_sequences` of `num_beams` hypotheses for each prompt.

    Args:
        decoder: fresh.
        prompts: int64 `[tokens]` each, on the decoder's device; at least one.
        options: checked with these prompts; with `do_sample` the candidates are drawn.

    Raises:
        OptionError: a prompt with fewer hypotheses, since the options forbid all others, or scores that are no numbers.
    """
    width, total = options.num_beams, len(prompts)
    running = Running.of(prompts, options)
    _check_penalty(options.length_penalty, running.steps + 1)
    logits = decoder.start(prompts, steps=running.steps, sequences=total * width)
    device = logits.device
    one_more = _Step(options, total, device)
    # All beams of a prompt begin alike: only the first counts, or they would stay so.
    scores = torch.full((total, width), UNLIKELY, device=device)
    scores[:, 0] = 0.0
    nothing = torch.empty(total, width, 0, dtype=torch.int64, device=device)
    beams = Beams(torch.arange(total), running, scores, nothing, Hypotheses.none(total, width, device))
    found: list[Hypotheses | None] = [None] * total
    while True:
        beams, parents, done = one_more(beams, logits)
        if done.any():
            for row in done.nonzero()[:, 0].tolist():
                found[beams.prompts[row]] = beams.hypotheses.take(torch.tensor([row], device=device))
            if done.all():
                return _written(found, one_more.scores, options)
            beams, parents = _leave_behind(beams, parents, (~done).nonzero()[:, 0])
        decoder.reorder(parents.flatten())
        logits = decoder.step(beams.running.last)


class _Step:
    """One step of the search for all prompts that go on."""

    def __init__(self, options: GenerationOptions, total: int, device: torch.device) -> None:
        self.options = options
        self.total = total
        self.processors: list[Processor] = processors(options, device)
        self.ends = torch.tensor(options.eos_token_id, dtype=torch.int64, device=device)
        self.draw = Draw(options, total, device) if options.do_sample else None
        self.scores: list[Tensor] = []

    def __call__(self, beams: Beams, logits: Tensor) -> tuple[Beams, Tensor, Tensor]:
        """The beams after one more token; the decoder's row that each continues `[prompts, beams]`; whose search is
        over, bool `[prompts]` on the host."""
        options, width, count = self.options, self.options.num_beams, len(beams.prompts)
        scores = process(self.processors, beams.running, logits.log_softmax(dim=-1))
        per_prompt = scores.shape[0] // count
        each = scores.reshape(count, per_prompt, -1).expand(count, width, -1)
        if options.output_scores:
            rows = beams.prompts[:, None] * width + torch.arange(width)
            self.scores.append(in_full(each.flatten(0, 1), rows.flatten(), self.total * width))
        values, parents, tokens = self._candidates(each + beams.scores[:, :, None], beams.prompts)

        full = (beams.running.lengths + 1 >= beams.running.longest)[::per_prompt].to(logits.device)
        ends = torch.isin(tokens, self.ends) | full[:, None]
        hypotheses = self._hypotheses(beams, values, parents, tokens, ends)

        values = values + ends.to(values.dtype) * UNLIKELY
        on = values.topk(width).indices
        values, parents, tokens = (x.gather(1, on) for x in (values, parents, tokens))
        # Before the first step a prompt has one row.
        rows = torch.arange(count, device=logits.device)[:, None] * per_prompt + parents.clamp(max=per_prompt - 1)
        lengths = torch.arange(count).repeat_interleave(width) * per_prompt
        running = beams.running.take(rows.flatten(), lengths).append(tokens.flatten())
        origins = torch.cat((gather(beams.origins, parents), parents[:, :, None]), dim=2)
        beams = Beams(beams.prompts, running, values, origins, hypotheses)

        done, numbers = torch.stack((self._over(beams) | ends.all(dim=1), ~values[:, 0].isnan())).cpu()
        if not numbers.all():
            refuse(int(beams.prompts[~numbers][0]), running.new)
        return beams, rows, done

    def _candidates(self, scores: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, beams and tokens `[prompts, candidates]` out of scores `[prompts, beams, vocab]`."""
        flat, vocab_size = scores.flatten(1), scores.shape[2]
        if self.draw is None:
            values, places = flat.topk(self.options.candidates)
        else:
            places, numbers = self.draw.several(flat, prompts, self.options.candidates)
            values = flat.gather(1, places).masked_fill(~numbers, float("nan"))
        return values, places // vocab_size, places % vocab_size

    def _hypotheses(self, beams: Beams, values: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> Hypotheses:
        width = self.options.num_beams
        # The others are there so that enough beams go on.
        finished = ends & (torch.arange(ends.shape[1], device=ends.device) < width)
        scores = values / (beams.running.new + 1) ** self.options.length_penalty
        scores = scores + (~finished).to(scores.dtype) * UNLIKELY
        count, written = len(beams.prompts), beams.running.written
        written = written.reshape(count, len(written) // count, -1) if beams.running.new else beams.origins
        longer = torch.cat((gather(written, parents), tokens[:, :, None]), dim=2)
        origins = torch.cat((gather(beams.origins, parents), parents[:, :, None]), dim=2)
        return beams.hypotheses.merge(scores, finished, longer, origins)

    def _over(self, beams: Beams) -> Tensor:
        """Whose hypotheses will not get better, bool `[prompts]`."""
        options, found = self.options, beams.hypotheses
        length = torch.full_like(beams.running.prompts, beams.running.new)
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = beams.running.longest - beams.running.prompts
        powers = [float(value) ** options.length_penalty for value in length[:: options.num_beams].tolist()]
        best = beams.scores[:, :1] / beams.scores.new_tensor(powers)[:, None]
        worst = torch.where(found.finished, found.scores.min(dim=1, keepdim=True).values, UNLIKELY)
        over = ~(best > worst).any(dim=1)
        return over | found.finished.all(dim=1) if options.early_stopping is True else over


def _leave_behind(beams: Beams, parents: Tensor, on: Tensor) -> tuple[Beams, Tensor]:
    """Only the prompts whose rows are `on`, int64 on the host."""
    width, there = parents.shape[1], on.to(parents.device)
    rows = (on[:, None] * width + torch.arange(width)).flatten()
    kept = Beams(
        beams.prompts[on],
        beams.running.take(rows),
        beams.scores[there],
        beams.origins[there],
        beams.hypotheses.take(there),
    )
    return kept, parents[there]


def _written(found: list[Hypotheses | None], scores: list[Tensor], options: GenerationOptions) -> Written:
    tokens, origins, values = [], [], []
    for prompt, hypotheses in enumerate(found):
        assert hypotheses is not None
        finished = int(hypotheses.finished[0, : options.num_return_sequences].sum())
        lengths = (hypotheses.origins[0, : options.num_return_sequences] >= 0).sum(dim=1).tolist()
        if finished < options.num_return_sequences:
            raise OptionError(
                f"num_return_sequences: {options.num_return_sequences} are asked for, but only {finished} of prompt "
                f"{prompt} come to an end: the options forbid all others"
            )
        values.append(hypotheses.scores[0, : options.num_return_sequences])
        for place, length in enumerate(lengths):
            tokens.append(hypotheses.tokens[0, place, :length])
            origins.append(hypotheses.origins[0, place, :length] + prompt * options.num_beams)
    return Written(tokens, tuple(scores), torch.cat(values), origins)


def _check_penalty(penalty: float, longest: int) -> None:
    if abs(penalty) * math.log(longest) > 700:  # its power of the length is no double any more
        raise OptionError(f"length_penalty: {penalty:g} is beyond reason for a length of {longest} tokens")
