"""The finished sequences of a beam search, the best `num_beams` of each prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["UNLIKELY", "Hypotheses", "gather"]

UNLIKELY = -1.0e9
"""A score below that of any sequence; added to a score it takes it out of the running."""


@dataclass(frozen=True)
class Hypotheses:
    """A row for each prompt, best first.

    Attributes:
        scores: fp32 `[prompts, beams]`, log probabilities over a power of the lengths; `UNLIKELY` for a free place.
        finished: bool `[prompts, beams]`; False for a free place, whose tokens mean nothing.
        tokens: int64 `[prompts, beams, steps]`, new tokens; behind the last of a sequence anything.
        origins: int64 `[prompts, beams, steps]`, the beam of its prompt that a token was chosen from; -1 behind the
            last token.
    """

    scores: Tensor
    finished: Tensor
    tokens: Tensor
    origins: Tensor

    @classmethod
    def none(cls, prompts: int, beams: int, device: torch.device) -> Self:
        """All places free, before the first step."""
        scores = torch.full((prompts, beams), UNLIKELY, device=device)
        empty = torch.empty(prompts, beams, 0, dtype=torch.int64, device=device)
        return cls(scores, torch.zeros_like(scores, dtype=torch.bool), empty, empty)

    def merge(self, scores: Tensor, finished: Tensor, tokens: Tensor, origins: Tensor) -> Self:
        """The best of these and of a step's candidates, `[prompts, candidates]` each, one token longer than these."""
        places = torch.cat((self.scores, scores), dim=1).topk(self.scores.shape[1])
        return type(self)(
            places.values,
            torch.cat((self.finished, finished), dim=1).gather(1, places.indices),
            gather(torch.cat((_longer(self.tokens), tokens), dim=1), places.indices),
            gather(torch.cat((_longer(self.origins), origins), dim=1), places.indices),
        )

    def take(self, prompts: Tensor) -> Self:
        """The rows of these prompts."""
        return type(self)(self.scores[prompts], self.finished[prompts], self.tokens[prompts], self.origins[prompts])


def gather(x: Tensor, places: Tensor) -> Tensor:
    """`x [prompts, many, …]` at `places [prompts, few]` of its second axis."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def _longer(x: Tensor) -> Tensor:
    return torch.cat((x, x.new_full((*x.shape[:2], 1), -1)), dim=2)
