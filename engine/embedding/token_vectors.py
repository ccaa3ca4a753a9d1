"""Vectors of every token instead of one of every text: `output_value="token_embeddings"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..batch import PackedBatch, pack, padded_tokens, plan_batches
from ..streaming.stream import EncodeStats
from ..tokenizer import Tokenizer

__all__ = ["token_vectors"]

TEXTS_AT_ONCE = 1024
"""Texts tokenised and sorted together."""


def token_vectors(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    run: Callable[[PackedBatch], Tensor],
    *,
    prompt: str,
    token_budget: int,
    batch_size: int | None,
    stats: EncodeStats,
    on_batch: Callable[[int, int], None],
) -> list[Tensor]:
    """Vectors of the tokens of each text.

    Args:
        texts: strings.
        tokenizer: texts to ids.
        run: a packed batch on the host to `[tokens, hidden]`.
        prompt: put before each text; its tokens are among those returned.
        token_budget: most tokens in a batch; a longer text gets a batch of its own.
        batch_size: most texts in a batch, or None.
        stats: counters to add to.
        on_batch: called with (texts, tokens) after each batch.

    Returns:
        fp32 `[tokens, hidden]` on the CPU for each text, special tokens included.
    """
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        tokens = tokenizer.encode(texts[first : first + TEXTS_AT_ONCE], prompt=prompt)
        for rows in plan_batches(tokens.lengths, token_budget):
            for start in range(0, len(rows), batch_size or len(rows)):
                chosen = rows[start : start + (batch_size or len(rows))]
                batch = pack(tokens, chosen)
                with torch.no_grad():
                    vectors = run(batch).to("cpu", torch.float32)
                for row, part in zip(chosen.tolist(), vectors.split(batch.lengths.tolist()), strict=True):
                    # A part of its own, so that one text kept does not keep its batch.
                    found[first + row] = part.clone()
                on_batch(len(chosen), batch.tokens)
        stats.texts += len(tokens)
        stats.tokens += len(tokens.input_ids)
        stats.truncated += int(tokens.truncated.sum())
        stats.repaired += int(tokens.repaired.sum())
        stats.padded_tokens += padded_tokens(tokens.lengths)
    return found
