"""The drain: how fast ledger workers write a backlog, with Postgres on the other core, and how a spike is cleared."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from bench import plot
from bench.environment import shown, spread
from bench.processes import all_cores, family_cpu_s, own_cpu_s, pids, pin_family, worker
from bench.services import Services, asks
from core.ledger.pool import Pool, open_pool
from gateway.catalogue import Sale
from lua.connection import Command, StoreConnection
from lua.keys import intake_key
from lua.reserve import pack
from lua.scripts import Scripts
from lua.source import LuaSource

ORDERS = 100_000  # a round
ROUNDS = 7
BATCH = 64  # orders in an entry, as a busy gateway makes them
DEPTH = 16  # calls in one exchange
SETTINGS = ((1, 250), (1, 1_000), (1, 4_000), (2, 1_000))  # worker processes, drain_orders
ROWS = 4  # of an order: order, item, event, outbox message
SPIKE_ORDERS = 40_000  # of which all arrive within a second
SPIKE_ROUNDS = 5
SAMPLE_S = 0.02
TABLES = "orders, order_items, order_events, outbox"

# A worker that waits for our lock has read its first batch.
_READY = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'rushgate-ledger-%'
"""


class Drained(NamedTuple):
    """One backlog written; CPU in us per order, of all workers and of all of Postgres."""

    orders_per_s: float
    worker_us: float
    postgres_us: float


class Sample(NamedTuple):
    """The intake at one moment, seconds after the first order."""

    at_s: float
    entries: int
    orders: int
    age_ms: int  # of the oldest entry


class Spike(NamedTuple):
    """A spike and what it left behind; the samples last until the intake was empty."""

    arrived_s: float  # from the first order to the last
    clear_s: float  # from the last order to the empty intake
    samples: list[Sample]


async def measure(
    services: Services, orders: int = ORDERS, rounds: int = ROUNDS, settings: Sequence[tuple[int, int]] = SETTINGS,
    spike_orders: int = SPIKE_ORDERS, spike_rounds: int = SPIKE_ROUNDS,
) -> dict[str, Any]:  # fmt: skip
    """Orders/s and rows/s, CPU of workers and Postgres per order, by workers and batch size; then the spike."""
    sorts = {f"{workers} worker{'s' * (workers > 1)}, {size:,} a batch": (workers, size) for workers, size in settings}
    found: dict[str, list[Drained]] = {name: [] for name in sorts}
    async with on_cores(services) as ledger:
        for n in range(rounds):
            for name, (workers, size) in sorts.items():
                sale = await services.open_sale(f"drain-{time.time_ns():x}")
                await fill(services, sale, n * orders, orders)
                found[name].append(await drain(services, sale.shards, orders, ledger, workers, drain_orders=size))
                await forget(services, [sale], ledger)
        spikes = [await _spike(services, ledger, spike_orders) for _ in range(spike_rounds)]
    return {
        "drain": _drained(found, orders),
        "spike": _spiked(spikes, spike_orders),
        "settings": {"orders": orders, "batch": BATCH, "spike_orders": spike_orders},
    }


@asynccontextmanager
async def on_cores(services: Services) -> AsyncIterator[Pool]:
    """A connection to the ledger. Store and Postgres have core 1, we and the workers core 0, until the end."""
    store_pid, ledger_pid = pids(services)
    pin_family(store_pid, [1])
    pin_family(ledger_pid, [1])
    os.sched_setaffinity(0, [0])
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 120.0, 2)
    try:
        yield ledger
    finally:
        ledger.terminate()
        for pid in (0, store_pid, ledger_pid):
            pin_family(pid or os.getpid(), all_cores())


async def fill(services: Services, sale: Sale, first: int, orders: int, batch: int = BATCH) -> None:
    """So many orders, numbered from `first` on, are in the intake, in entries of `batch`."""
    connection = StoreConnection(services.settings.store_url, "fsync", 60.0, "bench-fill")
    for n in range(first, first + orders, batch * DEPTH):
        await _reserve(connection, _calls(sale, n, min(batch * DEPTH, first + orders - n), batch))
    await connection.close()


def _calls(sale: Sale, first: int, orders: int, batch: int) -> list[Command]:
    end = first + orders
    groups = [asks(sale, n, min(batch, end - n)) for n in range(first, end, batch)]
    return [pack(sale.keys[0], sale.campaign, sale.epoch, group) for group in groups]


async def _reserve(connection: StoreConnection, calls: Sequence[Command]) -> None:
    for reply in await connection.run(LuaSource.read("reserve"), calls):
        if isinstance(reply, Exception):
            raise reply


async def drain(
    services: Services, shards: Sequence[int], orders: int, ledger: Pool, workers: int = 1, **values: Any
) -> Drained:
    """The `orders` that wait in the intakes of `shards` are in the ledger. `values`: settings of the workers.

    The workers start against a lock, so that all of them have read a first entry when the time begins.
    """
    _, ledger_pid = pids(services)
    count, keys = "SELECT count(*) FROM orders", [intake_key(shard) for shard in shards]
    before = await ledger.fetchval(count)
    async with ledger.acquire() as holder, AsyncExitStack() as stack:
        lock = holder.transaction()
        await lock.start()
        await holder.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        running = [await stack.enter_async_context(worker(services, "ledger", [0], **values)) for _ in range(workers)]
        while await ledger.fetchval(_READY) < workers:  # noqa: ASYNC110 - nobody tells us, we look
            await asyncio.sleep(0.01)
        began_s, used = time.perf_counter(), (sum(map(own_cpu_s, running)), family_cpu_s(ledger_pid))
        await lock.rollback()
        while any(await services.store.exchange([("XLEN", key) for key in keys])):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        took_s = time.perf_counter() - began_s
        used = sum(map(own_cpu_s, running)) - used[0], family_cpu_s(ledger_pid) - used[1]
    written = await ledger.fetchval(count) - before
    assert written == orders, f"{written} of {orders} orders in the ledger"
    return Drained(orders / took_s, used[0] / orders * 1e6, used[1] / orders * 1e6)


async def forget(services: Services, sales: Sequence[Sale], ledger: Pool) -> None:
    """The orders are gone from the ledger, and from the store; the next round finds both as this one did."""
    await ledger.execute(f"TRUNCATE {TABLES}")
    await ledger.execute("CHECKPOINT")
    keys = [key for sale in sales for k in sale.keys for key in (k.requests, k.holds, k.used)]
    for n in range(0, len(keys), 1_000):
        await services.store.exchange([("UNLINK", *keys[n : n + 1_000])])
    while b"lazyfree_pending_objects:0" not in (await services.store.exchange([("INFO", "memory")]))[0]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # memory that is still to be freed would be counted for the next round


async def _spike(services: Services, ledger: Pool, orders: int) -> Spike:
    """The worker is idle when the orders come; they do as fast as one connection brings them, packed beforehand."""
    sale = await services.open_sale(f"spike-{time.time_ns():x}")
    calls = _calls(sale, 0, orders, BATCH)
    connection = StoreConnection(services.settings.store_url, "fsync", 60.0, "bench-spike")
    await connection.connect()
    scripts, samples = Scripts(services.store), list[Sample]()
    arrived = asyncio.Event()
    async with worker(services, "ledger", [0]):
        while not await _is_read(services, sale.keys[0].intake):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        began_s = time.perf_counter()

        async def sample() -> float:
            """Until the intake is empty after the last order; when that was."""
            while True:
                there = arrived.is_set()
                [found] = (await scripts.backlog(sale.shards)).values()
                at_s = time.perf_counter() - began_s
                samples.append(Sample(at_s, found.entries, found.orders, found.age_ms))
                if there and not found.entries:
                    return at_s
                await asyncio.sleep(SAMPLE_S)

        watching = asyncio.create_task(sample())
        for n in range(0, len(calls), DEPTH):
            await _reserve(connection, calls[n : n + DEPTH])
        arrived_s = time.perf_counter() - began_s
        arrived.set()
        cleared_s = await watching
    await connection.close()
    written = await ledger.fetchval("SELECT count(*) FROM orders")
    assert written == orders, f"{written} of {orders} orders in the ledger"
    await forget(services, [sale], ledger)
    return Spike(arrived_s, cleared_s - arrived_s, samples)


async def _is_read(services: Services, intake: bytes) -> bool:
    """Whether a worker has asked for entries; before its first question the group has no consumer."""
    [groups] = await services.store.exchange([("XINFO", "GROUPS", intake)])
    if isinstance(groups, Exception):  # no such key yet
        return False
    return any(dict(zip(g[::2], g[1::2], strict=True))[b"consumers"] for g in groups)


def _drained(found: dict[str, list[Drained]], orders: int) -> dict[str, Any]:
    print(f"\nledger: workers on one core, Postgres and the store on the other, a backlog of {orders:,} orders in "
          f"entries of {BATCH}")  # fmt: skip
    result = {}
    for name, rounds in found.items():
        result[name] = {
            "orders_per_s": spread([r.orders_per_s for r in rounds]),
            "rows_per_s": spread([r.orders_per_s * ROWS for r in rounds]),
            "worker_cpu_us_per_order": spread([r.worker_us for r in rounds]),
            "postgres_cpu_us_per_order": spread([r.postgres_us for r in rounds]),
        }
        print(f"  {name}")
        print(f"    orders  {shown([r.orders_per_s for r in rounds], 'orders/s')}")
        print(f"    rows    {shown([r.orders_per_s * ROWS for r in rounds], 'rows/s')}")
        print(f"    CPU: worker   {shown([r.worker_us for r in rounds], 'us/order', 1)}")
        print(f"         Postgres {shown([r.postgres_us for r in rounds], 'us/order', 1)}")
    groups = {name: {"orders/s": figures["orders_per_s"]} for name, figures in result.items()}
    plot.bars("drain", "The drain: orders into the ledger, 4 rows each", "orders/s", groups)
    return result


def _spiked(spikes: list[Spike], orders: int) -> dict[str, Any]:
    print(f"\nledger: one worker, a spike of {orders:,} orders")
    figures: dict[str, list[float]] = {
        "arrived_s": [s.arrived_s for s in spikes],
        "clear_s": [s.clear_s for s in spikes],
        "most_orders": [max(one.orders for one in s.samples) for s in spikes],
        "most_entries": [max(one.entries for one in s.samples) for s in spikes],
        "oldest_ms": [max(one.age_ms for one in s.samples) for s in spikes],
    }
    print(f"  all had come after            {shown(figures['arrived_s'], 's', 2)}")
    print(f"  intake empty after the last   {shown(figures['clear_s'], 's', 2)}")
    print(f"  waiting at most               {shown(figures['most_orders'], 'orders')}")
    print(f"  oldest order at most          {shown(figures['oldest_ms'], 'ms')}")
    series = {f"round {n}": [(one.at_s, float(one.orders)) for one in s.samples] for n, s in enumerate(spikes, 1)}
    title = f"The intake after a spike of {orders:,} orders, one worker"
    plot.lines("spike", title, "seconds after the first order", "orders that wait", series)
    return {k: spread(v) for k, v in figures.items()}
