"""Callbacks that come early, late, twice, contradictory or forged, at the gateway's own routes: each has its answer.

The routes run in this process, on the real store and ledger, so that a test decides when the ledger worker works. What
a whole stack answers: tests/e2e/test_lifecycle.py.
"""

import base64
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from asyncpg.pgproto.pgproto import UUID
from starlette.applications import Starlette
from starlette.types import Message

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.ids import text_of
from core.ledger.pool import Pool
from core.settings import Settings
from core.signing import Signer
from gateway.access import Access
from gateway.catalogue import Catalogue
from gateway.lifecycle_callbacks import Callbacks
from gateway.lifecycle_calls import Calls
from gateway.lookup import Lookup
from lua.connection import SharedConnection
from lua.keys import sale_keys
from tests.ledger.invariants import invariants
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_lifecycle import overdue
from tests.support import SHARDS, tell
from workers.expiry import ExpiryWorker

OLD, NEW, FOREIGN = ("whsec_" + base64.b64encode(c * 32).decode() for c in (b"o", b"n", b"f"))
PAYMENT, WAREHOUSE = "/v1/payments/callback", "/v1/partners/warehouse/callback"
_numbers = itertools.count(1)


class Reply(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    json: dict[str, Any]

    @property
    def code(self) -> str:
        return str(self.json.get("code", ""))


class Desk:
    """The routes with these secrets, and an order that the store has accepted."""

    def __init__(self, store: SharedConnection, ledger: Pool, secrets: list[str]) -> None:
        lookup = Lookup(Catalogue(store, ledger, SHARDS), store, ledger)
        calls = Calls(Access({}, ""), lookup, 1)
        signer = Signer(secrets) if secrets else None
        self._app = Starlette(routes=Callbacks(calls, OrderDesk(ledger, SHARDS), signer, signer).routes())

    async def send(self, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        """One request, without a socket."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": pairs, "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip
        await self._app(scope, receive, send)
        body = b"".join(m.get("body", b"") for m in sent[1:])
        return Reply(sent[0]["status"], dict(sent[0]["headers"]), json.loads(body))

    async def pay(self, order: bytes, secret: str = NEW, at_s: float = 0.0, **fields: Any) -> Reply:
        """A payment of 100 CNY, signed `at_s` seconds from now; `fields` replace parts of it."""
        values = {"payment_no": f"c-{next(_numbers)}", "order_id": text_of(order), "amount": 100, "currency": "CNY",
                  "status": "paid", "paid_at": datetime.now(UTC).isoformat()}  # fmt: skip
        body = json.dumps(values | fields).encode()
        return await self.send(PAYMENT, body, signed(body, secret, at_s))

    async def report(self, order: bytes, action: str) -> Reply:
        """The warehouse's report."""
        body = json.dumps({"order_id": text_of(order), "action": action, "at": datetime.now(UTC).isoformat()}).encode()
        return await self.send(WAREHOUSE, body, signed(body))


def signed(body: bytes, secret: str = NEW, at_s: float = 0.0) -> dict[str, str]:
    return Signer([secret]).sign(f"msg-{next(_numbers)}", int(time.time() + at_s), body)


@pytest.fixture
def desk_of(store: SharedConnection, ledger: Pool) -> Callable[..., Desk]:
    """Routes with these secrets, the newest first."""
    return lambda *secrets: Desk(store, ledger, list(secrets))


@pytest.fixture
def callbacks(desk_of: Callable[..., Desk]) -> Desk:
    return desk_of(NEW)


@pytest.fixture
async def sale(desk: CampaignDesk, store: SharedConnection) -> Sale:
    """Two orders, accepted by the store and still in its intake."""
    found = await Sale.open(desk, {"red": 5})
    await found.accept(store, 2, ("red", 1))
    return found


@pytest.fixture
async def order(sale: Sale, store: SharedConnection) -> bytes:
    keys = await tell(store, "HKEYS", sale_keys(sale.parts[0].shard, sale.campaign).holds)
    return bytes(min(keys))


@pytest.fixture
def drains(settings: Settings, ledger: Pool, store: SharedConnection) -> Callable[[], Awaitable[None]]:
    """The ledger worker takes all that was accepted."""

    async def all_of_it() -> None:
        await drain(store, make_worker(settings, ledger))

    return all_of_it


async def record(ledger: Pool) -> tuple[int, int]:
    """Payments and moves on record."""
    moves = await ledger.fetchval("SELECT count(*) FROM order_events WHERE version > 1")
    return await ledger.fetchval("SELECT count(*) FROM payments"), moves


async def test_callback_before_the_ledger_has_the_order_is_told_to_come_again_and_then_counts(
    callbacks: Desk, order: bytes, drains: Callable[[], Awaitable[None]], ledger: Pool, auditor: Auditor, sale: Sale,
    store: SharedConnection,
) -> None:  # fmt: skip
    for reply in (await callbacks.pay(order, payment_no="early"), await callbacks.report(order, "pick")):
        assert (reply.status, reply.code) == (503, "on_its_way")
        assert reply.headers[b"retry-after"].isdigit()
    assert await record(ledger) == (0, 0)
    await drains()
    reply = await callbacks.pay(order, payment_no="early")
    assert (reply.status, reply.json) == (200, {"state": "paid", "version": 2, "moved": True})
    assert (await callbacks.report(order, "pick")).json["state"] == "picking"
    assert await record(ledger) == (1, 2)
    await invariants(auditor, store, ledger, sale)


async def test_callback_that_comes_again_is_answered_alike_and_changes_nothing(
    callbacks: Desk, order: bytes, drains: Callable[[], Awaitable[None]], ledger: Pool
) -> None:
    await drains()
    first = await callbacks.pay(order, payment_no="same")
    again = [await callbacks.pay(order, payment_no="same") for _ in range(3)]
    assert (first.status, first.json["moved"]) == (200, True)
    assert {(r.status, r.json["state"], r.json["version"], r.json["moved"]) for r in again} == {(200, "paid", 2, False)}
    await callbacks.report(order, "pick")
    late = await callbacks.pay(order, payment_no="same")  # the order has gone on
    assert (late.status, late.json) == (200, {"state": "picking", "version": 3, "moved": False})
    assert await record(ledger) == (1, 2)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_callback_after_the_end_is_taken_and_its_money_goes_back_once(
    callbacks: Desk, order: bytes, drains: Callable[[], Awaitable[None]], ledger: Pool, end: str
) -> None:
    await drains()
    if end == "expired":
        await overdue(ledger)
        await ExpiryWorker(ledger, range(SHARDS)).step()
    else:
        await OrderDesk(ledger, SHARDS).act(order, "cancel", "buyer", "channel:app")
    for moved in (True, False):
        reply = await callbacks.pay(order, payment_no="late")
        assert (reply.status, reply.json["state"], reply.json["moved"]) == (200, "refund_pending", moved)
    refused = await callbacks.pay(order, payment_no="ref_3", status="refunded", amount=99)
    assert (refused.status, refused.code, refused.json["field"]) == (409, "contradicts", "amount")
    for moved in (True, False):
        reply = await callbacks.pay(order, payment_no="ref_3", status="refunded")
        assert (reply.json["state"], reply.json["moved"]) == ("refunded", moved)
    asked = "SELECT count(*) FROM outbox WHERE order_id = $1 AND topic = 'refund'"
    assert await ledger.fetchval(asked, UUID(order)) == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"amount": 99}, "amount"), ({"amount": 10_000}, "amount"), ({"currency": "EUR"}, "currency"),
        ({"payment_no": "known", "status": "failed"}, "payment_no"),
        ({"payment_no": "known", "amount": 99}, "amount"),
        ({"payment_no": "ref_2", "status": "refunded"}, "payment_no"),
    ],
)  # fmt: skip
async def test_callback_that_contradicts_names_its_field_and_leaves_no_trace(
    callbacks: Desk, order: bytes, drains: Callable[[], Awaitable[None]], ledger: Pool, wrong: dict[str, Any],
    field: str,
) -> None:  # fmt: skip
    await drains()
    await callbacks.pay(order, payment_no="known")
    reply = await callbacks.pay(order, **wrong)
    assert (reply.status, reply.code, reply.json["field"]) == (409, "contradicts", field)
    assert await record(ledger) == (1, 1)


async def test_payment_of_an_order_that_is_gone_is_found_in_the_log(
    callbacks: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Orders that a lost disk cost may have been paid: the payment centre is asked by the message, the buyer by the
    order."""
    gone = UUID("0192f7c1-0000-7000-8000-000000000000").bytes
    reply = await callbacks.pay(gone)
    assert (reply.status, reply.code) == (404, "unknown_order")
    [record] = [r for r in caplog.records if r.getMessage() == "callback refused"]
    assert record.__dict__["order_id"] == text_of(gone)
    assert record.__dict__["trace_id"] == gone.hex()
    assert record.__dict__["message_id"].startswith("msg-")


async def test_callback_with_the_number_of_another_order_is_refused(
    callbacks: Desk, order: bytes, sale: Sale, drains: Callable[[], Awaitable[None]], ledger: Pool
) -> None:
    await drains()
    other = await ledger.fetchval("SELECT order_id FROM orders WHERE order_id <> $1", UUID(order))
    assert (await callbacks.pay(order, payment_no="mine")).status == 200
    reply = await callbacks.pay(other.bytes, payment_no="mine")
    assert (reply.status, reply.code, reply.json["field"]) == (409, "contradicts", "payment_no")
    assert await ledger.fetchval("SELECT state FROM orders WHERE order_id = $1", other) == "accepted"


BODIES = [b"", b"no json", b"\xff\xfe", b"[" * 10_000, b'{"payment_no": 1}', b'{"order_id": "nonsense"}']


@pytest.mark.parametrize("path", [PAYMENT, WAREHOUSE])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_body_is_not_looked_at_before_its_signature(callbacks: Desk, path: str, body: bytes) -> None:
    """Forged: 401 whatever it holds. Signed: what is wrong with it."""
    for headers in ({}, signed(body, FOREIGN), signed(body + b" "), signed(body, at_s=-302), signed(body, at_s=302)):
        reply = await callbacks.send(path, body, headers)
        assert (reply.status, reply.code) == (401, "signature_invalid")
    reply = await callbacks.send(path, body, signed(body))
    assert reply.status in (400, 422)
    assert reply.code in ("malformed", "invalid")


async def test_secrets_are_rotated_without_a_refused_callback(
    desk_of: Callable[..., Desk], order: bytes, drains: Callable[[], Awaitable[None]], ledger: Pool
) -> None:
    await drains()
    before, meanwhile, after = desk_of(OLD), desk_of(NEW, OLD), desk_of(NEW)
    for routes, secret in ((before, OLD), (meanwhile, OLD), (meanwhile, NEW), (after, NEW)):
        assert (await routes.pay(order, secret, payment_no="one")).status == 200
    for routes, secret in ((before, NEW), (after, OLD), (meanwhile, FOREIGN), (desk_of(), NEW)):
        reply = await routes.pay(order, secret, payment_no="other")
        assert (reply.status, reply.code) == (401, "signature_invalid")
    for at_s in (-290, 290):
        assert (await after.pay(order, at_s=at_s, payment_no="one")).status == 200
    assert await record(ledger) == (1, 1)
