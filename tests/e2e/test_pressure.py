"""Backpressure: above the marks new orders get 503 `overloaded` with an honest Retry-After, and nothing is dropped."""

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from core.errors import Overloaded
from core.ledger.migrate import migrate
from core.settings import Settings
from gateway.catalogue import Catalogue, Sale
from gateway.intake import Intake
from gateway.pressure import LOW, MAX_RETRY_S, MEMORY_STEP, Load, Pressure, drained
from lua.connection import SharedConnection
from lua.scripts import Backlog, Scripts
from ops.desk import connect_ledger
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.e2e.support import KEYS, Client, Crowd, Part, until
from tests.support import StoreSale, eventually, fresh, spec, tell

HIGH = 200  # orders
CLIENTS = 16
ANY_LEDGER: Any = None  # nobody asks it


class Site:
    """A store, a ledger and workers; gateways with marks of their own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.store = EmbeddedStore(data)
        self.ledger = EmbeddedLedger(data)
        self.parts: list[Part] = []

    async def start(self) -> None:
        store_url, dsn = await asyncio.gather(self.store.start(), self.ledger.start())
        connection = await connect_ledger(Settings(ledger_dsn=dsn))
        await migrate(connection)
        await connection.close()
        self.env = {**KEYS, "RUSHGATE_STORE_URL": store_url, "RUSHGATE_LEDGER_DSN": dsn, "RUSHGATE_PORT": "0"}
        self.worker = self.part("worker", "ledger")
        self.part("worker", "relay")
        self.part("worker", "reconcile")

    def part(self, *args: str, **env: str) -> Part:
        part = Part(self.data / f"{fresh('part')}.log", args, self.env | env)
        self.parts.append(part)
        return part

    @contextmanager
    def gateway(self, **env: str) -> Iterator[Client]:
        """One with these settings, ready."""
        part = self.part("gateway", **{f"RUSHGATE_{name.upper()}": text for name, text in env.items()})
        try:
            client = part.gateway()
            until(lambda: client.call("GET", "/readyz").status == 200)
            yield client
        finally:
            part.end()

    @contextmanager
    def nothing_drained(self) -> Iterator[None]:
        """The ledger worker stands still for the while."""
        self.worker.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.worker.process.send_signal(signal.SIGCONT)

    @contextmanager
    def memory(self, share: float) -> Iterator[None]:
        """The store has used this share of its memory, for the while."""
        with Redis.from_url(self.store.url, socket_timeout=5) as store:
            store.config_set("maxmemory", int(store.info("memory")["used_memory"] / share))
            try:
                yield
            finally:
                store.config_set("maxmemory", 0)

    async def stop(self) -> None:
        for part in self.parts:
            part.end()
        await self.store.stop()
        await self.ledger.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        found = Site(Path(folder))
        try:
            asyncio.run(found.start())
            yield found
        finally:
            asyncio.run(found.stop())


async def seen(crowd: Crowd, answer: str, more: int = 1) -> None:
    """So many more answers of this kind than now."""
    wanted = crowd.answers.get(answer, 0) + more

    async def enough() -> bool:
        return crowd.answers.get(answer, 0) >= wanted

    await eventually(enough, 30)


async def test_backlog_above_its_mark_refuses_and_takes_again_after_the_drain(site: Site) -> None:
    with site.gateway(intake_high_orders=str(HIGH)) as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
        async with Crowd(client, campaign, CLIENTS) as crowd:
            with site.nothing_drained():
                await seen(crowd, "overloaded", CLIENTS)
                assert len(crowd.accepted) > HIGH
                before = len(crowd.accepted)
                reply = await asyncio.to_thread(client.order, campaign)
                assert (reply.status, reply.code) == (503, "overloaded")
                # Nothing goes off: nobody can say when, so it is the bound.
                assert int(reply.headers["retry-after"]) == MAX_RETRY_S
                assert "orders wait for the ledger, 200 are the mark" in reply.json["detail"]
                line = b'{"request_key":"q","buyer_id":"b","items":[{"sku":"red","quantity":1}]}'
                batch = await asyncio.to_thread(client.batch, campaign, line)
                assert (batch.status, batch.json["http_status"], batch.json["code"]) == (200, 503, "overloaded")
                await seen(crowd, "overloaded", CLIENTS)
                assert len(crowd.accepted) == before  # nothing slips through
            await seen(crowd, "202", HIGH)
        audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert audit["ok"], audit
    assert audit["accepted"] == audit["persisted"] == len(crowd.accepted)
    assert (crowd.changed, crowd.unmarked) == ([], [])
    assert set(crowd.answers) == {"202", "overloaded"}


async def test_old_backlog_refuses_however_small(site: Site) -> None:
    with site.gateway(intake_max_age_s="0.5") as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000_000})
        with site.nothing_drained():
            assert client.order(campaign, "b", "k").status == 202
            reply = until(lambda: found if (found := client.order(campaign, "b", "k")).status == 503 else None)
            assert reply.code == "overloaded"
            assert "the oldest waits since" in reply.json["detail"]
        # The key that was refused in the meantime is the order's all the same.
        until(lambda: client.order(campaign, "b", "k").status == 202)
        assert client.order(campaign, "b", "k").headers["idempotent-replayed"] == "true"
        audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"]) == (True, 1)


async def test_store_that_fills_up_refuses_and_still_gives_back(site: Site) -> None:
    with site.gateway(store_memory_high="0.5") as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000})
        order_id = client.order(campaign, "b", "k").json["order_id"]
        await asyncio.to_thread(client.settled_audit, campaign)
        with site.memory(0.7):
            until(lambda: client.order(campaign).code == "overloaded")
            assert "the store has used" in client.order(campaign).json["detail"]
            before = await asyncio.to_thread(client.settled_audit, campaign)
        with site.memory(1.5):  # full: the store itself refuses
            until(lambda: client.order(campaign).code == "overloaded")
            headers = {"Authorization": f"Bearer {client.channel_key}"}
            assert client.call("POST", f"/v1/orders/{order_id}/cancel", b"{}", headers).status == 200
            held = before["skus"][0]["held"] - 1
            until(lambda: client.audit(campaign)["skus"][0]["held"] == held)
            assert client.order(campaign).code == "overloaded"
        until(lambda: client.order(campaign, "b2", "k2").status == 202)
        audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert (audit["ok"], audit["accepted"]) == (True, before["accepted"] + 1)


def pressure(store: SharedConnection, **values: object) -> tuple[Pressure, Intake]:
    """One that is told what it sees."""
    intake = Intake([], 10, 1)
    settings = Settings().with_values(**values)
    return Pressure(store, Catalogue(store, ANY_LEDGER, 64), intake, settings), intake


def load(at_s: float, orders: int, first: int = 1, age_s: float = 0.0, memory: float = 0.0) -> Load:
    entries = 1 if orders else 0
    return Load(at_s, {0: Backlog(entries, orders, int(age_s * 1000), b"c|1" if orders else b"", first)}, memory)


@pytest.mark.parametrize(
    ("values", "above", "between", "below"),
    [
        ({"intake_high_orders": 100}, load(0, 101), load(0, 51), load(0, 50)),
        ({"intake_max_age_s": 10.0}, load(0, 1, age_s=10.1), load(0, 1, age_s=5.1), load(0, 1, age_s=5.0)),
        ({"store_memory_high": 0.8}, load(0, 1, memory=0.81), load(0, 1, memory=0.76), load(0, 1, memory=0.74)),
    ],
)
def test_between_the_marks_it_stays_as_it_was(
    store: SharedConnection, values: dict[str, object], above: Load, between: Load, below: Load
) -> None:
    found, intake = pressure(store, **values)
    for n, (seen_now, refused) in enumerate(
        [(between, False), (above, True), (between, True), (below, False), (between, False), (above, True)]
    ):
        found.judge(seen_now._replace(at_s=float(n)))
        assert (intake.refusal is not None) is refused, n
    assert (LOW, MEMORY_STEP) == (0.5, 0.05)


def test_retry_after_is_what_must_go_by_the_rate_at_which_it_goes(store: SharedConnection) -> None:
    found, intake = pressure(store, intake_high_orders=1_000)
    found.judge(load(0.0, 5_000, first=1))
    assert intake.refusal
    assert intake.refusal.retry_after_s == MAX_RETRY_S  # no rate is known yet
    found.judge(load(1.0, 4_500, first=501))  # 500 went in a second; 4,000 must go until 500 are left
    assert intake.refusal.retry_after_s == 8
    found.judge(load(2.0, 700, first=1_001))
    assert intake.refusal.retry_after_s == 1
    found.judge(load(3.0, 500, first=1_501))
    assert intake.refusal is None


async def test_refused_request_is_not_queued_and_carries_the_wait(store: SharedConnection) -> None:
    found, intake = pressure(store, intake_high_orders=10)
    sale = await StoreSale.open(store, {"red": 1})
    found.judge(load(0.0, 11))
    with pytest.raises(Overloaded) as caught:
        intake.submit(object(), 0, sale.ask("a"))  # type: ignore[arg-type]
    assert caught.value.retry_after_s == MAX_RETRY_S
    await intake.flush()


@pytest.mark.parametrize(
    ("before", "now", "gone"),
    [
        (Backlog(3, 30, 0, b"c|1", 1), Backlog(2, 25, 0, b"c|1", 11), 10),  # 5 came in meanwhile
        (Backlog(3, 30, 0, b"c|1", 1), Backlog(0, 0, 0, b"", 0), 30),
        (Backlog(3, 30, 0, b"c|1", 1), Backlog(9, 90, 0, b"d|1", 7), 0),  # another campaign's: not known
        (Backlog(0, 0, 0, b"", 0), Backlog(9, 90, 0, b"c|1", 1), 0),
    ],
)
def test_drained_follows_the_numbers(before: Backlog, now: Backlog, gone: int) -> None:
    assert drained(Load(0, {5: before}, 0), Load(1, {5: now}, 0)) == gone


async def test_backlog_counts_orders_by_their_numbers(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 99})
    scripts = Scripts(store)
    assert await scripts.backlog([]) == {}
    assert await scripts.backlog([sale.shard]) == {sale.shard: Backlog(0, 0, 0, b"", 0)}
    sizes = (3, 1, 5)
    for size in sizes:
        await sale.reserve(store, *(sale.ask(fresh("b")) for _ in range(size)))
    found = (await scripts.backlog([sale.shard]))[sale.shard]
    assert (found.entries, found.orders, found.sale, found.first) == (3, 9, f"{sale.campaign}|1".encode(), 1)
    [[entry_id, _]] = await tell(store, "XRANGE", sale.keys.intake, "-", "+", "COUNT", 1)
    await tell(store, "XDEL", sale.keys.intake, entry_id)
    found = (await scripts.backlog([sale.shard]))[sale.shard]
    assert (found.entries, found.orders, found.first) == (2, 6, 4)
    # Entries that are none of ours count as they are.
    await tell(store, "XADD", sale.keys.intake, "*", "junk", "x")
    assert (await scripts.backlog([sale.shard]))[sale.shard].orders == 3
    await tell(store, "XADD", sale.keys.intake, "*", "h", "1|other|1|5|5|900", "id", "order")
    assert (await scripts.backlog([sale.shard]))[sale.shard].orders == 4


async def test_backlog_age_is_that_of_the_oldest_entry(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    now_s, _ = await tell(store, "TIME")
    await tell(store, "XADD", sale.keys.intake, f"{(int(now_s) - 60) * 1000}-1", "h", "x")
    await tell(store, "XADD", sale.keys.intake, "*", "h", "x")
    assert 60_000 <= (await Scripts(store).backlog([sale.shard]))[sale.shard].age_ms < 63_000


async def test_look_sees_the_shards_that_are_sold_and_the_memory(store: SharedConnection) -> None:
    found, _ = pressure(store)
    seen_now = await found.look()
    assert (seen_now.shards, seen_now.memory) == ({}, 0.0)
    now = datetime.now(UTC)
    over = spec(opens_at=now - timedelta(hours=2), closes_at=now - timedelta(hours=1))
    selling = Sale("selling", 1, 1, spec(spread=2), 64)
    found._catalogue.sales.update(selling=selling, over=Sale("over", 1, 1, over, 64))
    assert list((await found.look()).shards) == sorted(selling.shards)
    await tell(store, "CONFIG", "SET", "maxmemory", 1 << 40)
    try:
        assert 0 < (await found.look()).memory < 0.01
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", 0)
