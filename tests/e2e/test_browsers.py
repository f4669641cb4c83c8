"""What browsers need beside a ticket: cross-origin answers on both ways of an order, and captchas that are verified."""

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.e2e.conftest import own_gateway
from tests.e2e.line_support import join, post, room_sale, until_state
from tests.e2e.support import APP_KEY, Client, Part, Reply, Up, bearer, exchange
from tests.support import fresh

PAGE, STRANGER = "https://shop.example", "https://evil.example"
CAPTCHA_SECRET = "captcha-secret-0"


class Verifier(ThreadingHTTPServer):
    """A captcha's verifier: what it answers is what a test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Verify)
        self.asked: list[dict[str, str]] = []
        self.status, self.answer = 200, b'{"success": true}'
        self.release = threading.Event()  # an answer waits for it
        self.release.set()


class _Verify(BaseHTTPRequestHandler):
    server: Verifier

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        self.server.asked.append({name: values[0] for name, values in form.items()})
        self.server.release.wait(20)
        self.send_response(self.server.status)
        self.end_headers()  # without a length: the answer ends with its connection
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    server = Verifier()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def own(stack: Up, verifier: Verifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A gateway for pages of PAGE, behind a proxy on this machine, that knows the verifier."""
    settings = {
        "RUSHGATE_CORS_ORIGINS": f"https://other.example,{PAGE}",
        "RUSHGATE_CAPTCHA_URL": f"http://127.0.0.1:{verifier.server_port}/siteverify",
        "RUSHGATE_CAPTCHA_SECRET": CAPTCHA_SECRET,
        "RUSHGATE_CAPTCHA_TIMEOUT_S": "1",
        "RUSHGATE_TRUSTED_PROXIES": "127.0.0.1",
    }
    part = Part(tmp_path_factory.mktemp("browsers") / "log", ["gateway"], own_gateway(stack) | settings)
    try:
        yield part.gateway()
    finally:
        part.end()


def order(client: Client, campaign: str, way: str, origin: str = PAGE, **headers: str) -> Reply:
    """One order, on the short way (its campaign is known) or on the long one (its body comes in chunks)."""
    body = json.dumps({"buyer_id": fresh("b"), "items": [{"sku": "red", "quantity": 1}]}).encode()
    sent = bearer(APP_KEY) | {"Idempotency-Key": fresh("k"), "Origin": origin} | headers
    connection = http.client.HTTPConnection(client.host, client.port, timeout=20)
    try:
        if way == "long":
            connection.request("POST", f"/v1/campaigns/{campaign}/orders", iter([body]), sent, encode_chunked=True)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        return exchange(connection, "POST", f"/v1/campaigns/{campaign}/orders", body, sent)
    finally:
        connection.close()


@pytest.mark.parametrize("way", ["short", "long"])
def test_answers_to_pages_of_ours_can_be_read_by_them_and_by_no_others(own: Client, way: str) -> None:
    campaign = own.sale({"red": 2})
    assert own.order(campaign).status == 202  # the campaign is known
    for status in (202, 409):
        reply = order(own, campaign, way)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, PAGE)
        assert reply.headers["vary"] == "Origin"
        assert "Location" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers
    for origin in (STRANGER, "null", PAGE + ".evil.example", PAGE.upper()):
        reply = order(own, campaign, way, origin)
        assert (reply.status, "access-control-allow-origin" in reply.headers) == (409, False)
    assert order(own, campaign, way, PAGE, Authorization="Bearer wrong").headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("end", ["/orders", "/line", "/line/challenge", ""])
def test_browser_that_asks_first_is_told_what_it_may_send(own: Client, end: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    reply = own.call("OPTIONS", f"/v1/campaigns/x{end}", headers={"Origin": PAGE} | asks)
    assert (reply.status, reply.body, reply.headers["access-control-allow-origin"]) == (204, b"", PAGE)
    assert "POST" in reply.headers["access-control-allow-methods"]
    allowed = reply.headers["access-control-allow-headers"].lower()
    assert {"authorization", "idempotency-key", "content-type"} <= {name.strip() for name in allowed.split(",")}
    refused = own.call("OPTIONS", f"/v1/campaigns/x{end}", headers={"Origin": STRANGER} | asks)
    assert "access-control-allow-origin" not in refused.headers


def test_pages_get_no_admin_calls_and_without_the_setting_nothing(own: Client, client: Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "PUT"}
    assert "access-control-allow-origin" not in own.call("OPTIONS", "/v1/admin/campaigns/x", headers=asks).headers
    campaign = client.sale({"red": 2})
    assert client.order(campaign).status == 202
    assert "access-control-allow-origin" not in order(client, campaign, "short").headers
    assert "access-control-allow-origin" not in order(client, campaign, "long").headers


@pytest.fixture(scope="module")
def guarded(own: Client) -> str:
    return room_sale(own, room={"rate": 1_000, "channel": "web", "captcha": True})


def guest(client: Client, campaign: str, captcha: str = "", **headers: str) -> Reply:
    body = {"guest_key": fresh("guest-key-0000000000")} | ({"captcha": captcha} if captcha else {})
    return post(client, campaign, "/line", body, **headers)


def test_guest_with_a_right_captcha_joins_and_the_verifier_is_told_whose_it_was(
    own: Client, verifier: Verifier, guarded: str
) -> None:
    verifier.status, verifier.answer = 200, b'{"success": true, "hostname": "shop.example"}'
    reply = guest(own, guarded, "answer+&=", **{"X-Forwarded-For": "203.0.113.7"})
    assert reply.status == 200
    assert verifier.asked[-1] == {"secret": CAPTCHA_SECRET, "response": "answer+&=", "remoteip": "203.0.113.7"}
    until_state(own, guarded, reply.json["line"], "admitted")


def test_guest_with_a_wrong_captcha_or_none_stays_out(own: Client, verifier: Verifier, guarded: str) -> None:
    verifier.status, verifier.answer = 200, b'{"success": false, "error-codes": ["timeout-or-duplicate"]}'
    wrong = guest(own, guarded, "x")
    assert (wrong.status, wrong.code) == (403, "proof_wrong")
    missing = guest(own, guarded)
    assert (missing.status, missing.code) == (403, "proof_needed")
    assert join(own, guarded, fresh("b"))["place"] >= 1  # a channel's buyer needs none


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, b'{"success": true}'),
        (302, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"success": "true"}'),
        (200, b"[" * 60_000),
        (200, b'{"success": true, "x": "' + b"x" * 70_000 + b'"}'),
    ],
)
def test_verifier_that_says_nothing_usable_lets_nobody_in(
    own: Client, verifier: Verifier, guarded: str, status: int, answer: bytes
) -> None:
    verifier.status, verifier.answer = status, answer
    reply = guest(own, guarded, "x")
    if answer == b'{"success": "true"}':
        assert (reply.status, reply.code) == (403, "proof_wrong")
    else:
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "captcha_unavailable", "1")


def test_verifier_that_is_silent_lets_nobody_in_and_keeps_nobody(own: Client, verifier: Verifier, guarded: str) -> None:
    verifier.status, verifier.answer = 200, b'{"success": true}'
    verifier.release.clear()
    try:
        assert guest(own, guarded, "x").code == "captcha_unavailable"
        assert own.order(own.sale({"red": 1})).status == 202
    finally:
        verifier.release.set()
    assert guest(own, guarded, "x").status == 200


def test_without_a_verifier_no_guest_is_let_in(client: Client, guarded: str) -> None:
    assert guest(client, guarded, "x").code == "captcha_unavailable"
