"""T5's relative position bias as the kernels read it: by distance, one short row a head.

A bias depends on nothing but the distance between key and query and on the head, and from `max_distance` on it is the
same for all. So `2 * max_distance + 1` numbers a head say everything: a few kilobytes that stay in the first cache,
where a bias for every pair of tokens would be `heads * length^2` numbers in memory.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..engine.memo import Memo
from ..engine.relative_position import bucket_table

__all__ = ["bias_by_distance"]


def bias_by_distance(
    position_bias: Tensor, max_distance: int, bidirectional: bool, memo: Memo | None = None
) -> tuple[Tensor, int]:
    """The bias of every distance that has one of its own.

    Args:
        position_bias: `[num_buckets, heads]`, any floating dtype.
        max_distance: distance, in tokens, from which all positions share the last bucket.
        bidirectional: whether keys to the right have buckets of their own.
        memo: of calls between which nobody writes to `position_bias`: the first of them gathers, the others read.

    Returns:
        `[heads, 2 * reach + 1]` in the bias's dtype, and the reach: the bias at a distance `d` of key position minus
        query position stands in column `clamp(d, -reach, reach) + reach`.

    The first call with a setting on a device copies its table of buckets there, which waits, and which no CUDA graph
    may capture: make one call before the capture. The table is kept as long as the process runs, 16 bytes a distance.
    """

    def gathered() -> Tensor:
        buckets = _buckets(position_bias.shape[0], max_distance, bidirectional, position_bias.device)
        return position_bias.t().index_select(1, buckets)

    bias = gathered() if memo is None else memo.once(position_bias, ("bias", max_distance, bidirectional), gathered)
    return bias, max_distance


@functools.cache
def _buckets(num_buckets: int, max_distance: int, bidirectional: bool, device: torch.device) -> Tensor:
    # Whoever calls first, the table serves all: a tensor made in inference mode could not, once a gradient is recorded.
    with torch.inference_mode(False), torch.no_grad():
        return bucket_table(num_buckets, max_distance, bidirectional).to(device)
