"""T5's buckets of relative positions: one definition for the eager op, the CPU row and the kernels.

A leaf, so that kernels may import it, which import no op.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import OptionError

__all__ = ["bucket_table", "relative_position_bucket"]


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket of each relative position (Raffel et al. 2020, section 2.1): near ones singly, far ones by logarithm.

    Args:
        distance: int64, any shape: key position minus query position.
        num_buckets: rows of the bias table.
        max_distance: distance from which all positions share the last bucket.
        bidirectional: half of the buckets serve keys to the right; otherwise those all fall into bucket 0.

    Returns:
        int64 bucket indices of `distance`'s shape, in `[0, num_buckets)`.

    Raises:
        OptionError: there are too few buckets, or `max_distance` lies among the distances with one of their own.
    """
    if distance.device.type == "cpu":
        return _buckets(distance, num_buckets, max_distance, bidirectional)
    # Other devices round logarithms in ways of their own.
    table = bucket_table(num_buckets, max_distance, bidirectional).to(distance.device)
    return _look_up(distance, table)


def bucket_table(num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of every distance from `-max_distance` to `max_distance`; what lies beyond has the bucket of the end.

    Returns:
        int64 `[2 * max_distance + 1]`, on the CPU: where logarithms are rounded elsewhere, no border moves.
    """
    reach = max(max_distance, 0)  # a negative one is refused below
    return _buckets(torch.arange(-reach, reach + 1), num_buckets, max_distance, bidirectional)


def _look_up(distance: Tensor, table: Tensor) -> Tensor:
    reach = table.shape[0] // 2
    return table[distance.clamp(-reach, reach) + reach]


def _buckets(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """`relative_position_bucket` of distances on the CPU."""
    fewest = 4 if bidirectional else 2
    if num_buckets < fewest:
        kind = "bidirectional" if bidirectional else "unidirectional"
        raise OptionError(f"position_bias: expected {fewest} or more buckets of a {kind} bias, got {num_buckets}")
    first = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        first = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = num_buckets // 2
    if max_distance <= exact:
        raise OptionError(
            f"bias_max_distance: expected more than {exact}, the buckets of one distance, got {max_distance}"
        )
    # The logarithm is taken in fp32 on purpose: trained models have their bucket borders where fp32 puts them.
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + far.long()).clamp(max=num_buckets - 1)
    return first + torch.where(distance < exact, distance, far)
