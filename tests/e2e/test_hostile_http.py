"""Spoilt requests by raw sockets, thousands of them: no 500, no hang, no leak, and the books balance."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import own_gateway
from tests.e2e.support import APP_KEY, Client, Part, Up, until

REQUESTS = 1_500  # for each way
AT_ONCE = 100
SILENT_S, HANGS_S = 0.1, 10.0
SEED = 20261122
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
JUNK = (b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b":", b" ", b"\t", b"\xff", b"%00", b"..", b"{", b"}", b'"', b"-1", b"0x10", b"9" * 30)  # fmt: skip # noqa: E501


@pytest.fixture(scope="module", params=["on", "off"], ids=["short way", "long way"])
def target(request: pytest.FixtureRequest, stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A gateway of its own, so that its log and its files are its own."""
    env = {"RUSHGATE_SHORT_WAY": request.param, "RUSHGATE_REQUEST_TIMEOUT_S": "1"}
    part = Part(tmp_path_factory.mktemp("hostile") / "log", ["gateway"], own_gateway(stack) | env)
    part.gateway()
    try:
        yield part
    finally:
        part.end()


def good(campaign: str, n: int) -> list[bytes]:
    """Requests that are as they should be, of every kind that has a body or a secret."""
    order = json.dumps({
        "buyer_id": f"h{n}", "items": [{"sku": "red", "quantity": 1}], "client_ip": "203.0.113.9", "device_id": "d",
    })  # fmt: skip
    line = json.dumps({"request_key": f"l{n}", "buyer_id": f"l{n}", "items": [{"sku": "red", "quantity": 1}]}) + "\n"
    auth = f"host: x\r\nauthorization: Bearer {APP_KEY}\r\n"

    def post(path: str, body: str, more: str = "") -> bytes:
        return f"POST {path} HTTP/1.1\r\n{auth}{more}content-length: {len(body)}\r\n\r\n{body}".encode()

    chunked = f"transfer-encoding: chunked\r\n\r\n{len(order):x}\r\n{order}\r\n0\r\n\r\n"
    orders = f"/v1/campaigns/{campaign}/orders"
    return [
        post(orders, order, f"idempotency-key: h{n}\r\n"),
        post(orders + ":batch", line),
        f"POST {orders} HTTP/1.1\r\n{auth}idempotency-key: c{n}\r\n{chunked}".encode(),
        f"GET /v1/orders?campaign={campaign}&limit=2 HTTP/1.1\r\n{auth}\r\n".encode(),
        post("/v1/payments/callback", order, "webhook-id: a\r\nwebhook-timestamp: 1\r\nwebhook-signature: v1,AAAA\r\n"),
        post("/v1/orders/01a20282-8f50-703c-a8f7-3cb8e2271976/cancel", ""),
    ]


def spoil(rng: random.Random, request: bytes) -> bytes:
    """The request with a few things wrong with it."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(request) + 1)
        match rng.randrange(7):
            case 0:
                request = request[:at] + bytes([rng.randrange(256)]) + request[at + 1 :]
            case 1:
                request = request[:at] + rng.choice(JUNK) + request[at:]
            case 2:
                request = request[: max(1, at)]
            case 3:
                end = min(len(request), at + rng.randrange(1, 40))
                request = request[:at] + request[end:]
            case 4:
                lines = request.split(b"\r\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                request = b"\r\n".join(lines)
            case 5:
                request = request[:at] + b"a" * rng.choice((300, 9_000, 70_000)) + request[at:]
            case _:
                request = request + request[:at]
    return (
        request if request.strip(b"\r\n") else b"?"
    )  # blank lines begin no request: they wait as long as nothing does


async def answers(client: Client, request: bytes) -> list[int]:
    """The status of every answer, until the gateway closes or is silent. Fails if there is neither answer nor end."""
    parts = urlsplit(client.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    said = b""
    try:
        writer.write(request)
        while True:
            try:
                piece = await asyncio.wait_for(reader.read(65_536), SILENT_S if STATUS.search(said) else HANGS_S)
            except TimeoutError:
                assert STATUS.search(said), f"no answer and no end in {HANGS_S} s: {request!r}"
                break
            except ConnectionError:
                break
            if not piece:
                break
            said += piece
    finally:
        writer.close()
    return [int(status) for status in STATUS.findall(said)]


def files(part: Part) -> int:
    return len(list(Path(f"/proc/{part.process.pid}/fd").iterdir()))


async def test_spoilt_requests(target: Part, stack: Up) -> None:
    client = target.gateway()
    campaign = stack.client.sale({"red": 100_000})
    rng = random.Random(SEED)
    for n, request in enumerate(good(campaign, 0)):
        assert (await answers(client, request))[0] < 500, n
    before = files(target)
    spoilt = [spoil(rng, rng.choice(good(campaign, n + 1))) for n in range(REQUESTS)]
    seen: Counter[int] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(n: int) -> None:
        async with gate:
            found = await answers(client, spoilt[n])
        assert all(status < 500 for status in found), (SEED, n, found, spoilt[n])
        seen.update(found)

    await asyncio.gather(*(one(n) for n in range(REQUESTS)))
    assert {202, 400, 401, 408, 422} <= seen.keys(), seen  # they got as far as the application, too
    until(lambda: files(target) <= before + 2)  # no connection is left open
    for word in ("Traceback", "request failed", "short way failed", "never retrieved"):
        assert word not in target.text
    assert client.get("/livez").status == 200
    assert client.settled_audit(campaign)["ok"]
