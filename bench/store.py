"""The store alone: CPU per order of `reserve` at several batch sizes, with an fsync before each reply."""

import time
from typing import Any

from bench.environment import cpu_s, pin, shown, spread
from bench.services import Services, asks
from gateway.catalogue import Sale
from lua.connection import StoreConnection
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
