"""The steps of a decoder over its cache, one token a sequence, as `generate` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import OptionError
from .decoding import Decoding, Texts
from .kv_cache import KeyValueCache

__all__ = ["Steps"]

STEPS_AHEAD = 1024
"""Most steps that room is made for before they come: beyond, the cache grows as it is needed."""


class Steps:
    """A decoder one token a step, as `engine/generate/decoder.py` asks for it.

    Attributes:
        model: an `EncoderDecoder` or a `CausalModel`.
        head: from `[rows, hidden]` to `[rows, vocab]`.
        texts: the encoder's output, where there is an encoder.
        cache: what is kept of the tokens so far.
    """

    def __init__(self, model: Any, head: Any, texts: Texts | None = None) -> None:
        """Nothing runs before `start`."""
        self.model, self.head, self.texts = model, head, texts
        self.cache = KeyValueCache.empty(0)

    def start(self, prompts: Sequence[Tensor], *, steps: int, sequences: int) -> Tensor:
        """The logits behind each prompt, fp32 `[prompts, vocab]`; room for the steps is made at once."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
        longest = int(lengths.max()) if len(lengths) else 0
        room = longest + min(steps, STEPS_AHEAD)
        self.cache = KeyValueCache.empty(self.model.decoder_layers, room)
        if self.texts is not None:
            self.cache = self.model.start_decoding(self.texts, room)
        limit = self.model.longest
        if limit is not None and longest > limit:
            raise OptionError(f"a prompt of {longest} tokens: the model takes at most {limit}")
        ids = torch.cat([*prompts])
        positions = torch.cat([torch.arange(int(length), device=ids.device) for length in lengths])
        hidden = self._pass(ids, positions, lengths)
        return self._logits(hidden[(lengths.cumsum(0) - 1).long().to(hidden.device)])

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each sequence, int64 `[sequences]`; the logits of the next, fp32 `[sequences, vocab]`."""
        positions = self.cache.lengths.long().to(tokens.device)
        return self._logits(self._pass(tokens, positions, torch.ones(len(tokens), dtype=torch.int32)))

    def reorder(self, rows: Tensor) -> None:
        """Sequence i goes on from what was sequence `rows[i]`."""
        if len(rows) != len(self.cache.lengths) or not torch.equal(rows.cpu(), torch.arange(len(rows))):
            self.cache.reorder(rows)

    def _pass(self, ids: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        edges = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(ids.device)
        batch = PackedBatch(ids, positions, None, edges, lengths, int(lengths.max()))
        place = self.cache.extend(batch)
        return self.model.decode(Decoding(batch, self.texts, self.cache, place))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).float()
