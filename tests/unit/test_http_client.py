"""The relay's HTTP client against a server that says exactly these bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support import eventually
from workers.http import ANSWER_BYTES, Client, NoAnswer, Target

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Talk = Callable[[Reader, Writer], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(talk: Talk, exchange_s: float = 5.0) -> AsyncIterator[Client]:
    talks: set[asyncio.Task[None] | None] = set()

    async def one(reader: Reader, writer: Writer) -> None:
        talks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    client = Client(
        Target.from_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/", "x"), 2.0, exchange_s
    )
    yield client
    await client.close()
    server.close()
    await asyncio.gather(*(t for t in talks if t))


async def read(reader: Reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def saying(*answers: bytes, close: bool = False) -> Talk:
    async def talk(reader: Reader, writer: Writer) -> None:
        for answer in answers:
            await read(reader)
            writer.write(answer)
        if not close:
            await reader.read()

    return talk


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_exchange_sends_one_whole_request_and_keeps_the_connection() -> None:
    got: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        while True:
            got.append(await read(reader))
            got.append(str(writer.get_extra_info("peername")[1]).encode())
            writer.write(OK)

    async with served(talk) as client:
        for n in range(2):
            answer = await client.post("/a/b", {"webhook-id": "m"}, b'{"n":%d}' % n)
            assert (answer.status, answer.body) == (200, b"ok")
    assert got[0].startswith(b"POST /base/a/b HTTP/1.1\r\nhost: 127.0.0.1:")
    assert got[0].endswith(b'webhook-id: m\r\n\r\n{"n":0}')
    assert got[1] == got[3]


@pytest.mark.parametrize(
    ("answer", "close", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, False, 200, b"ok"),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n", False, 500, b"bad"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", True, 200, b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", True, 200, b"to the end"),
    ],
)
async def test_answer_of_each_kind_is_read(answer: bytes, close: bool, status: int, body: bytes) -> None:
    async with served(saying(answer, close=close)) as client:
        found = await client.post("/", {}, b"x")
        assert (found.status, found.body) == (status, body)


async def test_retry_after_is_read_in_seconds_only() -> None:
    for text, seconds in ((b"7", 7.0), (b"Fri, 31 Dec 1999 23:59:59 GMT", 0.0), (b"-1", 0.0)):
        head = b"HTTP/1.1 503 No\r\nretry-after: " + text + b"\r\ncontent-length: 0\r\n\r\n"
        async with served(saying(head)) as client:
            assert (await client.post("/", {}, b"x")).retry_after_s == seconds


@pytest.mark.parametrize(
    ("answer", "close", "says"),
    [
        (b"", True, "closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf", True, "closed"),
        (b"SSH-2.0-x\r\n", False, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * ANSWER_BYTES, False, "too long"),
    ],
)
async def test_bad_answer_is_no_answer(answer: bytes, close: bool, says: str) -> None:
    async with served(saying(answer, close=close)) as client:
        with pytest.raises(NoAnswer, match=says):
            await client.post("/", {}, b"x")


async def test_silence_ends_at_the_limit_and_its_connection_is_not_used_again() -> None:
    first = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        await read(reader)
        if first.is_set():
            writer.write(OK)
        first.set()
        await reader.read()

    async with served(talk, exchange_s=0.2) as client:
        with pytest.raises(NoAnswer, match=r"0\.2 s"):
            await client.post("/", {}, b"x")
        assert (await client.post("/", {}, b"x")).status == 200


async def test_connection_that_its_server_closed_is_not_used_again() -> None:
    async with served(saying(OK, close=True)) as client:
        for _ in range(3):
            assert (await client.post("/", {}, b"x")).status == 200

            async def seen() -> bool:
                return not client._idle[0].usable

            await eventually(seen)


async def test_nobody_at_the_address_is_no_answer() -> None:
    client = Client(Target.from_url("http://127.0.0.1:9", "x"), 2.0, 2.0)
    with pytest.raises(NoAnswer, match="no connection"):
        await client.post("/", {}, b"x")


async def test_connections_of_a_burst_are_closed_when_one_is_used_after_they_rested_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.http.IDLE_S", 0.2)
    closed: list[None] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        while True:
            try:
                await read(reader)
            except asyncio.IncompleteReadError:
                closed.append(None)  # by the client: we would keep it for ever
                return
            await asyncio.sleep(0.05)  # all of a burst are under way at once
            writer.write(OK)

    async with served(talk) as client:
        await asyncio.gather(*(client.post("/x", {}, b"{}") for _ in range(8)))

        async def used() -> bool:
            await client.post("/x", {}, b"{}")
            return len(closed) == 7

        await eventually(used, 10)
