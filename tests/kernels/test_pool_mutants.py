"""Errors of pool's kernels that `make mutants` showed no other test to notice."""

from __future__ import annotations

import pytest
import torch
from lengths import cumulated
from operands import normal

from padless.engine.ops.pool import pool as eager
from padless.kernels.launch import Config
from padless.kernels.pool import pool


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean"])
@pytest.mark.parametrize("skip", [0, 1])
def test_a_text_without_tokens_gives_zeros_and_reads_nothing(mode: str, skip: int) -> None:
    hidden = normal(5, 20, seed=1, dtype=torch.float32)
    rows = pool(hidden, cumulated((0, 3, 0, 2, 0)), mode=mode, skip=skip)
    assert not rows[[0, 2, 4]].any()
    assert torch.equal(rows[[1, 3]], pool(hidden, cumulated((3, 2)), mode=mode, skip=skip))


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean"])
def test_a_part_may_be_shorter_than_what_is_read_at_once(mode: str) -> None:
    hidden = normal(40, 20, seed=2, dtype=torch.float32)
    cu_seqlens, config = cumulated((7, 8, 9, 16)), Config.of(SPLIT=8, BLOCK_N=16)
    found = pool(hidden, cu_seqlens, mode=mode, config=config)
    torch.testing.assert_close(found, eager(hidden, cu_seqlens, mode=mode), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean"])
def test_what_is_skipped_needs_no_part(mode: str) -> None:
    """Of 17 to 19 tokens without the first three, two or three parts of 8 are left, where the texts have three."""
    hidden, cu_seqlens = normal(54, 20, seed=3, dtype=torch.float32), cumulated((17, 19, 18))
    found = pool(hidden, cu_seqlens, mode=mode, skip=3, config=Config.of(SPLIT=8, BLOCK_N=4))
    torch.testing.assert_close(found, eager(hidden, cu_seqlens, mode=mode, skip=3), rtol=1e-5, atol=1e-6)
