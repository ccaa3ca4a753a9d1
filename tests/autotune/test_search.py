"""The search on landscapes whose best configuration is known beforehand."""

from __future__ import annotations

import random

import pytest
from landscape import Landscape
from tuned import attention_call

from padless.autotune.cost import label
from padless.autotune.search import BATCH, MARGIN, PATIENCE, SearchError

NEAR = PATIENCE - BATCH
"""Places in which the search cannot have stopped yet."""


@pytest.mark.parametrize("seed", range(12))
def test_the_best_is_found_in_spite_of_noise_and_drifting_clocks(seed: int) -> None:
    """While the candidates compile, the clocks come down to a sixth: by far more than any of them gains on another."""
    land = Landscape(noise=0.02, drift=0.3, compile_s=1.0)
    chosen = random.Random(seed)
    order = land.ranked()
    land.us = {config: chosen.uniform(90.0, 140.0) for config in order}
    best = order[chosen.randrange(NEAR)]
    land.us[best] = 80.0
    found = land.search()
    assert found.best == best
    assert found.gain == pytest.approx(100.0 / 80.0, rel=0.03)
    assert not found.kept
    assert found.us is not None
    assert found.default_us is not None
    assert found.us < found.default_us


def test_steps_downhill_keep_the_search_going_to_the_end() -> None:
    land = Landscape()
    order = land.ranked()
    land.us = {config: 95.0 * 0.97 ** (place // 20) for place, config in enumerate(order)}
    found = land.search()
    assert (found.tried, found.untried, found.stopped) == (len(order), (), "all tried")
    assert found.best in order[-(len(order) % 20 or 20) :]


def test_it_stops_where_nothing_better_is_to_be_expected() -> None:
    land = Landscape()
    found = land.search()
    order = land.ranked()
    assert found.tried == PATIENCE
    assert found.stopped == f"nothing better in {PATIENCE}"
    assert found.untried == tuple(map(label, order[PATIENCE:]))
    assert land.checked == [land.default, *order[:PATIENCE]]


def test_something_better_renews_its_patience() -> None:
    land = Landscape()
    order = land.ranked()
    land.us[order[NEAR]] = 50.0
    found = land.search()
    assert found.best == order[NEAR]
    assert NEAR + PATIENCE <= found.tried <= NEAR + PATIENCE + BATCH


@pytest.mark.parametrize("gain", [0.5 * MARGIN, 0.0, -0.2])
def test_the_default_stays_unless_it_is_beaten_by_the_margin(gain: float) -> None:
    land = Landscape()
    land.us = dict.fromkeys(land.ranked(), 100.0 / (1.0 + gain))
    found = land.search()
    assert found.kept
    assert (found.best, found.gain, found.us) == (land.default, 1.0, found.default_us)
    assert found.us == pytest.approx(100.0)


def test_a_gain_above_the_margin_is_taken() -> None:
    land = Landscape()
    best = land.ranked()[3]
    land.us[best] = 100.0 / (1.0 + 1.5 * MARGIN)
    assert land.search().best == best


def test_a_wrong_but_fast_candidate_is_never_timed_and_never_wins() -> None:
    land = Landscape()
    order = land.ranked()
    land.wrong = set(order[:5])
    land.us = dict.fromkeys(order[:5], 1.0) | {order[6]: 90.0}
    found = land.search()
    assert found.best == order[6]
    assert set(found.refused) == {label(config) for config in order[:5]}
    assert all(reason.startswith("wrong: error 1.0e+00") for reason in found.refused.values())
    assert not set(found.timed) & set(found.refused)


def test_a_winner_that_turns_out_wrong_the_second_time_gives_way() -> None:
    land = Landscape()
    order = land.ranked()
    land.us = {order[2]: 50.0, order[4]: 80.0}
    checks = land.why_wrong

    def only_once(config: object) -> str | None:
        if config == order[2] and config in land.checked:
            return "other bits than before"
        return checks(config)  # type: ignore[arg-type]

    land.why_wrong = only_once  # type: ignore[method-assign]
    found = land.search()
    assert found.best == order[4]
    assert found.refused == {label(order[2]): "wrong: other bits than before"}


def test_candidates_that_fail_are_counted_and_never_end_the_search() -> None:
    land = Landscape()
    order = land.ranked()
    land.broken, land.fragile = set(order[:7]), {order[8], order[9]}
    land.us = {order[9]: 1.0, order[11]: 70.0}
    found = land.search()
    assert found.best == order[11]
    assert set(found.refused) == {label(config) for config in (*order[:7], order[8], order[9])}
    assert set(found.refused.values()) == {"RuntimeError: out of resource: shared memory"}
    assert land.settled >= 9


def test_where_every_candidate_fails_the_default_stays() -> None:
    land = Landscape()
    land.broken = set(land.ranked())
    found = land.search()
    assert found.kept
    assert len(found.refused) == found.tried == PATIENCE
    assert found.us == pytest.approx(100.0)


def test_a_device_that_is_lost_ends_the_search() -> None:
    land = Landscape()
    land.broken = {land.ranked()[0]}

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        land.search(settle=lost)


@pytest.mark.parametrize("kind", ["wrong", "broken", "fragile"])
def test_a_default_that_is_wrong_is_an_error_and_no_baseline(kind: str) -> None:
    land = Landscape()
    getattr(land, kind).add(land.default)
    with pytest.raises(SearchError, match="attention: the default configuration"):
        land.search()


@pytest.mark.parametrize("seconds", [20.0, 60.0])
def test_nothing_new_is_tried_once_time_is_up(seconds: float) -> None:
    """Each candidate takes a second to compile; what was found until then counts."""
    land = Landscape(compile_s=1.0)
    order = land.ranked()
    land.us = {config: 90.0 * 0.97**place for place, config in enumerate(order)}
    found = land.search(seconds=seconds)
    assert found.stopped == "time is up"
    assert land.seconds <= seconds + 1.0
    assert 0.75 * seconds <= found.tried <= seconds
    assert found.best == order[found.tried - 1]
    assert len(found.untried) == len(order) - found.tried


def test_no_time_at_all_leaves_the_default() -> None:
    land = Landscape(compile_s=1.0)
    found = land.search(seconds=0.0)
    assert found.kept
    assert (found.tried, found.us) == (0, pytest.approx(100.0))


def test_no_more_are_tried_than_asked_for() -> None:
    land = Landscape()
    found = land.search(most=5)
    assert (found.tried, found.stopped, len(found.untried)) == (5, "5 tried", len(land.ranked()) - 5)


def test_what_serves_now_is_tried_first() -> None:
    land = Landscape()
    last = land.ranked()[-1]
    land.us[last] = 60.0
    assert land.search().kept
    land.checked.clear()
    assert land.search(first=(last,)).best == last
    assert land.checked[1] == last


def test_progress_is_told_after_each_candidate() -> None:
    land = Landscape()
    order = land.ranked()
    land.us[order[0]] = 50.0
    told: list[tuple[int, int, float]] = []
    found = land.search(progress=lambda *what: told.append(what))
    assert [done for done, _, _ in told] == list(range(1, found.tried + 1))
    assert {total for _, total, _ in told} == {len(order)}
    assert told[0][2] == 1.0
    assert told[-1][2] == pytest.approx(2.0)


def test_where_nothing_is_timed_nothing_is_said_to_be_faster() -> None:
    land = Landscape()
    land.measure = lambda calls, rounds: None  # type: ignore[assignment,method-assign,return-value]
    found = land.search()
    assert (found.best, found.us, found.default_us, found.timed) == (land.default, None, None, {})


def test_it_is_about_the_call_it_was_asked_for() -> None:
    call = attention_call(128, sm=80)
    land = Landscape(call)
    assert land.search().call is call
    assert all(dict(config.blocks)["TMA"] == 0 for config in land.checked[1:])
