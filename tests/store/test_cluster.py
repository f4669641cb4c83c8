"""A real cluster of three nodes: every script runs unchanged, with its declared keys, on the node of its shard."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.crc import key_slot

from core.errors import StoreUnavailable
from lua.connection import StoreConnection
from lua.keys import SaleKeys, home_shards, sale_keys
from lua.reserve import ReserveCode
from lua.scripts import ChangeCode, OpenCode, RestockCode, Scripts
from ops.embedded_store import FREE_PORTS, EmbeddedStore, port_is_free
from tests.support import SHARDS, StoreSale, eventually, fresh, reading, tell

SLOTS = 16_384
RANGES = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)]


class Cluster(NamedTuple):
    nodes: list[StoreConnection]

    def node_of(self, shard: int) -> int:
        """Which node has the slot of a shard, by the key that any of its campaigns has there."""
        slot = key_slot(sale_keys(shard, "any").meta)
        return next(n for n, (first, last) in enumerate(RANGES) if first <= slot <= last)


def free_port() -> int:
    return next(port for port in iter(lambda: random.choice(FREE_PORTS), None) if port_is_free(port))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes that agree; gone afterwards, by their process ids."""
    async with AsyncExitStack() as stack:
        nodes: list[StoreConnection] = []
        addresses: list[tuple[int, int]] = []
        for n in range(3):
            bus_port = free_port()
            store = EmbeddedStore(
                tmp_path / str(n),
                extra_config=[
                    "cluster-enabled yes",
                    f"cluster-port {bus_port}",
                    "cluster-node-timeout 5000",
                ],
            )
            stack.push_async_callback(store.stop)
            url = await store.start()
            nodes.append(StoreConnection(url, "fsync", 10.0, "test"))
            stack.push_async_callback(nodes[n].close)
            addresses.append((int(url.rpartition(":")[2].partition("/")[0]), bus_port))
            await tell(nodes[n], "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            await tell(nodes[n], "CLUSTER", "ADDSLOTSRANGE", *RANGES[n])
        for port, bus_port in addresses[1:]:
            await tell(nodes[0], "CLUSTER", "MEET", "127.0.0.1", port, bus_port)

        async def agreed() -> bool:
            infos = await asyncio.gather(*(tell(node, "CLUSTER", "INFO") for node in nodes))
            return all(b"cluster_state:ok" in i and b"cluster_known_nodes:3" in i for i in infos)

        await eventually(agreed, timeout_s=20.0, every_s=0.05)
        yield Cluster(nodes)


async def use_every_script(node: StoreConnection, sale: StoreSale) -> None:
    """Each script once, with an outcome that writes."""
    scripts = Scripts(node)
    asks = [sale.ask("a"), sale.ask("b", ("red", 2), ip="10.0.0.1", device="d"), sale.ask("c", ("red", 9))]
    answers = await sale.reserve(node, *asks)
    assert [o.code for o in answers.outcomes] == [ReserveCode.ACCEPTED, ReserveCode.ACCEPTED, ReserveCode.SOLD_OUT]
    assert await scripts.restock(sale.keys, 1, "x1", "red", -1, to=1) == (RestockCode.DONE, 6)
    assert await scripts.restock(sale.keys, 1, "r1", "blue", 1) == (RestockCode.DONE, 1)
    refused = await sale.reserve(node, sale.ask("d", ("blue", 1)))
    assert refused.outcomes[0].code is ReserveCode.SOLD_OUT  # it waits: r:SKU was read
    assert await scripts.change(sale.keys, 1, 2, {"state": "paused"}) is ChangeCode.DONE
    found = await reading(node, sale)
    assert (found.left, found.held) == ({"red": 6, "blue": 1}, {"red": 3, "blue": 0})
    ids = [i for i, _ in await tell(node, "XRANGE", sale.keys.intake, "-", "+")]
    assert await scripts.ack(sale.keys.intake, "ledger", ids) == len(ids) > 0


async def test_every_script_runs_unchanged_on_the_node_of_its_shard(cluster: Cluster) -> None:
    limits = {f"limit_{name}": 9 for name in ("buyer", "buyer_sku", "ip", "device")}
    used: set[int] = set()
    for _ in range(60):
        campaign = fresh("sale")
        shard = home_shards(campaign, 1, SHARDS)[0]
        n = cluster.node_of(shard)
        if n in used:
            continue
        used.add(n)
        fields: dict[str, str | int] = {
            "state": "open", "opens_ms": 0, "closes_ms": 2**45, "pay_within_ms": 1, "version": 1, "lease_ms": 60_000,
        }  # fmt: skip
        sale = StoreSale(campaign, sale_keys(shard, campaign), shard)
        opened = await Scripts(cluster.nodes[n]).open(sale.keys, 1, fields | limits, {"red": 10, "blue": 0})
        assert opened is OpenCode.DONE
        await use_every_script(cluster.nodes[n], sale)
        # On any other node it is a fault, never an outcome.
        with pytest.raises(StoreUnavailable, match=r"Moved|MOVED"):
            await sale.reserve(cluster.nodes[(n + 1) % 3], sale.ask("z"))
    assert used == {0, 1, 2}


@pytest.mark.parametrize("campaign", ["a", "summer-2026", "x" * 64])
def test_keys_of_a_shard_share_one_slot(campaign: str) -> None:
    slots = set()
    for shard in range(4096):
        keys: SaleKeys = sale_keys(shard, campaign)
        of_shard = {key_slot(key) for key in keys}
        assert len(of_shard) == 1
        slots |= of_shard
    assert len(slots) > 3_000  # shards are spread over the slots
