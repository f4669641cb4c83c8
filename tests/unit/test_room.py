"""How many may wait and go at once follows from what the store took, not from a count."""

import pytest

from gateway.room import RATE, SHARE, Room

BOUND, WAIT_S, FULL, MOST_TAKEN = 20_000, 1.0, 256, 1_024


def room(bound: int = BOUND) -> Room:
    return Room(bound, WAIT_S, FULL, MOST_TAKEN)


class Store:
    """Takes so many a second, whatever the size of an exchange; the next one begins when it had its last."""

    def __init__(self, found: Room) -> None:
        self.room = found
        self.now_s = 100.0

    def carry(self, rate: float, exchanges: int) -> Room:
        for _ in range(exchanges):
            sent_s, self.now_s = self.now_s, self.now_s + self.room.take / rate
            self.room.carried(self.room.take, sent_s, self.now_s)
        return self.room


def carried(found: Room, rate: float, exchanges: int) -> Room:
    return Store(found).carry(rate, exchanges)


def test_before_anything_was_measured_it_is_careful() -> None:
    found = room()
    assert (found.take, found.most) == (FULL, int(RATE * WAIT_S * SHARE))


@pytest.mark.parametrize(
    ("rate", "take", "most"),
    [(100_000, 1_024, 20_000), (5_000, 1_024, 3_750), (1_500, 256, 1_125), (200, 256, 1_024)],
)
def test_as_many_wait_as_are_served_in_time_and_an_exchange_takes_a_quarter_of_it_at_most(
    rate: int, take: int, most: int
) -> None:
    found = carried(room(), rate, 20)
    assert found.take == take
    assert found.most == pytest.approx(most, abs=1)


def test_a_store_that_turns_slow_gets_smaller_exchanges_and_a_shorter_queue_and_back() -> None:
    store = Store(room())
    found = store.carry(50_000, 20)
    assert (found.take, found.most) == (MOST_TAKEN, BOUND)
    store.carry(300, 10)
    assert found.take == FULL
    assert found.most == MOST_TAKEN
    store.carry(50_000, 20)
    assert found.take == MOST_TAKEN
    assert found.most == BOUND


def test_small_exchanges_tell_nothing() -> None:
    found = carried(room(), 50_000, 20)
    for _ in range(100):
        found.carried(1, 200.0, 200.2)  # one request, a far replica: 5 a second
    assert (found.take, found.most) == (MOST_TAKEN, BOUND)


def test_the_bound_in_count_is_never_passed() -> None:
    assert carried(room(bound=300), 50_000, 20).most == 300


@pytest.mark.parametrize("beside", [0.0, 0.25, 0.5, 1.0])
def test_two_connections_are_not_counted_twice_however_their_exchanges_overlap(beside: float) -> None:
    """The store takes 2,000 a second, on one connection or shared by two."""
    found, now_s, each = room(), 100.0, 512
    for _ in range(20):
        alone_s = each / 2_000
        both_s = alone_s * (2 - beside)  # from the first one's beginning to the last one's end
        found.carried(each, now_s, now_s + both_s * 0.5)
        found.carried(each, now_s + both_s * 0.5 * (1 - beside), now_s + both_s)
        now_s += both_s
    assert found.most == pytest.approx(2 * each / both_s * SHARE * WAIT_S, rel=0.02)
