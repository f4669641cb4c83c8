"""The relay: messages/s of one relay process, for the store's topics and for partners over HTTP."""

import asyncio
import base64
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.drain import BATCH
from bench.environment import cpu_s, pin, shown, spread
from bench.services import CHANNEL_KEY, Services, asks
from core.ledger.pool import Pool, open_pool
from gateway.catalogue import Sale
from lua.connection import StoreConnection
from lua.reserve import pack
from lua.source import LuaSource

ORDERS = 20_000  # a round, one message each
ROUNDS = 5
SECRET = "whsec_" + base64.b64encode(b"bench" * 6).decode()
TOPICS = ("settle", "release", "restock", "payment")


async def measure(services: Services) -> dict[str, Any]:
    """Messages/s from the first delivery on record to the empty outbox, and the relay's CPU per message."""
    store_pid, ledger_pid = services.store_process.pid, services.ledger_process.pid
    assert store_pid is not None
    assert ledger_pid is not None
    pin(store_pid, [1])
    pin(ledger_pid, [1])  # its backends inherit it
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 60.0, 1)
    found: dict[str, Any] = {}
    print(f"\nrelay: one process on one core, Postgres, the store and the partners on the other, {ORDERS:,} messages")
    async with partners() as url:
        for topic in TOPICS:
            rates: list[float] = []
            costs: list[float] = []
            for n in range(ROUNDS):
                sale = await services.open_sale(f"relay-{topic}-{n}")
                await _fill(services, sale, n * ORDERS)
                await _drain(services)
                if topic == "restock":
                    await _deliver(services, ledger, "settle", url)
                rate, us = await _deliver(services, ledger, topic, url)
                rates.append(rate)
                costs.append(us)
                await ledger.execute("TRUNCATE orders, order_items, order_events, outbox, deliveries")
            print(f"  {topic:10} {shown(rates, 'messages/s')}, relay CPU {shown(costs, 'us/message', 1)}")
            found[topic] = {"messages_per_s": spread(rates), "relay_cpu_us_per_message": spread(costs)}
    ledger.terminate()
    return {"relay": found}


@asynccontextmanager
async def partners() -> AsyncIterator[str]:
    """The partners' server as a process on the other core; its buyers do nothing."""
    env = {**os.environ, "RUSHGATE_PARTNER_SECRETS": SECRET, "RUSHGATE_CHANNEL_KEYS": f"app={CHANNEL_KEY}"}
    words = ("--port", "0", "--pay", "0", "--cancel", "0", "--pay-late", "0", "--ignore", "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "partners", *words, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pin(process.pid, [1])
    line = (await process.stdout.readline()).decode()
    try:
        yield line.split()[1]
    finally:
        process.terminate()
        await process.wait()


async def _fill(services: Services, sale: Sale, first: int) -> None:
    connection = StoreConnection(services.settings.store_url, "fsync", 60.0, "bench-fill")
    for n in range(0, ORDERS, BATCH * 16):
        groups = [asks(sale, first + n + k, min(BATCH, ORDERS - n - k)) for k in range(0, BATCH * 16, BATCH)
                  if n + k < ORDERS]  # fmt: skip
        await connection.run(LuaSource.read("reserve"), [pack(sale.keys[0], sale.campaign, 1, g) for g in groups])
    await connection.close()


async def _drain(services: Services) -> None:
    """All orders are in the ledger."""
    process = await _worker(services, "ledger")
    ledger = await open_pool(services.settings.ledger_dsn, "bench-drain", 60.0, 1)
    while await ledger.fetchval("SELECT count(*) FROM orders") < ORDERS:  # noqa: ASYNC110 - nobody tells us, we look
        await asyncio.sleep(0.05)
    ledger.terminate()
    process.terminate()
    await process.wait()


async def _worker(services: Services, kind: str, **values: Any) -> asyncio.subprocess.Process:
    env = {**os.environ, **services.settings.with_values(**values).to_env()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "ops.cli", "worker", kind, env=env)
    os.sched_setaffinity(process.pid, [0])
    return process


async def _deliver(services: Services, ledger: Pool, topic: str, url: str) -> tuple[float, float]:
    await ledger.execute("TRUNCATE outbox, deliveries")
    await ledger.execute(
        "INSERT INTO outbox (shard, order_id, version, topic, at) SELECT shard, order_id, 1, $1, now() FROM orders",
        topic,
    )
    await ledger.execute("VACUUM ANALYZE outbox, orders, order_items, order_events")
    process = await _worker(services, "relay", partners_url=url, partner_secrets=(SECRET,))
    count = "SELECT count(*) FROM deliveries"
    while not (first := await ledger.fetchval(count)):  # noqa: ASYNC110 - nobody tells us, we look
        await asyncio.sleep(0.002)
    began_s, cpu_before_s = time.perf_counter(), cpu_s(process.pid)
    while await ledger.fetchval("SELECT EXISTS (SELECT FROM outbox)"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    took_s, used_s = time.perf_counter() - began_s, cpu_s(process.pid) - cpu_before_s
    total = await ledger.fetchval(count)
    assert total == ORDERS
    process.terminate()
    await process.wait()
    return (total - first) / took_s, used_s / (total - first) * 1e6
