"""What our decoders keep of the tokens they have seen, as the caches of transformers, so that its loops can go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...models.kv_cache import KeyValueCache

__all__ = ["as_their_cache"]


def as_their_cache(
    cache: KeyValueCache, config: Any, own: tuple[int, Tensor | None], across: tuple[int, Tensor | None] | None
) -> Any:
    """The cache of a first pass, keys and values of a token in the column of that token, zeros at padding.

    Args:
        cache: what our decoder returned.
        config: of transformers' model.
        own: columns of the decoder's inputs, and their mask bool `[batch, columns]` where there is one.
        across: the same of the encoder's texts; None where there is no encoder.

    Returns:
        An EncoderDecoderCache; its second half is empty where there is no encoder.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    halves = DynamicCache(config=config), DynamicCache(config=config)
    filled = torch.arange(cache.capacity)[None] < cache.lengths[:, None]
    for index, layer in enumerate(cache.layers):
        assert layer.keys is not None and layer.values is not None  # noqa: PT018
        rows = filled.flatten().to(layer.keys.device)
        batch = len(cache.lengths)
        keys, values = (_in_columns(x[rows], batch, *own) for x in (layer.keys, layer.values))
        halves[0].update(keys, values, index)
        if across is not None and layer.cross is not None:
            keys, values = (_in_columns(x, batch, *across) for x in layer.cross)
            halves[1].update(keys, values, index)
    return EncoderDecoderCache(*halves)


def _in_columns(rows: Tensor, batch: int, columns: int, mask: Tensor | None) -> Tensor:
    """Packed `[tokens, heads, head_dim]` to `[batch, heads, columns, head_dim]`."""
    if mask is None:
        return rows.view(batch, columns, *rows.shape[1:]).transpose(1, 2)
    padded = rows.new_zeros(batch * columns, *rows.shape[1:])
    padded[mask.flatten()] = rows
    return padded.view(batch, columns, *rows.shape[1:]).transpose(1, 2)
