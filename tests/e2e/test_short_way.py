"""The short way of a plain order, over raw sockets: same bytes as the long way, one after another, nothing cut off."""

import asyncio
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.e2e.conftest import own_gateway
from tests.e2e.support import APP_KEY, Client, Part, Up, read_reply, until
from tests.support import fresh

ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def order(campaign: str, key: str, *, buyer: str = "b", quantity: int = 1, more: bytes = b"") -> bytes:
    """One request on the wire."""
    body = f'{{"buyer_id":"{buyer}","items":[{{"sku":"red","quantity":{quantity}}}]}}'.encode()
    return (
        b"POST /v1/campaigns/%b/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nIdempotency-Key: %b\r\n"
        b"%bContent-Length: %d\r\n\r\n%b" % (campaign.encode(), APP_KEY.encode(), key.encode(), more, len(body), body)
    )


def raw(client: Client, data: bytes) -> bytes:
    """All that comes back until the server closes; the last request must ask for that."""
    with socket.create_connection((client.host, client.port), timeout=10) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def last(client: Client) -> bytes:
    """A request that closes the connection behind its answer."""
    return b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def first_answer(said: bytes) -> bytes:
    """The first answer in what came back, ids and times taken out: they are of one length."""
    head, _, rest = said.partition(b"\r\n\r\n")
    size = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
    return TIME.sub(b"TIME", ID.sub(b"ID", head + b"\r\n\r\n" + rest[:size]))


@pytest.mark.parametrize("what", ["accepted", "replayed", "sold out", "over limit", "key reused", "closed", "paused"])
def test_same_bytes_on_both_ways(client: Client, long_client: Client, what: str) -> None:
    said = []
    for side in (client, long_client):
        campaign = client.sale({"red": 3}, limits={"buyer": 2})
        request = order(campaign, "k")
        if what == "replayed":
            assert client.order(campaign, "b", "k").status == 202
        elif what == "sold out":
            assert client.order(campaign, "other", "o", items=[{"sku": "red", "quantity": 2}]).status == 202
            request = order(campaign, "k", quantity=2)
        elif what == "over limit":
            request = order(campaign, "k", quantity=3)
        elif what == "key reused":
            assert client.order(campaign, "another", "k").status == 202
        elif what in ("closed", "paused"):
            step = "close" if what == "closed" else "pause"
            assert client.admin("POST", f"{campaign}/{step}").status == 200
        answer = first_answer(raw(side, request + last(side)))
        said.append(answer.replace(campaign.encode(), b"CAMPAIGN"))
    assert said[0] == said[1]
    assert said[0].startswith(b"HTTP/1.1 202" if what in ("accepted", "replayed") else b"HTTP/1.1 4")


def test_pipelined_orders_are_answered_in_their_order(client: Client) -> None:
    campaign = client.sale({"red": 100}, limits={"buyer": 100})
    keys = [fresh("k") for _ in range(20)]
    said = raw(client, b"".join(order(campaign, key) for key in keys) + last(client))
    ids = [i.decode() for i in ID.findall(said)][::3]  # location, order_id, status_url
    assert said.count(b"HTTP/1.1 202 Accepted") == len(ids) == len(keys)
    again = [client.order(campaign, "b", key) for key in keys]
    assert [r.json["order_id"] for r in again] == ids
    assert all(r.headers["idempotent-replayed"] == "true" for r in again)


def test_other_requests_between_pipelined_orders_keep_their_place(client: Client) -> None:
    campaign = client.sale({"red": 100}, limits={"buyer": 100})
    live = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    wrong = order(campaign, "")
    said = raw(client, order(campaign, "a") + live + wrong + live + order(campaign, "b") + last(client))
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"202", b"200", b"400", b"200", b"202", b"200"]


def test_body_in_many_pieces_is_one_order(client: Client) -> None:
    campaign = client.sale({"red": 3})
    request = order(campaign, "k")
    with socket.create_connection((client.host, client.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(request)):
            connection.sendall(request[n : n + 1])
        assert connection.recv(65_536).startswith(b"HTTP/1.1 202")
    assert client.audit(campaign)["accepted"] == 1


@pytest.mark.parametrize("header", [b"Idempotency-Key: other\r\n", b"Authorization: Bearer other\r\n"])
def test_header_twice_with_two_values_is_no_plain_order(both_ways: Client, header: bytes) -> None:
    campaign = both_ways.sale({"red": 3})
    answer = first_answer(raw(both_ways, order(campaign, "k", more=header) + last(both_ways)))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))
    assert both_ways.audit(campaign)["accepted"] == 0


def test_client_that_left_has_its_order_under_its_key(client: Client) -> None:
    campaign = client.sale({"red": 3})
    with socket.create_connection((client.host, client.port), timeout=10) as connection:
        connection.sendall(order(campaign, "k"))
        connection.shutdown(socket.SHUT_RDWR)
    until(lambda: client.audit(campaign)["accepted"] == 1)
    reply = client.order(campaign, "b", "k")
    assert (reply.status, reply.headers["idempotent-replayed"]) == (202, "true")


@pytest.fixture
def own(stack: Up, tmp_path: Path) -> Iterator[tuple[Part, Client]]:
    """A gateway process that a test may stop."""
    part = Part(tmp_path / "log", ["gateway"], own_gateway(stack))
    try:
        yield part, part.gateway()
    finally:
        part.end()


async def test_order_in_flight_at_the_stop_has_its_answer_and_is_told_to_go(
    stack: Up, client: Client, own: tuple[Part, Client]
) -> None:
    part, leaving = own
    campaign = client.sale({"red": 3})
    reader, writer = await asyncio.open_connection(leaving.host, leaving.port)
    writer.write(order(campaign, "warm"))  # the campaign is known: from here on it is the short way
    assert (await read_reply(reader)).status == 202
    with Redis.from_url(stack.ready["store"]) as store:
        store.execute_command("CLIENT", "PAUSE", 700, "WRITE")
        writer.write(order(campaign, "k", buyer="c"))
        await writer.drain()
        await asyncio.sleep(0.2)  # it is with the store
        part.process.send_signal(signal.SIGTERM)
        reply = await read_reply(reader)
    assert reply.status == 202
    assert reply.headers["connection"] == "close"
    assert await reader.read() == b""
    writer.close()
    assert part.end() == 0
