"""Packed batches: how texts become one `[tokens]` sequence without a single padding token.

    texts -> TokenizedTexts (ragged, on the host) -> plan_batches (rows sorted by length, cut by a token budget)
          -> pack (PackedBatch on the device) -> model -> rows scattered back to the caller's order

Lengths stay on the host beside their device copy, so nothing in the hot path waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .memo import Memo

__all__ = ["PackedBatch", "TokenizedTexts", "pack", "padded_tokens", "plan_batches"]


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of several texts, one after the other, without padding.

    Attributes:
        input_ids: int32 `[tokens]`, the ids of all texts end to end, special tokens included.
        lengths: int32 `[texts]`, tokens of each text; their sum is `tokens`.
        token_type_ids: int32 `[tokens]`, or None where every token is of type 0.
        truncated: bool `[texts]`, true where the text had more tokens than the model takes.
        repaired: bool `[texts]`, true where lone surrogates were replaced by U+FFFD.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: np.ndarray
    repaired: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def offsets(self) -> np.ndarray:
        """int64 `[texts + 1]`, where each text starts in `input_ids`."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])


def _new_memo() -> Memo:
    # A function: torch.compile follows no class that a dataclass calls.
    return Memo()


@dataclass(frozen=True)
class PackedBatch:
    """What a model runs on. Passed explicitly; there is no global context.

    Attributes:
        input_ids: int64 `[tokens]` on the device.
        position_ids: int64 `[tokens]` on the device, restarting at 0 with every text.
        token_type_ids: int64 `[tokens]` on the device, or None where every token is of type 0.
        cu_seqlens: int32 `[texts + 1]` on the device: text i is rows `cu_seqlens[i]:cu_seqlens[i + 1]`.
        lengths: int32 `[texts]` on the host.
        max_seqlen: the longest text, in tokens.
        spans: int64 `[texts]` on the host, the highest position of each text plus one, where the caller gave positions
            of their own; None where they count the tokens.
        memo: what ops derive from the lengths, once for all layers (`engine/ops/attention.py`); a copy has one of its
            own, and a model copies the batch it is called with.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    lengths: Tensor
    max_seqlen: int
    spans: Tensor | None = None
    memo: Memo = field(default_factory=_new_memo, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # For torch.compile, where it is in use: one graph for all batches, whatever their numbers of tokens and texts.
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None or torch.compiler.is_compiling():
            return
        for tensor in (self.input_ids, self.position_ids, self.token_type_ids, self.cu_seqlens, self.lengths):
            if tensor is not None:
                dynamo.maybe_mark_dynamic(tensor, 0)

    @property
    def tokens(self) -> int:
        """Number of tokens in the batch; every one of them is real."""
        return self.input_ids.shape[0]

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on `device`; its lengths stay on the host. Does not wait for copies to a GPU."""
        if torch.device(device).type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            position_ids=moved(self.position_ids),
            token_type_ids=None if self.token_type_ids is None else moved(self.token_type_ids),
            cu_seqlens=moved(self.cu_seqlens),
        )


SMALLEST_SHARE = 8
"""Batches shrink towards the end to no less than this part of the token budget."""


def plan_batches(
    lengths: Sequence[int] | np.ndarray, token_budget: int, *, at_once: int = 1, following: int = 0
) -> Iterator[np.ndarray]:
    """Group texts of like length into batches of at most `token_budget` tokens.

    Longest first: the largest batch comes first, so that running out of memory shows at once and not after hours.
    Equal lengths keep the caller's order, so the plan is a function of the arguments alone.

    Args:
        lengths: tokens of each text, `[texts]`.
        token_budget: most tokens in one batch; a longer text gets a batch of its own.
        at_once: how many batches run at the same time. Above 1 the last batches are smaller, half a fair share of what
            is left, so that none runs long after the others are done.
        following: about how many tokens will be planned after these.

    Yields:
        int64 arrays of row indices; together they are each row exactly once.

    Raises:
        ValueError: if `token_budget` is below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        filled = int(ends[start - 1]) if start else 0
        budget = token_budget
        if at_once > 1:
            share = (int(ends[-1]) - filled + following) // (2 * at_once)
            budget = min(token_budget, max(share, token_budget // SMALLEST_SHARE))
        stop = max(int(np.searchsorted(ends, filled + budget, side="right")), start + 1)
        yield order[start:stop]
        start = stop


def pack(texts: TokenizedTexts, rows: np.ndarray, device: torch.device | str = "cpu") -> PackedBatch:
    """Pack the chosen rows, in the given order, into one batch on `device`.

    Args:
        texts: tokenised texts.
        rows: indices into `texts`, `[batch]`.
        device: where the model is.

    Returns:
        A PackedBatch of `len(rows)` texts and `texts.lengths[rows].sum()` tokens.
    """
    lengths = texts.lengths[rows].astype(np.int32)
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    position_ids = np.arange(cu_seqlens[-1], dtype=np.int64) - np.repeat(cu_seqlens[:-1].astype(np.int64), lengths)
    gather = position_ids + np.repeat(texts.offsets[rows], lengths)

    types = texts.token_type_ids
    batch = PackedBatch(
        input_ids=torch.from_numpy(texts.input_ids[gather].astype(np.int64)),
        position_ids=torch.from_numpy(position_ids),
        token_type_ids=None if types is None else torch.from_numpy(types[gather].astype(np.int64)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        lengths=torch.from_numpy(lengths),
        max_seqlen=int(lengths.max(initial=0)),
    )
    return batch.to(device)


def padded_tokens(lengths: Sequence[int] | np.ndarray, batch_size: int = 32) -> int:
    """Tokens a padding engine would compute: input order, `batch_size` texts a batch, each padded to its longest.

    This is what transformers users run by default; the difference to `sum(lengths)` is reported as padding avoided.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    batches = (lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size))
    return sum(int(batch.max()) * len(batch) for batch in batches)
