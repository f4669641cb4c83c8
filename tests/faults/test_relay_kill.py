"""Relays as real processes, killed at each gap of a delivery: every message has its effect, none has it twice."""

from collections.abc import Awaitable, Callable

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from loadtest.partners_options import Conduct
from lua.connection import SharedConnection
from tests.faults.support import Process, Spawn, die
from tests.ledger.relay_support import SECRET, Shop, balanced, emptied, ids, shop
from tests.ledger.support import Sale, drain, make_worker, table_locked, waiting_for_lock
from tests.support import eventually

ORDERS = 10
Start = Callable[[str], Awaitable[Process]]


@pytest.fixture
def start(spawn: Spawn, settings: Settings) -> Start:
    """Starts relays that send to this URL."""
    own = settings.with_values(partner_secrets=(SECRET,), ledger_timeout_s=60.0)
    return lambda url: spawn("relay", own.with_values(partners_url=url))


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Ten orders, each with the message that asks for its payment."""
    found = await Sale.open(desk, {"red": 50})
    await found.accept(store, ORDERS)
    await drain(store, make_worker(settings, ledger))
    return found


async def all_received(partners: Shop) -> None:
    async def there() -> bool:
        return partners.received("payment") >= ORDERS

    await eventually(there, 30.0)


async def second_delivers(start: Start, partners: Shop, ledger: Pool, auditor: Auditor, sale: Sale) -> None:
    """The leases of the dead have passed; another relay does the rest, and stops gracefully."""
    await ledger.execute("UPDATE outbox SET due_at = now()")
    child = await start(partners.url)
    await emptied(ledger)
    child.terminate()
    assert await child.wait() == 0
    for order in await ids(ledger):
        assert [e.effect for e in partners.effects(order)] == ["payment"]
    assert await ledger.fetchval("SELECT count(*) FROM deliveries WHERE topic = 'payment'") == ORDERS
    assert await ledger.fetchval("SELECT count(*) FROM dead_messages") == 0
    await balanced(auditor, sale)


async def test_relay_killed_after_the_work_was_done_and_before_it_heard_of_it(
    start: Start, sale: Sale, ledger: Pool, auditor: Auditor
) -> None:
    """The partner does the work and keeps its answer to itself until long after the relay's death."""
    async with shop(payment=Conduct(lost_answer=1, lost_hold_ms=600_000)) as partners:
        first = await start(partners.url)
        await all_received(partners)
        await die(first)
        assert await ledger.fetchval("SELECT count(*) FROM deliveries") == 0
        partners.behave("payment", lost_answer=0)
        await second_delivers(start, partners, ledger, auditor, sale)
        assert partners.received("payment") == 2 * ORDERS


async def test_relay_killed_before_the_work_was_begun(start: Start, sale: Sale, ledger: Pool, auditor: Auditor) -> None:
    async with shop(payment=Conduct(latency_ms=600_000)) as partners:
        first = await start(partners.url)
        await all_received(partners)
        await die(first)
        partners.behave("payment", latency_ms=0)
        await second_delivers(start, partners, ledger, auditor, sale)


async def test_relay_killed_between_the_answer_and_its_record(
    start: Start, sale: Sale, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    async with shop() as partners:
        async with table_locked(dsn, "deliveries") as admin:
            first = await start(partners.url)
            backend = await waiting_for_lock(admin, "rushgate-relay%")
            await all_received(partners)
            await die(first)
            # Nobody tells a waiting backend that its client has gone: it would still commit.
            await admin.execute("SELECT pg_terminate_backend($1)", backend)
        assert await ledger.fetchval("SELECT count(*) FROM deliveries") == 0
        await second_delivers(start, partners, ledger, auditor, sale)
        assert partners.received("payment") == 2 * ORDERS
