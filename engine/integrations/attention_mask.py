"""What transformers' attention masks say, kept short: which tokens are there, and which of them see each other.

transformers asks a mask function once a pass, and hands what it returns to every layer. Ours returns a small tensor
that knows what it stands for (`MaskFacts`), so that what follows from a mask is made once and not once a layer, and no
mask of `[length, length]` is written. A mask that cannot be said so briefly is left to transformers' own functions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..memo import Memo
from ..models.padding import Layout

__all__ = ["MaskFacts", "PackedRows", "facts_of", "is_traced", "make_mask"]

_ATTRIBUTE = "padless_facts"


class PackedRows(NamedTuple):
    """The queries or the keys of a batch without their padding.

    Attributes:
        layout: the way from `[batch, length, …]` to `[rows, …]` and back.
        cu_seqlens: int32 `[batch + 1]`: sequence i is rows `cu_seqlens[i]:cu_seqlens[i + 1]`.
        max_seqlen: the longest sequence.
    """

    layout: Layout
    cu_seqlens: Tensor
    max_seqlen: int


@dataclass
class MaskFacts:
    """Who sees whom in a batch.

    Attributes:
        batch: sequences; queries, keys: of each, padding included.
        device: where the keys are.
        present: bool `[batch, keys]`, false at padding; None where there is none. Where there are as many queries as
            keys it says the same of them.
        causal: no query sees a key to its right.
        window: keys seen to the left and to the right of a query, inclusive; -1 is unbounded.
        segments: int32 `[texts + 1]`: the one sequence of the batch is several texts side by side, text i at
            `segments[i]:segments[i + 1]`, and no text sees another. None where every sequence is one text.
        memo: what ops derive from the lengths.
    """

    batch: int
    queries: int
    keys: int
    device: torch.device
    present: Tensor | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    segments: Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    _parted: tuple[Tensor, MaskFacts] | None = None

    @functools.cached_property
    def packed_keys(self) -> PackedRows:
        """The keys that are there."""
        if self.segments is not None:
            return PackedRows(Layout((1, self.keys)), self.segments, int(self.segments.diff().max()))
        return _packed(self.present, self.batch, self.keys, self.device)

    @functools.cached_property
    def packed_queries(self) -> PackedRows:
        """The queries that are there: those of the keys' places, or all where queries and keys are other tokens."""
        return self.packed_keys if self.queries == self.keys else _packed(None, self.batch, self.queries, self.device)

    @property
    def plain(self) -> bool:
        """Whether everything sees everything, or everything to its left."""
        return self.window == (-1, -1) and self.segments is None and self.packed_keys.layout.slots is None

    @functools.cached_property
    def dense(self) -> Tensor:
        """bool `[batch or 1, 1, queries or 1, keys]`, true where a query sees a key: the mask in full."""
        left, right = self.window[0], 0 if self.causal else self.window[1]
        seen = torch.ones(1, self.keys, dtype=torch.bool, device=self.device)
        if left >= 0 or right >= 0:
            # The last query stands beside the last key.
            queries = torch.arange(self.queries, device=self.device)[:, None] + (self.keys - self.queries)
            distance = torch.arange(self.keys, device=self.device)[None, :] - queries
            seen = (distance >= (-self.keys if left < 0 else -left)) & (distance <= (self.keys if right < 0 else right))
        if self.segments is not None:
            text = torch.bucketize(torch.arange(self.keys, device=self.device), self.segments[1:], right=True)
            seen = seen & (text[:, None] == text)
        return seen[None, None] if self.present is None else seen[None, None] & self.present[:, None, None, :]

    def side_by_side(self, segments: Tensor) -> MaskFacts:
        """The same of texts that the caller has put one behind the other, as transformers' `cu_seq_lens_q` says.

        Where there is more than one sequence, or padding, they are not what is meant, and nothing changes.
        """
        if self.batch != 1 or self.queries != self.keys or self.present is not None:
            return self
        if self._parted is None or self._parted[0] is not segments:
            self._parted = segments, replace(self, segments=segments.int(), memo=Memo(), _parted=None)
        return self._parted[1]

    def additive(self, dtype: torch.dtype) -> Tensor:
        """`dense` as a number that is added to scores: 0, or the lowest of the dtype."""
        return torch.zeros_like(self.dense, dtype=dtype).masked_fill(~self.dense, torch.finfo(dtype).min)

    def attached(self, mask: Tensor) -> Tensor:
        """The mask, which from now on knows these facts."""
        setattr(mask, _ATTRIBUTE, self)
        return mask


def facts_of(mask: Tensor | None) -> MaskFacts | None:
    """What `make_mask` knew of a mask; None for masks of others."""
    return getattr(mask, _ATTRIBUTE, None)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """A mask as transformers' AttentionMaskInterface asks for it.

    Args:
        batch_size: sequences.
        q_length: queries of each, with padding.
        kv_length: keys of each, with padding and what a cache holds.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: `(batch, head, query, key) -> visible`, for transformers' own functions.
        attention_mask: bool `[batch, keys]`, false at padding; None where there is none.
        options: what else transformers tells its own functions.

    Returns:
        Where all queries of a sequence see the same keys, `[batch, 1, 1, keys]` to be added to scores. Where they do
        not, bool `[batch, keys]`, which `attention_interface` alone can read. What transformers' functions return where
        neither would say all: caches, packed sequences, chunks, masks of the model's own, a graph that is traced.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    given = {
        "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset,
        "kv_offset": kv_offset, "attention_mask": attention_mask, **options,
    }  # fmt: skip
    if mask_function is not None:
        given["mask_function"] = mask_function
    config = options.get("config")
    if config is not None and not _asks_the_interface(type(config)):
        return eager_mask(**given)
    facts = None if is_traced() else _facts(given, config)
    if facts is None:
        return sdpa_mask(**given)
    if facts.causal or facts.window != (-1, -1):
        shape = (batch_size, kv_length)
        return facts.attached(
            torch.ones(shape, dtype=torch.bool, device=facts.device) if facts.present is None else facts.present.clone()
        )
    mask = facts.additive(options.get("dtype", torch.float32)).expand(batch_size, 1, 1, kv_length)
    return facts.attached(mask)


def _facts(given: dict[str, Any], config: Any) -> MaskFacts | None:
    """None where a few facts are not enough."""
    bidirectional = bool(given.get("allow_is_bidirectional_skip", False))
    if not (bidirectional or given.get("allow_is_causal_skip", True)):
        return None  # transformers allows no shortcut where anything was added to the plain mask
    mask, batch, queries, keys = (given[name] for name in ("attention_mask", "batch_size", "q_length", "kv_length"))
    if any(isinstance(given[name], Tensor) or given[name] != 0 for name in ("q_offset", "kv_offset")):
        return None
    if mask is not None and tuple(mask.shape) != (batch, keys):
        return None
    if queries != keys and not bidirectional:
        return None
    local = given.get("local_size")
    if local is not None and (queries != keys or not _is_window(config, local)):
        return None
    if bidirectional and mask is not None and queries == keys and _may_cross(config) and not bool(mask.all()):
        return None  # the mask of the keys says nothing of these queries if they are other tokens
    window = (-1, -1) if local is None else (local, local) if bidirectional else (local - 1, -1)
    device = torch.device(given.get("device", "cpu")) if mask is None else mask.device
    return MaskFacts(batch, queries, keys, device, None if mask is None else mask.bool(), not bidirectional, window)


def _is_window(config: Any, local: int) -> bool:
    """Whether a local mask is a window: chunks are local too, and a chunk's first query sees none of those before."""
    return getattr(config, "sliding_window", None) == local != getattr(config, "attention_chunk_size", None)


def _may_cross(config: Any) -> bool:
    """Whether a model of this configuration may attend to other tokens than its own."""
    names = ("is_decoder", "is_encoder_decoder", *(name for name in vars(config) if "cross" in name))
    return any(getattr(config, name, False) for name in names)


@torch.compiler.assume_constant_result
def _asks_the_interface(config_class: type) -> bool:
    """Whether the models of a configuration ask transformers' AttentionInterface for their attention.

    Those that compute it themselves (MegatronBERT) read only masks that are written in full.
    """
    own = config_class.__module__
    modules = (sys.modules.get(name) for name in (own, own.replace("configuration_", "modeling_")))
    return any(hasattr(module, "ALL_ATTENTION_FUNCTIONS") for module in modules if module is not None)


def is_traced() -> bool:
    """Whether a graph is being made of what runs, in which no length may be looked at."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]


def _packed(present: Tensor | None, batch: int, length: int, device: torch.device) -> PackedRows:
    if present is not None:
        lengths = present.sum(dim=1, dtype=torch.int32)
        on_host = lengths.cpu()
        if int(on_host.sum()) != batch * length:
            cu_seqlens = F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0))
            layout = Layout((batch, length), present.flatten().nonzero().flatten())
            return PackedRows(layout, cu_seqlens, int(on_host.max()))
    cu_seqlens = torch.arange(0, batch * length + 1, max(length, 1), dtype=torch.int32, device=device)
    return PackedRows(Layout((batch, length)), cu_seqlens, length)
