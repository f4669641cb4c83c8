"""The cost model on given numbers."""

from typing import Any

import pytest

from bench.model import TURN_MS, Costs, Missing, costs, need, needs_table, section

GIVEN = Costs(
    gateway_us=30.0, store_order_us=6.0, store_call_us=40.0, worker_us=9.0, postgres_us=20.0, relay_us=50.0,
    messages=2.0, http_bytes=900.0, aof_bytes=400.0, wal_bytes=1_500.0, open_bytes=350.0, ended_bytes=120.0,
)  # fmt: skip


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median, "max": median, "rounds": 7}


def results() -> dict[str, Any]:
    def line(batch: int) -> dict[str, Any]:
        return {"cpu_us_per_order": spread(6.0 + 40.0 / batch)}

    def drained(rate: float, worker_us: float) -> dict[str, Any]:
        cpu = {"worker_cpu_us_per_order": spread(worker_us), "postgres_cpu_us_per_order": spread(20.0)}
        return {"orders_per_s": spread(rate), **cpu}

    of_footprint = {"request_bytes": 500, "answer_bytes": spread(400), "aof_bytes": 400, "wal_bytes": spread(1_500)}
    return {
        "store": {"store": {"1": {"cpu_us_per_order": spread(99.0)}, "16": line(16), "64": line(64), "256": line(256)}},
        "intake": {"intake": {"256": {"gateway_us": spread(30.0)}}},
        "drain": {
            "drain": {
                "1 worker, 250 a batch": drained(30_000, 11.0),
                "1 worker, 1,000 a batch": drained(40_000, 9.0),
                "2 workers, 1,000 a batch": drained(50_000, 10.0),
            }
        },
        "relay": {"relay": {"payment": {"relay_cpu_us_per_message": spread(50.0)}}},
        "life": {"life": {"accepted": 100, "relayed": {"messages": 200.0}}},
        "footprint": {"footprint": of_footprint},
        "growth": {"memory": {"open": {"bytes": spread(350)}, "ended": {"bytes": spread(120)}}},
    }


def test_costs_come_from_the_results() -> None:
    found = costs(results())
    assert found._asdict() == pytest.approx(GIVEN._asdict())


@pytest.mark.parametrize("name", ["store", "intake", "drain", "relay", "life", "footprint", "growth"])
def test_a_result_that_is_missing_is_named(name: str) -> None:
    rest = {k: v for k, v in results().items() if k != name}
    with pytest.raises(Missing, match=name):
        costs(rest)


def test_need_of_10_000_orders_a_second() -> None:
    found = need(GIVEN, 10_000)
    # 0.3, 0.06, 0.09, 0.2 and 1 core's time, at 60 % of a core each.
    assert (found.gateways, found.stores, found.workers, found.postgres_cores, found.relays) == (1, 1, 1, 1, 2)
    assert found.machines == 1
    # (0.3 ms of fsync + one call of 0.04 ms) / (1 - 0.06)
    assert found.turn_ms == pytest.approx(0.34 / 0.94)
    assert (found.http_mb_s, found.aof_mb_s, found.wal_mb_s) == pytest.approx((9.0, 4.0, 15.0))
    assert found.memory_gb == pytest.approx(12.6)


def test_need_of_583_000_orders_a_second() -> None:
    found = need(GIVEN, 583_000)
    assert (found.gateways, found.stores, found.workers, found.postgres_cores, found.relays) == (30, 6, 9, 20, 98)
    assert found.machines == 11  # 163 cores
    assert found.turn_ms == pytest.approx((0.3 + 30 * 0.04) / (1 - 583_000 / 6 * 6e-6))


def test_stores_are_added_until_a_turn_is_short_enough() -> None:
    dear = GIVEN._replace(store_call_us=400.0)
    found = need(dear, 583_000)
    assert found.turn_ms <= TURN_MS
    assert found.stores > need(GIVEN, 583_000).stores
    with pytest.raises(ValueError, match="calls of so many gateways"):
        need(GIVEN._replace(store_call_us=4_000.0), 583_000)


def test_no_process_is_busier_than_it_may() -> None:
    for rate in range(1_000, 600_000, 7_919):
        found = need(GIVEN, rate)
        assert rate * GIVEN.gateway_us / 1e6 / found.gateways <= 0.6
        assert rate * GIVEN.store_order_us / 1e6 / found.stores <= 0.6


def test_tables_hold_every_rate() -> None:
    table = needs_table(GIVEN)
    assert table.startswith("| orders/s | 10,000 | 100,000 | 583,000 |\n|---|---|---|---|\n")
    assert "| gateway processes | 1 | 5 | 30 |" in table
    assert "| ledger worker | 9.0 us |" in section(results())
