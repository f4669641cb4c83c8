"""A rush on the whole stack with partners that fail: every order comes to its end, and the books are right then."""

from bench.life import live
from core.settings import Settings

ORDERS = 1_500


async def test_orders_of_a_rush_come_to_their_ends_though_partners_fail_and_go_away(settings: Settings) -> None:
    life = await live(settings, ORDERS, away_s=4.0, pay_within_s=6, within_s=120.0)
    assert life.faults == []
    assert life.accepted >= ORDERS
    assert set(life.states) == {"completed", "cancelled", "expired", "refunded"}
    assert sum(life.states.values()) == life.accepted
    assert min(life.failed.values()) > 0  # failures, lost answers and the absence did happen
    assert life.relayed["attempts"] > life.relayed["messages"]
