"""Hostile and slow clients, by raw sockets: each has a clear last word or none, and the others do not notice."""

import contextlib
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.tickets import Ticket, Tickets
from tests.e2e.conftest import own_gateway
from tests.e2e.support import APP_KEY, TICKET_SECRET, Client, Part, Up, until

MOST, PER_ADDRESS = 60, 50
CUT_S = 15.0  # by which a client with 1 s is gone for certain


@pytest.fixture(scope="module", params=["on", "off"], ids=["short way", "long way"])
def edgy(request: pytest.FixtureRequest, stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A gateway with narrow bounds."""
    env = {
        "RUSHGATE_SHORT_WAY": request.param, "RUSHGATE_REQUEST_TIMEOUT_S": "1",
        "RUSHGATE_TRUSTED_PROXIES": "127.0.0.1",
        "RUSHGATE_MAX_CONNECTIONS": str(MOST), "RUSHGATE_ADDRESS_CONNECTIONS": str(PER_ADDRESS),
    }  # fmt: skip
    part = Part(tmp_path_factory.mktemp("edge") / "log", ["gateway"], own_gateway(stack) | env)
    try:
        yield part.gateway()
    finally:
        part.end()


@pytest.fixture(scope="module")
def campaign(stack: Up) -> str:
    return stack.client.sale({"red": 1_000})


def connected(client: Client) -> socket.socket:
    parts = urlsplit(client.url)
    sock = socket.create_connection((parts.hostname, parts.port or 0), timeout=CUT_S)
    sock.settimeout(CUT_S)
    return sock


def to_the_end(sock: socket.socket) -> bytes:
    """All that comes until the other side closes; fails if it does not."""
    said = b""
    while True:
        try:
            piece = sock.recv(65_536)
        except ConnectionResetError:
            return said
        if not piece:
            return said
        said += piece


def sent(client: Client, data: bytes) -> bytes:
    with connected(client) as sock:
        sock.sendall(data)
        return to_the_end(sock)


def order(campaign: str, buyer: str, more: str = "", close: bool = True) -> bytes:
    body = json.dumps({"buyer_id": buyer, "items": [{"sku": "red", "quantity": 1}]})
    return (
        f"POST /v1/campaigns/{campaign}/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {APP_KEY}\r\n"
        f"idempotency-key: {buyer}\r\ncontent-length: {len(body)}\r\n{more}"
        f"{'connection: close' if close and 'onnection' not in more else 'x-n: 1'}\r\n\r\n{body}"
    ).encode()


def code_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    found = json.loads(body)
    assert found["status"] == int(head.split()[1])
    return str(found["code"])


BEGUN = (
    (b"GET /livez", b"x"),
    (b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ", b"x"),
    (
        b"POST /v1/campaigns/{c}/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {k}\r\nidempotency-key: k\r\n"
        b"content-length: 100\r\n\r\n{",
        b"x",
    ),
    (
        b"POST /v1/campaigns/{c}/orders:batch HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {k}\r\n"
        b"transfer-encoding: chunked\r\n\r\n5\r\n{{{{{\r\n",
        b"1\r\nx\r\n",
    ),
)


def test_slow_requests_are_cut_off(edgy: Client, campaign: str) -> None:
    """However steadily they drip: in the request line, the headers, the body, the chunks."""
    with ExitStack() as open_ones:
        dripping = []
        for begun, drop in BEGUN:
            sock = open_ones.enter_context(connected(edgy))
            sock.sendall(begun.replace(b"{c}", campaign.encode()).replace(b"{k}", APP_KEY.encode()))
            dripping.append((sock, drop))
        said: dict[int, bytes] = {}
        until_s = time.monotonic() + CUT_S
        while len(said) < len(BEGUN) and time.monotonic() < until_s:
            answered, _, _ = select.select([sock for sock, _ in dripping], [], [], 0.1)
            for sock, drop in list(dripping):
                if sock in answered:
                    said[sock.fileno()] = sock.recv(65_536)
                    dripping.remove((sock, drop))
                else:
                    with contextlib.suppress(OSError):  # it has its answer, and this look came before it
                        sock.sendall(drop)
        assert [code_of(answer) for answer in said.values()] == ["too_slow"] * len(BEGUN)
    assert edgy.get("/livez").status == 200


def test_client_that_never_reads_is_cut_off(edgy: Client) -> None:
    with connected(edgy) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.settimeout(0.2)
        until_s = time.monotonic() + CUT_S
        gone = False
        while time.monotonic() < until_s and not gone:
            try:
                sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
            except TimeoutError:
                continue  # the gateway has stopped reading us as well
            except OSError:
                gone = True
        assert gone


def test_too_many_connections_of_one_address(edgy: Client) -> None:
    with ExitStack() as open_ones:
        for _ in range(PER_ADDRESS):
            open_ones.enter_context(connected(edgy))
        with connected(edgy) as one_more:
            assert code_of(to_the_end(one_more)) == "too_many_connections"
    # Those that are gone count no more.
    until_s = time.monotonic() + CUT_S
    while time.monotonic() < until_s:
        answer = sent(edgy, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 200"):
            return
    raise AssertionError(answer)


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), "bad_http"),  # TLS where there is none
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "bad_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "bad_http"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n", "bad_http"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n", "bad_http"),
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", "bad_http"),  # noqa: E501
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "bad_http"),  # noqa: E501
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", "bad_http"),
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n", "bad_http"),  # noqa: E501
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n", "bad_http"),  # noqa: E501
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "bad_http"),  # noqa: E501
        (b"POST /v1/campaigns/c/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: cow\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "bad_http"),  # noqa: E501
        (b"GET /livez HTTP/2.0\r\nhost: x\r\n\r\n", "bad_http"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 101 + b"\r\n", "head_too_large"),
        (b"GET /" + b"a" * 16_384 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "head_too_large"),
        (b"GET /livez HTTP/1.1\r\nx: " + b"a" * 900_000, "head_too_large"),
    ],
)  # fmt: skip
def test_what_is_no_request_has_a_clear_end(edgy: Client, request_bytes: bytes, code: str) -> None:
    parts = urlsplit(edgy.url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=CUT_S) as sock:
        try:
            sock.sendall(request_bytes)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has been told already
            pass
        said = to_the_end(sock)
    # Closing a socket with unread bytes resets it: the answer to a very long head may be lost on the way.
    assert (not said and len(request_bytes) > 100_000) or code_of(said) == code


def test_nothing_behind_a_bad_request_is_carried_out(edgy: Client, campaign: str) -> None:
    """A second request smuggled in behind one that is cut off."""
    buyer = f"smuggled-{edgy.url[-5:]}"
    smuggled = order(campaign, buyer)
    sent(edgy, b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 101 + b"\r\n" + smuggled)
    sent(edgy, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" + smuggled)
    assert edgy.order(campaign, buyer, key=buyer).headers.get("idempotent-replayed") is None


def test_what_is_pipelined_behind_a_request_that_is_cut_off_is_not_carried_out(edgy: Client, campaign: str) -> None:
    """Its answer would come before the last word, and be taken for the answer to the request that was cut off."""
    first, behind = (f"{name}-{edgy.url[-5:]}" for name in ("in-front", "behind"))
    cut = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 101 + b"\r\n"
    said = sent(edgy, order(campaign, first, close=False) + cut + order(campaign, behind, close=False))
    assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"202", b"431"]
    assert edgy.order(campaign, behind, key=behind).headers.get("idempotent-replayed") is None


@pytest.mark.parametrize("drop", [b"x-more: y\r\n" * 1_000, b"y" * 10_000], ids=["many lines", "one line"])
def test_trailers_without_end_are_cut_off(edgy: Client, drop: bytes) -> None:
    """Long before the request has had its time: they are kept in memory as they come."""
    head = b"POST /v1/orders/x/cancel HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-first: "
    taken = 0
    with connected(edgy) as sock, contextlib.suppress(OSError):
        sock.sendall(head)
        while taken < 20_000_000:
            sock.sendall(drop)
            taken += len(drop)
    assert taken < 20_000_000


def test_trailer_is_no_header(edgy: Client) -> None:
    """A proxy vouches for the headers it sends, not for what it hands on behind a body."""
    campaign = edgy.sale({"red": 10}, limits={"ip": 1})

    def ask(buyer: str, trailer: str) -> int:
        ticket = Ticket("app", campaign, buyer, "", int(time.time() * 1000) + 60_000)
        body = json.dumps({"buyer_id": buyer, "items": [{"sku": "red", "quantity": 1}]})
        request = (
            f"POST /v1/campaigns/{campaign}/orders HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 203.0.113.9\r\n"
            f"authorization: Bearer {Tickets([TICKET_SECRET]).issue(ticket)}\r\nidempotency-key: {buyer}\r\n"
            f"connection: close\r\ntransfer-encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n{trailer}\r\n"
        )
        return int(sent(edgy, request.encode()).split()[1])

    assert [ask("a", ""), ask("b", ""), ask("c", "x-forwarded-for: 203.0.113.10\r\n")] == [202, 409, 409]


def test_garbage_behind_garbage_does_not_cut_off_what_was_asked_in_front_of_both(edgy: Client, campaign: str) -> None:
    """The order would be taken, and its client told that it is no HTTP."""
    shown = edgy.order(campaign, f"shown-{edgy.url[-5:]}").json["order_id"]
    until(lambda: edgy.get(f"/v1/orders/{shown}/trace").status == 200)
    poll = f"GET /v1/orders/{shown}?wait=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {APP_KEY}\r\n\r\n"
    chunked = b"POST /v1/orders/x/cancel HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n"
    with connected(edgy) as sock:
        sock.sendall(poll.encode() + order(campaign, f"asked-{edgy.url[-5:]}", close=False) + chunked)
        assert edgy.get("/livez").status == 200  # came after all of that, which was read by now
        sock.sendall(b"no size\r\n")
        said = to_the_end(sock)
    assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"200", b"202", b"400"]


@pytest.mark.parametrize(
    "offer",
    [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n",
        "Connection: upgrade\r\nUPGRADE: websocket\r\nSec-WebSocket-Version: 13\r\n",
    ],
)
def test_offer_of_another_protocol_is_passed_over(edgy: Client, campaign: str, offer: str) -> None:
    """Java's HTTP client offers h2c with its first POST: the order is taken, body and all."""
    with connected(edgy) as sock:
        sock.sendall(order(campaign, f"offer-{len(offer)}-{edgy.url[-5:]}", more=offer))
        said = sock.recv(65_536)
    assert said.startswith(b"HTTP/1.1 202"), said


def test_quiet_connections_do_not_slow_the_others(edgy: Client, campaign: str) -> None:
    with ExitStack() as open_ones:
        for _ in range(PER_ADDRESS - 5):
            sock = open_ones.enter_context(connected(edgy))
            sock.sendall(b"POST /v1/campaigns/x/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n{")
        assert edgy.order(campaign, f"beside-{edgy.url[-5:]}").status == 202


def test_files_are_asked_for(tmp_path: Path, stack: Up) -> None:
    """A process that may open too few says so."""
    part = Part(tmp_path / "log", ["gateway"], own_gateway(stack) | {"RUSHGATE_MAX_CONNECTIONS": "1000000"})
    try:
        part.gateway()
        limit = next(
            line for line in Path(f"/proc/{part.process.pid}/limits").read_text().splitlines() if "open files" in line
        ).split()
        soft, hard = int(limit[3]), int(limit[4])
        assert soft == min(1_000_256, hard)
        assert ("fewer files than connections" in part.text) == (soft < 1_000_000)
    finally:
        part.end()
