"""The HTTP client of the rush: bounded connections, the FIFO, and every way in which an answer can fail."""

import asyncio
import re

import pytest

from loadtest.client import Pool, fetch
from loadtest.exchange import Answer, Target
from tests.unit.test_rush_server import Asked, Reply, Shop, order_wire, problem, refusing_port


class Collector:
    """A pool whose answers are kept in the order in which they came."""

    def __init__(self, url: str, connections: int, timeout_s: float = 2.0) -> None:
        self.answers: list[tuple[str, Answer]] = []
        self.enough = asyncio.Event()
        self.wanted = 0
        self.pool: Pool[str] = Pool(Target.from_url(url), connections, timeout_s, self._done)

    def _done(self, ticket: str, answer: Answer) -> None:
        self.answers.append((ticket, answer))
        if len(self.answers) >= self.wanted:
            self.enough.set()

    async def send(self, *keys: str) -> list[tuple[str, Answer]]:
        """Submit all at once, wait for all, and return what came."""
        self.answers.clear()
        self.enough.clear()
        self.wanted = len(keys)
        for key in keys:
            self.pool.submit(key, order_wire(key))
        async with asyncio.timeout(10):
            await self.enough.wait()
        return self.answers


async def test_pool_keeps_to_its_connections_and_to_the_order_of_submission() -> None:
    async with Shop(buyer_limit=100) as shop:
        one = Collector(shop.url, connections=1)
        keys = [f"k{n}" for n in range(20)]
        answers = await one.send(*keys)
        await one.pool.close()
        assert [ticket for ticket, _ in answers] == keys
        assert {answer.status for _, answer in answers} == {202}
        assert shop.connections == 1

        three = Collector(shop.url, connections=3)
        assert await three.pool.warm() == 3
        await three.send(*keys)
        await three.pool.close()
        assert shop.connections_most == 3


async def test_pool_reads_an_answer_in_chunks_and_pieces() -> None:
    class Chunked(Shop):
        async def order(self, asked: Asked) -> Reply:
            return Reply(202, b'4\r\n{"or\r\n10\r\nder_id":"split"}\r\n0\r\n\r\n', {"Transfer-Encoding": "chunked"})

        async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            await reader.readuntil(b'"quantity": 1}]}')
            reply = await self.order(Asked("POST", "", {}, b"", 1))
            for byte in re.sub(rb"Content-Length: \d+\r\n", b"", reply.wire()):
                writer.write(bytes([byte]))
                await writer.drain()
            return True

    async with Chunked() as shop:
        got = Collector(shop.url, connections=1)
        for key in ("a", "b"):
            [(_, answer)] = await got.send(key)
            assert answer.body == b'{"order_id":"split"}'
        await got.pool.close()
        assert shop.connections == 1


async def test_pool_reopens_a_connection_the_server_closed() -> None:
    class Closing(Shop):
        async def order(self, asked: Asked) -> Reply:
            reply = await super().order(asked)
            reply.close = True
            return reply

    async with Closing(buyer_limit=100) as shop:
        got = Collector(shop.url, connections=1)
        answers = await got.send("a", "b", "c")
        await got.pool.close()
        assert [answer.status for _, answer in answers] == [202, 202, 202]
        assert shop.connections == 3


async def test_pool_hands_out_no_connection_that_died_while_idle() -> None:
    class Hasty(Shop):
        async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            await super()._exchange(reader, writer)
            return False  # closed, and the answer had promised to keep it

    async with Hasty(buyer_limit=100) as shop:
        got = Collector(shop.url, connections=1)
        for key in ("a", "b", "c"):
            [(_, answer)] = await got.send(key)
            assert answer.status == 202
            async with asyncio.timeout(5):
                while got.pool.connections:  # noqa: ASYNC110  the client has no event for an idle end
                    await asyncio.sleep(0)
        await got.pool.close()
        assert shop.connections == 3


async def test_pool_names_a_dropped_connection_and_goes_on() -> None:
    class Dropping(Shop):
        async def order(self, asked: Asked) -> Reply:
            return Reply(0, b"", drop=True) if asked.key == "b" else await super().order(asked)

    async with Dropping(buyer_limit=100) as shop:
        got = Collector(shop.url, connections=1)
        answers = dict(await got.send("a", "b", "c"))
        await got.pool.close()
        assert (answers["b"].status, answers["b"].failure) == (0, "closed")
        assert answers["b"].sent_s is not None  # it may have been processed
        assert answers["a"].status == answers["c"].status == 202


async def test_pool_times_out_a_silent_request_and_never_uses_its_late_answer() -> None:
    class Silent(Shop):
        async def order(self, asked: Asked) -> Reply:
            if asked.key == "slow":
                await asyncio.Event().wait()
            return await super().order(asked)

    async with Silent() as shop:
        got = Collector(shop.url, connections=1, timeout_s=0.15)
        answers = await got.send("slow", "next")
        await got.pool.close()
        assert [(ticket, a.status, a.failure) for ticket, a in answers] == [
            ("slow", 0, "timeout"),
            ("next", 202, ""),
        ]
        assert 0.15 <= answers[0][1].answered_s - (answers[0][1].sent_s or 0) < 1.0


@pytest.mark.parametrize(
    "garbage",
    [b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n" * 2],
    ids=["no_http", "two_answers"],
)
async def test_pool_takes_garbage_for_no_answer(garbage: bytes) -> None:
    class Babbling(Shop):
        async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(garbage)
            return True

    async with Babbling() as shop:
        answer = await fetch(Target.from_url(shop.url), order_wire("k"), 1.0)
        assert (answer.status, answer.failure) == (0, "protocol")


async def test_pool_reports_a_refused_connection_as_never_sent() -> None:
    with refusing_port() as port:
        answer = await fetch(Target.from_url(f"http://127.0.0.1:{port}"), order_wire("k"), 1.0)
        assert (answer.status, answer.failure, answer.sent_s) == (0, "connect", None)


async def test_pool_stop_ends_waiting_and_flying_requests_once() -> None:
    class Silent(Shop):
        arrived = asyncio.Event()

        async def order(self, asked: Asked) -> Reply:
            self.arrived.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with Silent() as shop:
        got = Collector(shop.url, connections=1)
        got.wanted = 2
        for key in ("flying", "waiting"):
            got.pool.submit(key, order_wire(key))
        await Silent.arrived.wait()
        assert (got.pool.in_flight, got.pool.waiting) == (1, 1)
        got.pool.stop()
        await got.pool.close()
        found = {ticket: (a.failure, a.sent_s is None) for ticket, a in got.answers}
        assert found == {"flying": ("stopped", False), "waiting": ("stopped", True)}
        assert len(got.answers) == 2


async def test_pool_reads_retry_after_in_seconds_only() -> None:
    class Busy(Shop):
        async def order(self, asked: Asked) -> Reply:
            when = {"seconds": "2", "date": "Sat, 21 Nov 2026 12:00:00 GMT"}[asked.key]
            return problem(503, "unavailable", **{"retry-AFTER": when})

    async with Busy() as shop:
        target = Target.from_url(shop.url)
        assert (await fetch(target, order_wire("seconds"), 1.0)).retry_after_s == 2.0
        assert (await fetch(target, order_wire("date"), 1.0)).retry_after_s is None


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "http://x/path", "http://x:99999"])
def test_target_refuses_what_is_no_server(url: str) -> None:
    with pytest.raises(ValueError, match=r"url|[Pp]ort"):
        Target.from_url(url)
