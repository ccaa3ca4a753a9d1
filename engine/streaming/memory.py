"""Batches that run out of memory are computed in halves, down to one text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch

from ..batch import TokenizedTexts
from ..errors import MemoryLimitError
from ..failures import is_out_of_memory

__all__ = ["SplitOnOutOfMemory"]

Results = TypeVar("Results")


class SplitOnOutOfMemory(Generic[Results]):
    """Computes batches; one that runs out of memory is computed in halves. Safe to call from several threads.

    What was too large once is not tried again by the same object: later batches are split to fit beforehand.

    Attributes:
        splits: batches that ran out of memory.
    """

    def __init__(
        self,
        run: Callable[[TokenizedTexts, np.ndarray], Results],
        join: Callable[[list[Results]], Results],
        device: torch.device,
        too_large: Callable[[MemoryLimitError], Results] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            run: results, on the CPU, of the texts of these indices.
            join: results of a batch out of those of its parts, in their order.
            device: where `run` computes.
            too_large: the result of a text that does not fit alone; None raises.
        """
        self._run, self._join, self._device, self._too_large = run, join, device, too_large
        self._lock = threading.Lock()
        self._most_tokens: int | None = None
        self.splits = 0

    def __call__(self, rows: np.ndarray, tokenised: TokenizedTexts, chosen: np.ndarray) -> Results:
        """Results of the texts `chosen`.

        Args:
            rows: of each tokenised text, which of the caller's texts it is.
            tokenised: token ids.
            chosen: indices into `tokenised`, the batch.

        Raises:
            MemoryLimitError: a text does not fit alone.
        """
        tokens = int(tokenised.lengths[chosen].sum())
        if len(chosen) == 1 or self._most_tokens is None or tokens <= self._most_tokens:
            results, reason = self._attempt(tokenised, chosen)
            if results is not None:
                return results
            # Only here are the failed attempt's tensors gone: its traceback held them.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if len(chosen) == 1:
                error = MemoryLimitError(int(rows[chosen[0]]), tokens, reason)
                if self._too_large is None:
                    raise error
                return self._too_large(error)
            with self._lock:
                self.splits += 1
                self._most_tokens = min(self._most_tokens or tokens, max(tokens // 2, 1))
        middle = len(chosen) // 2
        return self._join([self(rows, tokenised, half) for half in (chosen[:middle], chosen[middle:])])

    def _attempt(self, tokenised: TokenizedTexts, chosen: np.ndarray) -> tuple[Results | None, str]:
        try:
            with torch.no_grad():
                return self._run(tokenised, chosen), ""
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None, (str(error) or type(error).__name__).splitlines()[0][:200]
