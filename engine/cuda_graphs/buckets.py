"""Small batches brought to few sizes, so that what a GPU is told to do for one of them can be kept and told again.

    texts of 9 and 22 tokens -> bucket of 32 tokens, 4 texts: 9, 22, 1 filler, 0

A bucket is filled up with tokens behind the real ones, in texts of their own: no op lets a text see another one, so
fillers cost time and change nothing. Everything a model takes from the host lies in one block of memory, and goes to
the device in one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import PackedBatch

__all__ = ["MOST_TEXTS", "MOST_TOKENS", "Bucket", "StaticBatch"]

MOST_TOKENS = 2048
"""Tokens of the largest bucket. Beyond, a GPU computes for longer than the host takes to tell it what."""

MOST_TEXTS = 128
"""Texts of the largest bucket, fillers included."""

_SMALLEST = 16


@dataclass(frozen=True)
class Bucket:
    """The sizes that a batch is brought to, and all else that what a model launches for it depends on.

    Attributes:
        tokens: fillers included.
        texts: fillers included.
        longest: most tokens a text of such a batch may have.
        typed: whether the texts have token types.
        prompt_tokens: leading tokens of each text that belong to a prompt.
    """

    tokens: int
    texts: int
    longest: int
    typed: bool = False
    prompt_tokens: int = 0

    @classmethod
    def of(cls, batch: PackedBatch, longest: int | None = None, prompt_tokens: int = 0) -> Bucket | None:
        """The bucket of a batch; None where it is too large, holds no token or has positions of its own.

        Tokens are rounded up to 16, 32, 48, 64, 96, 128 and so on, texts to a power of two with room for the fillers.

        Args:
            batch: any.
            longest: most tokens of a text that the model takes; None where nothing limits them.
            prompt_tokens: see above.
        """
        tokens, texts = batch.tokens, len(batch)
        if not 0 < tokens <= MOST_TOKENS or batch.spans is not None:
            return None
        rounded = _rounded(tokens)
        most = rounded if longest is None else min(rounded, longest)
        if batch.max_seqlen > most or most < 1:
            return None
        fillers = max(-(-(rounded - tokens) // most), 1)
        room = 1 << (texts + fillers - 1).bit_length()
        if room > MOST_TEXTS:
            return None
        return cls(rounded, room, most, batch.token_type_ids is not None, prompt_tokens)


def _rounded(tokens: int) -> int:
    power = max(1 << (tokens - 1).bit_length(), _SMALLEST)
    between = 3 * power // 4
    return between if tokens <= between and between % _SMALLEST == 0 else power


class StaticBatch:
    """Memory of one bucket, on the host and on the device, that every batch of it is copied into.

    Attributes:
        bucket: its sizes.
        batch: what a model runs on. The lengths of its texts are not there: whoever asks the host for them computes
            something else for every batch, which cannot be kept, and gets an error.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        rows = 3 if bucket.typed else 2
        size = 8 * rows * bucket.tokens + 4 * (bucket.texts + 1)
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._rows, self._edges = (part.numpy() for part in _parts(self._host, rows, bucket))
        (ids, positions, *types), edges = _parts(self._device, rows, bucket)
        self.batch = PackedBatch(
            input_ids=ids,
            position_ids=positions,
            token_type_ids=types[0] if types else None,
            cu_seqlens=edges,
            lengths=torch.empty(bucket.texts, dtype=torch.int32, device="meta"),
            max_seqlen=bucket.longest,
        )

    def fill(self, batch: PackedBatch) -> None:
        """Copy `batch`, which is on the host and of this bucket, and fillers behind it. Does not wait for the copy."""
        bucket, tokens, texts = self.bucket, batch.tokens, len(batch)
        fillers = bucket.tokens - tokens
        self._rows[0, :tokens] = batch.input_ids.numpy()
        self._rows[1, :tokens] = batch.position_ids.numpy()
        if batch.token_type_ids is not None:
            self._rows[2, :tokens] = batch.token_type_ids.numpy()
        self._rows[:, tokens:] = 0
        self._rows[1, tokens:] = np.arange(fillers) % bucket.longest
        self._edges[: texts + 1] = batch.cu_seqlens.numpy()
        behind = tokens + bucket.longest * np.arange(1, bucket.texts - texts + 1)
        self._edges[texts + 1 :] = np.minimum(behind, bucket.tokens)
        self._device.copy_(self._host, non_blocking=True)


def _parts(block: Tensor, rows: int, bucket: Bucket) -> tuple[Tensor, Tensor]:
    """int64 `[rows, tokens]` and int32 `[texts + 1]` inside the block."""
    split = 8 * rows * bucket.tokens
    return block[:split].view(torch.int64).view(rows, bucket.tokens), block[split:].view(torch.int32)
