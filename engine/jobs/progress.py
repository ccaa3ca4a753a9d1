"""The progress bar of a job: rows a second, tokens a second, padding avoided, time left."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress", "padding_avoided"]


class Progress:
    """A tqdm bar on stderr, or nothing at all where `show` is false.

    The number of rows is known beforehand only for Parquet; for the other formats it is estimated from the part of
    the bytes read so far.
    """

    def __init__(self, *, show: bool) -> None:
        self._bar = tqdm(total=None, unit=" rows", disable=not show, dynamic_ncols=True, smoothing=0.05)
        self._started = time.perf_counter()
        self._tokens = self._planned_tokens = self._padded_tokens = 0

    def advance(self, texts: int, tokens: int) -> None:
        """Count a finished batch."""
        self._tokens += tokens
        self._bar.update(texts)

    def skip(self, rows: int) -> None:
        """Count rows that are not computed."""
        self._bar.update(rows)

    def expect(self, rows_read: int, fraction_read: float) -> None:
        """Refresh the estimate of all rows: `rows_read` of them were `fraction_read` of the bytes."""
        if fraction_read > 0:
            self._bar.total = max(rows_read, round(rows_read / fraction_read))
            self._bar.refresh()

    def window_done(self, tokens: int, padded_tokens: int) -> None:
        """Refresh the figures behind the bar after a window of rows."""
        self._planned_tokens += tokens
        self._padded_tokens += padded_tokens
        seconds = time.perf_counter() - self._started
        avoided = padding_avoided(self._planned_tokens, self._padded_tokens)
        self._bar.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s, {avoided:.0%} padding avoided")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def padding_avoided(tokens: int, padded_tokens: int) -> float:
    """The part of a padding engine's tokens that was not computed, 0 to 1."""
    return 1 - tokens / padded_tokens if padded_tokens else 0.0
