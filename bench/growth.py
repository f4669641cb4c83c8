"""Growth: what an order costs as a campaign grows, with more campaigns, with more connections, and the store's memory.

A size is judged by its last orders, in windows: half of a window's orders come over HTTP, half through `reserve` calls
of 512, then all of them are drained. Between the windows orders come through `reserve` and are drained too, so store
and ledger are as full as the size says. Gateway, store and worker have core 0, Postgres and we core 1. All is CPU time.

`python -m bench.growth --to 10000000` goes on to 10^7 orders in one campaign, and measures nothing else.
"""

import argparse
import asyncio
import os
import sys
import time
from typing import Any, NamedTuple

import uvloop

from bench import growth_wide, memory, plot
from bench.drain import drain, fill, forget
from bench.environment import environment, save, shown, spread
from bench.generator import Crowd, closed_loop, order_wire
from bench.processes import Gateway, all_cores, gateway, own_cpu_s, pids, pin_family
from bench.services import Services, services
from core.ledger.pool import Pool, open_pool
from gateway.catalogue import Sale

TO = 1_000_000  # orders of one campaign; the sizes are 10^4, 10^5 ... to it
FIRST = 10_000  # the smallest size, which is one window of a fresh campaign
WINDOWS = 7  # of FIRST orders each, at each size
BULK = 200_000  # orders between two drains
CALL = 512  # orders of a `reserve` call of ours
CONNECTIONS = 64
WARM_ORDERS = 1_000


class Window(NamedTuple):
    """CPU-us per order; `store_512` is of `reserve` calls of 512. `ledger`: worker and all of Postgres."""

    gateway: float
    store: float
    store_512: float
    worker: float
    postgres: float
    ledger: float
    store_bytes: float  # used memory per order of the campaign so far, all of them open


async def measure(
    services: Services, to: int = TO, windows: int = WINDOWS, first: int = FIRST, rounds: int = growth_wide.ROUNDS,
    wide: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Costs by orders in a campaign up to `to`; if `wide`, by campaigns, by connections, and memory per order too."""
    store_pid, ledger_pid = pids(services)
    pin_family(store_pid, [0])
    pin_family(ledger_pid, [1])
    os.sched_setaffinity(0, [1])
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 600.0, 2)
    try:
        result = {"growth_orders": await _orders(services, ledger, to, windows, first)}
        if wide:
            result["growth_campaigns"] = await growth_wide.campaigns(services, ledger, rounds)
            result["growth_connections"] = await growth_wide.connections(services, ledger, rounds)
            result["memory"] = await memory.measured(services)
    finally:
        ledger.terminate()
        os.sched_setaffinity(0, all_cores())
    return result


async def _orders(services: Services, ledger: Pool, to: int, windows: int, first: int) -> dict[str, Any]:
    print("\ngrowth: CPU-us per order, and bytes of the store per order, by orders in one campaign")
    found: dict[int, list[Window]] = {first: []}
    async with gateway(services, [0]) as running:
        for _ in range(windows):
            sale, empty = await _begin(services)
            found[first].append(await _window(services, ledger, running, sale, 0, first, empty))
            await forget(services, [sale], ledger)
        _show(first, found[first])
        sale, empty = await _begin(services)
        done, size = 0, first * 10
        while size <= to:
            found[size] = []
            while done < size - windows * first:
                more = min(BULK, size - windows * first - done)
                await fill(services, sale, done, more, CALL)
                await drain(services, sale.shards, more, ledger)
                done += more
            for _ in range(windows):
                found[size].append(await _window(services, ledger, running, sale, done, first, empty))
                done += first
            _show(size, found[size])
            size *= 10
        await forget(services, [sale], ledger)
    result = {
        f"{size:,} orders": {name: spread([getattr(w, name) for w in of]) for name in Window._fields}
        for size, of in found.items()
    }
    series = {
        name: [(float(size), spread([getattr(w, name) for w in of])["median"]) for size, of in found.items()]
        for name in ("gateway", "store", "store_512", "worker", "postgres")
    }
    title = "Growth: CPU per order, by orders in one campaign"
    plot.lines("growth_orders", title, "orders in the campaign", "us per order", series, log_x=True)
    return result


async def _begin(services: Services) -> tuple[Sale, int]:
    """An open campaign, and the memory that the store uses with it."""
    sale = await services.open_sale(f"growth-{time.time_ns():x}")
    return sale, await memory.used(services)


async def _window(
    services: Services, ledger: Pool, running: Gateway, sale: Sale, first: int, orders: int, empty: int
) -> Window:
    store_pid, _ = pids(services)
    half = orders // 2
    wire = order_wire(sale.campaign, "cccccccc")
    with Crowd(running.port, CONNECTIONS) as crowd:
        warm = min(WARM_ORDERS, half // 10)
        growth_wide.accepted(closed_loop(crowd, [wire(first + n) for n in range(warm)]))
        wires = [wire(first + n) for n in range(warm, half)]
        before = own_cpu_s(running.pid), own_cpu_s(store_pid)
        done = closed_loop(crowd, wires)
        used = own_cpu_s(running.pid) - before[0], own_cpu_s(store_pid) - before[1]
    growth_wide.accepted(done)
    before_s = own_cpu_s(store_pid)
    await fill(services, sale, first, orders - half, CALL)
    fill_s = own_cpu_s(store_pid) - before_s
    drained = await drain(services, sale.shards, orders, ledger)
    return Window(
        used[0] / len(wires) * 1e6,
        used[1] / len(wires) * 1e6,
        fill_s / (orders - half) * 1e6,
        drained.worker_us,
        drained.postgres_us,
        drained.worker_us + drained.postgres_us,
        (await memory.used(services) - empty) / (first + orders),
    )


def _show(size: int, found: list[Window]) -> None:
    print(f"  {size:>10,} orders", flush=True)
    for name in Window._fields:
        print(f"    {name:11} {shown([getattr(w, name) for w in found], 'B' if name == 'store_bytes' else 'us', 1)}")


async def _alone(to: int) -> None:
    async with services() as found:
        result = await measure(found, to, wide=False)
    print(f"  kept in {save(f'growth_to_{to}', {'environment': environment(), **result})}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--to", type=int, default=TO, help="orders in the campaign (default: %(default)s)")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_alone(parser.parse_args().to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
