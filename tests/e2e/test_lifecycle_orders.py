"""What buyers, operators and partners do with an order over HTTP: who may, what is refused, what again is nothing."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.support import ADMIN, APP_KEY, PARTNER_SECRET, WEB_KEY, Client, Reply, Up, bearer, until
from tests.e2e.test_lifecycle import accepted, paid, signed

NOBODY = "0192f7c1-0000-7000-8000-000000000000"
SHIP_TO = {"name": "Anna", "phone": "+86 1", "address": "Nanjing Road 1"}


def send(client: Client, method: str, order: str, end: str, body: Any = None, key: str = APP_KEY) -> Reply:
    """One call about an order; again while the order is on its way to the ledger."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()

    def once() -> Reply | None:
        reply = client.call(method, f"/v1/orders/{order}{end}", data, bearer(key))
        return None if reply.status == 503 and reply.code == "on_its_way" else reply

    found: Reply = until(once)
    return found


def report(client: Client, partner: str, order: str, action: str, secret: str = PARTNER_SECRET) -> Reply:
    """A partner's signed callback."""
    data = json.dumps({"order_id": order, "action": action, "at": datetime.now(UTC).isoformat()}).encode()
    return client.call("POST", f"/v1/partners/{partner}/callback", data, signed(secret, data))


@pytest.fixture
def order(stack: Up, client: Client) -> str:
    """A paid order of one red unit."""
    found = accepted(client, client.sale({"red": 3}))
    assert paid(stack, found).status == 200
    return found


CALLS = [
    ("POST", "/cancel", None), ("POST", "/confirm-receipt", None), ("POST", "/returns", None), ("POST", "/urge", None),
    ("PATCH", "", {"ship_to": SHIP_TO}), ("POST", "/refunds", {}), ("GET", "/refunds", None), ("GET", "/trace", None),
    ("GET", "", None), ("GET", "/events", None),
]  # fmt: skip
OPERATOR = [
    ("POST", "/actions/pick"),
    ("POST", "/suspend"),
    ("POST", "/resume"),
    ("POST", "/refunds/x/approve"),
    ("POST", "/refunds/x/reject"),
]


@pytest.mark.parametrize(("method", "end", "body"), CALLS)
def test_order_is_unknown_to_another_channel_and_to_a_wrong_key(
    client: Client, order: str, method: str, end: str, body: Any
) -> None:
    assert send(client, method, order, end, body, WEB_KEY).code == "unknown_order"
    assert send(client, method, NOBODY, end, body).code == "unknown_order"
    assert send(client, method, "nonsense", end, body).status == 404
    assert send(client, method, order, end, body, "wrong").status == 401
    assert len(send(client, "GET", order, "/trace").json["steps"]) >= 2


@pytest.mark.parametrize(("method", "end"), OPERATOR)
def test_operators_calls_need_the_admin_token(client: Client, order: str, method: str, end: str) -> None:
    assert (send(client, method, order, end).status, send(client, method, order, end).code) == (403, "operators_only")
    assert send(client, method, NOBODY, end).code == "operators_only"
    assert (send(client, method, order, end, None, "wrong")).status == 401
    assert send(client, method, NOBODY, end, None, ADMIN).code == "unknown_order"
    moves = [s["what"] for s in send(client, "GET", order, "/trace").json["steps"] if s["kind"] == "move"]
    assert moves == ["accept", "pay"]


def test_warehouse_reports_once_or_often_and_the_buyer_confirms(client: Client, order: str) -> None:
    first, again = report(client, "warehouse", order, "pick"), report(client, "warehouse", order, "pick")
    assert first.json == {"state": "picking", "version": 3, "moved": True}
    assert again.json == {"state": "picking", "version": 3, "moved": False}
    assert report(client, "warehouse", order, "ship").json["state"] == "shipped"
    assert report(client, "warehouse", order, "pick").json == {"state": "shipped", "version": 4, "moved": False}
    assert send(client, "POST", order, "/confirm-receipt").json["state"] == "received"
    twice = send(client, "POST", order, "/confirm-receipt")
    assert (twice.status, twice.code) == (409, "not_allowed")
    assert "return" in twice.json["allowed"]
    assert send(client, "POST", order, "/returns").json["state"] == "returning"
    assert report(client, "warehouse", order, "goods_back").json["state"] == "refund_pending"


def test_partners_deeds_are_refused_where_the_flow_has_none(client: Client, order: str) -> None:
    for partner, action in [("warehouse", "goods_back"), ("warehouse", "cancel"), ("warehouse", "pay"),
                            ("billing", "billed"), ("provisioning", "provision")]:  # fmt: skip
        reply = report(client, partner, order, action)
        assert (reply.status, reply.code) == (409, "not_allowed"), (partner, action)
    assert report(client, "channel", order, "pick").code == "not_found"
    assert report(client, "warehouse", NOBODY, "pick").code == "unknown_order"
    assert report(client, "warehouse", "x" * 36, "pick").code == "unknown_order"


def test_partners_callback_is_verified_and_then_checked(stack: Up, client: Client, order: str) -> None:
    assert report(client, "warehouse", order, "pick", stack.ready["payment_secret"]).code == "signature_invalid"
    path = "/v1/partners/warehouse/callback"
    for body, status, field in [(b"x", 400, None), (b"{}", 422, "order_id"), (b"[" * 20_000, 413, None)]:
        reply = client.call("POST", path, body, signed(PARTNER_SECRET, body))
        assert (reply.status, reply.json.get("field")) == (status, field)
    assert client.call("POST", path, b"{}", {}).code == "signature_invalid"
    assert send(client, "GET", order, "").json["version"] == 2


def test_virtual_order_is_completed_by_provisioning_and_billing(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}, order_type="virtual"))
    paid(stack, order)
    assert report(client, "billing", order, "bill").json["state"] == "billed"
    assert report(client, "provisioning", order, "provision").json["state"] == "completed"
    assert report(client, "billing", order, "billed").json["moved"] is False


def test_operator_suspends_and_resumes(client: Client, order: str) -> None:
    assert send(client, "POST", order, "/suspend", key=ADMIN).json["state"] == "suspended"
    assert send(client, "POST", order, "/suspend", key=ADMIN).code == "not_allowed"
    assert report(client, "warehouse", order, "pick").code == "not_allowed"
    assert send(client, "POST", order, "/resume", key=ADMIN).json["state"] == "paid"
    assert send(client, "GET", order, "", key=ADMIN).json["version"] == 4


def test_operator_makes_steps_of_the_flow_and_is_told_what_is_allowed(client: Client, order: str) -> None:
    def act(action: str) -> Reply:
        return send(client, "POST", order, f"/actions/{action}", key=ADMIN)

    assert act("pick").json["state"] == "picking"
    again = act("pick")
    assert (again.status, again.code) == (409, "not_allowed")
    assert again.json["allowed"] == ["ship", "cancel", "refund", "reject_refund"]
    refund = act("refund")
    assert (refund.status, refund.code) == (409, "not_allowed")
    assert refund.json["detail"].startswith("refund needs an amount or lines: POST /v1/orders/{order_id}/refunds")
    assert "refund" in refund.json["allowed"]
    assert "allowed now" not in refund.json["detail"]
    assert [act(action).code for action in ("change", "urge", "expire", "nonsense")] == ["not_allowed"] * 4
    assert [act(action).code for action in ("x" * 33, "Pick", "%00", "a%20b")] == ["not_found"] * 4
    assert [act(action).json["state"] for action in ("ship", "lost")] == ["shipped", "refund_pending"]
    steps = [s for s in send(client, "GET", order, "/trace").json["steps"] if s["kind"] == "move"]
    assert [(s["what"], s["actor"]) for s in steps[2:]] == [(a, "operator") for a in ("pick", "ship", "lost")]


def test_operator_refunds_without_a_review(stack: Up, client: Client, order: str) -> None:
    body = {"amount": 30, "reason": "scratched"}
    granted = [send(client, "POST", order, "/refunds", body, ADMIN) for _ in range(2)]
    assert [(r.status, r.json["refund_no"], r.json["state"]) for r in granted] == [(200, "ref_3", "approved")] * 2
    assert (send(client, "POST", order, "/refunds", {"amount": 71}, ADMIN).code) == "contradicts"
    assert paid(stack, order, payment_no="ref_3", amount=30, status="refunded").json["state"] == "paid"
    [refund] = send(client, "GET", order, "/refunds").json["refunds"]
    assert (refund["state"], refund["reason"], "request_no" in refund) == ("done", "scratched", False)


def test_discount_is_off_from_the_first_answer_to_the_payment(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 9}, discounts=[{"min_amount": 200, "off": 31}])
    assert client.get(f"/v1/campaigns/{campaign}").json["discounts"] == [{"min_amount": 200, "off": 31}]
    items = [{"sku": "red", "quantity": 2}]
    made = client.order(campaign, "b", "k", items=items)
    order = str(made.json["order_id"])
    again = client.order(campaign, "b", "k", items=items)
    assert (again.body, again.headers["idempotent-replayed"]) == (made.body, "true")
    first = client.get(f"/v1/orders/{order}").json  # from store or ledger; from the store: test_order_commands.py
    assert (first["amount"], first["discount"]) == (169, 31)
    assert paid(stack, order, amount=200).code == "contradicts"
    assert paid(stack, order, amount=169).json["state"] == "paid"
    last = client.get(f"/v1/orders/{order}").json
    assert last == first | {"state": "paid", "version": 2}
    half = send(client, "POST", order, "/refunds", {"lines": [{"sku": "red", "quantity": 1}]}, ADMIN).json
    rest = send(client, "POST", order, "/refunds", {}, ADMIN).json
    assert (half["amount"], rest["amount"]) == (85, 84)
    plain = accepted(client, campaign)
    until(lambda: client.get(f"/v1/orders/{plain}/trace").status == 200)
    assert "discount" not in client.get(f"/v1/orders/{plain}").json


def test_urge_is_heard_once_a_minute(client: Client, order: str) -> None:
    assert [send(client, "POST", order, "/urge").json["version"] for _ in range(3)] == [3, 3, 3]
    assert send(client, "POST", order, "/urge", key=ADMIN).code == "not_allowed"


def test_address_changes_while_the_flow_allows_it_and_the_same_one_is_nothing(client: Client, order: str) -> None:
    for version, name in [(3, "Anna"), (3, "Anna"), (4, "Berta")]:
        reply = send(client, "PATCH", order, "", {"ship_to": SHIP_TO | {"name": name}})
        assert (reply.status, reply.json["version"]) == (200, version)
        for key in (APP_KEY, ADMIN):
            assert send(client, "GET", order, "", key=key).json["ship_to"] == SHIP_TO | {"name": name}
    for body, field in [
        ({}, "ship_to"), ({"ship_to": SHIP_TO | {"phone": "x"}}, "ship_to.phone"), ({"state": "paid"}, "state"),
    ]:  # fmt: skip
        reply = send(client, "PATCH", order, "", body)
        assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid", field)
    assert send(client, "PATCH", order, "", b"nonsense").code == "malformed"
    report(client, "warehouse", order, "pick")
    assert send(client, "PATCH", order, "", {"ship_to": SHIP_TO}).code == "not_allowed"


def test_refund_in_part_is_reviewed_and_paid_back_once(stack: Up, client: Client, order: str) -> None:
    asked = send(client, "POST", order, "/refunds", {"amount": 40, "reason": "late"})
    assert (asked.status, asked.json["refund_no"], asked.json["state"]) == (200, "req_3", "requested")
    assert send(client, "POST", order, "/refunds", {"amount": 40}).json["refund_no"] == "req_3"
    other = send(client, "POST", order, "/refunds", {"lines": [{"sku": "red", "quantity": 1}]}).json
    assert other["amount"] == 100
    approve, reject = "/refunds/req_3/approve", f"/refunds/{other['refund_no']}/reject"
    done = [send(client, "POST", order, approve, key=ADMIN) for _ in range(2)]
    assert [(r.json["state"], r.json["refund_no"]) for r in done] == [("approved", "ref_5")] * 2
    assert send(client, "POST", order, reject, key=ADMIN).json["state"] == "rejected"
    late = send(client, "POST", order, f"/refunds/{other['refund_no']}/approve", key=ADMIN)
    assert (late.status, late.code, late.json["allowed"]) == (409, "not_allowed", [])
    assert late.json["detail"] == "`approve` is not possible for a refund that is rejected; allowed now: nothing"
    assert send(client, "POST", order, "/refunds/ref_77/approve", key=ADMIN).code == "unknown_refund"
    for _ in range(2):
        back = paid(stack, order, payment_no="ref_5", amount=40, status="refunded")
        assert (back.status, back.json["state"]) == (200, "paid")
    assert paid(stack, order, payment_no="ref_5", amount=41, status="refunded").code == "contradicts"
    assert [r["state"] for r in send(client, "GET", order, "/refunds").json["refunds"]] == ["done", "rejected"]
    assert send(client, "POST", order, "/cancel").json["state"] == "refund_pending"
    rest = send(client, "GET", order, "/refunds").json["refunds"][-1]
    assert (rest["amount"], rest["state"]) == (60, "approved")
    assert paid(stack, order, payment_no=rest["refund_no"], amount=60, status="refunded").json["state"] == "refunded"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"amount": 0}, 422, "amount"), ({"amount": 1.5}, 422, "amount"), ({"amount": 101}, 409, "amount"),
        ({"lines": []}, 422, "lines"), ({"lines": [{"sku": "red", "quantity": 2}]}, 409, "lines"),
        ({"lines": [{"sku": "red", "quantity": 0}]}, 422, "lines[0].quantity"),
        ({"amount": 1, "lines": [{"sku": "red", "quantity": 1}]}, 422, ""), ({"reason": "\n"}, 422, "reason"),
        ({"what": 1}, 422, "what"), (b"", 400, ""),
    ],
)  # fmt: skip
def test_bad_request_for_a_refund_names_its_field(
    client: Client, order: str, body: Any, status: int, field: str
) -> None:
    reply = send(client, "POST", order, "/refunds", body)
    assert (reply.status, reply.json.get("field", "")) == (status, field), reply
    assert (reply.json["detail"] == "the body is missing") == (body == b"")
    assert send(client, "GET", order, "/refunds").json == {"refunds": []}


def test_payment_and_cancel_of_a_refund_race_to_one_end(stack: Up, client: Client, order: str) -> None:
    """Approve, cancel and a second payment at once, over HTTP: what goes back is what was paid."""
    number = send(client, "POST", order, "/refunds", {"amount": 70}).json["refund_no"]
    calls: list[Callable[[], Reply]] = [
        lambda: send(client, "POST", order, f"/refunds/{number}/approve", key=ADMIN),
        lambda: send(client, "POST", order, "/cancel"),
        lambda: paid(stack, order),
    ]
    threads = [threading.Thread(target=call) for call in calls for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = [s for s in send(client, "GET", order, "/trace").json["steps"] if s["kind"] == "move"]
    payments = sum(s["what"] in ("pay", "pay_again") for s in steps)
    booked = [r for r in send(client, "GET", order, "/refunds").json["refunds"] if r["state"] in ("approved", "done")]
    assert sum(r["amount"] for r in booked) == payments * 100
    assert [s["version"] for s in steps] == list(range(1, len(steps) + 1))
