"""What an order weighs, in bytes: on the network, in the store's file, in the ledger and its log."""

import asyncio
import os
import time
from typing import Any

from bench.drain import TABLES
from bench.environment import shown, spread
from bench.generator import closed, order_wire
from bench.processes import all_cores, gateway, worker
from bench.services import Services
from core.ledger.pool import Pool, open_pool
from lua.keys import intake_key

ORDERS = 20_000  # a round
ROUNDS = 3
CONNECTIONS = 64
_SIZE = (
    "SELECT sum(pg_total_relation_size(to_regclass(trim(name))))::float8 FROM unnest(string_to_array($1, ',')) AS name"
)


async def measure(services: Services, orders: int = ORDERS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Bytes per order of request and answer, of the store's network and append-only file, of the ledger and its log."""
    # A rewrite would take away what the orders added.
    await services.store.exchange([("CONFIG", "SET", "auto-aof-rewrite-percentage", "0")])
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 60.0, 1)
    try:
        found = [await _round(services, ledger, f"footprint-{n}-{time.time_ns():x}", orders) for n in range(rounds)]
    finally:
        ledger.terminate()
        os.sched_setaffinity(0, all_cores())
    print(f"\nbytes of an order, {orders:,} orders a round, {CONNECTIONS} connections")
    for name in found[0]:
        print(f"  {name.replace('_', ' '):<22} {shown([r[name] for r in found], 'bytes')}")
    return {
        "footprint": {name: spread([r[name] for r in found]) for name in found[0]},
        "settings": {"orders": orders, "connections": CONNECTIONS},
    }


async def _round(services: Services, ledger: Pool, campaign: str, orders: int) -> dict[str, float]:
    sale = await services.open_sale(campaign)
    wire = order_wire(campaign, "f0f0f0f0")
    wires = [wire(n) for n in range(orders)]
    async with gateway(services, all_cores()) as running:
        before = await _store(services)
        done = await asyncio.to_thread(closed, running.port, wires, CONNECTIONS)
        taken = await _store(services)
    assert all(answer[9:12] == b"202" for answer in done.answers), "not every order was accepted"
    size, log = await ledger.fetchval(_SIZE, TABLES), await ledger.fetchval("SELECT pg_current_wal_insert_lsn()")
    async with worker(services, "ledger", all_cores()):
        keys = [intake_key(shard) for shard in sale.shards]
        while any(await services.store.exchange([("XLEN", key) for key in keys])):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    drained = await _store(services)
    return {
        "request_bytes": sum(map(len, wires)) / orders,
        "answer_bytes": sum(map(len, done.answers)) / orders,
        "store_in_bytes": (taken["total_net_input_bytes"] - before["total_net_input_bytes"]) / orders,
        "store_out_bytes": (taken["total_net_output_bytes"] - before["total_net_output_bytes"]) / orders,
        "aof_bytes": (drained["aof_current_size"] - before["aof_current_size"]) / orders,
        "ledger_bytes": (await ledger.fetchval(_SIZE, TABLES) - size) / orders,
        "wal_bytes": await ledger.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)::float8", log)
        / orders,
    }


async def _store(services: Services) -> dict[str, int]:
    [said] = await services.store.exchange([("INFO", "stats", "persistence")])
    pairs = (line.split(":", 1) for line in said.decode().splitlines() if ":" in line)
    return {name: int(value) for name, value in pairs if name.startswith(("total_net_", "aof_current_size"))}
