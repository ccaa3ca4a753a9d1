"""Errors of pool's kernels that `make mutants` showed no other test to notice."""

from __future__ import annotations

import pytest
import torch
from lengths import cumulated
from operands import normal

from padless.kernels.pool import pool


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean"])
@pytest.mark.parametrize("skip", [0, 1])
def test_a_text_without_tokens_gives_zeros_and_reads_nothing(mode: str, skip: int) -> None:
    hidden = normal(5, 20, seed=1, dtype=torch.float32)
    rows = pool(hidden, cumulated((0, 3, 0, 2, 0)), mode=mode, skip=skip)
    assert not rows[[0, 2, 4]].any()
    assert torch.equal(rows[[1, 3]], pool(hidden, cumulated((3, 2)), mode=mode, skip=skip))
