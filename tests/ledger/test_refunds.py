"""Money that goes back: booked with the move that causes it, asked for, reviewed, done; never more than was paid."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID
from msgspec.structs import replace

from core.desk import moves
from core.desk.campaigns import CampaignDesk
from core.desk.moves import Moved, Owner
from core.desk.orders import OWN_CALLS, OrderDesk
from core.desk.refunds import MAX_ASKED, RefundDesk, RefundUnknown
from core.errors import Conflicting, Fault, NotAllowed, OrderUnknown, Refused
from core.flows.table import Actor
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import Item, Refund, RefundRequest, RefundShare
from core.settings import Settings
from lua.connection import SharedConnection
from tests.ledger.support import Sale, drain, make_worker, row
from tests.ledger.test_lifecycle import ids, overdue, paid
from tests.support import SHARDS
from workers.expiry import ExpiryWorker
from workers.writer import LedgerWriter

ORDERS = 20
WHO: tuple[Actor, str, Owner] = ("buyer", "channel:app", Owner("app"))


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
def refunds(ledger: Pool) -> RefundDesk:
    return RefundDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """20 orders of three reds each, 300 minor units, in the ledger."""
    found = await Sale.open(desk, {"red": 100})
    await found.accept(store, ORDERS, ("red", 3))
    await drain(store, make_worker(settings, ledger))
    return found


async def booked(ledger: Pool, order: bytes) -> list[tuple[str, str, int]]:
    text = "SELECT refund_no, state, amount FROM refunds WHERE order_id = $1 ORDER BY at"
    return [tuple(r) for r in await ledger.fetch(text, UUID(order))]


async def asked(ledger: Pool, order: bytes) -> list[str]:
    """The numbers that messages of the outbox ask money back with."""
    text = "SELECT version FROM outbox WHERE order_id = $1 AND topic = 'refund' ORDER BY version"
    return [f"ref_{r[0]}" for r in await ledger.fetch(text, UUID(order))]


async def pay(orders: OrderDesk, order: bytes, number: str = "", **fields: Any) -> Moved:
    return await orders.pay(paid(order, number, **{"amount": 300} | fields), order)


async def ask(refunds: RefundDesk, order: bytes, **fields: Any) -> Refund:
    return await refunds.request(order, RefundRequest(**fields), *WHO)


@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_late_payment_is_booked_to_go_back_and_the_centres_word_ends_the_order(
    sale: Sale, orders: OrderDesk, ledger: Pool, end: str
) -> None:
    order = (await ids(ledger))[0]
    if end == "cancel":
        await orders.act(order, "cancel", "operator", "operator")
    else:
        await overdue(ledger)
        await ExpiryWorker(ledger, range(SHARDS)).step()
    assert (await pay(orders, order)).state == "refund_pending"
    assert await booked(ledger, order) == [("ref_3", "approved", 300)]
    assert await asked(ledger, order) == ["ref_3"]
    assert await pay(orders, order, "ref_3", status="refunded") == Moved("refunded", 4, True)
    assert await pay(orders, order, "ref_3", status="refunded") == Moved("refunded", 4, False)
    assert await booked(ledger, order) == [("ref_3", "done", 300)]


async def test_second_payment_goes_back_by_itself_and_the_order_goes_on(
    sale: Sale, orders: OrderDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    await pay(orders, order)
    assert await booked(ledger, order) == [("ref_3", "approved", 300)]
    assert await pay(orders, order, "ref_3", status="refunded") == Moved("paid", 3, False)
    assert (await orders.act(order, "cancel", *WHO)).state == "refund_pending"
    assert await booked(ledger, order) == [("ref_3", "done", 300), ("ref_4", "approved", 300)]
    assert (await pay(orders, order)).state == "refund_pending"  # a third one, while the first goes back
    assert (await pay(orders, order, "ref_4", status="refunded")).state == "refund_pending"
    assert (await pay(orders, order, "ref_5", status="refunded")).state == "refunded"


@pytest.mark.parametrize("way", [["cancel"], ["pick", "ship", "lost"], ["pick", "ship", "return", "goods_back"]])
async def test_whatever_undoes_a_paid_order_pays_back_all_of_it(
    sale: Sale, orders: OrderDesk, ledger: Pool, way: list[str]
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    for action in way:
        moved = await orders.act(order, action, "operator", "operator")
    assert moved.state == "refund_pending"
    assert await booked(ledger, order) == [(f"ref_{moved.version}", "approved", 300)]


@pytest.mark.parametrize(
    "wrong", [{"amount": 299}, {"currency": "EUR"}, {"number": "ref_9"}, {"number": "req_2"}, {"number": "ref_2"}]
)
async def test_repayment_that_nobody_asked_for_is_refused_and_changes_nothing(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool, wrong: dict[str, Any]
) -> None:
    order = (await ids(ledger))[0]
    await orders.act(order, "cancel", *WHO)
    await pay(orders, order)
    fields = {"number": "ref_3", "status": "refunded"} | wrong
    with pytest.raises(Conflicting):
        await pay(orders, order, **fields)
    assert await booked(ledger, order) == [("ref_3", "approved", 300)]


async def test_refund_in_part_is_asked_for_approved_and_done(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    wanted = await ask(refunds, order, amount=100, reason="scratched")
    assert (wanted.refund_no, wanted.state, wanted.amount) == ("req_3", "requested", 100)
    assert wanted.lines == [RefundShare("red", 0, 100)]
    assert await ask(refunds, order, amount=100) == replace(wanted, repeated=True)  # while it waits
    assert await asked(ledger, order) == []
    approved = await refunds.approve(order, "req_3", "operator")
    assert (approved.refund_no, approved.request_no, approved.state) == ("ref_4", "req_3", "approved")
    assert await refunds.approve(order, "req_3", "operator") == approved
    assert await refunds.approve(order, "ref_4", "operator") == approved
    assert await asked(ledger, order) == ["ref_4"]
    assert await pay(orders, order, "ref_4", amount=100, status="refunded") == Moved("paid", 4, False)
    assert [r.state for r in await refunds.list(order, Owner("app"))] == ["done"]
    with pytest.raises(NotAllowed):
        await refunds.reject(order, "req_3", "operator")
    assert (await orders.act(order, "cancel", *WHO)).version == 5
    assert (await booked(ledger, order))[1:] == [("ref_5", "approved", 200)]  # the rest


async def test_refund_of_units_costs_what_they_cost_and_no_unit_goes_back_twice(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    two = await ask(refunds, order, lines=[Item("red", 1), Item("red", 1)])
    assert (two.amount, two.lines) == (200, [RefundShare("red", 2, 200)])
    await refunds.approve(order, two.refund_no, "operator")
    with pytest.raises(Conflicting) as refused:
        await ask(refunds, order, lines=[Item("red", 2)])
    assert refused.value.field == "lines"
    with pytest.raises(Conflicting):
        await ask(refunds, order, lines=[Item("blue", 1)])
    assert (await ask(refunds, order)).amount == 100  # all that is left


async def test_units_under_review_cannot_be_asked_for_by_another_request(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    two = await ask(refunds, order, lines=[Item("red", 2)])
    with pytest.raises(Conflicting, match=r"^1 of red can still"):
        await ask(refunds, order, lines=[Item("red", 3)])
    assert await ask(refunds, order, lines=[Item("red", 2)]) == replace(two, repeated=True)
    await refunds.reject(order, two.refund_no, "operator")
    assert (await ask(refunds, order, lines=[Item("red", 3)])).amount == 300


async def test_units_of_a_discounted_order_go_back_one_by_one_to_the_last_minor_unit(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    """Seven units at 100 for 500 in all: four cost 71, three 72; asked for at once, decided in another order."""
    part, lines = sale.parts[0], [("blue", 3, 100), ("red", 4, 100)]
    made = row(ORDERS + 1, part.shard, sale.campaign, items=lines, amount=500)
    await LedgerWriter(ledger).write([made], [])
    order = made.order_id
    await pay(orders, order, amount=500)
    first = [await ask(refunds, order, lines=[Item("red", n)]) for n in (1, 2)]
    blue = await refunds.grant(order, RefundRequest(lines=[Item("blue", 3)]), "operator")
    assert blue.amount == 214
    await refunds.reject(order, first[0].refund_no, "operator")
    await refunds.approve(order, first[1].refund_no, "operator")
    for _ in range(2):
        last = await ask(refunds, order, lines=[Item("red", 1)])
        await refunds.approve(order, last.refund_no, "operator")
    amounts = [r[2] for r in await booked(ledger, order) if r[1] == "approved"]
    assert sum(amounts) == 500
    assert {71, 72} >= set(amounts[-2:])
    with pytest.raises(Conflicting, match=r"^0 of red can still"):
        await ask(refunds, order, lines=[Item("red", 1)])


async def test_granted_refund_is_approved_at_once_and_again_is_that_one_until_it_is_done(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    with pytest.raises(NotAllowed):
        await refunds.grant(order, RefundRequest(), "operator")
    await pay(orders, order)
    one = RefundRequest(lines=[Item("red", 1)], reason="scratched")
    granted = await refunds.grant(order, one, "operator")
    assert (granted.refund_no, granted.state, granted.amount, granted.reason) == ("ref_3", "approved", 100, "scratched")
    assert await refunds.grant(order, one, "operator") == replace(granted, repeated=True)
    assert await asked(ledger, order) == ["ref_3"]
    assert (await refunds.grant(order, RefundRequest(lines=[Item("red", 1)]), "operator")).refund_no == "ref_4"
    assert await pay(orders, order, "ref_3", amount=100, status="refunded") == Moved("paid", 4, False)
    with pytest.raises(Conflicting):
        await refunds.grant(order, RefundRequest(amount=101), "operator")
    rest = await refunds.grant(order, RefundRequest(), "operator")
    assert (rest.amount, rest.reason) == (100, "refund_approved")
    assert await refunds.grant(order, RefundRequest(), "operator") == replace(rest, repeated=True)
    assert [e.actor for e in await orders.events(order, 2)] == ["operator"] * 3
    assert await orders.act(order, "cancel", *WHO) == Moved("refund_pending", 6, True)  # nothing more is asked back
    assert await asked(ledger, order) == ["ref_3", "ref_4", "ref_5"]
    with pytest.raises(NotAllowed):
        await refunds.grant(order, RefundRequest(amount=1), "operator")


async def test_all_that_is_left_is_paid_back_though_it_equals_an_earlier_refund(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]  # of 300
    await pay(orders, order)
    first = await refunds.grant(order, RefundRequest(amount=100), "operator")
    half = await refunds.grant(order, RefundRequest(amount=100, reason="again"), "operator")
    rest = await refunds.grant(order, RefundRequest(), "operator")
    assert (first.amount, half.amount, rest.amount) == (100, 100, 100)
    assert len({first.refund_no, half.refund_no, rest.refund_no}) == 3
    assert not rest.repeated
    assert await refunds.grant(order, RefundRequest(), "operator") == replace(rest, repeated=True)
    assert len(await asked(ledger, order)) == 3


async def test_operator_confirms_a_refund_that_the_payment_centre_never_reported(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    part = await ask(refunds, order, amount=60)
    with pytest.raises(NotAllowed) as refused:  # nobody has approved it
        await refunds.confirm(order, part.refund_no, "operator")
    assert str(refused.value) == (
        "`confirm` is not possible for a refund that is requested; allowed now: approve, reject"
    )
    assert refused.value.allowed == ["approve", "reject"]
    booked = (await refunds.approve(order, part.refund_no, "operator")).refund_no
    await orders.act(order, "cancel", *WHO)
    rest = next(r for r in await refunds.list(order, None) if r.state == "approved" and r.refund_no != booked)
    with pytest.raises(NotAllowed) as refused:
        await orders.operate(order, "refunded", "operator")
    assert (str(refused.value), refused.value.allowed) == (OWN_CALLS["refunded"], ["refunded"])
    assert (await refunds.confirm(order, booked, "operator")).state == "done"
    assert (await orders.events(order, 4))[-1].to_state == "refund_pending"  # the rest is still due
    assert (await refunds.confirm(order, rest.refund_no, "operator")).state == "done"
    assert await refunds.confirm(order, rest.refund_no, "operator") == next(
        r for r in await refunds.list(order, None) if r.refund_no == rest.refund_no
    )
    # The centre's own word comes after all, and changes nothing.
    late = await pay(orders, order, rest.refund_no, amount=rest.amount, status="refunded")
    assert (late.state, late.moved) == ("refunded", False)
    assert (await orders.events(order, 5))[-1].actor == "operator"


async def test_confirmed_refund_is_asked_of_the_payment_centre_no_more(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    """Neither by the relay nor by a replay of what it could not deliver."""
    order = (await ids(ledger))[0]
    await pay(orders, order)
    waiting = await refunds.grant(order, RefundRequest(amount=1), "operator")
    given_up = await refunds.grant(order, RefundRequest(amount=2), "operator")
    other = await refunds.grant(order, RefundRequest(amount=3), "operator")
    await ledger.execute(
        "WITH gone AS (DELETE FROM outbox WHERE topic = 'refund' AND version = $1 RETURNING *) "
        "INSERT INTO dead_messages SELECT shard, order_id, version, topic, at, now(), 12, 'away' FROM gone",
        int(given_up.refund_no.removeprefix("ref_")),
    )
    for refund in (waiting, given_up):
        assert (await refunds.confirm(order, refund.refund_no, "operator")).state == "done"
    assert await asked(ledger, order) == [other.refund_no]
    assert await ledger.fetchval("SELECT count(*) FROM dead_messages") == 0


async def test_operator_makes_any_step_that_needs_no_more_than_its_name(
    sale: Sale, orders: OrderDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    for action in OWN_CALLS.keys() - {"refunded"}:
        with pytest.raises(NotAllowed) as refused:
            await orders.operate(order, action, "operator")
        assert str(refused.value).startswith(OWN_CALLS[action])
        assert "suspend" in refused.value.allowed
    for action in ("urge", "expire", "resume", "pay", "nonsense"):
        with pytest.raises(NotAllowed, match=f"^`{action}` is not possible for an order that is paid"):
            await orders.operate(order, action, "operator")
    for action in ("pick", "ship", "receive", "return", "reject_return", "complete_early"):
        moved = await orders.operate(order, action, "operator")
    assert moved == Moved("completed", 8, True)
    assert await asked(ledger, order) == []
    with pytest.raises(NotAllowed, match=r"^`change` is not possible for an order that is completed; "):
        await orders.operate(order, "change", "operator")


async def test_rejected_refund_stays_rejected_and_requests_lapse_when_all_goes_back(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await pay(orders, order)
    one, other = await ask(refunds, order, amount=1), await ask(refunds, order, amount=2)
    rejected = await refunds.reject(order, one.refund_no, "operator")
    assert await refunds.reject(order, one.refund_no, "operator") == rejected
    with pytest.raises(NotAllowed):
        await refunds.approve(order, one.refund_no, "operator")
    await orders.act(order, "cancel", *WHO)
    assert [r.state for r in await refunds.list(order, None)] == ["rejected", "rejected", "approved"]
    with pytest.raises(NotAllowed):
        await refunds.approve(order, other.refund_no, "operator")


async def test_requests_are_refused_where_they_make_no_sense(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    with pytest.raises(NotAllowed):
        await ask(refunds, order, amount=1)
    await pay(orders, order)
    with pytest.raises(Conflicting):
        await ask(refunds, order, amount=301)
    with pytest.raises(OrderUnknown):
        await refunds.request(order, RefundRequest(amount=1), "buyer", "channel:web", Owner("web"))
    with pytest.raises(OrderUnknown):
        await refunds.list(order, Owner("web"))
    with pytest.raises(RefundUnknown):
        await refunds.approve(order, "req_99", "operator")
    for amount in range(1, MAX_ASKED + 1):
        await ask(refunds, order, amount=amount)
    with pytest.raises(Refused):
        await ask(refunds, order, amount=200)
    await orders.act(order, "pick", "warehouse", "warehouse")
    await orders.act(order, "ship", "warehouse", "warehouse")
    await orders.act(order, "receive", *WHO)
    with pytest.raises(Refused, match="review"):
        await orders.act(order, "complete_early", "operator", "operator")


async def test_order_whose_money_has_all_gone_back_is_refunded_without_another_message(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool
) -> None:
    one, other = (await ids(ledger))[:2]
    for order in (one, other):
        await pay(orders, order)
        await refunds.approve(order, (await ask(refunds, order)).refund_no, "operator")
    await pay(orders, one, "ref_4", status="refunded")
    assert await orders.act(one, "cancel", *WHO) == Moved("refunded", 6, True)
    assert (await orders.act(other, "cancel", *WHO)).state == "refund_pending"
    assert (await pay(orders, other, "ref_4", status="refunded")).state == "refunded"
    assert (await asked(ledger, one), await asked(ledger, other)) == (["ref_4"], ["ref_4"])


async def race(orders: OrderDesk, refunds: RefundDesk, ledger: Pool, doers: str) -> int:
    """Each order's refund of 200 is approved and something else happens at once; orders with more back than paid."""

    async def one(order: bytes) -> None:
        async def quietly(call: Any) -> None:
            try:
                await call
            except (NotAllowed, Conflicting):
                return

        number = (await ask(refunds, order, amount=200)).refund_no
        other = (await ask(refunds, order, amount=150)).refund_no
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "cancel": lambda: orders.act(order, "cancel", *WHO),
            "approve": lambda: refunds.approve(order, other, "operator"),
            "grant": lambda: refunds.grant(order, RefundRequest(amount=150), "operator"),
            "pay": lambda: pay(orders, order, f"again-{order.hex()}"),
        }
        await asyncio.gather(*(quietly(c) for c in (refunds.approve(order, number, "operator"), calls[doers]())))

    every = await ids(ledger)
    for order in every:
        await pay(orders, order)
    await asyncio.gather(*(one(order) for order in every))
    over: int = await ledger.fetchval("""
        SELECT count(*) FROM orders o WHERE
            (SELECT coalesce(sum(amount), 0) FROM refunds r
             WHERE r.order_id = o.order_id AND state IN ('approved', 'done'))
            > (SELECT sum(amount) FROM payments p WHERE p.order_id = o.order_id AND status = 'paid')""")
    return over


@pytest.mark.parametrize("doers", ["cancel", "approve", "grant", "pay"])
async def test_race_of_a_refund_never_pays_back_more_than_was_paid(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool, doers: str
) -> None:
    assert await race(orders, refunds, ledger, doers) == 0
    unasked = await ledger.fetchval("""
        SELECT count(*) FROM refunds r FULL JOIN (SELECT * FROM outbox WHERE topic = 'refund') m
            ON m.order_id = r.order_id AND r.refund_no = 'ref_' || m.version
        WHERE m.order_id IS NULL AND r.state = 'approved' OR r.order_id IS NULL""")
    assert unasked == 0


async def test_control_without_the_lock_a_race_pays_back_too_much(
    sale: Sale, orders: OrderDesk, refunds: RefundDesk, ledger: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the order's row is read and not locked. If it fails, the race tests prove nothing."""

    async def slow_totals(connection: Any, order: Any) -> moves.Totals:
        found = moves.Totals(**dict(await connection.fetchrow(query("order_totals"), order.shard, order.uuid)))
        await asyncio.sleep(0.005)  # the other one reads, too
        return found

    monkeypatch.setattr(
        moves, "query", lambda name: query(name).replace(" FOR UPDATE", "") if name == "lock_order" else query(name)
    )
    monkeypatch.setattr("core.desk.refunds.totals", slow_totals)
    monkeypatch.setattr(moves, "totals", slow_totals)
    assert await race(orders, refunds, ledger, "approve") > 0


def test_faults_of_refunds_have_codes_of_their_own() -> None:
    assert issubclass(RefundUnknown, Fault)
    assert (RefundUnknown.status, RefundUnknown.code) == (404, "unknown_refund")
