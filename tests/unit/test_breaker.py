"""The breaker: opens after failures in a row, lets one probe through at a time, heals at the first success."""

import pytest

from workers.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, (1.0, 4.0), clock, lambda: 1.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.take()
        breaker.failed()


def test_breaker_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.ready()
    fail(breaker, 1)
    assert (breaker.ready(), breaker.take(), breaker.is_open, breaker.wait_s()) == (False, False, True, 1.0)


def test_breaker_lets_one_probe_through_and_waits_longer_when_it_fails(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    for wait_s in (1.0, 2.0, 4.0, 4.0):
        assert breaker.wait_s() == wait_s
        clock.s += wait_s
        assert breaker.ready()
        assert breaker.take()
        assert not breaker.take()
        breaker.failed()


def test_breaker_heals_at_the_first_success(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.s += 1.0
    assert breaker.take()
    breaker.succeeded()
    assert not breaker.is_open
    fail(breaker, 2)
    assert breaker.ready()


def test_breaker_is_not_opened_longer_by_what_was_sent_before(breaker: Breaker, clock: Clock) -> None:
    taken = [breaker.take() for _ in range(8)]
    assert all(taken)
    for _ in range(8):
        breaker.failed()
    assert breaker.wait_s() == 1.0
