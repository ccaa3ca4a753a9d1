"""Errors of the tile list's kernel that `make mutants` showed no other test to notice."""

from __future__ import annotations

import itertools

import torch

from padless.kernels.schedule import tile_list


def test_texts_that_end_beyond_the_tokens_write_nothing_beyond_the_list() -> None:
    """What is wrong stays where it is: the tests of this folder watch every store."""
    lengths = (70, 40, 9)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    tiles = tile_list(cu_seqlens, 48, 16).tolist()
    assert tiles == [[text, block] for text in range(3) for block in range(-(-lengths[text] // 16))][: len(tiles)]
