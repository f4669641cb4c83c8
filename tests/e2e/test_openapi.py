"""Real answers of every path, judged by the document that the gateway itself serves."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.support import ADMIN, APP_KEY, Client, Reply, Up, bearer, definition, until
from tests.e2e.test_lifecycle import accepted, paid
from tests.e2e.test_lifecycle_orders import SHIP_TO, report, send
from tests.support import fresh


@pytest.fixture(scope="module")
def served(client: Client) -> dict[str, Any]:
    reply = client.call("GET", "/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return dict(reply.json)


# Headers of an answer that is repeated, and of one to a name that has a rate limit (test_rates.py).
SOMETIMES = ("Idempotent-Replayed", "RateLimit", "RateLimit-Policy")


class Judge:
    """Checks answers and counts which responses of the document were seen."""

    def __init__(self, served: dict[str, Any]) -> None:
        self._served = served
        self.seen: set[tuple[str, str, str]] = set()

    def __call__(self, method: str, path: str, reply: Reply, status: int) -> Reply:
        assert reply.status == status, reply
        response = self._served["paths"][path][method]["responses"][str(status)]
        if status == 204:
            assert (reply.body, "content" in response) == (b"", False)
            self.seen.add((path, method, str(status)))
            return reply
        [(kind, content)] = response["content"].items()
        assert reply.headers["content-type"].split(";")[0] == kind
        if kind == "text/event-stream":
            data = [line[6:] for line in reply.body.splitlines() if line.startswith(b"data: ")]
            event = content["x-event-data"] | {"components": self._served["components"]}
            assert data
            for line in data:
                Draft202012Validator(event, format_checker=FormatChecker()).validate(json.loads(line))
            self.seen.add((path, method, str(status)))
            return reply
        if kind == "text/plain":
            assert list(text_string_to_metric_families(reply.body.decode()))
            self.seen.add((path, method, str(status)))
            return reply
        bodies = reply.body.splitlines() if kind == "application/x-ndjson" else [reply.body]
        schema = content["schema"] | {"components": self._served["components"]}
        for body in bodies:
            Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(body))
        for name in response.get("headers", {}):
            assert name.lower() in reply.headers or name in SOMETIMES
        if status >= 400 and kind == "application/problem+json":
            assert f"`{reply.code}`" in response["description"]
        self.seen.add((path, method, str(status)))
        return reply


def test_real_answers_of_every_path_are_as_documented(stack: Up, client: Client, served: dict[str, Any]) -> None:
    judge = Judge(served)
    name = client.define({"red": 2}, limits={"buyer": 1}, channels=["app"])
    one, admin, orders = "/v1/campaigns/{campaign}", "/v1/admin/campaigns/{campaign}", "/v1/campaigns/{campaign}/orders"
    for path in ("/livez", "/readyz", "/openapi.json"):
        judge("get", path, client.call("GET", path), 200)
    judge("get", "/metrics", client.call("GET", "/metrics", headers=bearer(ADMIN)), 200)
    judge("get", "/metrics", client.call("GET", "/metrics"), 401)
    for code in served["paths"]["/problems/{code}"]["get"]["parameters"][0]["schema"]["enum"]:
        judge("get", "/problems/{code}", client.call("GET", f"/problems/{code}"), 200)
    judge("get", "/problems/{code}", client.call("GET", "/problems/no-such"), 404)

    judge("get", one, client.get(f"/v1/campaigns/{name}"), 409)
    judge("post", orders, client.order(name), 409)
    judge("put", admin, client.admin("PUT", name, definition({"red": 2}, channels=["app"], limits={"buyer": 1})), 200)
    judge("put", admin, client.admin("PUT", name, {}), 422)
    judge("put", admin, client.admin("PUT", name, {}, "wrong"), 401)
    judge("put", admin, client.admin("PUT", name, {}, APP_KEY), 403)
    judge("get", admin, client.admin("GET", name), 200)
    judge("get", admin, client.admin("GET", "no-such"), 404)
    judge("post", admin + "/open", client.admin("POST", f"{name}/open"), 200)
    judge("post", admin + "/pause", client.admin("POST", f"{name}/pause"), 200)
    judge("post", orders, client.order(name), 409)
    judge("post", admin + "/open", client.admin("POST", f"{name}/open"), 200)
    restock = {"id": "r", "sku": "red", "units": 1}
    judge("post", admin + "/restock", client.admin("POST", f"{name}/restock", restock), 200)
    judge("post", admin + "/restock", client.admin("POST", f"{name}/restock", restock | {"id": "s", "units": -9}), 409)

    judge("get", one, client.get(f"/v1/campaigns/{name}"), 200)
    judge("get", one, client.get("/v1/campaigns/no-such"), 404)
    judge("get", one, client.call("GET", f"/v1/campaigns/{name}"), 401)
    made = judge("post", orders, client.order(name, "b", "k"), 202)
    judge("post", orders, client.order(name, "b", "k"), 202)
    judge("post", orders, client.order(name, "c", "k"), 422)
    judge("post", orders, client.order(name, "b"), 409)
    judge("post", orders, client.order("no-such"), 404)
    judge("post", orders, client.order(name, channel_key="wrong"), 401)
    judge("post", orders, client.order(name, channel_key="e2e-web-key-00000000"), 403)
    judge("post", orders, client.order(name, device_id="d" * 20_000), 413)
    judge("post", orders, client.call("POST", f"/v1/campaigns/{name}/orders", b"{}", bearer(APP_KEY)), 400)
    lines = b'{"request_key":"x","buyer_id":"d","items":[{"sku":"red","quantity":1}]}\nnonsense'
    judge("post", orders + ":batch", client.batch(name, lines), 200)
    judge("post", orders + ":batch", client.batch(name, b""), 422)
    judge("post", orders + ":batch", client.batch("no-such", lines), 404)
    judge("get", "/v1/orders/{order_id}", client.get(made.json["status_url"]), 200)
    judge("get", "/v1/orders/{order_id}", client.get("/v1/orders/x"), 404)

    order = made.json["order_id"]
    cancel, payment = f"/v1/orders/{order}/cancel", "/v1/payments/callback"
    until(lambda: client.call("GET", f"/v1/orders/{order}/trace", headers=bearer(APP_KEY)).status == 200)
    judge("get", "/v1/orders/{order_id}/trace", client.get(f"/v1/orders/{order}/trace"), 200)
    judge("post", "/v1/orders/{order_id}/cancel", client.call("POST", cancel, b"", bearer(APP_KEY)), 200)
    judge("post", "/v1/orders/{order_id}/cancel", client.call("POST", cancel, b"", bearer(APP_KEY)), 409)
    judge("post", payment, client.call("POST", payment, b"{}"), 401)
    judge("post", payment, paid(stack, order), 200)

    judge_orders(judge, stack, client)
    judge_line(judge, client)
    judge_access(judge, client)

    judge("get", admin + "/audit", client.admin("GET", f"{name}/audit"), 200)
    judge("post", admin + "/close", client.admin("POST", f"{name}/close"), 200)
    judge("post", admin + "/open", client.admin("POST", f"{name}/open"), 409)

    ok = {
        (path, method, status)
        for path, item in served["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
        if status < "300"
    }
    assert ok <= judge.seen


def judge_orders(judge: Judge, stack: Up, client: Client) -> None:
    """Every call about an order after its 202, answered and refused."""
    discounted = client.sale({"red": 3}, discounts=[{"min_amount": 100, "off": 1}])
    judge("get", "/v1/campaigns/{campaign}", client.get(f"/v1/campaigns/{discounted}"), 200)
    order, one = accepted(client, discounted), "/v1/orders/{order_id}"
    paid(stack, order, amount=99)

    def ask(method: str, end: str, status: int, body: Any = None, key: str = APP_KEY, path: str = "") -> Any:
        reply = send(client, method.upper(), order, end, body, key)
        return judge(method, one + (path or end), reply, status).json

    judge("get", "/v1/orders", client.get("/v1/orders?limit=2"), 200)
    judge("get", "/v1/orders", client.get("/v1/orders?limit=0"), 422)
    judge("get", "/v1/orders", client.get("/v1/orders", "wrong"), 401)
    judge("get", one, client.get(f"/v1/orders/{order}?wait=0.1"), 200)
    judge("get", one, client.get(f"/v1/orders/{order}?wait=x"), 422)
    ask("patch", "", 200, {"ship_to": SHIP_TO})
    ask("patch", "", 422, {})
    ask("post", "/urge", 200)
    ask("post", "/suspend", 200, key=ADMIN)
    ask("post", "/suspend", 403)
    ask("post", "/suspend", 401, key="wrong")
    ask("post", "/resume", 200, key=ADMIN)
    ask("post", "/resume", 409, key=ADMIN)
    ask("post", "/actions/suspend", 200, key=ADMIN, path="/actions/{action}")
    ask("post", "/actions/suspend", 409, key=ADMIN, path="/actions/{action}")
    ask("post", "/actions/suspend", 403, path="/actions/{action}")
    ask("post", "/actions/X", 404, key=ADMIN, path="/actions/{action}")
    ask("post", "/resume", 200, key=ADMIN)
    asked = [ask("post", "/refunds", 200, {"amount": n})["refund_no"] for n in (1, 2)]
    ask("post", "/refunds", 409, {"amount": 101})
    ask("post", "/refunds", 200, {"amount": 1}, key=ADMIN)
    ask("post", "/refunds", 422, {"amount": 0})
    ask("get", "/refunds", 200)
    for number, what in zip(asked, ("approve", "reject"), strict=True):
        path = f"/refunds/{{refund_no}}/{what}"
        ask("post", f"/refunds/{number}/{what}", 200, key=ADMIN, path=path)
        ask("post", f"/refunds/x/{what}", 404, key=ADMIN, path=path)
    partner = "/v1/partners/{partner}/callback"
    judge("post", partner, report(client, "warehouse", order, "pick"), 200)
    judge("post", partner, report(client, "warehouse", order, "goods_back"), 409)
    judge("post", partner, report(client, "nobody", order, "pick"), 404)
    report(client, "warehouse", order, "ship")
    ask("post", "/confirm-receipt", 200)
    ask("post", "/confirm-receipt", 409)
    ask("post", "/returns", 200)
    report(client, "warehouse", order, "goods_back")
    for refund in ask("get", "/refunds", 200)["refunds"]:
        if refund["state"] == "approved":
            number, amount = refund["refund_no"], refund["amount"]
            reply = paid(stack, order, payment_no=number, amount=amount, status="refunded")
            judge("post", "/v1/payments/callback", reply, 200)
            ask("post", f"/refunds/{number}/confirm", 200, key=ADMIN, path="/refunds/{refund_no}/confirm")
            ask("post", "/refunds/x/confirm", 404, key=ADMIN, path="/refunds/{refund_no}/confirm")
    judge("get", one + "/events", client.get(f"/v1/orders/{order}/events"), 200)
    seen = bearer(APP_KEY) | {"Last-Event-ID": str(client.get(f"/v1/orders/{order}").json["version"])}
    judge("get", one + "/events", client.call("GET", f"/v1/orders/{order}/events", headers=seen), 204)
    judge("get", one + "/events", client.get("/v1/orders/x/events"), 404)


def judge_access(judge: Judge, client: Client) -> None:
    """Channels, keys and block lists."""

    def ask(method: str, path: str, status: int, body: Any = None, end: str = "", key: str = ADMIN) -> Any:
        data = None if body is None else json.dumps(body).encode()
        reply = client.call(method.upper(), f"/v1/admin/{end or path}", data, bearer(key))
        return judge(method, f"/v1/admin/{path}", reply, status).json

    name = fresh("ch")
    one, wanted = f"channels/{name}", {"channel": name, "campaigns": ["a"], "rates": {"channel": "9/s"}}
    key_id = ask("post", "channels", 200, wanted)["key_id"]
    ask("post", "channels", 409, wanted)
    ask("post", "channels", 422, {"channel": "A b"})
    ask("post", "channels", 403, wanted, key=APP_KEY)
    ask("get", "channels", 200)
    ask("get", "channels/{channel}", 200, end=one)
    ask("get", "channels/{channel}", 404, end="channels/no-such")
    ask("patch", "channels/{channel}", 200, {"campaigns": None}, one)
    ask("patch", "channels/{channel}", 422, {"rates": {"channel": "fast"}}, one)
    ask("post", "channels/{channel}/rotate", 200, {"kind": "signing"}, one + "/rotate")
    ask("post", "channels/{channel}/rotate", 200, None, one + "/rotate")
    ask("post", "channels/{channel}/revoke", 200, {"key_id": key_id}, one + "/revoke")
    ask("post", "channels/{channel}/revoke", 422, {"key_id": "none"}, one + "/revoke")
    ask("post", "channels/{channel}/revoke", 200, None, one + "/revoke")
    ask("post", "channels/{channel}/rotate", 409, None, one + "/rotate")
    ask("post", "blocks", 200, {"kind": "ip", "value": "203.0.113.9", "for_s": 60, "reason": "x"})
    ask("post", "blocks", 422, {"kind": "ip", "value": "::/0"})
    ask("get", "blocks", 200)
    ask("delete", "blocks", 200, end="blocks?kind=ip&value=203.0.113.9")
    ask("delete", "blocks", 422, end="blocks?kind=ip")


def judge_line(judge: Judge, client: Client) -> None:
    """Tickets, and a waiting room that admits at once."""
    base, room = "/v1/campaigns/{campaign}", "/v1/admin/campaigns/{campaign}/room"
    name = client.sale({"red": 3}, admission="room", room={"rate": 1_000, "channel": "web", "pow_bits": 1})

    def post(end: str, body: Any, status: int, key: str = APP_KEY, campaign: str = name) -> Any:
        headers = bearer(key) if key else {}
        reply = client.call("POST", f"/v1/campaigns/{campaign}{end}", json.dumps(body).encode(), headers)
        return judge("post", base + end, reply, status).json

    plain = client.sale({"red": 3}, admission="ticket")
    post("/tickets", {"buyer_id": "b"}, 200, campaign=plain)
    post("/tickets", {"buyer_id": "b"}, 409)
    judge("post", base + "/orders", client.order(plain), 403)
    post("/line/challenge", {"guest_key": "g" * 20}, 200, "")
    post("/line/challenge", {}, 422, "")
    place = post("/line", {"buyer_id": "b"}, 200)["line"]
    post("/line", {"buyer_id": "b"}, 401, "wrong")
    post("/line", {"guest_key": "g" * 20}, 403, "")
    post("/line", {"buyer_id": "b"}, 409, campaign=plain)
    judge("get", base + "/line", client.get(f"/v1/campaigns/{name}/line?wait=5", place), 200)
    judge("get", base + "/line", client.get(f"/v1/campaigns/{name}/line"), 401)
    judge("get", base + "/line", client.get(f"/v1/campaigns/{name}/line?wait=x", place), 422)
    judge("get", room, client.admin("GET", f"{name}/room"), 200)
    judge("put", room, client.admin("PUT", f"{name}/room", {"mode": "fixed", "rate": 5}), 200)
    judge("put", room, client.admin("PUT", f"{name}/room", {"mode": "fixed"}), 422)


def test_judge_refuses_a_body_that_is_not_as_documented(served: dict[str, Any]) -> None:
    """Control: if this fails, the test above proves nothing."""
    wrong = Reply(200, {"content-type": "application/json"}, b'{"live":"yes","now":"x"}')
    with pytest.raises(Exception, match="'yes' is not of type 'boolean'"):
        Judge(served)("get", "/livez", wrong, 200)
