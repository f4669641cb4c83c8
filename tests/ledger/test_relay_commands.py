"""`rushgate outbox` and `rushgate dead-letters`, as an operator types them."""

import json

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import Invalid, OrderUnknown
from core.ids import text_of
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from ops.commands import parser
from ops.desk import open_desk
from ops.order_story import read_story
from ops.outbox_commands import run
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker
from workers.writer import LedgerWriter

Captured = pytest.CaptureFixture[str]


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Three orders, each with the message that asks for its payment."""
    found = await Sale.open(desk, {"red": 50})
    await found.accept(store, 3)
    await drain(store, make_worker(settings, ledger))
    return found


async def typed(settings: Settings, *words: str) -> int:
    return await run(settings, parser().parse_args(words))


async def die(ledger: Pool) -> None:
    """All messages are dead."""
    await ledger.execute(
        "WITH gone AS (DELETE FROM outbox RETURNING *) INSERT INTO dead_messages "
        "SELECT shard, order_id, version, topic, at, now(), 12, 'attempt 12 was the last: answered 500' FROM gone"
    )


async def test_outbox_list_and_replay(sale: Sale, settings: Settings, ledger: Pool, capsys: Captured) -> None:
    [one, *_] = await ids(ledger)
    await ledger.execute(
        "UPDATE outbox SET due_at = now() + interval '90 s', attempts = 4, error = 'answered 503' WHERE order_id = $1",
        UUID(one),
    )
    assert await typed(settings, "outbox", "list", "--topic", "payment", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert await typed(settings, "outbox", "list", "--order", text_of(one)) == 0
    shown = capsys.readouterr().out
    assert "answered 503" in shown
    assert await typed(settings, "outbox", "replay", "--all") == 0
    assert capsys.readouterr().out == "1 message made due now, 2 due already\n"
    assert await ledger.fetchval("SELECT count(*) FROM outbox WHERE due_at <= now() AND attempts = 0") == 3


async def test_dead_messages_list_replay_and_drop(
    sale: Sale, settings: Settings, ledger: Pool, capsys: Captured
) -> None:
    [one, *_] = await ids(ledger)
    await die(ledger)
    assert await typed(settings, "dead-letters", "list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["topic"], r["attempts"]) for r in rows] == [("payment", 12)] * 3
    assert await typed(settings, "dead-letters", "replay", "--order", text_of(one)) == 0
    assert capsys.readouterr().out.startswith("1 message back in the outbox\n")
    assert await ledger.fetchval("SELECT attempts FROM outbox WHERE due_at <= now()") == 0
    assert await typed(settings, "dead-letters", "drop", "--topic", "payment") == 0
    assert capsys.readouterr().out == "2 messages dropped\n"
    assert await ledger.fetchval("SELECT count(*) FROM dead_messages") == 0


async def test_dead_order_goes_back_into_the_intake_and_is_persisted(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor,
    capsys: Captured, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sale = await Sale.open(desk, {"red": 50})
    await sale.accept(store, 2)
    # Something in the ledger refuses the orders for a while.
    await ledger.execute("ALTER TABLE orders ADD CONSTRAINT orders_none CHECK (amount < 0) NOT VALID")
    await drain(store, make_worker(settings, ledger, writer=LedgerWriter(ledger)))
    assert await ledger.fetchval("SELECT count(*) FROM dead_letters") == 2
    assert await typed(settings, "dead-letters", "list") == 0
    assert "orders" in capsys.readouterr().out
    await ledger.execute("ALTER TABLE orders DROP CONSTRAINT orders_none")
    assert await typed(settings, "dead-letters", "replay", "--topic", "orders") == 0
    assert capsys.readouterr().out == "2 orders back in the intake\n"
    await drain(store, make_worker(settings, ledger))
    assert await ledger.fetchval("SELECT count(*) FROM dead_letters") == 0
    report = await balanced(auditor, sale)
    assert (report.accepted, report.persisted, report.dead_lettered) == (2, 2, 0)


@pytest.fixture
async def dead(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """A sale of fifty, with two orders that the ledger refused for a while."""
    sale = await Sale.open(desk, {"red": 50})
    await sale.accept(store, 2)
    await ledger.execute("ALTER TABLE orders ADD CONSTRAINT orders_none CHECK (amount < 0) NOT VALID")
    await drain(store, make_worker(settings, ledger, writer=LedgerWriter(ledger)))
    await ledger.execute("ALTER TABLE orders DROP CONSTRAINT orders_none")
    return sale


async def test_dropped_order_gives_its_units_back_and_stays_on_record(
    dead: Sale, settings: Settings, ledger: Pool, auditor: Auditor, capsys: Captured
) -> None:
    order = (await ledger.fetchval("SELECT order_id FROM dead_letters LIMIT 1")).bytes
    assert (await auditor.audit(dead.campaign)).unsold == 48
    assert await typed(settings, "dead-letters", "drop", "--topic", "orders") == 0
    assert capsys.readouterr().out == "2 orders dropped\n"
    assert await typed(settings, "dead-letters", "list") == 0
    assert capsys.readouterr().out == "none\n"
    report = await balanced(auditor, dead)
    assert (report.accepted, report.persisted, report.dead_lettered, report.lost, report.unsold) == (2, 0, 2, 0, 50)
    assert await typed(settings, "dead-letters", "replay", "--topic", "orders") == 0
    assert capsys.readouterr().out == "0 orders back in the intake\n"
    async with open_desk(settings) as operator:
        with pytest.raises(OrderUnknown, match="given up by an operator"):
            await read_story(operator, settings.shards, order)


async def test_order_whose_replay_broke_off_behind_its_work_is_not_given_up(
    dead: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, capsys: Captured
) -> None:
    """The letters are still there, as the ledger was away when they were to go; the orders live."""
    letters = await ledger.fetch("SELECT * FROM dead_letters")
    assert await typed(settings, "dead-letters", "replay", "--topic", "orders") == 0
    await drain(store, make_worker(settings, ledger))
    await ledger.executemany(
        "INSERT INTO dead_letters VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", [tuple(r)[:10] for r in letters]
    )
    capsys.readouterr()
    assert await typed(settings, "dead-letters", "list") == 0
    assert capsys.readouterr().out == "none\n"
    assert await typed(settings, "dead-letters", "drop", "--topic", "orders") == 0
    assert capsys.readouterr().out == "0 orders dropped\n"
    report = await auditor.audit(dead.campaign)
    assert (report.persisted, report.unsold) == (2, 48)


async def test_drop_of_an_order_that_somebody_replays_leaves_its_units(
    dead: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, capsys: Captured
) -> None:
    """Replay has claimed both, and has not come further."""
    await ledger.execute("UPDATE dead_letters SET replayed_at = now()")
    assert await typed(settings, "dead-letters", "drop", "--topic", "orders") == 1
    assert "0 orders dropped" in capsys.readouterr().out
    assert (await auditor.audit(dead.campaign)).unsold == 48
    assert await typed(settings, "dead-letters", "replay", "--topic", "orders") == 0
    await drain(store, make_worker(settings, ledger))
    report = await balanced(auditor, dead)
    assert (report.persisted, report.dead_lettered, report.unsold) == (2, 0, 48)


async def test_replay_and_drop_without_a_choice_are_refused(sale: Sale, settings: Settings) -> None:
    for words in (("outbox", "replay"), ("dead-letters", "replay"), ("dead-letters", "drop")):
        with pytest.raises(Invalid, match="one of them is needed") as caught:
            await typed(settings, *words)
        assert caught.value.field == "--order, --topic, --all"
    with pytest.raises(Invalid, match="order id") as caught:
        await typed(settings, "outbox", "list", "--order", "x")
    assert caught.value.field == "--order"
