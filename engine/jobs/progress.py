"""The progress bar of a job: rows a second, tokens a second, padding avoided, time left, and the stage that limits."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .report import Report

__all__ = ["Progress", "padding_avoided"]


class Progress(Report):
    """A tqdm bar on stderr, or nothing at all where `show` is false; notes are shown in any case.

    The number of rows is known beforehand only for Parquet; for the other formats it is estimated from the part of
    the bytes read so far.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._bar: tqdm | None = None
        self._started = 0.0
        self._tokens = self._planned_tokens = self._padded_tokens = 0

    def begin(self, facts: dict[str, Any]) -> None:
        self._started = time.perf_counter()
        if self._show:
            self._bar = tqdm(
                total=None, initial=facts["rows_done"], unit=" rows", dynamic_ncols=True, smoothing=0.05
            )  # fmt: skip

    def note(self, text: str) -> None:
        print("padless:", text, file=sys.stderr)

    def expect(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.total = rows
            self._bar.refresh()

    def advance(self, texts: int, tokens: int) -> None:
        self._tokens += tokens
        self.skip(texts)

    def skip(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.update(rows)

    def window_done(self, tokens: int, padded_tokens: int, limited_by: str) -> None:
        self._planned_tokens += tokens
        self._padded_tokens += padded_tokens
        if self._bar is not None:
            seconds = time.perf_counter() - self._started
            avoided = padding_avoided(self._planned_tokens, self._padded_tokens)
            speed = f"{self._tokens / seconds:,.0f} tokens/s, {avoided:.0%} padding avoided"
            self._bar.set_postfix_str(f"{speed}, limited by {limited_by}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def padding_avoided(tokens: int, padded_tokens: int) -> float:
    """The part of a padding engine's tokens that was not computed, 0 to 1."""
    return 1 - tokens / padded_tokens if padded_tokens else 0.0
