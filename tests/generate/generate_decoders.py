"""Decoders for the tests: transformers' models, asked anew for the whole sequences in each step, and a Markov chain.

They hold the caller to the protocol: the promised number of steps and of sequences, and as many tokens as rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Recomputing:
    """The base: keeps the tokens of each row, and leaves the logits to `logits`.

    Attributes:
        rows: sequences in each step so far.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []

    def start(self, prompts: Sequence[Tensor], *, steps: int, sequences: int) -> Tensor:
        self.tokens = pad_sequence([*prompts], batch_first=True)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.texts = torch.arange(len(prompts))
        self.steps, self.sequences = steps, sequences
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        assert tokens.dtype == torch.int64
        assert tokens.shape == self.lengths.shape
        assert len(tokens) <= self.sequences
        assert len(self.rows) <= self.steps
        self.tokens = torch.cat((self.tokens, torch.zeros_like(self.tokens[:, :1])), dim=1)
        self.tokens[torch.arange(len(tokens)), self.lengths] = tokens
        self.lengths = self.lengths + 1
        return self._logits()

    def reorder(self, rows: Tensor) -> None:
        assert rows.dtype == torch.int64
        self.lengths, self.texts = self.lengths[rows], self.texts[rows]
        self.tokens = self.tokens[rows, : self.lengths.max()]

    def logits(self) -> Tensor:
        """`[rows, width, vocab]` for all of `tokens`; those behind `lengths` are padding, which no model here sees."""
        raise NotImplementedError

    def _logits(self) -> Tensor:
        self.rows.append(len(self.lengths))
        return self.logits()[torch.arange(len(self.lengths)), self.lengths - 1].float()


class CausalDecoder(Recomputing):
    """A causal language model of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def logits(self) -> Tensor:
        return self.model(self.tokens, attention_mask=torch.ones_like(self.tokens), use_cache=False).logits


class EncoderDecoder(Recomputing):
    """An encoder-decoder of transformers; the texts are encoded as its own `generate` does it."""

    def __init__(self, model: Any, texts: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.model, self.mask = model, mask
        self.states = model.get_encoder()(texts, attention_mask=mask).last_hidden_state

    def logits(self) -> Tensor:
        return self.model(
            decoder_input_ids=self.tokens,
            encoder_outputs=(self.states[self.texts],),
            attention_mask=self.mask[self.texts],
            use_cache=False,
        ).logits


class Chain(Recomputing):
    """A model that looks at the last token only: `table [vocab, vocab]` of logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def logits(self) -> Tensor:
        return self.table[self.tokens]
