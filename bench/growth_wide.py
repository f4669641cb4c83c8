"""Growth in width: what an order costs by the number of campaigns and by that of connections."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import plot
from bench.drain import drain, forget
from bench.environment import shown, spread
from bench.generator import Closed, Crowd, closed_loop, order_wire
from bench.processes import Gateway, gateway, own_cpu_s, pids, raise_open_files
from bench.services import Services
from core.ledger.pool import Pool
from gateway.catalogue import Sale

CAMPAIGNS = (1, 100, 1_000)
CONNECTIONS = (64, 1_000, 5_000)
ROUNDS = 7
ORDERS = 20_000  # a round
WARM_ORDERS = 2_000  # at least one on every connection
UNDER_WAY = 64  # requests at any time, however many connections: what is in a batch stays the same
FILES_MORE = 500  # open files besides connections


class Round(NamedTuple):
    """Orders/s of the closed loop; CPU-us per order."""

    orders_per_s: float
    gateway: float
    store: float
    worker: float
    postgres: float
    ledger: float


async def campaigns(
    services: Services, ledger: Pool, rounds: int = ROUNDS, numbers: Sequence[int] = CAMPAIGNS, orders: int = ORDERS
) -> dict[str, Any]:
    """By campaigns that the orders are spread over evenly, one after another."""
    print(f"\ngrowth: CPU-us per order, by campaigns, {UNDER_WAY} connections, {orders:,} orders a round")
    run = f"{time.time_ns():x}"
    sales = [await services.open_sale(f"wide-{run}-{n}") for n in range(max(numbers))]
    found: dict[int, list[Round]] = {n: [] for n in numbers}
    async with gateway(services, [0]) as running:
        for _ in range(rounds):
            for number in numbers:
                found[number].append(await _round(services, ledger, running, sales[:number], UNDER_WAY, orders))
    return _result("campaigns", found)


async def connections(
    services: Services, ledger: Pool, rounds: int = ROUNDS, numbers: Sequence[int] = CONNECTIONS, orders: int = ORDERS
) -> dict[str, Any]:
    """By open connections, which have their turns one after another, UNDER_WAY at a time. Opening them is not counted.

    As many requests at once as connections would measure larger batches, and above what the store takes in
    `queue_ms` the refusal, which is `bench overload`'s affair.
    """
    print(f"\ngrowth: CPU-us per order, by connections, {UNDER_WAY} requests at a time, {orders:,} orders a round")
    raise_open_files(max(numbers) + FILES_MORE)
    found: dict[int, list[Round]] = {n: [] for n in numbers}
    async with gateway(services, [0]) as running:
        for _ in range(rounds):
            for number in numbers:
                sale = await services.open_sale(f"crowd-{time.time_ns():x}")
                found[number].append(await _round(services, ledger, running, [sale], number, orders))
    return _result("connections", found)


async def _round(
    services: Services, ledger: Pool, running: Gateway, sales: Sequence[Sale], number: int, orders: int
) -> Round:
    store_pid, _ = pids(services)
    mark = f"{time.time_ns() // 1_000_000 & 0xFFFFFFFF:08x}"
    wires = [order_wire(sale.campaign, mark) for sale in sales]
    warm = max(WARM_ORDERS, number, len(sales))
    made = [wires[n % len(wires)](n) for n in range(warm + orders)]
    with Crowd(running.port, number) as crowd:
        accepted(closed_loop(crowd, made[:warm], UNDER_WAY))
        before = own_cpu_s(running.pid), own_cpu_s(store_pid)
        done = closed_loop(crowd, made[warm:], UNDER_WAY)
        used = own_cpu_s(running.pid) - before[0], own_cpu_s(store_pid) - before[1]
    accepted(done)
    shards = sorted({shard for sale in sales for shard in sale.shards})
    drained = await drain(services, shards, len(made), ledger)
    await forget(services, sales, ledger)
    return Round(
        orders / done.seconds,
        used[0] / orders * 1e6,
        used[1] / orders * 1e6,
        drained.worker_us,
        drained.postgres_us,
        drained.worker_us + drained.postgres_us,
    )


def accepted(done: Closed) -> None:
    """Every answer is a 202. Raises SystemExit with the first one that is not."""
    wrong = next((answer for answer in done.answers if answer[9:12] != b"202"), None)
    if wrong is not None:
        raise SystemExit(f"growth: not accepted: {wrong[:400]!r}")


def _result(what: str, found: dict[int, list[Round]]) -> dict[str, Any]:
    for number, of in found.items():
        print(f"  {number:>5,} {what}")
        for name in Round._fields:
            unit = "orders/s" if name == "orders_per_s" else "us"
            print(f"    {name:12} {shown([getattr(r, name) for r in of], unit, 1)}", flush=True)
    names = ("gateway", "store", "worker", "postgres")
    groups = {
        f"{number:,} {what}": {name: spread([getattr(r, name) for r in of]) for name in names}
        for number, of in found.items()
    }
    title = f"Growth: CPU per order, by {what}"
    plot.bars(f"growth_{what}", title, "us per order", groups, more_is_better=False)
    return {
        f"{number:,} {what}": {name: spread([getattr(r, name) for r in of]) for name in Round._fields}
        for number, of in found.items()
    }
