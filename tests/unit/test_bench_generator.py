"""The generator of the benches, against a real HTTP server of its own on loopback."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import pytest

from bench.generator import (
    Crowd,
    Hung,
    batch_wire,
    body_of,
    closed,
    closed_loop,
    key_number,
    open_loop,
    order_wire,
    planned,
)
from core.model import BatchLine, OrderRequest

SERVICE_S = 0.02  # of the slow server
Answering = Callable[[bytes, asyncio.StreamWriter], None]


@contextmanager
def server(answer: Answering, service_s: float = 0.0) -> Iterator[int]:
    """The port of a server in a thread; a connection's request is answered after `service_s`, one after another."""
    ready, ports, ends = threading.Event(), list[int](), list[Callable[[], object]]()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    await asyncio.sleep(service_s)
                    answer(body, writer)
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()
        async with listening:
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        ends[0]()
        thread.join(10)


def echo(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def dribble(body: bytes, writer: asyncio.StreamWriter) -> None:
    """Cut within the head and within the body."""
    whole = b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    for cut in (whole[:20], whole[20:50], whole[50:]):
        writer.transport.write(cut)


def request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("answer", [echo, dribble])
@pytest.mark.parametrize("connections", [1, 7, 64])
def test_closed_loop_gives_each_request_its_own_answer(answer: Answering, connections: int) -> None:
    bodies = [b"order %d" % n for n in range(50)]
    with server(answer) as port:
        done = closed(port, [request(body) for body in bodies], connections)
    assert [body_of(one) for one in done.answers] == bodies
    assert all(0 < took_s <= done.seconds for took_s in done.took_s)


def test_closed_loop_with_fewer_under_way_gives_all_connections_their_turn() -> None:
    most, busy, seen = 0, 0, set[int]()

    def count(body: bytes, writer: asyncio.StreamWriter) -> None:
        seen.add(id(writer))
        echo(body, writer)

    class Watched(Crowd):
        def send(self, ticket: int, wire: bytes) -> None:
            nonlocal most, busy
            busy += 1
            most = max(most, busy)
            super().send(ticket, wire)

        def take(self, wait_s: float) -> list[tuple[int, bytes]]:
            nonlocal busy
            done = super().take(wait_s)
            busy -= len(done)
            return done

    with server(count) as port, Watched(port, 40) as crowd:
        done = closed_loop(crowd, [request(b"%d" % n) for n in range(120)], 3)
    assert [body_of(one) for one in done.answers] == [b"%d" % n for n in range(120)]
    assert most == 3
    assert len(seen) == 40


def test_closed_loop_carries_bodies_larger_than_the_socket_takes() -> None:
    bodies = [bytes([65 + n]) * 8_000_000 for n in range(3)]
    with server(echo) as port:
        done = closed(port, [request(body) for body in bodies], 2)
    assert [body_of(one) for one in done.answers] == bodies


def test_connection_closed_under_its_request_is_told() -> None:
    with server(lambda _, writer: writer.close()) as port, pytest.raises(Hung):
        closed(port, [request(b"order")], 1)


def test_open_loop_latency_counts_from_the_planned_time() -> None:
    """One slow connection, ten times too many requests: what waits unsent is in the latency, not left out of it."""
    with server(echo, SERVICE_S) as port, Crowd(port, 1) as crowd:
        found = open_loop(crowd, lambda n: request(b"%d" % n), 10 / SERVICE_S, 0.2)
    total = len(found.due_s)
    assert found.statuses == {b"202": total}
    assert total > 50
    assert max(found.latency_s) > (total - 20) * SERVICE_S
    assert max(a - s for a, s in zip(found.answered_s, found.sent_s, strict=True)) < max(found.latency_s) / 2


def test_open_loop_counts_answers_by_status() -> None:
    def refuse_odd(body: bytes, writer: asyncio.StreamWriter) -> None:
        status = b"503 No" if int(body) % 2 else b"202 Accepted"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % status)

    with server(refuse_odd) as port, Crowd(port, 8) as crowd:
        found = open_loop(crowd, lambda n: request(b"%d" % n), 500, 0.2)
    total = len(found.due_s)
    assert found.statuses == {b"202": (total + 1) // 2, b"503": total // 2}


def test_planned_times_have_the_rate_and_repeat_with_the_seed() -> None:
    times = planned(1_000, 20, 3)
    assert times == planned(1_000, 20, 3)
    assert times != planned(1_000, 20, 4)
    assert sorted(times) == list(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gap > 0.001 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)  # exponential: 1/e


def test_order_wire_is_a_whole_request_of_a_new_buyer_each() -> None:
    wire = order_wire("spring", "0123abcd")
    orders = []
    for n in (0, 7, 123_456, 10_999_999):
        head, _, body = wire(n).partition(b"\r\n\r\n")
        fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
        assert int(fields["content-length"]) == len(body)
        assert key_number(fields["idempotency-key"]) == n
        assert len(fields["idempotency-key"]) == 36
        orders.append(msgspec.json.decode(body, type=OrderRequest))
    assert len({o.buyer_id for o in orders}) == len({o.device_id for o in orders}) == 4
    assert {len(o.buyer_id) for o in orders} == {12}


def test_batch_wire_has_its_lines() -> None:
    head, _, body = batch_wire("spring", "0123abcd", 40, 3).partition(b"\r\n\r\n")
    lines = [msgspec.json.decode(line, type=BatchLine) for line in body.splitlines()]
    assert [key_number(line.request_key) for line in lines] == [40, 41, 42]
    assert f"content-length: {len(body)}".encode() in head
