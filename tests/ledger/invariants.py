"""The invariants of a campaign and its orders, judged by what store and ledger hold at any moment of its life.

Numbers as in the project's design: 1 never oversold, 2 never lost, 3 no phantom, 4 one outcome a key, 5 the balance,
6 limits, 7 sold out only when nothing is left, 8 gap-free events along the flow, 9 one winner and stock back once,
10 every message once. Not to be read from here: 11 (overload; the gateway's tests) and 12 (healing: whoever calls this
after a fault shows it).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.flows import FLOWS
from core.flows.table import Flow
from core.ledger.pool import Pool
from core.model import AuditReport
from lua.connection import SharedConnection
from tests.ledger.support import Sale, intake
from tests.support import tell

HOLDING = ("accepted", "allocating")  # states in which an order's hold has not ended
STORE_TOPICS = ("settle", "release", "restock", "allocate")

ORDERS = """
    SELECT o.order_id, o.state, o.version, coalesce(c.spec ->> 'order_type', 'goods') AS order_type,
        (SELECT coalesce(sum(amount), 0) FROM payments p
         WHERE p.shard = o.shard AND p.order_id = o.order_id AND p.status = 'paid') AS paid
    FROM orders o JOIN campaigns c USING (campaign) WHERE o.campaign = $1"""
EVENTS = """
    SELECT e.* FROM order_events e JOIN orders o USING (shard, order_id)
    WHERE o.campaign = $1 ORDER BY e.order_id, e.version"""
MESSAGES = """
    SELECT m.* FROM (
        SELECT shard, order_id, version, topic, 'waits' AS at, '' AS outcome FROM outbox
        UNION ALL SELECT shard, order_id, version, topic, 'done', outcome FROM deliveries
        UNION ALL SELECT shard, order_id, version, topic, 'dead', reason FROM dead_messages
    ) m JOIN orders o USING (shard, order_id) WHERE o.campaign = $1"""
REFUNDS = "SELECT r.* FROM refunds r JOIN orders o USING (shard, order_id) WHERE o.campaign = $1"
UNITS = """
    SELECT i.order_id, i.sku, sum(i.quantity)::bigint AS units FROM order_items i JOIN orders o USING (shard, order_id)
    WHERE o.campaign = $1 GROUP BY i.order_id, i.sku"""
RETURNS = """
    SELECT substr(move_id, 8, 36)::uuid AS order_id, sku, units, state FROM stock_moves
    WHERE campaign = $1 AND kind = 'return'"""

Record = asyncpg.Record


class Story(NamedTuple):
    """All that the ledger has of one order."""

    order: Record
    flow: Flow
    events: list[Record]
    messages: list[Record]
    refunds: list[Record]
    units: dict[str, int]
    returned: list[Record]  # units that went on sale again, by SKU

    def told(self) -> set[tuple[int, str]]:
        """Version and topic of each message that came to be."""
        return {(m["version"], m["topic"]) for m in self.messages}


async def stories(ledger: Pool, campaign: str) -> list[Story]:
    """The orders of a campaign, in one snapshot."""
    async with ledger.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        orders = await connection.fetch(ORDERS, campaign)
        parts: list[dict[Any, list[Record]]] = []
        for text in (EVENTS, MESSAGES, REFUNDS, UNITS, RETURNS):
            found: dict[Any, list[Record]] = defaultdict(list)
            for row in await connection.fetch(text, campaign):
                found[row["order_id"]].append(row)
            parts.append(found)
    events, messages, refunds, units, returned = parts
    return [
        Story(
            o, FLOWS[o["order_type"]], events[i], messages[i], refunds[i],
            {r["sku"]: r["units"] for r in units[i]}, returned[i],
        )
        for o in orders for i in [o["order_id"]]
    ]  # fmt: skip


def faults(story: Story) -> Iterator[str]:
    """What is wrong with an order; nothing, if all is well."""
    for law in (_events, _hold, _messages, _money):
        yield from (f"order {story.order['order_id']}: {fault}" for fault in law(story))


async def faulty(ledger: Pool, campaign: str) -> list[UUID]:
    """Orders that break an invariant: what a race without its guard leaves behind."""
    return [s.order["order_id"] for s in await stories(ledger, campaign) if any(faults(s))]


def _events(story: Story) -> Iterator[str]:
    """Invariant 8."""
    order, events = story.order, story.events
    if [e["version"] for e in events] != list(range(1, order["version"] + 1)):
        yield f"version {order['version']}, events {[e['version'] for e in events]}"
    state = None
    for event in events:
        if event["from_state"] != state:
            yield f"{event['action']} left {event['from_state']} while the order was in {state}: two winners"
        state = event["to_state"]
        if event["from_state"] is None:
            right = (event["action"], state) == ("accept", story.flow.first)
        else:
            step = story.flow.step(event["from_state"], event["action"])
            right = step is not None and (step.to, step.reason) == (state, event["reason"])
        if not right:
            yield f"no such step: {event['from_state']} {event['action']} {state} {event['reason']}"
    if order["state"] != state:
        yield f"in {order['state']}, its last event led to {state}"


def _hold(story: Story) -> Iterator[str]:
    """Invariant 9: the hold ends once, units come back at most once, and as many as were sold."""
    topics = Counter(topic for _, topic in story.told())
    if topics["settle"] + topics["release"] != (story.order["state"] not in HOLDING):
        yield f"in {story.order['state']}, {topics['settle']} times settled, {topics['release']} times released"
    if topics["restock"] > min(1, topics["settle"]):
        yield f"{topics['restock']} times given back, {topics['settle']} times settled"
    effects = Counter(m["topic"] for m in story.messages if m["outcome"] in ("settled", "released", "returned"))
    if effects["settle"] + effects["release"] > 1 or effects["restock"] > 1:
        yield f"an effect twice: {dict(effects)}"
    back = Counter({r["sku"]: 0 for r in story.returned})
    for row in story.returned:
        back[row["sku"]] += row["units"]
    if back and back != Counter(story.units):
        yield f"of {story.units} units {dict(back)} came back"
    done = any(m["topic"] == "restock" and m["at"] == "done" for m in story.messages)
    if done and (not back or any(r["state"] != "applied" for r in story.returned)):
        yield "a delivered return that is not in the journal of stock"


def _messages(story: Story) -> Iterator[str]:
    """Invariant 10: each event's messages came to be, none else, and each is in one place."""
    wanted = {(1, "payment")}
    for event in story.events:
        step = story.flow.step(event["from_state"] or "", event["action"])
        wanted |= {(event["version"], topic) for topic in (step.messages if step else ()) if topic != "refund"}
    wanted |= {(int(r["refund_no"][4:]), "refund") for r in story.refunds if r["refund_no"].startswith("ref_")}
    if wanted != story.told():
        yield f"messages missing {sorted(wanted - story.told())}, unasked {sorted(story.told() - wanted)}"
    places = Counter((m["version"], m["topic"]) for m in story.messages)
    yield from (f"message {one} is in two places" for one, count in places.items() if count > 1)


def _money(story: Story) -> Iterator[str]:
    """Never more back than was paid; all of it wherever the order is undone; no wait for money that is not due."""
    state, paid = story.order["state"], story.order["paid"]
    booked = sum(r["amount"] for r in story.refunds if r["state"] in ("approved", "done"))
    if booked > paid:
        yield f"{booked} paid back of {paid}"
    if state in ("refund_pending", "refunded", "cancelled", "expired") and booked != paid:
        yield f"{state}, with {paid} paid and {booked} paid back"
    if state == "refund_pending" and not any(r["state"] == "approved" for r in story.refunds):
        yield "waits for money that nobody owes: for ever"
    if state in ("accepted", "cancelled", "expired", "refunded") and any(
        r["state"] == "requested" for r in story.refunds
    ):
        yield f"{state}, with a refund under review"


async def invariants(
    auditor: Auditor, store: SharedConnection, ledger: Pool, sale: Sale, *, ended: bool = False
) -> AuditReport:
    """All invariants hold now; the audit's report. `ended`: every order is at an end, and the store has heard of it.

    Of 7 the caller judges `unsold`: it knows the demand.
    """
    report = await auditor.audit(sale.campaign)  # 1, 2, 3, 5, 6
    assert report.ok, report.findings or report
    assert report.accepted == report.persisted + report.dead_lettered + report.in_flight
    told = await stories(ledger, sale.campaign)
    found = [fault for story in told for fault in faults(story)]
    assert found == []
    by_key: set[bytes] = set()
    holds: set[bytes] = set()
    for part in sale.parts:
        values = await tell(store, "HVALS", part.keys.requests)
        ids = {value[:16] for value in values}
        assert len(ids) == len(values), "one order for two keys"  # 4
        by_key |= ids
        holds |= set(await tell(store, "HKEYS", part.keys.holds))
    ours = {s.order["order_id"].bytes for s in told}
    if not report.in_flight and not report.dead_lettered:
        assert ours == by_key, "an order without a request, or a request without an order"  # 3, 4
    waits = any(m["topic"] in STORE_TOPICS and m["at"] != "done" for s in told for m in s.messages)
    if not waits and not await intake(store, sale.shards):
        assert holds == {s.order["order_id"].bytes for s in told if s.order["state"] in HOLDING}, (
            "a hold left open"
        )  # 7
    if ended:
        assert {s.order["state"] for s in told} <= {end for s in told for end in s.flow.ends}
        assert not waits, "messages for the store wait"
        assert (holds, report.in_flight) == (set(), 0)
    return report
