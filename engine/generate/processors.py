"""What options do to the scores of the next token before one is chosen, in the order and the meaning of transformers.

A processor maps the running sequences and scores, fp32 `[rows, vocab]`, to scores of the same shape, and writes to
neither: logits where one sequence is written at a time, log probabilities in a beam search. A token that may not be
chosen gets -inf. Rows do not see each other, and a sequence's prompt is all that it holds so far: a start token on the
decoder's side, but no padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .options import GenerationOptions
from .running import Running

__all__ = ["Processor", "filters", "process", "processors"]

Processor = Callable[[Running, Tensor], Tensor]

INFINITY = float("inf")


def processors(options: GenerationOptions, device: torch.device) -> list[Processor]:
    """Those that the options ask for, in the order in which they act, `filters` last where tokens are drawn."""
    made: list[Processor] = []
    if options.repetition_penalty != 1.0:
        made.append(repetition_penalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        made.append(no_repeated_ngrams(options.no_repeat_ngram_size))
    ends = torch.tensor(options.eos_token_id, device=device)
    # An end token is no word: it would keep every sequence from ending.
    if words := [word for word in options.bad_words_ids if word not in {(end,) for end in options.eos_token_id}]:
        made.append(no_bad_words(words, device))
    if options.eos_token_id:
        made.append(_without(ends, lambda running: running.lengths < running.shortest))
    if options.forced_bos_token_id is not None:
        first = torch.tensor([options.forced_bos_token_id], device=device)
        made.append(_only(first, lambda running: running.lengths == 1))
    if options.forced_eos_token_id:
        last = torch.tensor(options.forced_eos_token_id, device=device)
        made.append(_only(last, lambda running: running.lengths == running.longest - 1))
    if options.suppress_tokens:
        made.append(_without(torch.tensor(options.suppress_tokens, device=device), lambda running: _all(running)))
    if options.begin_suppress_tokens:
        forced = options.forced_bos_token_id is not None
        at_first = torch.tensor(options.begin_suppress_tokens, device=device)
        made.append(_without(at_first, lambda running: ((running.prompts == 1) & forced) == running.new))
    return [*made, *filters(options)] if options.do_sample else made


def filters(options: GenerationOptions) -> list[Processor]:
    """Temperature, top-k and top-p. A beam keeps a token more than there are end tokens, so that it can go on."""
    made: list[Processor] = []
    kept = options.candidates // options.num_beams if options.num_beams > 1 else 1
    if options.temperature != 1.0:
        made.append(lambda running, scores: scores / options.temperature)
    if options.top_k:
        made.append(top_k(max(options.top_k, kept)))
    if options.top_p < 1.0:
        made.append(top_p(options.top_p, kept))
    return made


def process(steps: Sequence[Processor], running: Running, scores: Tensor) -> Tensor:
    """`scores` through all of them."""
    for step in steps:
        scores = step(running, scores)
    return scores


def repetition_penalty(penalty: float) -> Processor:
    """Divide positive scores of the tokens that a sequence holds by `penalty`, and multiply negative ones."""

    def penalise(running: Running, scores: Tensor) -> Tensor:
        tokens, spare = _with_spare(running.tokens, scores), F.pad(scores, (0, 1))
        found = spare.gather(1, tokens)
        return spare.scatter_(1, tokens, torch.where(found < 0, found * penalty, found / penalty))[:, :-1]

    return penalise


def no_repeated_ngrams(size: int) -> Processor:
    """Refuse each token with which the last `size` tokens of a sequence would stand in it twice."""

    def refuse(running: Running, scores: Tensor) -> Tensor:
        width = running.tokens.shape[1]
        if width < size:
            return scores
        # Where a row is shorter than the last tokens are long, they begin with what stands in front of it: found once.
        earlier = running.tokens.unfold(1, size, 1)
        repeated = (earlier[..., :-1] == running.tokens[:, None, width + 1 - size :]).all(dim=-1)
        return _refuse(scores, earlier[..., -1], repeated)

    return refuse


def no_bad_words(words: Sequence[Sequence[int]], device: torch.device) -> Processor:
    """Refuse each token that would complete one of `words`, tokens in a row."""
    single = torch.tensor([word[0] for word in words if len(word) == 1], dtype=torch.int64, device=device)
    by_length = defaultdict(list)
    for word in words:
        if len(word) > 1:
            by_length[len(word)].append(word)
    several = [torch.tensor(alike, device=device) for alike in by_length.values()]

    def refuse(running: Running, scores: Tensor) -> Tensor:
        scores = scores.index_fill(1, single, -INFINITY)
        for alike in several:
            begun = alike.shape[1] - 1
            if begun <= running.tokens.shape[1]:
                completed = (running.tokens[:, None, -begun:] == alike[:, :-1]).all(dim=-1)
                scores = _refuse(scores, alike[:, -1].expand_as(completed), completed)
        return scores

    return refuse


def top_k(kept: int) -> Processor:
    """Refuse all but the `kept` greatest scores; equals of the last of them stay too."""

    def refuse(running: Running, scores: Tensor) -> Tensor:
        least = scores.topk(min(kept, scores.shape[1])).values[:, -1:]
        return scores.masked_fill(scores < least, -INFINITY)

    return refuse


def top_p(share: float, kept: int) -> Processor:
    """Refuse the least likely tokens, as many as have a probability of `1 - share` together, but leave `kept`."""

    def refuse(running: Running, scores: Tensor) -> Tensor:
        ascending, tokens = scores.sort(dim=-1)
        tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
        tail[:, -kept:] = False
        return scores.masked_fill(tail.scatter(1, tokens, tail), -INFINITY)

    return refuse


def _without(tokens: Tensor, when: Callable[[Running], Tensor]) -> Processor:
    """Refuse `tokens` in the rows for which `when`, bool `[rows]` on the host, holds."""
    return lambda running, scores: _in_rows(when(running), scores, lambda: scores.index_fill(1, tokens, -INFINITY))


def _only(tokens: Tensor, when: Callable[[Running], Tensor]) -> Processor:
    """Leave only `tokens`, each with a score of 0, in the rows for which `when` holds."""
    return lambda running, scores: _in_rows(
        when(running), scores, lambda: torch.full_like(scores, -INFINITY).index_fill_(1, tokens, 0.0)
    )


def _in_rows(rows: Tensor, scores: Tensor, changed: Callable[[], Tensor]) -> Tensor:
    # Decided on the host: in most steps nothing is computed at all.
    if not rows.any():
        return scores
    return changed() if rows.all() else torch.where(rows.to(scores.device)[:, None], changed(), scores)


def _refuse(scores: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    """-inf for `tokens [rows, any]` `where` that is so; ids that have no score do nothing."""
    spare = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    spare.scatter_(1, _with_spare(tokens.where(where, -1), scores), True)
    return scores.masked_fill(spare[:, :-1], -INFINITY)


def _with_spare(tokens: Tensor, scores: Tensor) -> Tensor:
    """`tokens`, with the first number behind the vocabulary for those that are not in it."""
    return tokens.where((tokens >= 0) & (tokens < scores.shape[1]), scores.shape[1])


def _all(running: Running) -> Tensor:
    return torch.ones_like(running.prompts, dtype=torch.bool)
