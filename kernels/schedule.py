"""The list of tiles of a ragged batch: which text and which block of its queries each program takes, long texts first.

A grid of `texts x longest text` would start mostly programs with nothing to do, and the hardware starts programs in
the order of their number, so that a long text at the end of the batch leaves all but a few multiprocessors idle. One
small kernel writes the list that avoids both: program i of it counts the tiles of all texts longer than text i (equal
ones in their order) and writes the tiles of text i behind them. That is `texts^2` comparisons, 16 million for 4,096
texts, and one read of `cu_seqlens` for each program, from L2; about the time of a launch. Not measured on a GPU.

The order decides when a tile is computed, never what: no text's bits depend on it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..engine.memo import Memo
from .launch import Config, launch

__all__ = ["default_config", "tile_list", "tile_list_length"]


@triton.jit(do_not_specialize=["num_texts", "num_tiles"])
def _tile_list_kernel(cu_seqlens_ptr, tiles_ptr, num_texts, num_tiles, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    text = tl.program_id(0)
    begin = tl.load(cu_seqlens_ptr + text)
    length = tl.load(cu_seqlens_ptr + text + 1) - begin
    first = 0
    total = 0
    for start in range(0, num_texts, BLOCK):
        others = start + tl.arange(0, BLOCK)
        mask = others < num_texts
        left = tl.load(cu_seqlens_ptr + others, mask=mask, other=0)  # [BLOCK]
        right = tl.load(cu_seqlens_ptr + others + 1, mask=mask, other=0)  # [BLOCK]
        lengths = right - left
        tiles = (lengths + ROWS - 1) // ROWS
        earlier = (lengths > length) | ((lengths == length) & (others < text))
        first += tl.sum(tl.where(earlier, tiles, 0), 0)
        total += tl.sum(tiles, 0)
    # Text and block are neighbours in memory: an entry is one 8-byte read.
    blocks = (length + ROWS - 1) // ROWS
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        entries = tiles_ptr + 2 * (first + block).to(tl.int64)
        # More tiles than there is room for means that `cu_seqlens` ends beyond the tokens: nothing is written there.
        mask = (block < blocks) & (first + block < num_tiles)
        tl.store(entries, tl.zeros_like(block) + text, mask=mask)
        tl.store(entries + 1, block, mask=mask)
    # The list has room for the most tiles there can be; the last program marks what is left as nobody's.
    if text == num_texts - 1:
        for start in range(total, num_tiles, BLOCK):
            unused = start + tl.arange(0, BLOCK)
            entries = tiles_ptr + 2 * unused.to(tl.int64)
            tl.store(entries, tl.full([BLOCK], -1, tl.int32), mask=unused < num_tiles)
            tl.store(entries + 1, tl.full([BLOCK], 0, tl.int32), mask=unused < num_tiles)


def default_config() -> Config:
    """Tiling of the comparison; nothing but speed depends on it."""
    return Config.of(num_warps=4, num_stages=1, BLOCK=1024)


def tile_list_length(tokens: int, num_texts: int, rows: int) -> int:
    """The most tiles that `num_texts` texts of `tokens` tokens together can have: each may end in a short one."""
    return min(tokens, tokens // rows + num_texts)


def tile_list(cu_seqlens: Tensor, tokens: int, rows: int, memo: Memo | None = None) -> Tensor:
    """Text and block of every tile of `rows` tokens, tiles of longer texts first.

    Args:
        cu_seqlens: int32 `[texts + 1]`, at least one text.
        tokens: their tokens together, known to the host.
        rows: tokens a tile has at most.
        memo: of calls between which nobody writes to `cu_seqlens`: the first of them lists, the others read.

    Returns:
        int32 `[tile_list_length(tokens, texts, rows), 2]`; text -1 in the entries that no tile needs, which come last.
    """
    if memo is not None:
        return memo.once(cu_seqlens, ("tiles", tokens, rows), lambda: tile_list(cu_seqlens, tokens, rows))
    num_texts = cu_seqlens.shape[0] - 1
    tiles = torch.empty(tile_list_length(tokens, num_texts, rows), 2, dtype=torch.int32, device=cu_seqlens.device)
    arguments = {
        "cu_seqlens_ptr": cu_seqlens,
        "tiles_ptr": tiles,
        "num_texts": num_texts,
        "num_tiles": tiles.shape[0],
    }
    launch(_tile_list_kernel, (num_texts,), arguments, {"ROWS": rows}, default_config())
    return tiles
