"""The drain: how fast one ledger worker process writes a backlog, with Postgres on the other core."""

import asyncio
import os
import sys
import time
from typing import Any

from bench.environment import cpu_s, pin, shown, spread
from bench.services import Services, asks
from core.ledger.pool import open_pool
from gateway.catalogue import Sale
from lua.connection import StoreConnection
from lua.reserve import pack
from lua.source import LuaSource

ORDERS = 100_000  # a round
ROUNDS = 5
BATCH = 64  # orders in an entry, as a busy gateway makes them


async def measure(services: Services) -> dict[str, Any]:
    """Orders/s from the worker's first commit to the empty intake, and its CPU per order."""
    store_pid, ledger_pid = services.store_process.pid, services.ledger_process.pid
    assert store_pid is not None
    assert ledger_pid is not None
    pin(store_pid, [1])
    pin(ledger_pid, [1])  # its backends inherit it
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 60.0, 1)
    rates: list[float] = []
    costs: list[float] = []
    for n in range(ROUNDS):
        sale = await services.open_sale(f"drain-{n}")
        await _fill(services, sale, n * ORDERS)
        rate, us = await _drain(services, sale, ledger)
        rates.append(rate)
        costs.append(us)
        await ledger.execute("TRUNCATE orders, order_items, order_events, outbox")
    ledger.terminate()
    print("\nledger: one worker on one core, Postgres and the store on the other, a backlog of 100,000 orders")
    print(f"  orders     {shown(rates, 'orders/s')}  (each is 4 rows: order, item, event, outbox message)")
    print(f"  rows       {shown([4 * r for r in rates], 'rows/s')}")
    print(f"  worker CPU {shown(costs, 'us/order', 1)}")
    return {"drain": {"orders_per_s": spread(rates), "worker_cpu_us_per_order": spread(costs)}}


async def _fill(services: Services, sale: Sale, first: int) -> None:
    connection = StoreConnection(services.settings.store_url, "fsync", 60.0, "bench-fill")
    for n in range(0, ORDERS, BATCH * 16):
        groups = [asks(sale, first + n + k * BATCH, BATCH) for k in range(16) if n + k * BATCH < ORDERS]
        await connection.run(LuaSource.read("reserve"), [pack(sale.keys[0], sale.campaign, 1, g) for g in groups])
    await connection.close()


async def _drain(services: Services, sale: Sale, ledger: Any) -> tuple[float, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "worker", "ledger", env={**os.environ, **services.settings.to_env()}
    )
    os.sched_setaffinity(process.pid, [0])
    count = "SELECT count(*) FROM orders"
    while not (first := await ledger.fetchval(count)):  # noqa: ASYNC110 - nobody tells us, we look
        await asyncio.sleep(0.002)
    began_s, cpu_before_s = time.perf_counter(), cpu_s(process.pid)
    while True:
        [left] = await services.store.exchange([("XLEN", sale.keys[0].intake)])
        if left == 0:
            break
        await asyncio.sleep(0.01)
    took_s, used_s = time.perf_counter() - began_s, cpu_s(process.pid) - cpu_before_s
    total = await ledger.fetchval(count)
    process.terminate()
    await process.wait()
    return (total - first) / took_s, used_s / (total - first) * 1e6
