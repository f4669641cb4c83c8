"""Messages to partners over real HTTP: what they say, and that each has its effect once, whatever the partner does."""

import asyncio

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import ConfigInvalid
from core.ids import text_of
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.settings import Settings
from loadtest.partners_options import Conduct
from lua.connection import SharedConnection
from tests.conftest import Services
from tests.ledger.relay_support import (
    SECRET,
    balanced,
    emptied,
    ids,
    relay_of,
    shop,
    waiting,
    write,
)
from tests.ledger.support import Sale, drain, make_worker, running
from tests.ledger.test_lifecycle import paid
from tests.support import SHARDS, eventually
from workers.breaker import Breaker
from workers.letters import PARTNER_OF
from workers.partners import partners_of

ORDERS = 40
EVERY_TOPIC = list(PARTNER_OF)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """40 orders of one red each, in the ledger; each asks for its payment."""
    found = await Sale.open(desk, {"red": 50})
    await found.accept(store, ORDERS, ("red", 1))
    await drain(store, make_worker(settings, ledger))
    return found


async def refund(ledger: Pool, order: bytes, amount: int = 70) -> None:
    await ledger.execute(
        "INSERT INTO refunds SELECT shard, order_id, 'ref_1', $2, currency, 'approved' FROM orders WHERE order_id = $1",
        UUID(order), amount,
    )  # fmt: skip


async def deaths(ledger: Pool) -> list[tuple[str, int, str]]:
    rows = await ledger.fetch("SELECT topic, attempts, reason FROM dead_messages ORDER BY topic")
    return [tuple(r) for r in rows]


def patient(failures: int = 1_000) -> Breaker:
    """A breaker that does not open."""
    return Breaker(failures=failures)


async def test_every_topic_reaches_its_partner_once_with_its_own_id(
    sale: Sale, ledger: Pool, services: Services, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    for topic in EVERY_TOPIC[1:]:
        await write(ledger, order, topic)
    await refund(ledger, order)
    async with shop() as partners:
        async with running(relay_of(ledger, services.store_url, partners.url)):
            await emptied(ledger)
        done = {(e.partner, e.effect, e.message_id) for e in partners.effects(order)}
        assert done == {(p, t, f"msg_{order.hex()}_1_{t}") for t, p in PARTNER_OF.items()}
        assert len(partners.effects(order)) == len(EVERY_TOPIC)
    rows = await ledger.fetch("SELECT topic, attempts, outcome FROM deliveries WHERE order_id = $1", UUID(order))
    assert {tuple(r) for r in rows} == {(t, 1, "answered 200") for t in EVERY_TOPIC}
    await balanced(auditor, sale)


async def test_message_says_what_its_topic_needs(sale: Sale, ledger: Pool, services: Services) -> None:
    order = (await ids(ledger))[0]
    await ledger.execute("DELETE FROM outbox")
    await ledger.execute('UPDATE orders SET ship_to = \'{"city": "Köln"}\' WHERE order_id = $1', UUID(order))
    await OrderDesk(ledger, SHARDS).pay(paid(order), order)
    for topic in ("payment", "refund"):
        await write(ledger, order, topic)
    await refund(ledger, order)
    async with shop() as partners, running(relay_of(ledger, services.store_url, partners.url)):
        await emptied(ledger)
    said = {one["topic"]: one for one in partners.said}
    buyer = await ledger.fetchval("SELECT buyer_id FROM orders WHERE order_id = $1", UUID(order))
    frame = {"order_id": text_of(order), "shard": sale.shards[0]}
    assert said["payment"].items() >= (frame | {"message_id": f"msg_{order.hex()}_1_payment"}).items()
    assert said["payment"]["data"].items() >= {"amount": 100, "currency": "CNY", "channel": "app"}.items()
    assert said["refund"]["data"] == {"refund_no": "ref_1", "amount": 70, "currency": "CNY"}
    assert said["warehouse"]["data"] == {
        "buyer_id": buyer, "channel": "app", "version": 2, "ship_to": {"city": "Köln"},
        "items": [{"sku": "red", "quantity": 1, "price": 100}],
    }  # fmt: skip
    told = {"buyer_id": buyer, "channel": "app", "version": 2, "state": "paid", "action": "pay", "reason": "paid"}
    for topic in ("notify", "webhook"):
        assert said[topic]["data"].items() >= told.items()


async def test_without_partners_their_messages_wait_unclaimed(sale: Sale, ledger: Pool, services: Services) -> None:
    worker = relay_of(ledger, services.store_url)
    assert await worker.step() == 0
    await worker.run_down()
    assert await ledger.fetchval("SELECT count(*) FROM outbox WHERE attempts = 0 AND topic = 'payment'") == ORDERS


@pytest.mark.parametrize(
    "conduct",
    [
        Conduct(failure=0.4),
        Conduct(lost_answer=0.4),
        Conduct(failure=0.2, lost_answer=0.2, duplicate=0.5, latency_ms=2, jitter_ms=2),
    ],
    ids=["answers 500", "answers get lost", "all of it"],
)
async def test_failing_partner_does_each_work_once_and_none_is_missing(
    sale: Sale, ledger: Pool, services: Services, auditor: Auditor, conduct: Conduct
) -> None:
    async with shop(payment=conduct) as partners:
        workers = [relay_of(ledger, services.store_url, partners.url, last_attempt=1_000) for _ in range(2)]
        async with running(*workers):
            await emptied(ledger)
        for order in await ids(ledger):
            assert [e.effect for e in partners.effects(order)] == ["payment"]
        assert partners.received("payment") > ORDERS
    assert await ledger.fetchval("SELECT count(*) FROM deliveries WHERE topic = 'payment'") == ORDERS
    assert await deaths(ledger) == []
    await balanced(auditor, sale)


async def test_partner_that_is_away_costs_probes_only_and_all_is_delivered_when_it_is_back(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    """The breaker opens and heals; no message uses its attempts up, another partner's go on."""
    order = (await ids(ledger))[0]
    await write(ledger, order, "notify")
    async with shop(payment=Conduct(away=True)) as partners:
        worker = relay_of(
            ledger, services.store_url, partners.url,
            breaker=lambda: Breaker(failures=5, open_s=(0.02, 0.05)), concurrency=4,
        )  # fmt: skip
        assert worker.partners
        breaker = worker.partners.destinations["payment"].breaker
        tally = partners.server.tallies["payment"]
        async with running(worker):

            async def refused() -> bool:
                return breaker.is_open and tally.away >= 15

            await eventually(refused)
            assert await waiting(ledger, "('notify')") == 0
            partners.behave("payment", away=False)
            await emptied(ledger)
        assert not breaker.is_open
        assert await deaths(ledger) == []
        for one in await ids(ledger):
            assert [e.effect for e in partners.effects(one) if e.partner == "payment"] == ["payment"]


async def test_nobody_at_the_address_is_a_failure_and_the_message_stays(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    worker = relay_of(ledger, services.store_url, "http://127.0.0.1:9", longest_s=60.0)
    async with running(worker):
        error = "SELECT count(*) FROM outbox WHERE error LIKE 'no connection%' AND due_at > now()"
        await eventually(lambda: ledger.fetchval(error))
    assert await waiting(ledger) == ORDERS


async def test_message_is_dead_after_its_last_attempt_and_a_replay_delivers_it(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    order = (await ids(ledger))[0]
    await ledger.execute("DELETE FROM outbox")
    await write(ledger, order, "warehouse")
    async with shop(warehouse=Conduct(failure=1)) as partners:
        worker = relay_of(ledger, services.store_url, partners.url, last_attempt=3, breaker=patient)
        async with running(worker):
            await emptied(ledger)
            [(topic, attempts, reason)] = await deaths(ledger)
            assert (topic, attempts) == ("warehouse", 3)
            assert reason.startswith("attempt 3 was the last: answered 500")
            assert partners.received("warehouse") == 3
            partners.behave("warehouse", failure=0)
            [back] = await ledger.fetch(query("replay_messages"), None, UUID(order), None)
            assert back["topic"] == "warehouse"
            await emptied(ledger)
        assert [e.effect for e in partners.effects(order)] == ["warehouse"]
    assert await deaths(ledger) == []
    assert await ledger.fetchval("SELECT attempts FROM deliveries WHERE topic = 'warehouse'") == 1


async def test_messages_outlive_a_secret_that_the_partner_does_not_know(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    """401, as for a relay whose clock is hours off: nothing is wrong with the messages."""
    async with shop() as partners:
        keys = partners.server._signers["payment"]._keys
        partners.server._signers["payment"]._keys = [b"another" * 8]
        async with running(relay_of(ledger, services.store_url, partners.url, breaker=patient)):
            refused = "SELECT count(*) FROM outbox WHERE topic = 'payment' AND error LIKE 'answered 401%'"

            async def all_refused() -> bool:
                return bool(await ledger.fetchval(refused) == ORDERS)

            await eventually(all_refused)
            partners.server._signers["payment"]._keys = keys
            await emptied(ledger)
        assert await deaths(ledger) == []
        for one in await ids(ledger):
            assert [e.effect for e in partners.effects(one) if e.partner == "payment"] == ["payment"]


async def test_refund_that_is_not_on_record_is_told_and_sent_when_it_is(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    order = (await ids(ledger))[0]
    await ledger.execute("DELETE FROM outbox")
    await write(ledger, order, "refund")
    async with shop() as partners, running(relay_of(ledger, services.store_url, partners.url)):
        await eventually(lambda: ledger.fetchval("SELECT count(*) FROM outbox WHERE error LIKE '%ref_1%'"))
        await refund(ledger, order)
        await ledger.execute("UPDATE outbox SET due_at = now()")
        await emptied(ledger)
        assert [e.effect for e in partners.effects(order)][:1] == ["refund"]


async def test_nothing_in_the_ledger_is_held_while_a_partner_works(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    """All deliveries are under way: no transaction is open, no connection is taken, and another writer gets through."""
    async with shop(payment=Conduct(latency_ms=600_000)) as partners:
        worker = relay_of(ledger, services.store_url, partners.url, concurrency=ORDERS, exchange_s=1.0)
        async with running(worker):

            async def all_there() -> bool:
                return partners.received("payment") >= ORDERS

            await eventually(all_there)
            busy = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert await ledger.fetchval(busy + " AND state LIKE 'idle in transaction%'") == 0
            locks = (
                "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                "WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.relation = 'outbox'::regclass"
            )
            assert await ledger.fetchval(locks) == 0
            await asyncio.wait_for(ledger.execute("UPDATE outbox SET error = 'x'"), 5.0)


async def test_relay_that_stops_finishes_what_is_under_way_and_gives_the_rest_back(
    sale: Sale, ledger: Pool, services: Services
) -> None:
    async with shop(payment=Conduct(latency_ms=20)) as partners:
        worker = relay_of(ledger, services.store_url, partners.url, concurrency=2)
        async with running(worker):

            async def begun() -> bool:
                return partners.received("payment") >= 2

            await eventually(begun)
        done = await ledger.fetchval("SELECT count(*) FROM deliveries")
        assert done == worker.delivered == partners.received("payment")
        rest = await ledger.fetch("SELECT attempts, due_at <= now() AS due FROM outbox WHERE topic = 'payment'")
        assert len(rest) == ORDERS - done
        assert {tuple(r) for r in rest} == {(0, True)}


@pytest.mark.parametrize(
    ("url", "secrets", "says"),
    [
        ("http://x/?a=b", (SECRET,), "RUSHGATE_PARTNERS_URL"),
        ("http://user@x", (SECRET,), "RUSHGATE_PARTNERS_URL"),
        ("http://x:99999", (SECRET,), "RUSHGATE_PARTNERS_URL"),
        ("http://x", (), "RUSHGATE_PARTNER_SECRETS"),
        ("http://x", ("whsec_x",), "RUSHGATE_PARTNER_SECRETS"),
    ],
)
def test_bad_address_or_secret_names_its_setting(url: str, secrets: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        partners_of(url, secrets)
