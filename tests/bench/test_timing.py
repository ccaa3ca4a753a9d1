from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from padless.bench import timing
from padless.bench.timing import Spread, interleave, only_new_garbage, ratio, spread, time_call


def test_cases_take_turns_and_warm_ups_are_not_counted() -> None:
    calls: list[str] = []
    reported: list[str] = []
    seconds = interleave(
        {name: (lambda name=name: calls.append(name)) for name in "abc"},
        rounds=2,
        warmups=1,
        progress=lambda name, _: reported.append(name),
    )
    assert "".join(calls) == "abcabcabc"
    assert "".join(reported) == "abcabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_spread_is_numpy_s_percentiles(values: list[float]) -> None:
    found = spread(values)
    expected = np.percentile(values, [50, 20, 80])
    np.testing.assert_allclose([found.median, found.p20, found.p80], expected, rtol=1e-12)


def test_ratio_is_taken_within_each_round() -> None:
    # Round 2 is ten times slower for both: the ratio of medians would be 1.5, that of each round is 2, 2, 3.
    seconds = {"slow": [2.0, 20.0, 3.0], "fast": [1.0, 10.0, 1.0]}
    assert ratio(seconds, "fast", "slow").median == 2.0
    assert ratio(seconds, "slow", "slow") == Spread(1.0, 1.0, 1.0)


def test_ratio_of_rounds_that_do_not_pair_up_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio({"a": [1.0, 1.0], "b": [1.0]}, "a", "b")


def test_time_is_wall_clock() -> None:
    assert time_call(lambda: time.sleep(0.05)) >= 0.05


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_during_a_call_and_is_left_as_found(enabled: bool) -> None:
    during: list[bool] = []
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        time_call(lambda: during.append(gc.isenabled()))
        assert (during, gc.isenabled()) == ([False], enabled)
        with pytest.raises(ZeroDivisionError):
            time_call(lambda: 1 / 0)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


class _Circle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_a_turn_is_gone_before_the_next_and_what_was_there_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[weakref.ref[_Circle]] = []
    alive: list[int] = []
    frozen: list[int] = []

    def call() -> None:
        alive.append(sum(each() is not None for each in left))
        frozen.append(gc.get_freeze_count())
        left.append(weakref.ref(_Circle()))

    monkeypatch.setattr(timing, "_depth", 0)  # as for somebody who is the first to measure
    gc.unfreeze()
    interleave({"a": call, "b": call}, rounds=2, warmups=1)
    # The second warm-up alone follows a call whose garbage nobody has collected.
    assert alive[2:] == [0, 0, 0, 0]
    assert frozen[:2] == [0, 0]
    assert min(frozen[2:]) > 1000
    assert gc.get_freeze_count() == 0
    with only_new_garbage():
        interleave({"a": call}, rounds=1)
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as conftest.py has it for the tests that follow


@pytest.mark.parametrize(("rounds", "warmups"), [(0, 1), (-1, 0), (1, -1)])
def test_counts_out_of_range_are_refused(rounds: int, warmups: int) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleave({"a": lambda: None}, rounds, warmups=warmups)


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])
