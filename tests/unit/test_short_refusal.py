"""The short way to refuse an order, over real sockets: what is special about a request takes the long way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from core.errors import StoreUnavailable
from gateway.http import SKIPPED, BoundedProtocol, overloaded
from gateway.intake import MAX_TAKEN, Intake
from gateway.process import listen
from lua.connection import StoreConnection
from tests.unit.test_prepare import ask, sale

ORDER = b"POST /v1/campaigns/x/orders HTTP/1.1\r\nhost: a\r\n"
LONG, SHORT = b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"
KEEP_ALIVE_S = 1


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Who came the long way: answers in pieces for longer than a connection may idle."""
    body = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": body})
    for _ in range(3):
        await send({"type": "http.response.body", "body": b"piece ", "more_body": True})
        await asyncio.sleep(KEEP_ALIVE_S / 2)
    await send({"type": "http.response.body", "body": b"end"})


class Full(BoundedProtocol):
    full = staticmethod(lambda: True)
    refused = overloaded(1)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that refuses every order it may."""
    sock = listen("127.0.0.1", 0, reuse_port=False)
    config = uvicorn.Config(
        app, http=Full, lifespan="off", ws="none", log_config=None, timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False, date_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        serving = asyncio.create_task(server._serve([sock]))
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield sock.getsockname()[1]
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # whoever is still being told
        server.should_exit = server.force_exit = True
        await serving


async def told(port: int, data: bytes, until: bytes) -> bytes:
    """What comes back, up to and with `until`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.readuntil(until), 10)
    finally:
        await ended(writer)


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


SPECIAL = {
    "another path that ends so": b"POST /v1/payments/orders HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
    "a query that ends so": b"POST /v1/payments/callback?x=/orders HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
    "a query of an order": b"POST /v1/campaigns/x?y=/orders HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
    "another method": b"GET /v1/campaigns/x/orders HTTP/1.1\r\nhost: a\r\n\r\n",
    "HTTP 1.0": b"POST /v1/campaigns/x/orders HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}",
    "connection: close": ORDER + b"connection: close\r\ncontent-length: 2\r\n\r\n{}",
    "a body of unknown size": ORDER + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a body that is too large to skip": ORDER + b"content-length: %d\r\n\r\n{}" % (SKIPPED + 1),
}


@pytest.mark.parametrize("what", SPECIAL)
async def test_what_is_special_takes_the_long_way(port: int, what: str) -> None:
    assert (await told(port, SPECIAL[what], b"\r\n")).startswith(LONG)


async def test_orders_are_refused_one_after_another_on_one_connection(port: int) -> None:
    order = ORDER + b"content-length: 2\r\n\r\n{}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(order)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(SHORT)
        assert b"retry-after: 1\r\n" in head
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        assert b'"code":"overloaded"' in await reader.readexactly(size)
    await ended(writer)


async def test_answer_behind_a_refusal_in_one_read_is_not_cut_by_the_refusals_idle_time(port: int) -> None:
    """The refusal begins the time that a connection may idle; what came with it has begun already."""
    data = ORDER + b"content-length: 2\r\n\r\n{}GET /v1/orders/1/events HTTP/1.1\r\nhost: a\r\n\r\n"
    answer = await told(port, data, b"end\r\n0\r\n\r\n")
    assert answer.startswith(SHORT)
    assert answer.count(b"piece ") == 3


async def test_refused_connection_does_not_tell_how_fast_the_store_is() -> None:
    """Else a store that comes back would be sent at once what piled up meanwhile."""
    sock = listen("127.0.0.1", 0, reuse_port=False)
    port = sock.getsockname()[1]
    sock.close()
    intake = Intake([StoreConnection(f"redis://127.0.0.1:{port}/0", "fsync", 1.0, "test")], 20_000, 4)
    room = intake._room
    before = room.take, room.most
    assert before[0] < MAX_TAKEN
    intake.start()
    selling = sale()
    for _ in range(4):
        failed = [intake.submit(selling, 0, ask(selling, key=f"k{n}")) for n in range(64)]
        assert all(isinstance(e, StoreUnavailable) for e in await asyncio.gather(*failed, return_exceptions=True))
    assert (room.take, room.most) == before
    await intake.stop()
