"""How many kernels Triton compiles, and how many it finds compiled on the disk, counted where it does either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Compilations", "cache_folder", "compilations"]


@dataclass
class Compilations:
    """Kernels that were not yet in this process.

    Attributes:
        compiled: by Triton's compiler.
        cached: read from Triton's cache, where an earlier process had left them.
    """

    compiled: int = 0
    cached: int = 0


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Count what Triton compiles in this process within the context, whoever asks for it; nothing where it is absent.

    A listener that was there before goes on to be told.
    """
    found = Compilations()
    try:
        from triton import knobs
    except ImportError:
        yield found
        return
    before = knobs.compilation.listener

    def told(**facts: Any) -> None:
        if facts["cache_hit"]:
            found.cached += 1
        else:
            found.compiled += 1
        if before is not None:
            before(**facts)

    knobs.compilation.listener = told
    try:
        yield found
    finally:
        knobs.compilation.listener = before


def cache_folder() -> Path | None:
    """Where Triton keeps what it has compiled, $TRITON_CACHE_DIR or its default; None where it is not installed."""
    try:
        from triton import knobs
    except ImportError:
        return None
    return Path(knobs.cache.dir)
