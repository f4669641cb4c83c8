"""The store alone: CPU per order of `reserve` at several batch sizes, and what each durability level costs."""

import time
from typing import Any

from bench.environment import cpu_s, pin, shown, spread
from bench.services import Services, asks, services
from gateway.catalogue import Sale
from lua.connection import StoreConnection
from lua.durability import Durability, Level
from lua.reserve import ReserveCode, pack, read
from lua.source import LuaSource

BATCHES = (1, 16, 64, 256)
ORDERS = 20_480  # a round; a multiple of all batch sizes
ROUNDS = 5
DEPTH = 4  # calls in one exchange: some are under way while others are decided


async def measure(services: Services) -> dict[str, Any]:
    """CPU-us per order of the store process, and orders/s with one client, by batch size; rounds interleaved."""
    pid = services.store_process.pid
    assert pid is not None
    pin(pid, [0])
    connection = StoreConnection(services.settings.store_url, "fsync", 60.0, "bench")
    cost: dict[int, list[float]] = {b: [] for b in BATCHES}
    rate: dict[int, list[float]] = {b: [] for b in BATCHES}
    done = 0
    for n in range(ROUNDS):
        for batch in BATCHES:
            sale = await services.open_sale(f"store-{n}-{batch}")
            orders = ORDERS if batch > 1 else ORDERS // 5
            us, per_s = await _round(connection, sale, pid, batch, orders, done)
            done += orders
            cost[batch].append(us)
            rate[batch].append(per_s)
            await services.store.exchange([("DEL", sale.keys[0].intake)])
    await connection.close()
    print(f"\nstore CPU per accepted order, fsync before each reply, {DEPTH} calls in flight")
    for batch in BATCHES:
        print(f"  batch {batch:>3}   {shown(cost[batch], 'us', 2):<48} {shown(rate[batch], 'orders/s')}")
    return {"store": {str(b): {"cpu_us_per_order": spread(cost[b]), "orders_per_s": spread(rate[b])} for b in BATCHES}}


LEVELS: tuple[Durability, ...] = ("memory", "fsync", "replicated")
LEVEL_BATCHES = (1, 16, 64)


async def measure_levels(_: Services) -> dict[str, Any]:
    """The same at each durability level, each on a store of its own; a replica's CPU is told beside the primary's."""
    found: dict[str, Any] = {}
    print(f"\naccepted orders by durability level, {DEPTH} calls in flight, one client")
    for durability in LEVELS:
        async with services(durability) as own:
            found[durability] = await _level(own, durability)
    return {"levels": found}


async def _level(own: Services, durability: Durability) -> dict[str, Any]:
    pid = own.store_process.pid
    assert pid is not None
    pin(pid, [0])
    replica = own.replica_process.pid if own.replica_process is not None else None
    connection = StoreConnection(own.settings.store_url, Level.of(own.settings), 60.0, "bench")
    result: dict[str, Any] = {}
    done = 0
    for batch in LEVEL_BATCHES:
        cost, rate, copied, took = [], [], [], []
        orders = ORDERS if batch > 1 else ORDERS // 5
        for n in range(ROUNDS):
            sale = await own.open_sale(f"level-{durability}-{n}-{batch}")
            before_s = cpu_s(replica) if replica is not None else 0.0
            us, per_s = await _round(connection, sale, pid, batch, orders, done)
            done += orders
            cost.append(us)
            rate.append(per_s)
            took.append(DEPTH * batch / per_s * 1000)
            if replica is not None:
                copied.append((cpu_s(replica) - before_s) / orders * 1e6)
            await own.store.exchange([("DEL", sale.keys[0].intake)])
        more = f"   replica {shown(copied, 'us', 2)}" if copied else ""
        print(
            f"  {durability:<10} batch {batch:>3}   {shown(cost, 'us', 2):<40} {shown(rate, 'orders/s'):<46} "
            f"{shown(took, 'ms an exchange', 2)}{more}"
        )
        of_batch = {"cpu_us_per_order": spread(cost), "orders_per_s": spread(rate), "exchange_ms": spread(took)}
        if copied:
            of_batch["replica_cpu_us_per_order"] = spread(copied)
        result[str(batch)] = of_batch
    await connection.close()
    return result


async def _round(
    connection: StoreConnection, sale: Sale, pid: int, batch: int, orders: int, first: int
) -> tuple[float, float]:
    script = LuaSource.read("reserve")
    batches = [asks(sale, first + n, batch) for n in range(0, orders, batch)]
    calls = [pack(sale.keys[0], sale.campaign, sale.epoch, b) for b in batches]
    cpu_before_s, began_s = cpu_s(pid), time.perf_counter()
    replies = []
    for n in range(0, len(calls), DEPTH):
        replies += await connection.run(script, calls[n : n + DEPTH])
    took_s, used_s = time.perf_counter() - began_s, cpu_s(pid) - cpu_before_s
    accepted = sum(
        outcome.code is ReserveCode.ACCEPTED
        for reply, b in zip(replies, batches, strict=True)
        for outcome in read(reply, b).outcomes
    )
    assert accepted == orders, f"{accepted} of {orders} accepted"
    return used_s / orders * 1e6, orders / took_s
