"""Random draws: a token of each row, or the candidates of a beam, by their probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OptionError
from .options import GenerationOptions

__all__ = ["Draw"]


class Draw:
    """Draws by an exponential race (the Gumbel-max trick, Maddison et al. 2014), as `torch.multinomial` does.

    In each step every row of the call gets its random numbers, whether it still runs or not, so that nobody's draws
    depend on when others end; and with the same seed the draws are those of transformers.
    """

    def __init__(self, options: GenerationOptions, rows: int, device: torch.device) -> None:
        """Take the source of the random numbers.

        Args:
            options: `seed` or `generator`; torch's own generator without them.
            rows: of the call, finished ones included.
            device: of the scores.

        Raises:
            OptionError: a generator of another device.
        """
        self.rows = rows
        self.generator = options.generator
        if self.generator is not None and self.generator.device.type != device.type:
            raise OptionError(f"generator: expected one of device {device}, got one of {self.generator.device}")
        if options.seed is not None:
            self.generator = torch.Generator(device).manual_seed(options.seed)

    def __call__(self, scores: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each row; a `Choice` of the greedy loop."""
        finish = self._finish(scores, sequences)
        times, tokens = finish.max(dim=-1)
        return tokens, times > 0

    def several(self, scores: Tensor, sequences: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` different places of each row in the order in which they are drawn, int64 `[rows, count]`, and
        whether the scores that they were drawn by are numbers, bool of that shape."""
        first = self._finish(scores, sequences).topk(count)
        return first.indices, ~first.values.isnan()

    def _finish(self, scores: Tensor, sequences: Tensor) -> Tensor:
        probabilities = scores.softmax(dim=-1)
        noise = torch.empty(self.rows, scores.shape[1], dtype=scores.dtype, device=scores.device)
        noise.exponential_(generator=self.generator)
        return probabilities.div_(noise if len(sequences) == self.rows else noise[sequences.to(scores.device)])
