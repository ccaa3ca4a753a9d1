"""Rows through a function a tile at a time, so that a row's bits do not depend on the rows beside it.

A GEMM library chooses its blocking by the number of rows: the product of one row alone, and of the same row among a
thousand, may be added up in another order. Here it is only ever called with a few numbers of rows, the last tile filled
up with zeros. That a row then has the same bits in each place of each tile is not taken on trust: before a product of
some shape is first used, rows are computed in several places of tiles of every size and compared, and sizes that differ
are not used. The order of a sum follows from the shape alone, never from the numbers in it, so what holds for random
rows holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...contract import Call
from ...errors import BackendError

__all__ = ["SIZES", "in_tiles", "only_deterministic"]

SIZES = (256, 64, 16)
"""Rows of a tile, largest first: a large one has the GEMM at its speed, a small one wastes little on a short text. All
multiples of 16, so that no element is computed by the scalar code behind the last whole vector."""

LARGEST = 1 << 23
"""Most elements that come out of a tile of more than the fewest rows: 32 MiB in fp32."""

ALIGNMENT = 64
"""Bytes; what torch allocates at, and what a GEMM may treat differently from other addresses."""

Compute = Callable[..., Any]
"""Tensors of a row each, to a tensor or a tuple of tensors of a row each."""

_proven: dict[Hashable, tuple[int, ...]] = {}


def only_deterministic(call: Call) -> list[str]:
    """Why a row that exists for deterministic=True does not serve `call`."""
    return [] if call.deterministic else ["needs deterministic=True, got deterministic=False"]


def in_tiles(compute: Compute, rows: Sequence[Tensor], *, width: int, key: Hashable) -> Any:
    """`compute(*rows)`, called on tiles.

    Args:
        compute: each row of what it returns follows from that row of its arguments.
        rows: `[rows, …]` each.
        width: elements of a row of what comes out.
        key: what determines, beside the arguments' widths and dtypes, how `compute` works.

    Returns:
        As `compute(*rows)`.

    Raises:
        BackendError: this machine's library computes a row differently in different places of a tile of every size.
    """
    count = len(rows[0])
    if not count:
        return compute(*rows)
    what = key, width, torch.get_num_threads(), *((row.shape[1:], row.dtype) for row in rows)
    sizes = _proven.get(what)
    if sizes is None:
        sizes = _proven[what] = _prove(compute, rows, width)
    parts = []
    for start, stop, size in _plan(count, sizes):
        part = compute(*(_tile(row, start, stop, size) for row in rows))
        parts.append(part if stop - start == size else _first(part, stop - start))
    if len(parts) == 1:
        return parts[0]
    return tuple(map(torch.cat, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else torch.cat(parts)


def _plan(count: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(first row, end, size) of each tile: full ones, larger first; a rest of over three quarters fills one up."""
    start = 0
    for size in sizes:
        fewest = 1 if size == sizes[-1] else size * 3 // 4 + 1
        while count - start >= fewest:
            yield start, min(start + size, count), size
            start = min(start + size, count)


def _tile(row: Tensor, start: int, stop: int, size: int) -> Tensor:
    part = row[start:stop]
    if stop - start == size and part.is_contiguous() and part.data_ptr() % ALIGNMENT == 0:
        return part
    tile = row.new_zeros(size, *row.shape[1:]) if stop - start < size else row.new_empty(size, *row.shape[1:])
    tile[: stop - start] = part
    return tile


def _first(part: Any, count: int) -> Any:
    return tuple(tensor[:count] for tensor in part) if isinstance(part, tuple) else part[:count]


def _prove(compute: Compute, rows: Sequence[Tensor], width: int) -> tuple[int, ...]:
    """The sizes of tiles in whose every place a row has the same bits."""
    sizes = tuple(size for size in SIZES if size * width <= LARGEST) or SIZES[-1:]
    while sizes:
        samples = [_sample(row, sizes[0]) for row in rows]
        expected = _tuple(compute(*samples))
        proven = tuple(size for size in sizes if _as_expected(compute, samples, size, expected))
        if proven[:1] == sizes[:1]:
            return proven
        sizes = sizes[1:]
    shapes = ", ".join(str([*row.shape[1:]]) for row in rows)
    raise BackendError(
        f"deterministic: rows {shapes} to {width} come out otherwise in other places of a tile of {SIZES[-1]} rows on "
        f"{torch.get_num_threads()} threads, expected the same bits; try torch.set_num_threads(1)"
    )


def _as_expected(compute: Compute, samples: list[Tensor], size: int, expected: tuple[Tensor, ...]) -> bool:
    """Whether tiles of some size, cut from the first and the last of the samples and turned, give the same rows."""
    for first in {0, len(samples[0]) - size}:
        for turn in (0, 1, 7):
            found = _tuple(compute(*(sample[first : first + size].roll(turn, 0) for sample in samples)))
            turned = [outcome[first : first + size].roll(turn, 0) for outcome in expected]
            if not all(map(torch.equal, found, turned)):
                return False
    return True


def _tuple(outcome: Any) -> tuple[Tensor, ...]:
    return outcome if isinstance(outcome, tuple) else (outcome,)


def _sample(row: Tensor, count: int) -> Tensor:
    """Rows like these: random numbers, or indices that are among them."""
    if not row.is_floating_point():
        return row[torch.arange(count) % len(row)].clone()
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *row.shape[1:], generator=generator).to(row.dtype)
