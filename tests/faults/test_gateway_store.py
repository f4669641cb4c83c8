"""The gateway while store and ledger are away, wrong, emptied or killed: 503 and the same key, and nothing is lost."""

import asyncio
import http.client
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from core.ledger.migrate import migrate
from core.settings import Settings
from ops.desk import connect_ledger
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.e2e.support import KEYS, Client, Crowd, Part, Reply, Wire, until
from tests.support import eventually, fresh

CLIENTS = 64
FILLERS = 40_000  # a loading store looks up from its work every 1,024 commands


class Site:
    """A store, a ledger, gateways and a worker, each of which a test may kill and start again."""

    def __init__(self, data: Path) -> None:
        self.store = EmbeddedStore(data)
        self.ledger = EmbeddedLedger(data)
        self.logs = data
        self.parts: list[Part] = []

    async def start(self) -> None:
        store_url, dsn = await asyncio.gather(self.store.start(), self.ledger.start())
        connection = await connect_ledger(Settings(ledger_dsn=dsn))
        await migrate(connection)
        await connection.close()
        self.env = {**KEYS, "RUSHGATE_STORE_URL": store_url, "RUSHGATE_LEDGER_DSN": dsn, "RUSHGATE_PORT": "0"}
        self.worker = self.part("worker", "ledger")
        self.reconcile = self.part("worker", "reconcile")  # judges the store when it was started anew
        self.first, self.second = self.part("gateway"), self.part("gateway")

    def part(self, *args: str, **env: str) -> Part:
        part = Part(self.logs / f"{fresh('part')}.log", args, self.env | env)
        self.parts.append(part)
        return part

    async def stop(self) -> None:
        for part in self.parts:
            part.end()
        await self.store.stop()
        await self.ledger.stop()

    def redis(self) -> Redis:
        return Redis.from_url(self.store.url, socket_timeout=5)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests: that each finds it healed is part of what they prove."""
    found = Site(tmp_path_factory.mktemp("site"))
    try:
        asyncio.run(found.start())
        yield found
    finally:
        asyncio.run(found.stop())


@pytest.fixture
def client(site: Site) -> Client:
    """The first gateway, ready."""
    found = site.first.gateway()
    until(lambda: found.call("GET", "/readyz").status == 200)
    return found


@contextmanager
def config(site: Site, **values: str) -> Iterator[None]:
    """The store is set so, and as before afterwards."""
    with site.redis() as store:
        names = {name.replace("_", "-"): value for name, value in values.items()}
        before: Any = store.config_get(*names)
        for name, value in names.items():
            store.config_set(name, value)
        try:
            yield
        finally:
            for name in names:
                store.config_set(name, before[name])


def unavailable(reply: Reply, code: str) -> None:
    """A 503 that may be sent again."""
    assert (reply.status, reply.code) == (503, code), reply
    assert int(reply.headers["retry-after"]) >= 1


async def judged(client: Client, campaign: str, crowd: Crowd) -> dict[str, Any]:
    """Every 202 is in the final audit, once, and the audit is ok."""
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert audit["ok"], audit
    assert audit["accepted"] == audit["persisted"] == len(crowd.accepted)
    assert len(set(crowd.accepted.values())) == len(crowd.accepted)
    assert crowd.changed == []
    assert crowd.unmarked == []
    assert not set(crowd.answers) & {"internal", "sold_out", "unknown_campaign"}, crowd.answers
    return audit


async def grown(crowd: Crowd, by: int) -> None:
    """So many more orders are accepted than now."""
    wanted = len(crowd.accepted) + by

    async def enough() -> bool:
        return len(crowd.accepted) >= wanted

    await eventually(enough, 30)


async def test_store_killed_and_restarted_under_load_loses_no_order(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    async with Crowd(client, campaign, CLIENTS) as crowd:
        for _ in range(3):
            await grown(crowd, 500)
            await site.store.kill()
            faults = crowd.answers.get("store_unavailable", 0)

            async def refused(faults: int = faults) -> bool:
                return crowd.answers.get("store_unavailable", 0) > faults

            await eventually(refused)
            await site.store.start()
        await grown(crowd, 500)
    await judged(client, campaign, crowd)


async def test_script_flush_every_50_ms_under_load_is_not_noticed(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    async with Crowd(client, campaign, CLIENTS) as crowd:
        for _ in range(20):
            with site.redis() as store:
                store.script_flush()
            await asyncio.sleep(0.05)  # the fault's rhythm, not a synchronisation
        await grown(crowd, 100)
    await judged(client, campaign, crowd)
    assert set(crowd.answers) == {"202"}


async def test_all_clients_of_the_store_killed_under_load_loses_no_order(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    async with Crowd(client, campaign, CLIENTS) as crowd:
        killed = 0
        for _ in range(20):
            with site.redis() as store:
                killed += int(store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            await asyncio.sleep(0.05)  # the fault's rhythm, not a synchronisation
        await grown(crowd, 100)
    assert killed >= 20
    await judged(client, campaign, crowd)


async def test_store_away_is_503_and_ready_again_after_its_return(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign, "b", "k").status == 202
    await site.store.kill()
    try:
        unavailable(client.order(campaign), "store_unavailable")
        unavailable(client.get(f"/v1/campaigns/{campaign}"), "store_unavailable")
        ready = client.call("GET", "/readyz")
        assert (ready.status, ready.json["ready"], ready.json["code"]) == (503, False, "store_unavailable")
        assert client.call("GET", "/livez").status == 200
        found = client.batch(campaign, b'{"request_key":"q","buyer_id":"b","items":[{"sku":"red","quantity":1}]}')
        assert (found.status, found.json["http_status"], found.json["code"]) == (200, 503, "store_unavailable")
    finally:
        await site.store.start()
    until(lambda: client.call("GET", "/readyz").status == 200)
    assert client.order(campaign, "b", "k").headers["idempotent-replayed"] == "true"
    assert (await asyncio.to_thread(client.settled_audit, campaign))["ok"]


async def test_store_turned_replica_is_503_and_not_ready(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign).status == 202
    with site.redis() as store:
        store.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            unavailable(client.order(campaign), "store_unavailable")
            ready = client.call("GET", "/readyz")
            assert ready.status == 503
            assert "not a primary" in ready.json["why"]
        finally:
            store.execute_command("REPLICAOF", "NO", "ONE")
    assert client.order(campaign).status == 202
    assert client.call("GET", "/readyz").status == 200


async def test_store_out_of_memory_is_503_never_sold_out(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign, "b", "k").status == 202
    with config(site, maxmemory="1"):
        for _ in range(5):
            reply = client.order(campaign)
            unavailable(reply, "overloaded" if reply.code == "overloaded" else "store_unavailable")  # once it has seen
    until(lambda: client.order(campaign, "b2", "k2").status == 202)
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"]) == (True, 2)


async def test_store_that_loads_its_data_is_503_and_not_ready(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign, "b", "k").status == 202
    with site.redis() as store:
        pipe = store.pipeline(transaction=False)
        for n in range(FILLERS):
            pipe.set(f"filler:{n}", "x")
        pipe.execute()
    await site.store.kill()
    slow = EmbeddedStore(site.store.data_dir, port=site.store._port, extra_config=["key-load-delay 20"])
    starting = asyncio.create_task(slow.start())
    try:

        def is_loading() -> bool:
            try:
                with site.redis() as store:
                    store.ping()
            except RedisError as exc:
                return "loading" in str(exc).lower()
            return False

        await asyncio.to_thread(until, is_loading, 10.0, 0.005)
        ready = await asyncio.to_thread(client.call, "GET", "/readyz")
        assert (ready.status, "oading" in ready.json["why"]) == (503, True)
        unavailable(await asyncio.to_thread(client.order, campaign), "store_unavailable")
        await starting
        until(lambda: client.call("GET", "/readyz").status == 200)
        assert client.order(campaign, "b", "k").headers["idempotent-replayed"] == "true"
    finally:
        await asyncio.gather(starting, return_exceptions=True)
        with site.redis() as store:
            store.delete(*(f"filler:{n}" for n in range(FILLERS)))
        await slow.stop()
        await site.store.start()


async def test_store_set_to_everysec_is_refused_at_the_next_connect(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    assert client.order(campaign).status == 202
    with config(site, appendfsync="everysec"):
        with site.redis() as store:
            store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        reply = client.order(campaign)
        unavailable(reply, "store_not_as_promised")
        assert "appendfsync" in reply.json["detail"]
        ready = client.call("GET", "/readyz")
        assert (ready.status, ready.json["code"]) == (503, "store_not_as_promised")
        assert "appendfsync is 'everysec'" in ready.json["why"]
    assert client.order(campaign).status == 202
    assert client.call("GET", "/readyz").status == 200


def _has_its_order(client: Client, campaign: str) -> bool:
    return client.order(campaign, "b", "k").status == 202


@pytest.mark.parametrize("spread", [1, 4])
async def test_campaign_gone_from_the_store_is_lost_never_sold_out(site: Site, client: Client, spread: int) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1}, spread=spread)
    assert client.order(campaign, "b", "k").status == 202
    await asyncio.to_thread(client.settled_audit, campaign)
    until(lambda: client.order(campaign).code == "sold_out")
    second = site.second.gateway()
    site.reconcile.end()  # it would be rebuilt
    with site.redis() as store:
        store.flushall()
    until(lambda: client.order(campaign).code != "sold_out", 1.0)  # what a flag promised holds for its lease
    for gateway in (client, second):
        for _ in range(3):
            unavailable(gateway.order(campaign), "campaign_lost")
        unavailable(gateway.order(campaign, "b", "k"), "campaign_lost")
        unavailable(gateway.get(f"/v1/campaigns/{campaign}"), "campaign_lost")
    assert client.admin("GET", f"{campaign}/audit").code == "campaign_lost"
    assert client.order(client.sale()).status == 202
    site.reconcile = site.part("worker", "reconcile")
    for gateway in (client, second):
        until(partial(_has_its_order, gateway, campaign))
        assert gateway.order(campaign).code == "sold_out"
        assert gateway.get(f"/v1/campaigns/{campaign}").json["state"] == "open"
    assert (await asyncio.to_thread(client.settled_audit, campaign))["ok"]


async def test_ledger_away_intake_goes_on_and_workers_catch_up(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    second = site.second.gateway()
    await site.ledger.kill()
    try:
        async with Crowd(client, campaign, 16) as crowd:
            await grown(crowd, 500)
        assert set(crowd.answers) == {"202"}
        order_id = next(iter(crowd.accepted.values()))
        # The second gateway has not met the campaign, and finds the order all the same.
        for gateway in (client, second):
            view = gateway.get(f"/v1/orders/{order_id}")
            assert (view.status, view.json["campaign"], view.json["state"]) == (200, campaign, "accepted")
        unavailable(client.get("/v1/orders/019f0000-0000-7000-8000-000000000000"), "ledger_unavailable")
        unavailable(client.order("never-heard-of"), "ledger_unavailable")
        unavailable(client.admin("GET", campaign), "ledger_unavailable")
        assert client.call("GET", "/readyz").status == 200
    finally:
        await site.ledger.start()
    await judged(client, campaign, crowd)
    assert client.get(f"/v1/orders/{order_id}").body == view.body


async def test_gateway_started_while_the_ledger_is_away_takes_orders(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 9})
    await site.ledger.kill()
    try:
        late = site.part("gateway").gateway()
        made = late.order(campaign)
        assert made.status == 202
        assert late.get(made.json["status_url"]).status == 200
    finally:
        await site.ledger.start()
    assert (await asyncio.to_thread(client.settled_audit, campaign))["ok"]


async def test_gateway_killed_under_load_loses_no_order(site: Site, client: Client) -> None:
    """What was begun at the killed gateway is repeated with the same keys at another one."""
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    victim = site.part("gateway")
    async with Crowd(victim.gateway(), campaign, CLIENTS) as crowd:
        await grown(crowd, 500)
        victim.end(signal.SIGKILL)
        crowd.turn_to(client)
        await grown(crowd, 200)
    assert crowd.answers["no answer"] > 0
    await judged(client, campaign, crowd)


async def test_gateway_stopped_under_load_answers_every_request_and_exits_0(site: Site, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
    part = site.part("gateway")
    gateway = part.gateway()
    accepted: set[str] = set()
    dropped: list[str] = []

    async def go(n: int) -> None:
        """Orders on one connection until it is told that it was the last; then a new one, until that is refused."""
        wire = Wire(gateway)
        turn = 0
        while True:
            try:
                await wire.connect()
            except OSError:
                return
            try:
                reply = await wire.order(campaign, f"{n}-{turn}", f"b{n}-{turn}")
            except (OSError, EOFError) as exc:
                # A connection that was never accepted is reset: refused, only later.
                if wire.answered:
                    dropped.append(f"{n}-{turn}: {exc!r}")
                return
            assert reply.status == 202, reply
            accepted.add(reply.json["order_id"])
            turn += 1

    tasks = [asyncio.create_task(go(n)) for n in range(CLIENTS)]

    async def busy() -> bool:
        return len(accepted) > 500

    await eventually(busy, 30)
    part.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    assert dropped == []
    assert await asyncio.to_thread(part.process.wait, 20) == 0, part.text
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"]) == (True, len(accepted))
    assert "Traceback" not in part.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_idle_gateway_with_open_connections_stops_soon_with_0(
    site: Site, client: Client, signum: signal.Signals
) -> None:
    part = site.part("gateway")
    gateway = part.gateway()
    connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=10)
    try:
        connection.request("GET", "/livez")
        connection.getresponse().read()
        assert part.end(signum, 8) == 0, part.text
    finally:
        connection.close()
