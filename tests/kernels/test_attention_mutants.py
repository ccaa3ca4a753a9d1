"""Errors of the attention kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import Case, attend, check
from lengths import packed
from operands import laid_out


@pytest.mark.parametrize(
    "layouts", [("columns", "dense", "columns"), ("dense", "every second", "columns")], ids="-".join
)
def test_queries_keys_and_values_may_lie_differently(layouts: tuple[str, str, str]) -> None:
    near = packed((5, 0, 18), 2, 2, 24, dtype=torch.float16)
    q, k, v = (laid_out(x, layout) for x, layout in zip((near.q, near.k, near.v), layouts, strict=True))
    for got, expected in zip(attend(replace(near, q=q, k=k, v=v)), attend(near), strict=True):
        assert torch.equal(got, expected)


EDGES = (1, 14, 15, 16, 17, 30, 31, 33)
WINDOWS = [
    pytest.param([(n, -1) for n in EDGES], id="left"),
    pytest.param([(-1, n) for n in EDGES], id="right"),
    pytest.param([(n, n) for n in EDGES], id="both"),
    pytest.param(list(zip(EDGES, reversed(EDGES), strict=True)), id="asymmetric"),
]


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("more_keys", [0, 5])
def test_windows_whose_edges_lie_around_those_of_blocks(windows: list[tuple[int, int]], more_keys: int) -> None:
    """All scores are 0: a log-sum-exp counts the keys a query sees, and its output is their mean place."""
    length, keys = 66, 66 + more_keys
    data = packed((length,), 1, 1, 16, lengths_k=(keys,))
    data.q.zero_()
    data.v.copy_(torch.arange(float(keys))[:, None, None].expand(keys, 1, 16))
    places = torch.arange(length) + more_keys
    for left, right in windows:
        first = (places - left).clamp(min=0) if left >= 0 else torch.zeros_like(places)
        last = (places + right).clamp(max=keys - 1) if right >= 0 else torch.full_like(places, keys - 1)
        output, lse = attend(data, window=(left, right))
        torch.testing.assert_close(lse[0].exp(), (last - first + 1).float(), rtol=1e-5, atol=0)
        torch.testing.assert_close(output[:, 0, 0], (first + last) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [(-1, -1), (20, 33)])
def test_a_bias_that_differs_up_to_its_largest_distance(window: tuple[int, int]) -> None:
    """On both sides, and from head to head within a group: distances 19 and 20 have buckets of their own."""
    check(Case((70, 5), head_dim=16, bias=(64, 20, True), scale=1.0, window=window, heads=4, heads_k=2))
