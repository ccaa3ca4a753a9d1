"""The search for the fastest configuration of one call: ranked, checked, timed in turns, and ended when it is enough.

    rank       by the cost model, so that what is likely comes first (`cost.py`)
    check      each candidate against the oracle, before it is timed; one that fails or raises is counted, no more
    quick      batches of BATCH in turns with the default, a few rounds: a ratio to it, whatever the clocks do
    enough     PATIENCE candidates in a row that are no faster than the best before them by MARGIN, or time is up
    final      the FINALISTS best and the default, many rounds; the winner is checked once more
    verdict    the winner, if it beats the default by MARGIN; else the default, for bits should change for a reason

The clock and the timing are handed in. Nothing here knows a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..bench.timing import spread
from ..engine.contract import Call
from ..engine.errors import PadlessError
from .cost import label, rank
from .footprint import Load
from .machine import Machine

__all__ = ["DEFAULT", "MARGIN", "Found", "Measure", "Progress", "SearchError", "Subject", "search"]

DEFAULT = "default"
"""The name that the default configuration is timed by."""

MARGIN = 0.02
"""What a gain must be to count, so that the noise of a clock changes no bits. How large that is: not measured."""

BATCH = 6
QUICK_ROUNDS = 6
FINAL_ROUNDS = 40
FINALISTS = 5
PATIENCE = 24
"""A quarter of the longest list of candidates. A guess, until a GPU has been searched to the end."""

FINAL_SHARE = 0.15
"""Of the time, kept for the last round."""

C = TypeVar("C")

Measure = Callable[[Mapping[str, Callable[[], object]], int], Mapping[str, Sequence[float]] | None]
"""Runs calls in turns, so many rounds: microseconds of each round by name, or None where nothing is timed."""

Progress = Callable[[int, int, float], None]
"""Called after each candidate with how many were tried, how many there are, and the best gain so far."""


class SearchError(PadlessError):
    """There is nothing to compare with: the default configuration fails or is wrong."""


@dataclass(frozen=True)
class Subject(Generic[C]):
    """One call of one kernel.

    Attributes:
        call: the facts; its key is what the result is filed under.
        load: the sizes it is timed at.
        default: the configuration where nothing was measured.
        candidates: what may be chosen.
        run: the call with a configuration, as it is timed.
        wrong: runs it and says why its result is not that of the oracle; None if it is. May raise.
    """

    call: Call
    load: Load
    default: C
    candidates: Sequence[C]
    run: Callable[[C], object]
    wrong: Callable[[C], str | None]


@dataclass(frozen=True)
class Found(Generic[C]):
    """What came out of a search.

    Attributes:
        call: of the subject.
        default: the configuration of before.
        best: the fastest, which is the default where nothing was faster by `MARGIN`.
        us: microseconds of `best`, the median of the last round; None where nothing was timed.
        default_us: the same of the default.
        gain: how many times faster `best` is: the median of the ratios of the rounds; 1 where it is the default.
        timed: microseconds by label, of the last round where there was one.
        tried: candidates that were checked.
        refused: why some were not timed, by label.
        untried: labels of those that were not reached.
        stopped: "all tried", "N tried", as many as were asked for, "time is up" or "nothing better in N".
    """

    call: Call
    default: C
    best: C
    us: float | None
    default_us: float | None
    gain: float
    timed: Mapping[str, float]
    tried: int
    refused: Mapping[str, str]
    untried: tuple[str, ...]
    stopped: str

    @property
    def kept(self) -> bool:
        """Whether the default stays."""
        return self.best == self.default


def search(
    subject: Subject[C],
    measure: Measure,
    *,
    seconds: float,
    machine: Machine,
    first: Sequence[C] = (),
    most: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    settle: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> Found[C]:
    """Find the fastest configuration of a call.

    Args:
        subject: the call.
        measure: times calls in turns.
        seconds: after which nothing new is tried; what runs then is finished, the last round included.
        machine: what the cost model ranks by.
        first: candidates to try before the others, such as the one that serves now.
        most: candidates to try at most.
        clock: seconds, rising.
        settle: waits for the device after a failure. What it raises ends the search: the device is lost.
        progress: see `Progress`.

    Raises:
        SearchError: the default configuration fails or is wrong.
    """
    end = clock() + seconds * (1.0 - FINAL_SHARE)
    trial = _Trial(subject, measure, settle or (lambda: None))
    reason = trial.unsound(subject.default)
    if reason is not None:
        raise SearchError(f"{subject.call.op}: the default configuration {label(subject.default)}: {reason}")
    order = rank(subject.candidates, subject.default, subject.call, subject.load, machine)
    order.sort(key=lambda config: config not in first)
    last = len(order) if most is None else min(most, len(order))
    stopped, best, idle, place = "all tried" if last == len(order) else f"{last} tried", 1.0, 0, 0
    while place < last:
        batch: list[C] = []
        for config in order[place : min(place + BATCH, last)]:
            if clock() >= end:
                break
            if trial.sound(config):
                batch.append(config)
            place += 1
            idle += 1
            if progress is not None:
                progress(place, last, best)
        gain = max(trial.quick(batch), default=0.0)
        if gain > best * (1.0 + MARGIN):
            best, idle = gain, 0
        if place < last and clock() >= end:
            stopped = "time is up"
            break
        if place < last and idle >= PATIENCE:
            stopped = f"nothing better in {idle}"
            break
    return trial.verdict(place, tuple(map(label, order[place:])), stopped)


@dataclass
class _Trial(Generic[C]):
    """What is known of the candidates so far."""

    subject: Subject[C]
    measure: Measure
    settle: Callable[[], object]
    refused: dict[str, str] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    configs: dict[str, C] = field(default_factory=dict)
    timed: dict[str, float] = field(default_factory=dict)

    def unsound(self, config: C) -> str | None:
        """Why a configuration cannot be timed."""
        try:
            reason = self.subject.wrong(config)
        except Exception as error:
            self.settle()
            return _described(error)
        return None if reason is None else f"wrong: {reason}"

    def sound(self, config: C) -> bool:
        reason = self.unsound(config)
        if reason is not None:
            self.refused[label(config)] = reason
        return reason is None

    def quick(self, batch: Sequence[C]) -> list[float]:
        """Gains over the default of candidates that were checked; those that fail when they are timed are refused."""
        if not batch:
            return []
        rounds = self._rounds(batch, QUICK_ROUNDS)
        if rounds is None:
            return []
        for config in batch:
            name = label(config)
            if name in rounds:
                self.configs[name], self.gains[name] = config, _gain(rounds, name)
                self.timed[name] = spread(rounds[name]).median
        self.timed.setdefault(DEFAULT, spread(rounds[DEFAULT]).median)
        return [self.gains[label(config)] for config in batch if label(config) in rounds]

    def verdict(self, tried: int, untried: tuple[str, ...], stopped: str) -> Found[C]:
        """The last round and what follows from it."""
        subject = self.subject
        names = sorted(self.gains, key=lambda name: self.gains[name], reverse=True)[:FINALISTS]
        rounds = self._rounds([self.configs[name] for name in names], FINAL_ROUNDS)
        found: dict[str, Any] = {"call": subject.call, "default": subject.default, "tried": tried}
        found |= {"untried": untried, "stopped": stopped, "refused": self.refused}
        if rounds is None:
            return Found(**found, best=subject.default, us=None, default_us=None, gain=1.0, timed={})
        medians = {name: spread(values).median for name, values in rounds.items()}
        default_us = medians[DEFAULT]
        winner, gain, us = subject.default, 1.0, default_us
        for name in sorted(medians.keys() - {DEFAULT}, key=lambda name: _gain(rounds, name), reverse=True):
            if _gain(rounds, name) < 1.0 + MARGIN:
                break
            if self.sound(self.configs[name]):
                winner, gain, us = self.configs[name], _gain(rounds, name), medians[name]
                break
        timed = self.timed | medians
        return Found(**found, best=winner, us=us, default_us=default_us, gain=gain, timed=timed)

    def _rounds(self, configs: Sequence[C], rounds: int) -> Mapping[str, Sequence[float]] | None:
        """Times of the default and of these, in turns; without those that fail when they are timed."""
        calls = {DEFAULT: self._call(self.subject.default), **{label(c): self._call(c) for c in configs}}
        try:
            return self.measure(calls, rounds)
        except Exception as error:
            self.settle()
            if not configs:
                op = self.subject.call.op
                raise SearchError(f"{op}: the default configuration cannot be timed: {_described(error)}") from error
            sound = [config for config in configs if self._runs(config)]
            if len(sound) == len(configs):  # only together do they fail
                self.refused |= {label(config): _described(error) for config in configs}
                sound = []
        return self._rounds(sound, rounds)

    def _runs(self, config: C) -> bool:
        """Whether it can be timed alone."""
        try:
            self.measure({label(config): self._call(config)}, 1)
        except Exception as error:
            self.settle()
            self.refused[label(config)] = _described(error)
            return False
        return True

    def _call(self, config: C) -> Callable[[], object]:
        return lambda: self.subject.run(config)


def _gain(rounds: Mapping[str, Sequence[float]], name: str) -> float:
    """How many times faster than the default: the median over the rounds of the ratio of each."""
    pairs = zip(rounds[name], rounds[DEFAULT], strict=True)
    return spread([default / own for own, default in pairs]).median


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"
