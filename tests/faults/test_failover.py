"""Level `replicated` through failovers: gateway and workers reach the primary by a proxy, the replica by another."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from core.ledger.migrate import migrate
from core.settings import Settings
from lua.connection import StoreConnection
from lua.reserve import ReserveCode
from ops.desk import connect_ledger
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.e2e.support import KEYS, Client, Crowd, Part, Reply, until
from tests.faults.proxy import Proxy
from tests.support import StoreSale, eventually, fresh

ROUNDS = 5
CLIENTS = 16
WORKERS = ("ledger", "relay", "reconcile")


class Site:
    """Two stores, of which `primary` is the one behind the proxy; a ledger, a gateway, workers.

    `line` carries the replication: what is on it is lost with it, unlike what a stopped process has not read yet.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.primary = EmbeddedStore(data, name="store-a")
        self.ledger = EmbeddedLedger(data)
        self.parts: list[Part] = []

    async def start(self) -> None:
        await self.primary.start()
        self.line = Proxy(self.primary.port)
        self.replica = self.follower("store-b")
        _, dsn = await asyncio.gather(self.replica.start(), self.ledger.start())
        connection = await connect_ledger(Settings(ledger_dsn=dsn))
        await migrate(connection)
        await connection.close()
        self.proxy = Proxy(self.primary.port)
        self.env = {
            **KEYS,
            "RUSHGATE_STORE_URL": self.url_of(self.proxy.port),
            "RUSHGATE_LEDGER_DSN": dsn,
            "RUSHGATE_PORT": "0",
            "RUSHGATE_DURABILITY": "replicated",
            "RUSHGATE_REPLICA_WAIT_MS": "100",
        }
        self.workers = [self.part("worker", kind) for kind in WORKERS]
        self.gateway = self.part("gateway")

    def follower(self, name: str, port: int = 0) -> EmbeddedStore:
        """A store that follows the primary by the line."""
        follow = [f"replicaof 127.0.0.1 {self.line.port}"]
        return EmbeddedStore(self.data, name=name, port=port, replica_of=self.primary, extra_config=follow)

    def url_of(self, port: int) -> str:
        return self.primary.url.rpartition(":")[0] + f":{port}/0"

    def part(self, *args: str, **env: str) -> Part:
        part = Part(self.data / f"{fresh('part')}.log", args, self.env | env)
        self.parts.append(part)
        return part

    async def stop(self) -> None:
        for part in self.parts:
            part.end()
        self.proxy.close()
        self.line.close()
        for service in (self.replica, self.primary, self.ledger):
            await service.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The replica stands still for the while."""
        assert self.replica.pid
        os.kill(self.replica.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.replica.pid, signal.SIGCONT)

    def promote(self) -> None:
        """The replica is a primary of its own, and the old primary does not know."""
        with Redis.from_url(self.replica.url, socket_timeout=5) as store:
            store.execute_command("REPLICAOF", "NO", "ONE")
        self.primary, self.replica = self.replica, self.primary

    async def rejoin(self) -> None:
        """The old primary starts as the replica of the new one; what only it had is gone."""
        await self.replica.kill()
        self.line.turn_to(self.primary.port)
        self.replica = self.follower(self.replica.dir.name, self.replica.port)
        await self.replica.start()

    async def fail_over(self) -> None:
        """The primary dies, the replica takes over, the dead one comes back as a replica."""
        await self.primary.kill()
        self.promote()
        self.proxy.turn_to(self.primary.port)
        await self.rejoin()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One site for all tests: that each finds it healed is part of what they prove."""
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        found = Site(Path(folder))
        try:
            asyncio.run(found.start())
            yield found
        finally:
            asyncio.run(found.stop())


@pytest.fixture
def client(site: Site) -> Client:
    """The gateway, ready."""
    found = site.gateway.gateway()
    until(lambda: found.call("GET", "/readyz").status == 200)
    return found


@pytest.fixture
async def direct(site: Site) -> AsyncIterator[StoreConnection]:
    """A connection to the primary of now, at level `fsync`."""
    connection = StoreConnection(site.primary.url, "fsync", 10.0, fresh("test"))
    yield connection
    await connection.close()


def unconfirmed(reply: Reply) -> bool:
    return (reply.status, reply.code) == (503, "store_unavailable") and "confirmed" in reply.json["detail"]


async def accepted(client: Client, campaign: str, key: str) -> Reply:
    """The 202 of a key that is repeated until it has its outcome."""

    async def answered() -> Reply | None:
        reply = await asyncio.to_thread(client.order, campaign, f"buyer-{key}", key)
        assert reply.status in (202, 503), reply
        return reply if reply.status == 202 else None

    found: Reply = await eventually(answered, 30)
    return found


async def grown(crowd: Crowd, by: int) -> None:
    """So many more orders are accepted than now."""
    wanted = len(crowd.accepted) + by

    async def enough() -> bool:
        return len(crowd.accepted) >= wanted

    await eventually(enough, 30)


async def test_202_names_the_level(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign).json["durability"] == "replicated"
    assert client.call("GET", "/readyz").json == {"ready": True, "durability": "replicated"}


async def test_replica_stands_still_503_and_the_same_key_gives_the_one_order(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    with site.paused():
        for _ in range(3):
            assert unconfirmed(client.order(campaign, "b", "k"))
        ready = client.call("GET", "/readyz")
        assert (ready.status, "confirmed by 0 of 1 replicas" in ready.json["why"]) == (503, True)
        # Nothing that a failover may take back is in the ledger.
        audit = client.audit(campaign)
        assert (audit["accepted"], audit["persisted"], audit["in_flight"]) == (1, 0, 1)
    reply = await accepted(client, campaign, "k2")
    assert reply.headers.get("idempotent-replayed") is None
    until(lambda: client.order(campaign, "b", "k").status == 202)
    assert client.order(campaign, "b", "k").headers["idempotent-replayed"] == "true"
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"]) == (True, 2)


async def test_control_fsync_loses_an_acknowledged_order_in_a_failover(
    site: Site, client: Client, direct: StoreConnection
) -> None:
    """Control: shows that this harness can lose an order. If it fails, the next test proves nothing."""
    sale = await StoreSale.open(direct, {"red": 9})
    with Redis.from_url(site.replica.url, socket_timeout=5) as follower:
        until(lambda: follower.exists(sale.keys.meta))
    site.line.set("half_open")
    assert (await sale.reserve(direct, sale.ask("a", key="k"))).outcomes[0].code is ReserveCode.ACCEPTED
    await site.fail_over()
    after = StoreConnection(site.primary.url, "fsync", 10.0, fresh("test"))
    try:
        assert (await sale.reserve(after, sale.ask("a", key="k"))).outcomes[0].code is ReserveCode.ACCEPTED
    finally:
        await after.close()


async def test_failovers_under_load_lose_no_acknowledged_order(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    async with Crowd(client, campaign, CLIENTS) as crowd:
        for n in range(ROUNDS):
            await grown(crowd, 200)
            if n % 2:  # the primary is alone for a while before it dies
                faults = crowd.answers.get("store_unavailable", 0)
                site.line.set("half_open")

                async def refused(faults: int = faults) -> bool:
                    return crowd.answers.get("store_unavailable", 0) > faults + CLIENTS

                await eventually(refused)
            await site.fail_over()
        await grown(crowd, 200)
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert audit["ok"], audit
    assert audit["accepted"] == audit["persisted"] == len(crowd.accepted)
    assert len(set(crowd.accepted.values())) == len(crowd.accepted)
    assert crowd.changed == []
    assert crowd.unmarked == []


async def test_old_primary_after_a_failover_takes_no_order_and_nothing_of_it_is_sold(
    site: Site, client: Client
) -> None:
    """Two primaries for a while, the gateway and the ledger worker at the wrong one."""
    campaign = await asyncio.to_thread(client.sale, {"red": 6})
    for n in range(3):
        await accepted(client, campaign, f"before-{n}")
    site.promote()  # the proxy still leads to the old one
    for n in range(3):
        assert unconfirmed(client.order(campaign, f"lost-{n}", f"lost-{n}"))
    await site.rejoin()
    site.proxy.turn_to(site.primary.port)
    until(lambda: client.call("GET", "/readyz").status == 200)
    for n in range(3):
        await accepted(client, campaign, f"after-{n}")
    assert client.order(campaign, "lost-0", "lost-0").code == "sold_out"
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"], audit["persisted"], audit["oversold"]) == (True, 6, 6, 0)


async def test_old_primary_restarted_alone_is_not_ready_with_the_reason(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 6})
    await site.replica.stop()
    try:
        until(lambda: client.call("GET", "/readyz").status == 503)
        ready = client.call("GET", "/readyz").json
        assert ready["code"] == "store_not_as_promised"
        assert "0 replicas are connected" in ready["why"]
        assert client.order(campaign).status == 503
    finally:
        await site.replica.start()
    until(lambda: client.order(campaign, "b", "k").status == 202)
