"""What generation asks of a model: the next token's logits, sequence by sequence, over a cache that the model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Decoder"]


class Decoder(Protocol):
    """One token a step for all running sequences, over keys and values that the decoder owns.

    Made for one call of `generate`; an encoder-decoder's has the texts' encoder states already. The calls that follow
    are `start`, once, then `step` again and again, with a `reorder` before it where the sequences changed. Nothing is
    padded: a row is a sequence that still runs.

    Logits are fp32 on the decoder's device. They are read before the next call and never written to, so a decoder may
    return the same memory each time.
    """

    def start(self, prompts: Sequence[Tensor], *, steps: int, sequences: int) -> Tensor:
        """Take the prompts in, and give the logits of the token behind each: fp32 `[prompts, vocab]`.

        Args:
            prompts: int64 `[tokens]` each, on the decoder's device, of any lengths from 1 on. Those of an
                encoder-decoder stand on its decoder's side, one for each text, and mostly hold the start token alone.
            steps: calls of `step` that follow at most, so that a cache can be made for `len(prompt) + steps` tokens.
            sequences: rows that `reorder` will ask for at most, such as `beams * len(prompts)`.

        Raises:
            OptionError: the model has no positions for that many tokens.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append int64 `[sequences]`, one token to each, and give the logits of the next: fp32 `[sequences, vocab]`."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue what was sequence `rows[i]`.

        Args:
            rows: int64 `[new sequences]` on the decoder's device. Rows may be missing (finished sequences leave), stand
                in another order, and repeat (beams and samples of one prompt; they share a text's encoder states).
        """
        ...
