"""The same bits again: over many repeats, after poisoned memory, and for a text on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .case import Context, Figures
from .oracle import bits

__all__ = ["poison", "repeat", "some"]

REPEATS = 250
SECONDS = 12.0
"""What the repeats of one case may take; a case that is slower is repeated less often, and its figures say so."""


def poison(like: Sequence[Tensor]) -> None:
    """Leave NaN in the memory that the next allocations of these sizes will most likely get; the least of integers.

    A row that a kernel forgets to write is then NaN, rather than what the last run left there.
    """
    filled = [torch.full_like(x, _poison(x.dtype), memory_format=torch.contiguous_format) for x in like]
    del filled


def _poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def repeat(call: Callable[[], Sequence[Tensor]], first: Sequence[Tensor], context: Context) -> Figures:
    """Run `call` again and again on the same inputs, each time into poisoned memory.

    Returns:
        `repeats` and `repeats_differ`, how many of them gave other bits than `first`.
    """
    wanted = 2 if context.dry else REPEATS
    expected = [bits(x) for x in first]
    differ = torch.zeros((), dtype=torch.int64, device=context.device)
    done, start = 0, time.monotonic()
    while done < wanted and (done < 2 or time.monotonic() - start < SECONDS):
        poison(first)
        again = call()
        wrong = [(bits(x) != y).any() for x, y in zip(again, expected, strict=True)]
        differ += torch.stack(wrong).any()
        done += 1
        # The host must not run so far ahead that the clock above says nothing.
        if context.device.type == "cuda" and done % 10 == 0:
            torch.cuda.synchronize()
    return {"repeats": done, "repeats_differ": int(differ)}


def some(lengths: Sequence[int], count: int = 6) -> list[int]:
    """Texts worth a look of their own: the first and the last, the longest and the shortest, and some between."""
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    filled = [text for text in order if lengths[text] > 0]
    if not filled:
        return order[:1]
    between = [filled[len(filled) * part // count] for part in range(1, count - 1)]
    return list(dict.fromkeys([filled[-1], filled[0], min(filled), max(filled), *between]))
