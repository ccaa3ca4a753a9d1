"""The sequences that are still being written: their tokens, and what is known of their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .options import GenerationOptions

__all__ = ["Running"]


@dataclass(frozen=True)
class Running:
    """A row for each sequence that is being written, all of them with as many new tokens.

    Attributes:
        tokens: int64 `[rows, width]` on the model's device: the prompt, then the new tokens. They end in the last
            column, so that the last tokens of all rows are one slice; -1 stands in front of the shorter ones.
        prompts: int64 `[rows]` on the host; tokens of each prompt. So are the next two.
        shortest: tokens before which a sequence may not end, prompt included.
        longest: tokens at which a sequence ends, prompt included.
        new: tokens chosen so far, in every row.
    """

    tokens: Tensor
    prompts: Tensor
    shortest: Tensor
    longest: Tensor
    new: int = 0

    @classmethod
    def of(cls, prompts: Sequence[Tensor], options: GenerationOptions) -> Self:
        """One row for each prompt, int64 `[tokens]`."""
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        tokens = torch.stack(
            [torch.nn.functional.pad(prompt, (width - len(prompt), 0), value=-1) for prompt in prompts]
        )
        shortest = torch.tensor([options.shortest(length) for length in lengths])
        longest = torch.tensor([options.longest(length) for length in lengths])
        return cls(tokens, torch.tensor(lengths), shortest, longest)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence so far, prompt included; int64 `[rows]` on the host."""
        return self.prompts + self.new

    @property
    def full(self) -> Tensor:
        """Which rows have come to their greatest length; bool `[rows]` on the host."""
        return self.lengths >= self.longest

    @property
    def written(self) -> Tensor:
        """The new tokens; int64 `[rows, new]`."""
        return self.tokens[:, self.tokens.shape[1] - self.new :]

    @property
    def last(self) -> Tensor:
        """The last token of each row; int64 `[rows]`."""
        return self.tokens[:, -1].contiguous()

    @property
    def steps(self) -> int:
        """Steps of a decoder until the last row has its greatest length; the last token of each is never read."""
        return int((self.longest - self.lengths).max()) - 1

    def take(self, rows: Tensor, lengths: Tensor | None = None) -> Self:
        """The rows of these numbers, in this order; they may repeat.

        Args:
            rows: int64, on any device.
            lengths: rows on the host that have the same lengths, where `rows` is on the device and reading it would
                have to wait.
        """
        host = rows.cpu() if lengths is None else lengths
        tokens = self.tokens[rows.to(self.tokens.device)]
        return type(self)(tokens, self.prompts[host], self.shortest[host], self.longest[host], self.new)

    def append(self, tokens: Tensor) -> Self:
        """The same rows with one more token each: int64 `[rows]` on the model's device."""
        longer = torch.cat((self.tokens, tokens[:, None]), dim=1)
        return type(self)(longer, self.prompts, self.shortest, self.longest, self.new + 1)
