"""The store alone: CPU per order of `reserve` at several batch sizes, and what each durability level costs."""

import hashlib
import time
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from bench import plot
from bench.environment import cpu_s, pin, shown, spread
from bench.processes import own_cpu_s
from bench.services import Services, asks, services
from gateway.catalogue import Sale
from lua.connection import Command, StoreConnection
from lua.durability import Durability, Level
from lua.reserve import ReserveCode, pack, read
from lua.source import LuaSource

BATCHES = (1, 16, 64, 256, 512)
ORDERS = 20_480  # a round; a multiple of all batch sizes
ROUNDS = 7
DEPTH = 4  # calls in one exchange: some are under way while others are decided
PER_ORDER = Path(__file__).parent / "peers" / "order.lua"


async def measure(own: Services, rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU-us per order of the store process, and orders/s with one client, by batch size; rounds interleaved.

    With fsync and without, each on a store of its own; beside them the peers' script, which decides one order a call.
    """
    print(f"\nstore CPU per accepted order, {DEPTH} calls in flight; a call an order: {DEPTH * 64} in flight")
    with_fsync = await _sizes(own, "fsync", rounds)
    async with services("memory") as other:
        without = await _sizes(other, "memory", rounds)
    result = {
        size: {
            "cpu_us_per_order": with_fsync[size][0], "orders_per_s": with_fsync[size][1],
            "without_fsync_us": without[size][0], "without_fsync_per_s": without[size][1],
        }
        for size in with_fsync
    }  # fmt: skip
    groups: dict[str, dict[str, dict[str, float]]] = {
        words: {"fsync": found["cpu_us_per_order"], "no file": found["without_fsync_us"]}
        for words, found in ((_words(size), result[size]) for size in result)
    }
    plot.bars("store", "Store CPU per accepted order", "us", groups, more_is_better=False)
    alone = result.pop("script")
    return {"store": result, "script_per_order": {"one order a call": alone}}


def _words(size: str) -> str:
    return "a script call an order" if size == "script" else f"reserve, {size} a call"


async def _sizes(own: Services, durability: Durability, rounds: int) -> dict[str, tuple[dict[str, float], ...]]:
    """CPU per order and orders/s, by batch size; `script`: of the peers' script."""
    pid = own.store_process.pid
    assert pid is not None
    pin(pid, [0])
    connection = StoreConnection(own.settings.store_url, Level.of(own.settings), 60.0, "bench")
    found: dict[str, list[tuple[float, float]]] = {size: [] for size in (*map(str, BATCHES), "script")}
    done = 0
    for n in range(rounds):
        for batch in BATCHES:
            sale = await own.open_sale(f"store-{n}-{batch}")
            orders = ORDERS if batch > 1 else ORDERS // 5
            found[str(batch)].append(await _round(connection, sale, pid, batch, orders, done))
            done += orders
            keys = sale.keys[0]
            await own.store.exchange([("DEL", keys.intake, keys.requests, keys.holds, keys.used)])
        found["script"].append(await _order_by_order(connection, pid, ORDERS // 2, done))
        done += ORDERS // 2
    await connection.close()
    for size, of in found.items():
        us, per_s = ([pair[i] for pair in of] for i in (0, 1))
        print(f"  {durability:<7}{_words(size):<24} {shown(us, 'us', 2):<40} {shown(per_s, 'orders/s')}")
    return {size: tuple(spread([pair[i] for pair in of]) for i in (0, 1)) for size, of in found.items()}


async def _order_by_order(connection: StoreConnection, pid: int, orders: int, first: int) -> tuple[float, float]:
    """The script of the peers, one call an order, as many orders in flight as with batches of 64."""
    text = PER_ORDER.read_bytes()
    script = LuaSource("order", text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
    names = [b"bench:%b" % name for name in (b"stock", b"buyers", b"requests", b"orders")]
    await connection.exchange([("DEL", *names), ("HSET", names[0], "phone-red", orders)])
    lines = '"items":[{"sku":"phone-red","quantity":1,"price":129900}],"client_ip":"10.1.2.3"'
    calls: list[Command] = []
    for n in range(first, first + orders):
        buyer, key, order = f"b{n:011d}", f"{n:08d}-0000-4000-8000-000000000000", f"{n:08d}-0000-7000-8000-000000000000"
        body = f'{{"buyer_id":"{buyer}",{lines},"device_id":"d-{n:014d}"}}'
        calls.append((4, *names, key, f"{order} 1790000000000", order, body, buyer, 2, "phone-red", 1))
    cpu_before_s, began_s = own_cpu_s(pid), time.perf_counter()
    replies = []
    for n in range(0, orders, DEPTH * 64):
        replies += await connection.run(script, calls[n : n + DEPTH * 64])
    took_s, used_s = time.perf_counter() - began_s, own_cpu_s(pid) - cpu_before_s
    wrong = [reply for reply in replies if isinstance(reply, RedisError) or reply[0] != 0]
    assert not wrong, f"{len(wrong)} of {orders} not accepted: {wrong[:1]}"
    await connection.exchange([("DEL", *names)])
    return used_s / orders * 1e6, orders / took_s


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
    cpu_before_s, began_s = own_cpu_s(pid), time.perf_counter()
    replies = []
    for n in range(0, len(calls), DEPTH):
        replies += await connection.run(script, calls[n : n + DEPTH])
    took_s, used_s = time.perf_counter() - began_s, own_cpu_s(pid) - cpu_before_s
    accepted = sum(
        outcome.code is ReserveCode.ACCEPTED
        for reply, b in zip(replies, batches, strict=True)
        for outcome in read(reply, b).outcomes
    )
    assert accepted == orders, f"{accepted} of {orders} accepted"
    return used_s / orders * 1e6, orders / took_s
