"""The expiry worker: how late it is at a steady rate of deadlines, and how fast it works off what is due at once."""

import asyncio
import os
import sys
from typing import Any

from bench.environment import cpu_s, pin, shown, spread
from bench.services import Services
from core.ledger.pool import Pool, open_pool

RATE = 1_000  # deadlines a second
LASTS_S = 12
LEAD_S = 4  # from the filling to the first deadline: the workers run by then
BACKLOG = 50_000  # orders due at once
ROUNDS = 5
WORKERS = (1, 2)  # processes
SHARDS = (1, 64)  # that the orders are on: a campaign of spread 1, and many campaigns

# Orders as the ledger worker has written them; $2 shards, then what time has to do with them.
_FILL = """
WITH made AS (
    INSERT INTO orders (shard, order_id, campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id,
                        state, version, amount, currency, accepted_at, pay_by, timer_at)
    SELECT n % $2, gen_random_uuid(), 'bench', 1, n, 'app', 'key-' || n, 'buyer-' || n, '', '', $3, 1, 100, 'CNY',
           now(), now() + $4 * interval '1 second' + n * $5 * interval '1 second', now()
    FROM generate_series(1, $1::int) n
    RETURNING shard, order_id
)
INSERT INTO order_events (shard, order_id, version, at, action, to_state, actor)
SELECT shard, order_id, 1, now(), 'accept', $3, 'channel:app' FROM made
"""
_LATE = """
SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM e.at - o.pay_by) * 1000)
FROM order_events e JOIN orders o USING (shard, order_id) WHERE e.action = 'expire'
"""
# The first batch only starts the clock.
_SPEED = """
SELECT count(*) FILTER (WHERE at > first) / extract(epoch FROM max(at) - min(first))::float8
FROM (SELECT at, min(at) OVER () + interval '10 ms' AS first FROM order_events WHERE action = $1) AS moves
"""


async def measure(services: Services) -> dict[str, Any]:
    """Lateness in ms (p50, p99, max) at RATE with two processes; expiries/s and completions/s with one and two."""
    pid = services.ledger_process.pid
    assert pid is not None
    pin(pid, [1])  # its backends inherit it
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 120.0, 1)
    late: dict[str, Any] = {}
    print(f"\nexpiry: two processes on one core, Postgres on the other, {RATE:,} deadlines/s for {LASTS_S} s")
    for shards in SHARDS:
        rounds = [await _on_time(services, ledger, shards) for _ in range(ROUNDS)]
        found = {name: [r[k] for r in rounds] for k, name in enumerate(("p50", "p99", "max"))}
        late[str(shards)] = {f"late_{name}_ms": spread(values) for name, values in found.items()}
        for name, values in found.items():
            print(f"  {shards:>2} shards  late {name:4} {shown(values, 'ms')}")
    speed: dict[str, Any] = {}
    print(f"\nexpiry: a backlog of {BACKLOG:,} orders due at once")
    for action, state in (("expire", "accepted"), ("complete", "received")):
        for shards in SHARDS:
            for workers in WORKERS:
                results = [await _backlog(services, ledger, action, state, shards, workers) for _ in range(ROUNDS)]
                rates, costs = [r[0] for r in results], [r[1] for r in results]
                words = f"{action:8} {shards:>2} shards {workers} processes"
                print(f"  {words}  {shown(rates, 'orders/s')}, CPU {shown(costs, 'us/order', 1)}")
                speed[f"{action} {shards} shards {workers} processes"] = {
                    "orders_per_s": spread(rates), "worker_cpu_us_per_order": spread(costs),
                }  # fmt: skip
    ledger.terminate()
    return {"expiry": {"deadlines_per_s": RATE, "late": late, "backlog": speed}}


async def _on_time(services: Services, ledger: Pool, shards: int) -> list[float]:
    orders = RATE * LASTS_S
    await _fill(ledger, orders, shards, "accepted", LEAD_S, 1 / RATE)
    processes = [await _worker(services) for _ in range(2)]
    await _until(ledger, "expired", orders)
    await _end(processes)
    found: list[float] = await ledger.fetchval(_LATE)
    return found


async def _backlog(
    services: Services, ledger: Pool, action: str, state: str, shards: int, workers: int
) -> tuple[float, float]:
    """Orders/s, from the first batch to the last by the ledger's clock, and CPU-us of the workers per order."""
    await _fill(ledger, BACKLOG, shards, state, -BACKLOG, 0)
    processes = [await _worker(services) for _ in range(workers)]
    await _until(ledger, "expired" if action == "expire" else "completed", BACKLOG)
    used_s = sum(cpu_s(p.pid) for p in processes)
    await _end(processes)
    return await ledger.fetchval(_SPEED, action), used_s / BACKLOG * 1e6


async def _fill(ledger: Pool, orders: int, shards: int, state: str, first_s: float, step_s: float) -> None:
    await ledger.execute("TRUNCATE orders, order_items, order_events, outbox")
    await ledger.execute(_FILL, orders, shards, state, first_s, step_s)
    await ledger.execute("VACUUM ANALYZE orders, order_events, outbox")


async def _until(ledger: Pool, state: str, orders: int) -> None:
    while await ledger.fetchval("SELECT count(*) FROM orders WHERE state = $1", state) < orders:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


async def _worker(services: Services) -> asyncio.subprocess.Process:
    env = {**os.environ, **services.settings.to_env()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "ops.cli", "worker", "expiry", env=env)
    os.sched_setaffinity(process.pid, [0])
    return process


async def _end(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        await process.wait()
