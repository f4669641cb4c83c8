"""The benches of batch intake, drain, end to end and growth, each once and small, on services of their own."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from bench import batch, drain, end_to_end, growth, growth_wide, memory, plot
from bench.processes import all_cores, children, family_cpu_s, own_cpu_s, pids, pin_family
from bench.services import Services, services
from core.ledger.pool import open_pool


@pytest.fixture
async def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    """Store and ledger of a bench; its plots go to a folder of the test."""
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    async with services() as made:
        yield made


async def test_batch_measures_every_number_of_lines(found: Services, tmp_path: Path) -> None:
    result = (await batch.measure(found, lines=(10, 100), orders=500, rounds=2))["batch"]
    assert list(result) == ["10", "100"]
    for figures in result.values():
        assert figures["orders_per_s"]["rounds"] == 2
        assert all(figures[name]["min"] > 0 for name in ("orders_per_s", "request_p99_ms", "gateway_us", "store_us"))
    assert (tmp_path / "batch.svg").exists()


async def test_drain_and_spike_leave_nothing_behind(found: Services, tmp_path: Path) -> None:
    result = await drain.measure(
        found, orders=2_000, rounds=1, settings=((1, 500), (2, 1_000)), spike_orders=1_000, spike_rounds=1
    )
    assert list(result["drain"]) == ["1 worker, 500 a batch", "2 workers, 1,000 a batch"]
    for figures in result["drain"].values():
        assert all(one["min"] > 0 for one in figures.values())
    assert 0 < result["spike"]["most_orders"]["median"] <= 1_000
    assert (tmp_path / "drain.svg").exists()
    assert (tmp_path / "spike.svg").exists()
    connection = await asyncpg.connect(found.settings.ledger_dsn)
    assert await connection.fetchval("SELECT count(*) FROM orders") == 0
    await connection.close()


async def test_end_to_end_knows_the_row_of_every_order(found: Services) -> None:
    own = found._replace(settings=await end_to_end.with_commit_times(found))
    ledger = await open_pool(own.settings.ledger_dsn, "test", 30.0, 1)
    try:
        ran = await end_to_end.run(own, ledger, 200, 3.0, connections=16, warm_s=0.5)
    finally:
        ledger.terminate()
    assert ran.errors == {}
    assert len(ran.row_s) == len(ran.answered_s) > 400
    assert min(ran.answered_s) > 0
    assert 0 < min(ran.row_s) <= max(ran.row_s) < 10
    assert all(us > 0 for us in ran.cpu_us.values())


async def test_growth_grows_and_measures_each_size(found: Services) -> None:
    result = (await growth.measure(found, to=4_000, windows=2, first=400, wide=False))["growth_orders"]
    assert list(result) == ["400 orders", "4,000 orders"]
    for figures in result.values():
        assert all(one["rounds"] == 2 and one["min"] > 0 for one in figures.values())


async def test_growth_in_width_spreads_orders(found: Services) -> None:
    ledger = await open_pool(found.settings.ledger_dsn, "test", 30.0, 2)
    try:
        many = await growth_wide.campaigns(found, ledger, 1, (1, 5), 500)
        crowds = await growth_wide.connections(found, ledger, 1, (4, 80), 500)
    finally:
        ledger.terminate()
    assert list(many) == ["1 campaigns", "5 campaigns"]
    assert list(crowds) == ["4 connections", "80 connections"]


async def test_memory_of_an_ended_order_is_less_than_of_an_open_one(found: Services) -> None:
    result = await memory.measured(found, (3_000, 4_000))
    assert 0 < result["ended"]["bytes"]["max"] < result["open"]["bytes"]["min"]


async def test_family_cpu_counts_the_backends(found: Services) -> None:
    """A second of Postgres' CPU is in one of its children, not in the postmaster."""
    _, pid = pids(found)
    connection = await asyncpg.connect(found.settings.ledger_dsn)
    before = own_cpu_s(pid), family_cpu_s(pid)
    await connection.execute("SELECT sum(n) FROM generate_series(1, 1500000) n")
    living = family_cpu_s(pid) - before[1]
    assert living > 0.05
    assert own_cpu_s(pid) - before[0] < living / 2
    assert len(children(pid)) > 1
    pin_family(pid, all_cores())
    await connection.close()
