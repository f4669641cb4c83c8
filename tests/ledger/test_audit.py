"""The audit: right on every honest run, at any moment of it, and wrong on none that is not."""

import asyncio
import contextlib
from typing import Any

import asyncpg
import msgspec
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import CampaignLost, Refused
from core.ledger.pool import Pool
from core.model import AuditReport, Limits, Restock
from core.settings import Settings
from core.wire import TAIL_BYTES, encode, read_hold
from lua.connection import SharedConnection
from lua.scripts import RestockCode, Scripts
from tests.ledger.reconcile_support import given_up, set_aside
from tests.ledger.support import Sale, drain, drained, garbled, make_worker, order_id, placed, running
from tests.support import eventually, fresh, spec

STOCK = {"red": 100, "blue": 50}
ROUNDS = 10  # audits of a sale that goes on


@pytest.fixture
async def sale(desk: CampaignDesk, store: SharedConnection) -> Sale:
    """20 orders of 2 red and 1 blue in 4 entries, not drained yet."""
    found = await Sale.open(desk, STOCK, limits={"buyer": 3})
    for _ in range(4):
        await found.accept(store, 5, ("red", 2), ("blue", 1))
    return found


@pytest.fixture
async def finished(sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """The same, in the ledger."""
    await drain(store, make_worker(settings, ledger))
    return sale


def books(report: AuditReport) -> dict[str, tuple[int, ...]]:
    return {s.sku: (s.allocation, s.left, s.held, s.sold, s.in_flight) for s in report.skus}


async def test_audit_of_a_draft_is_empty_and_ok(desk: CampaignDesk, auditor: Auditor) -> None:
    campaign = fresh("sale")
    await desk.put(campaign, spec(STOCK))
    report = await auditor.audit(campaign)
    assert (report.ok, report.accepted, books(report)) == (True, 0, dict.fromkeys(STOCK, (0, 0, 0, 0, 0)))


async def test_audit_of_a_lost_campaign_says_so(sale: Sale, store: SharedConnection, auditor: Auditor) -> None:
    await store.exchange([("FLUSHALL",)])
    with pytest.raises(CampaignLost):
        await auditor.audit(sale.campaign)


async def test_audit_before_during_and_after_the_drain_is_ok(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    assert (report.accepted, report.persisted, report.in_flight, report.unsold) == (20, 0, 20, 90)
    assert books(report) == {"red": (100, 60, 40, 0, 40), "blue": (50, 30, 20, 0, 20)}
    # Half of the entries are written; one of them is not acknowledged: it is in the intake and in the ledger.
    keys = sale.parts[0].keys
    [entries] = await store.exchange([("XRANGE", keys.intake, "-", "+")])
    await store.exchange([("DEL", keys.intake)])
    for entry_id, fields in entries[:2]:
        await store.exchange([("XADD", keys.intake, entry_id, *fields)])
    await drain(store, make_worker(settings, ledger))
    for _, fields in entries[1:]:
        await store.exchange([("XADD", keys.intake, "*", *fields)])
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    assert (report.accepted, report.persisted, report.in_flight) == (20, 10, 10)
    assert books(report) == {"red": (100, 60, 40, 0, 20), "blue": (50, 30, 20, 0, 10)}
    await drain(store, make_worker(settings, ledger, "two"))
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    assert (report.accepted, report.persisted, report.in_flight) == (20, 20, 0)


async def test_audit_counts_a_dead_letter_as_neither_lost_nor_persisted(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    keys = sale.parts[0].keys
    [[(_, fields)]] = await store.exchange([("XRANGE", keys.intake, "-", "+", "COUNT", 1)])
    await store.exchange([("XTRIM", keys.intake, "MAXLEN", 3)])
    await store.exchange([("XADD", keys.intake, "*", *garbled(fields))])
    report = await auditor.audit(sale.campaign)
    assert (report.lost, report.in_flight) == (0, 20)
    assert "cannot be read" in report.findings[0]
    await drain(store, make_worker(settings, ledger))
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.persisted, report.dead_lettered, report.lost) == (True, 19, 1, 0)


async def shift(store: SharedConnection, sale: Sale, units: int) -> None:
    """So many red are counted as sold instead of as left; no order has them."""
    keys = sale.parts[0].keys
    await store.exchange([("HINCRBY", keys.stock, "red", -units), ("HINCRBY", keys.stock, "s:red", units)])


@pytest.mark.parametrize("how", ["standing", "given up", "being given up", "in the ledger", "cannot be read"])
async def test_audit_of_an_order_set_aside_still_weighs_the_units_of_the_others(
    how: str, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, scripts: Scripts, auditor: Auditor
) -> None:
    """The order of 2 red may hold them, or not: so many units more or less are no finding, one beyond is."""
    await drain(store, make_worker(settings, ledger))
    await sale.accept(store, 1, ("red", 2), ("blue", 1))
    keys = sale.parts[0].keys
    [[(_, fields)]] = await store.exchange([("XRANGE", keys.intake, "-", "+")])
    [order] = await set_aside(settings, store, ledger)
    more, fewer = 1, -3  # the least that is found
    if how in ("given up", "being given up"):
        await given_up(ledger, order, 60 if how == "given up" else 0)
        await balanced_when(auditor, sale, ok=how == "being given up")  # its hold stands
        await scripts.release(keys, 1, [order])
        more, fewer = (1, -1) if how == "given up" else (3, -1)
    elif how == "in the ledger":  # and its letter stands: a replay that broke off behind its work
        await store.exchange([("XADD", keys.intake, "*", *fields)])
        await drain(store, make_worker(settings, ledger, "two"))
        more, fewer = 1, -1
    elif how == "cannot be read":
        await ledger.execute("UPDATE dead_letters SET payload = 'garbage'")
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.dead_lettered, report.phantom) == (True, how != "in the ledger", 0), report
    for units, ok in ((more - 1, True), (more, how == "cannot be read"), (fewer + 1, True), (fewer, False)):
        await shift(store, sale, units)
        await balanced_when(auditor, sale, ok=ok)
        await shift(store, sale, -units)


async def balanced_when(auditor: Auditor, sale: Sale, *, ok: bool) -> None:
    report = await auditor.audit(sale.campaign)
    assert report.ok is ok, report
    assert ok or "units taken in the store" in report.findings[0]


async def test_audit_of_an_intake_with_alien_entries_answers(
    sale: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    keys = sale.parts[0].keys
    header = f"1|{sale.campaign}|1|1|2|1".encode()
    await store.exchange([
        ("XADD", keys.intake, "*", "x", "y"), ("XADD", keys.intake, "*", "h", header, "five5", encode(placed())),
    ])  # fmt: skip
    report = await auditor.audit(sale.campaign)
    assert not report.ok
    assert (report.lost, report.phantom, len(report.findings)) == (0, 0, 2)


async def test_audit_of_an_order_deleted_from_the_ledger_finds_it_lost(
    finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await ledger.execute("DELETE FROM orders WHERE seq = 7")
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.lost, report.persisted, report.phantom) == (False, 1, 19, 0)


async def test_audit_of_an_entry_deleted_undrained_finds_its_orders_lost(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    keys = sale.parts[0].keys
    [[(entry_id, _)]] = await store.exchange([("XRANGE", keys.intake, "-", "+", "COUNT", 1)])
    await store.exchange([("XDEL", keys.intake, entry_id)])
    assert (await auditor.audit(sale.campaign)).lost == 5
    await drain(store, make_worker(settings, ledger))
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.lost, report.persisted) == (False, 5, 15)


async def copy_order(ledger: Pool, seq: int, **fields: Any) -> None:
    """An order like number 1 with its items, but of another id and sequence number; nobody accepted it."""
    values = {"order_id": asyncpg.pgproto.pgproto.UUID(order_id(0)), "seq": seq, "request_key": fresh("key")} | fields
    async with ledger.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE copied AS SELECT * FROM orders WHERE seq = 1")
        for name, value in values.items():
            await connection.execute(f"UPDATE copied SET {name} = $1", value)  # noqa: S608 - our names
        await connection.execute("""
            INSERT INTO order_items SELECT i.shard, c.order_id, i.line, i.sku, i.quantity, i.price
            FROM order_items i JOIN orders o USING (shard, order_id), copied c WHERE o.seq = 1""")
        await connection.execute("INSERT INTO orders SELECT * FROM copied")
        await connection.execute("DROP TABLE copied")


@pytest.mark.parametrize("seq", [21, 1_000_000, 0, -5])
async def test_audit_of_an_order_that_nobody_accepted_finds_a_phantom(
    seq: int, finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await copy_order(ledger, seq, buyer_id=fresh("buyer"))
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.phantom, report.lost) == (False, 1, 0)


async def test_audit_of_a_phantom_does_not_make_up_for_a_lost_order(
    finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await copy_order(ledger, 0, buyer_id=fresh("buyer"))
    await ledger.execute("DELETE FROM orders WHERE seq = 7")
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.phantom, report.lost) == (False, 1, 1)


async def test_audit_of_a_request_key_with_two_orders_finds_it_duplicated(
    finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await ledger.execute("ALTER TABLE orders DROP CONSTRAINT orders_request_key")
    await ledger.execute("UPDATE orders SET request_key = 'same' WHERE seq IN (3, 4, 5)")
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.duplicated, report.lost, report.phantom) == (False, 2, 0, 0)


async def test_audit_of_units_that_were_never_allocated_finds_them_oversold(
    finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await ledger.execute("UPDATE order_items SET quantity = 65 WHERE sku = 'red' AND order_id = "
                         "(SELECT order_id FROM orders WHERE seq = 7)")  # fmt: skip
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.oversold) == (False, 3)  # 19 * 2 + 65 of 100


async def test_audit_of_an_allocation_below_the_sales_finds_them_oversold(
    finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    await store.exchange([("HSET", finished.parts[0].keys.stock, "a:blue", 15)])
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.oversold) == (False, 5)


@pytest.mark.parametrize(
    ("limits", "columns"),
    [
        ({"buyer": 3}, {"buyer_id": "anna"}), ({"buyer_sku": 2}, {"buyer_id": "anna"}),
        ({"ip": 3}, {"client_ip": "10.0.0.1"}), ({"device": 3}, {"device_id": "d1"}),
    ],
)  # fmt: skip
async def test_audit_of_a_limit_exceeded_in_the_ledger_finds_who(
    limits: dict[str, int], columns: dict[str, str], desk: CampaignDesk, settings: Settings, store: SharedConnection,
    ledger: Pool, auditor: Auditor,
) -> None:  # fmt: skip
    sale = await Sale.open(desk, STOCK, limits=limits)
    await sale.accept(store, 4, ("red", 2), ("blue", 1))
    await drain(store, make_worker(settings, ledger))
    [(name, value)] = columns.items()
    await ledger.execute(f"UPDATE orders SET {name} = $1 WHERE seq = 1", value)  # noqa: S608 - our names
    assert (await auditor.audit(sale.campaign)).ok  # exactly at the limit
    await ledger.execute(f"UPDATE orders SET {name} = $1 WHERE seq = 2", value)  # noqa: S608 - our names
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.over_limit) == (False, 1)
    assert value in report.findings[0]


@pytest.mark.parametrize("field", ["red", "h:red", "a:red", "s:red"])
@pytest.mark.parametrize("by", [1, -1])
async def test_audit_of_a_tampered_counter_is_not_ok(
    field: str, by: int, finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    await store.exchange([("HINCRBY", finished.parts[0].keys.stock, field, by)])
    report = await auditor.audit(finished.campaign)
    assert not report.ok
    assert any("red" in finding for finding in report.findings)
    await store.exchange([("HINCRBY", finished.parts[0].keys.stock, field, -by)])
    assert (await auditor.audit(finished.campaign)).ok


async def test_audit_of_counters_tampered_alike_still_finds_the_allocation(
    finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    """Left and allocation agree with each other, not with the ledger."""
    keys = finished.parts[0].keys
    await store.exchange([("HINCRBY", keys.stock, "red", 5), ("HINCRBY", keys.stock, "a:red", 5)])
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.findings) == (False, ["red: allocation 105 in the store, 100 in the ledger"])


@pytest.mark.parametrize("statement", [
    "UPDATE stock_moves SET units = units + 1 WHERE sku = 'blue'",
    "DELETE FROM stock_moves WHERE sku = 'blue'",
    "INSERT INTO stock_moves SELECT shard, campaign, 'restock.x', 'blue', 'restock', 9, 'applied' "
    "FROM stock_moves LIMIT 1",
])  # fmt: skip
async def test_audit_of_a_tampered_journal_finds_the_allocation(
    statement: str, finished: Sale, ledger: Pool, auditor: Auditor
) -> None:
    await ledger.execute(statement)
    report = await auditor.audit(finished.campaign)
    assert not report.ok
    assert [f.split(":")[0] for f in report.findings] == ["blue"]


@pytest.mark.parametrize("wrong", ["removed", "changed", "garbage"])
async def test_audit_of_a_wrong_hold_finds_it(
    wrong: str, finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    keys = finished.parts[0].keys
    [flat] = await store.exchange([("HGETALL", keys.holds)])
    field, hold = flat[0], flat[1]
    if wrong == "removed":
        await store.exchange([("HDEL", keys.holds, field)])
    elif wrong == "garbage":
        await store.exchange([("HSET", keys.holds, field, b"\xc1" + hold[1:])])
    else:
        held = read_hold(hold)[0]
        other = encode(placed(channel=held.channel, items=[("red", 1, 100), ("blue", 1, 100)]))
        await store.exchange([("HSET", keys.holds, field, other + hold[-TAIL_BYTES:])])
    report = await auditor.audit(finished.campaign)
    assert not report.ok
    assert any("red: holds add up to" in finding for finding in report.findings)


async def test_audit_of_a_forgotten_request_key_finds_it(
    finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    keys = finished.parts[0].keys
    [[field]] = await store.exchange([("HRANDFIELD", keys.requests, 1)])
    await store.exchange([("HDEL", keys.requests, field)])
    report = await auditor.audit(finished.campaign)
    assert not report.ok
    assert "20 orders accepted, 19 keys recorded" in report.findings[0]


async def test_audit_of_a_seq_set_back_finds_phantoms(
    finished: Sale, store: SharedConnection, auditor: Auditor
) -> None:
    await store.exchange([("HINCRBY", finished.parts[0].keys.meta, "seq", -2)])
    report = await auditor.audit(finished.campaign)
    assert (report.ok, report.phantom) == (False, 2)


async def transfer(scripts: Scripts, sale: Sale, n: int) -> None:
    """A unit goes from one shard to another as a gateway moves it, in its three steps."""
    source, target = sale.parts[n % 4], sale.parts[(n + 1) % 4]
    code, _ = await scripts.restock(source.keys, 1, f"x.{n}", "red", -1, target.shard)
    if code is RestockCode.DONE:
        await scripts.restock(target.keys, 1, f"x.{n}", "red", 1, source.shard)
        await scripts.connection.exchange([("HDEL", source.keys.moves, f"x.{n}")])


@pytest.mark.parametrize("step", ["withdrawn", "arrived", "forgotten"])
async def test_audit_of_a_transfer_at_any_step_counts_its_units_once(
    step: str, desk: CampaignDesk, store: SharedConnection, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 40}, spread=4)
    await sale.accept(store, 3)
    source, target = sale.parts[:2]
    await scripts.restock(source.keys, 1, "x.1", "red", -2, target.shard)
    if step != "withdrawn":
        await scripts.restock(target.keys, 1, "x.1", "red", 2, source.shard)
    if step == "forgotten":
        await store.exchange([("HDEL", source.keys.moves, "x.1")])
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    assert books(report) == {"red": (40, 37, 3, 0, 3)}
    await store.exchange([("HINCRBY", target.keys.stock, "a:red", 1), ("HINCRBY", target.keys.stock, "red", 1)])
    assert not (await auditor.audit(sale.campaign)).ok  # a unit too many is found while a transfer is under way


@pytest.mark.parametrize("spread", [1, 4])
async def test_audit_during_the_sale_and_the_drain_gives_no_false_alarm(
    spread: int, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    """Orders, restocks, transfers, a pause and two workers go on while audit follows audit."""
    sale = await Sale.open(desk, {"red": 1_500}, spread=spread, limits={"buyer": 3})
    seller = SharedConnection(settings.store_url, "fsync", 10.0, "seller")
    mover = SharedConnection(settings.store_url, "fsync", 10.0, "mover")
    over = asyncio.Event()

    async def sell() -> None:
        rounds = 0
        while rounds < 250 or (len(reports) < ROUNDS and rounds < 20_000):  # until enough audits have looked on
            await sale.buy(seller, [fresh("buyer") for _ in range(8)], ("red", 1))
            await asyncio.sleep(0)
            rounds += 1
        over.set()

    async def move() -> None:
        n = 0
        while not over.is_set():
            n += 1
            if spread > 1:
                await transfer(Scripts(mover), sale, n)
            if n % 10 == 0:
                with contextlib.suppress(Refused):
                    await desk.restock(sale.campaign, Restock(f"r{n}", "red", 7 if n % 20 else -3))
            await asyncio.sleep(0)

    await sale.accept(store, 8, ("red", 1))
    reports = [await auditor.audit(sale.campaign)]
    assert reports[0].in_flight == 8  # what is on its way is seen as such
    async with running(*(make_worker(settings, ledger, f"w{n}", drain_orders=20) for n in range(2))):
        tasks = [asyncio.create_task(sell()), asyncio.create_task(move())]
        while not over.is_set():
            reports.append(await auditor.audit(sale.campaign))
        await asyncio.gather(*tasks)
        await drained(store)
    await seller.close()
    await mover.close()
    assert [r for r in reports if not r.ok] == []
    assert len(reports) >= ROUNDS
    assert any(r.persisted for r in reports[:-1])
    last = await auditor.audit(sale.campaign)
    assert last.ok, last
    assert (last.in_flight, last.accepted) == (0, last.persisted)


async def test_audit_reads_the_ledger_in_one_snapshot(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    """A drain that commits in the middle of the audit: orders are lost to it if each statement looks anew.

    The audit stops at its second table, which is locked, and goes on when the drain is through.
    """
    holder = await asyncpg.connect(dsn)
    async with holder.transaction():
        await holder.execute("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE")
        judged = asyncio.create_task(auditor.audit(sale.campaign))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await eventually(lambda: holder.fetchval(waits))
        async with running(make_worker(settings, ledger)):
            await drained(store)
    report = await judged
    await holder.close()
    assert report.ok, report
    assert report.persisted + report.in_flight == 20


async def test_audit_after_a_limit_was_lowered_has_no_false_alarm(
    finished: Sale, desk: CampaignDesk, auditor: Auditor, ledger: Pool
) -> None:
    """Who kept to the limit of the day is not over the limit of tomorrow; who passed both is."""
    known = await desk.show(finished.campaign)
    await desk.put(finished.campaign, msgspec.structs.replace(known.spec, limits=Limits(buyer=1)))
    assert (await auditor.audit(finished.campaign)).ok
    await ledger.execute("UPDATE order_items SET quantity = 4 WHERE line = 0")
    assert (await auditor.audit(finished.campaign)).over_limit == 20
