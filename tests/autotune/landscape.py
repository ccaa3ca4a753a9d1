"""A made-up kernel: its time by configuration, which are wrong and which fail, on a clock that only it moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuned import attention_call

from padless.autotune.cost import rank
from padless.autotune.footprint import Load
from padless.autotune.machine import machine_of
from padless.autotune.search import Found, Subject, search
from padless.engine.contract import Call
from padless.kernels import attention
from padless.kernels.launch import Config

LOAD = Load((512,) * 32, 16)
MACHINE = machine_of(90)


class Landscape:
    """Times of the configurations of attention.

    Attributes:
        us: microseconds that a call takes, by configuration; 100 of those that are not in it.
        wrong: configurations whose result is not the oracle's.
        broken: those that raise whenever they are called.
        fragile: those that raise when they are timed, but not when they are checked.
        seconds: of the clock.
        checked: what was held against the oracle, in turn.
        noise: of each call, as a part of its time.
        drift: how much slower the clocks are after each second.
    """

    def __init__(
        self, call: Call | None = None, *, noise: float = 0.0, drift: float = 0.0, compile_s: float = 0.0
    ) -> None:
        self.call = call or attention_call()
        self.default: Config = attention.default_config(self.call)
        self.candidates: Sequence[Config] = attention.CANDIDATES
        self.us: dict[Config, float] = {}
        self.wrong: set[Config] = set()
        self.broken: set[Config] = set()
        self.fragile: set[Config] = set()
        self.seconds = 0.0
        self.checked: list[Config] = []
        self.settled = 0
        self._noise, self._drift, self._compile_s = noise, drift, compile_s
        self._random = random.Random(7)
        self._checking = False

    def ranked(self) -> list[Config]:
        """The candidates in the order they are tried."""
        return rank(self.candidates, self.default, self.call, LOAD, MACHINE)

    def run(self, config: Config) -> Config:
        if config in self.broken or (config in self.fragile and not self._checking):
            raise RuntimeError(f"out of resource: shared memory\nof {config}")
        slower = 1.0 + self._drift * self.seconds + self._noise * self._random.uniform(-1.0, 1.0)
        self.seconds += self.us.get(config, 100.0) * slower * 1e-6
        return config

    def why_wrong(self, config: Config) -> str | None:
        self.checked.append(config)
        self.seconds += self._compile_s
        self._checking = True
        try:
            self.run(config)
        finally:
            self._checking = False
        return "error 1.0e+00, allowed 1.0e-03" if config in self.wrong else None

    def measure(self, calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """In turns, by the landscape's own clock."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = self.seconds
                call()
                found[name].append((self.seconds - start) * 1e6)
        return found

    def settle(self) -> None:
        self.settled += 1

    def search(self, *, seconds: float = 1e9, **options: Any) -> Found[Config]:
        subject = Subject(self.call, LOAD, self.default, self.candidates, self.run, self.why_wrong)
        options = {"settle": self.settle, "machine": MACHINE} | options
        return search(subject, self.measure, seconds=seconds, clock=lambda: self.seconds, **options)
