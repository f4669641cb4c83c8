"""What a buyer is told of a place: the state, the wait, and when to ask again."""

from typing import Any

import pytest

from core.lot import place
from gateway.line_view import GONE_S, Pace, Stock, place_of, poll_after_s, show, state_of
from lua.room import Phase, Standing

STILL = Pace(0.0, 0.0)
FULL, EMPTY, HELD = Stock(100, 0, False), Stock(0, 0, True), Stock(0, 3, False)


def standing(**changes: Any) -> Standing:
    """100 have joined after the opening, 40 were admitted, the time of 10 is over."""
    values: dict[str, Any] = {
        "now_ms": 1_000_000, "version": 1, "phase": Phase.OPEN, "opens_ms": 900_000, "joined": 100, "admitted": 40,
        "lapsed": 10, "early": 0, "seed": "s", "mode": "fixed", "rate": 5.0, "turn": False,
        "marks": (1_100_000, 25, 1_200_000, 40),
    }  # fmt: skip
    return Standing(**(values | changes))


@pytest.mark.parametrize(
    ("number", "stock", "changes", "state"),
    [
        (41, FULL, {}, "waiting"),
        (40, FULL, {}, "admitted"),
        (11, FULL, {}, "admitted"),
        (10, FULL, {}, "lapsed"),
        (41, EMPTY, {}, "gone"),
        (40, EMPTY, {}, "gone"),
        (41, HELD, {}, "waiting"),
        (41, Stock(0, 0, False), {}, "waiting"),  # seen empty once: units may be on their way between shards
        (41, EMPTY, {"phase": Phase.CLOSED}, "closed"),
        (41, EMPTY, {"phase": Phase.BEFORE}, "before"),
        (41, FULL, {"phase": Phase.PAUSED}, "waiting"),
        (41, FULL, {"early": -1, "seed": ""}, "before"),
    ],
)
def test_state_of_a_place(number: int, stock: Stock, changes: dict[str, Any], state: str) -> None:
    assert state_of(standing(**changes), stock, number) == state


def test_place_is_drawn_for_those_who_came_early_and_the_number_for_all_others() -> None:
    now = standing(early=50)
    assert [place_of(now, n) for n in range(1, 51)] == [place("s", 50, n) for n in range(1, 51)]
    assert place_of(now, 51) == 51
    assert place_of(standing(early=-1), 3) is None


def test_until_of_a_place_is_its_mark_s() -> None:
    now = standing()
    assert [now.until_ms(n) for n in (10, 11, 25, 26, 40, 41)] == [0, 1_100_000, 1_100_000, 1_200_000, 1_200_000, 0]


def test_wait_is_told_by_the_measured_rate_and_else_by_the_one_that_is_set() -> None:
    assert show(standing(), FULL, STILL, 61).estimate_s == pytest.approx(21 / 5)
    view = show(standing(), FULL, Pace(10.0, 4.0), 61)
    assert (view.place, view.ahead) == (61, 20)
    assert view.estimate_s == pytest.approx(2.1)
    assert view.stock_lasts_s == pytest.approx(25.0)


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"phase": Phase.PAUSED}])
def test_wait_is_not_told_when_nobody_is_admitted(changes: dict[str, Any]) -> None:
    assert show(standing(**changes), FULL, STILL, 61).estimate_s is None
    assert show(standing(), HELD, STILL, 61).estimate_s is None
    assert show(standing(), HELD, STILL, 61).may_return == 3


def test_nothing_is_promised_before_the_opening() -> None:
    view = show(standing(phase=Phase.BEFORE, early=-1, opens_ms=1_030_000), Stock(0, 0, False), STILL, 5)
    assert (view.state, view.place, view.ahead, view.estimate_s, view.may_return) == ("before", None, None, None, 0)


def test_questions_are_spread_the_further_away_the_later() -> None:
    soon = [poll_after_s(standing(), "waiting", 1.0) or 0 for _ in range(200)]
    later = [poll_after_s(standing(), "waiting", 600.0) or 0 for _ in range(200)]
    assert 0.75 <= min(soon) < max(soon) <= 1.25
    assert 15 <= min(later) < max(later) <= 25
    assert max(later) - min(later) > 5
    assert poll_after_s(standing(), "admitted", None) is None
    assert (poll_after_s(standing(), "gone", None) or 0) >= GONE_S * 0.75


def test_crowd_that_waits_for_the_opening_does_not_ask_in_one_instant() -> None:
    now = standing(phase=Phase.BEFORE, early=-1, opens_ms=1_010_000, joined=20_000)
    asked = sorted(poll_after_s(now, "before", None) or 0 for _ in range(500))
    assert 10.0 <= asked[0] < asked[-1] <= 20.0
    assert asked[400] - asked[100] > 4
    far = standing(phase=Phase.BEFORE, early=-1, opens_ms=1_000_000 + 3_600_000)
    assert 45 <= (poll_after_s(far, "before", None) or 0) <= 75
