"""Cancel, pay and trace over HTTP, with the workers that carry it to its end."""

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from typing import Any

from tests.e2e.support import APP_KEY, WEB_KEY, Client, Reply, Up, bearer, until
from tests.support import fresh


def signed(secret: str, body: bytes, message_id: str = "", at_s: float | None = None) -> dict[str, str]:
    """The headers of Standard Webhooks, made by hand as a payment centre would."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message_id, stamp = message_id or fresh("msg"), str(int(at_s if at_s is not None else time.time()))
    digest = hmac.new(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": signature}


def callback(stack: Up, order_id: str, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    """One payment of an order of one red unit; `fields` replace parts of the body."""
    body = {
        "payment_no": fresh("pay"), "order_id": order_id, "amount": 100, "currency": "CNY", "status": "paid",
        "paid_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    data = json.dumps(body | fields).encode()
    own = signed(stack.ready["payment_secret"], data)
    return stack.client.call("POST", "/v1/payments/callback", data, own if headers is None else headers)


def paid(stack: Up, order_id: str, **fields: Any) -> Reply:
    """The answer once the ledger has the order: until then the centre is asked to come again."""

    def once() -> Reply | None:
        reply = callback(stack, order_id, **fields)
        assert (reply.status == 503) == (reply.status >= 400 and reply.code == "on_its_way")
        return reply if reply.status != 503 else None

    found: Reply = until(once)
    return found


def accepted(client: Client, campaign: str) -> str:
    reply = client.order(campaign)
    assert reply.status == 202
    return str(reply.json["order_id"])


def cancelled(client: Client, order_id: str, key: str = APP_KEY) -> Reply:
    def once() -> Reply | None:
        reply = client.call("POST", f"/v1/orders/{order_id}/cancel", b"", bearer(key))
        return reply if reply.status != 503 else None

    found: Reply = until(once)
    return found


def unit(client: Client, campaign: str) -> tuple[int, int, int]:
    """Left, held, sold of the one SKU."""
    sku = client.audit(campaign)["skus"][0]
    return sku["left"], sku["held"], sku["sold"]


def test_paid_order_is_sold_and_its_trace_tells_the_story(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 3})
    order_id = accepted(client, campaign)
    reply = paid(stack, order_id)
    assert (reply.status, reply.json) == (200, {"state": "paid", "version": 2, "moved": True})
    until(lambda: unit(client, campaign) == (2, 0, 1))
    assert client.get(f"/v1/orders/{order_id}").json["state"] == "paid"

    def told() -> list[dict[str, Any]] | None:
        steps: list[dict[str, Any]] = client.get(f"/v1/orders/{order_id}/trace").json["steps"]
        return steps if any(s["what"] == "settle" for s in steps) else None

    steps = until(told)
    assert [(s["kind"], s["what"]) for s in steps][:2] == [("move", "accept"), ("move", "pay")]
    assert steps[1]["actor"].startswith("payment:pay-")
    assert (steps[1]["from_state"], steps[1]["to_state"], steps[1]["reason"]) == ("accepted", "paid", "paid")
    assert client.audit(campaign)["ok"]


def test_cancelled_order_is_sold_again(client: Client) -> None:
    campaign = client.sale({"red": 1}, limits={"buyer": 1})
    order_id = accepted(client, campaign)
    reply = cancelled(client, order_id)
    assert (reply.status, reply.json["state"]) == (200, "cancelled")
    again = client.call("POST", f"/v1/orders/{order_id}/cancel", b"", bearer(APP_KEY))
    assert (again.status, again.code, again.json["allowed"]) == (409, "not_allowed", [])
    until(lambda: client.order(campaign, "another-buyer").status == 202, timeout_s=2.0)


def test_order_of_another_channel_cannot_be_cancelled_or_traced(client: Client) -> None:
    campaign = client.sale({"red": 1})
    order_id = accepted(client, campaign)
    assert cancelled(client, order_id, WEB_KEY).status == 404
    assert client.call("GET", f"/v1/orders/{order_id}/trace", headers=bearer(WEB_KEY)).status == 404
    assert client.call("POST", f"/v1/orders/{order_id}/cancel", b"", bearer("wrong")).status == 401
    assert client.call("POST", "/v1/orders/nonsense/cancel", b"", bearer(APP_KEY)).status == 404


def test_order_that_is_not_paid_in_time_expires_and_its_unit_is_sold_again(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 1}, pay_within_s=1)
    order_id = accepted(client, campaign)
    until(lambda: client.get(f"/v1/orders/{order_id}").json["state"] == "expired", timeout_s=5.0)
    until(lambda: client.order(campaign, "another-buyer").status == 202, timeout_s=5.0)
    late = paid(stack, order_id)
    assert (late.status, late.json["state"]) == (200, "refund_pending")
    assert client.settled_audit(campaign)["ok"]


def test_callback_with_a_bad_signature_is_refused_before_it_is_read(stack: Up, client: Client) -> None:
    order_id = accepted(client, client.sale({"red": 1}))
    secret = stack.ready["payment_secret"]
    good = b'{"payment_no":"x"}'
    for headers in (
        {},
        signed(secret, b"another body"),
        signed(secret, good, at_s=time.time() - 301),
        signed(secret, good, at_s=time.time() + 302),
        signed("whsec_" + base64.b64encode(b"k" * 32).decode(), good),
    ):
        reply = client.call("POST", "/v1/payments/callback", good, headers)
        assert (reply.status, reply.code) == (401, "signature_invalid")
        nonsense = client.call("POST", "/v1/payments/callback", b"no json", headers)
        assert (nonsense.status, nonsense.code) == (401, "signature_invalid")
    assert client.get(f"/v1/orders/{order_id}").json["state"] == "accepted"


def test_callback_that_contradicts_is_refused_and_a_repeated_one_is_not(stack: Up, client: Client) -> None:
    order_id = accepted(client, client.sale({"red": 1}))
    number = fresh("pay")
    wrong = paid(stack, order_id, payment_no=number, amount=1)
    assert (wrong.status, wrong.code, wrong.json["field"]) == (409, "contradicts", "amount")
    assert wrong.json["detail"] == "1 (minor units of CNY) was paid, the order is of 100 (minor units of CNY)"
    foreign = paid(stack, order_id, payment_no=number, currency="EUR")
    assert (foreign.status, foreign.code, foreign.json["field"]) == (409, "contradicts", "currency")
    first = paid(stack, order_id, payment_no=number)
    again = paid(stack, order_id, payment_no=number)
    assert (first.json["moved"], again.json["moved"], again.json["state"]) == (True, False, "paid")
    other = paid(stack, order_id, payment_no=number, status="failed")
    assert (other.status, other.code) == (409, "contradicts")


def test_callback_for_an_order_that_nobody_has_is_404(stack: Up) -> None:
    reply = callback(stack, "0192f7c1-0000-7000-8000-000000000000")
    assert (reply.status, reply.code) == (404, "unknown_order")
    body = b"{}"
    reply = stack.client.call("POST", "/v1/payments/callback", body, signed(stack.ready["payment_secret"], body))
    assert (reply.status, reply.code) == (422, "invalid")
