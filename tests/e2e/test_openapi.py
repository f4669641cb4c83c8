"""Real answers of every path, judged by the document that the gateway itself serves."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.e2e.support import APP_KEY, Client, Reply, Up, bearer, definition, until
from tests.e2e.test_lifecycle import paid


@pytest.fixture(scope="module")
def served(client: Client) -> dict[str, Any]:
    reply = client.call("GET", "/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return dict(reply.json)


class Judge:
    """Checks answers and counts which responses of the document were seen."""

    def __init__(self, served: dict[str, Any]) -> None:
        self._served = served
        self.seen: set[tuple[str, str, str]] = set()

    def __call__(self, method: str, path: str, reply: Reply, status: int) -> Reply:
        assert reply.status == status, reply
        response = self._served["paths"][path][method]["responses"][str(status)]
        [(kind, content)] = response["content"].items()
        assert reply.headers["content-type"].split(";")[0] == kind
        bodies = reply.body.splitlines() if kind == "application/x-ndjson" else [reply.body]
        schema = content["schema"] | {"components": self._served["components"]}
        for body in bodies:
            Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(body))
        for name in response.get("headers", {}):
            assert name.lower() in reply.headers or name == "Idempotent-Replayed"
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
    for code in served["paths"]["/problems/{code}"]["get"]["parameters"][0]["schema"]["enum"]:
        judge("get", "/problems/{code}", client.call("GET", f"/problems/{code}"), 200)
    judge("get", "/problems/{code}", client.call("GET", "/problems/no-such"), 404)

    judge("get", one, client.get(f"/v1/campaigns/{name}"), 409)
    judge("post", orders, client.order(name), 409)
    judge("put", admin, client.admin("PUT", name, definition({"red": 2}, channels=["app"], limits={"buyer": 1})), 200)
    judge("put", admin, client.admin("PUT", name, {}), 422)
    judge("put", admin, client.admin("PUT", name, {}, "wrong"), 401)
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


def test_judge_refuses_a_body_that_is_not_as_documented(served: dict[str, Any]) -> None:
    """Control: if this fails, the test above proves nothing."""
    wrong = Reply(200, {"content-type": "application/json"}, b'{"live":"yes","now":"x"}')
    with pytest.raises(Exception, match="'yes' is not of type 'boolean'"):
        Judge(served)("get", "/livez", wrong, 200)
