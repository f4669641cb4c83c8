"""The store's memory per order, open and after its end, of orders that came over HTTP with ids as in earnest."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from bench import plot
from bench.environment import shown, spread
from bench.generator import Crowd, body_of, closed_loop, order_wire
from bench.growth_wide import accepted
from bench.processes import gateway
from bench.services import Services
from core.ids import parse
from lua.scripts import Scripts, SettleCode

ORDERS = (40_000, 55_000, 70_000, 85_000, 100_000)  # several, as a hash is not always as full
CONNECTIONS = 64
SETTLED_AT_ONCE = 100


class _Accepted(msgspec.Struct):
    order_id: str


_decode = msgspec.json.Decoder(_Accepted).decode


async def measured(services: Services, orders: Sequence[int] = ORDERS) -> dict[str, Any]:
    """Bytes of `used_memory` per order: accepted and drained, and settled (its key and its buyer's count are kept).

    One round per number of orders: the spread is that of how full the store's hash tables are, which grow by doubling.
    """
    opened: list[float] = []
    ended: list[float] = []
    async with gateway(services, [0]) as running:
        for count in orders:
            one = await _kept(services, running.port, count)
            opened.append(one[0])
            ended.append(one[1])
    print(f"\nstore memory per order, {min(orders):,} to {max(orders):,} orders: key of 36 characters, buyer of 12, "
          "IP and device; limit per buyer")  # fmt: skip
    print(f"  open   {shown(opened, 'B')}")
    print(f"  ended  {shown(ended, 'B')}")
    for n, count in enumerate(orders):
        print(f"    {count:>7,} orders  open {opened[n]:,.0f} B, ended {ended[n]:,.0f} B")
    result = {"open": {"bytes": spread(opened)}, "ended": {"bytes": spread(ended)}}
    series = {"open": opened, "ended": ended}
    points = {name: [(float(n), b) for n, b in zip(orders, found, strict=True)] for name, found in series.items()}
    plot.lines("memory", "Store memory per order", "orders in the campaign", "bytes", points)
    return result


async def used(services: Services) -> int:
    """`used_memory` of the store, bytes."""
    [text] = await services.store.exchange([("INFO", "memory")])
    return int(text.partition(b"used_memory:")[2].split(b"\r\n")[0])


async def _kept(services: Services, port: int, count: int) -> tuple[float, float]:
    sale = await services.open_sale(f"memory-{time.time_ns():x}")
    keys, scripts = sale.keys[0], Scripts(services.store)
    before = await used(services)
    wire = order_wire(sale.campaign, f"{time.time_ns() // 1_000_000 & 0xFFFFFFFF:08x}")
    with Crowd(port, CONNECTIONS) as crowd:
        done = closed_loop(crowd, [wire(n) for n in range(count)])
    accepted(done)
    await services.store.exchange([("DEL", keys.intake)])  # as if it were drained
    opened = await used(services)
    ids = [parse(_decode(body_of(answer)).order_id) for answer in done.answers]
    for n in range(0, count, SETTLED_AT_ONCE):
        codes = await scripts.settle(keys, sale.epoch, [i for i in ids[n : n + SETTLED_AT_ONCE] if i])
        assert codes is not None
        assert codes == [SettleCode.SETTLED] * min(SETTLED_AT_ONCE, count - n), codes[:3]
    ended = await used(services)
    await services.store.exchange([("DEL", keys.requests, keys.holds, keys.used, keys.deltas)])
    return (opened - before) / count, (ended - before) / count
