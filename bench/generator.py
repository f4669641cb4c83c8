"""HTTP load from one plain epoll loop: a request costs the generator some 10 us, a third of what asyncio's takes.

One request at a time on a connection, no pipelining. Two ways: `closed_loop`, where each connection has its next
request as soon as it has an answer, and `open_loop`, where each request has its planned time, whatever was answered:
one that finds no connection free waits for it, and its latency counts from then (no coordinated omission).
"""

import gc
import random
import re
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bench.services import CHANNEL_KEY

RECEIVE_BYTES = 262_144
QUIET_S = 30.0  # without any answer: the gateway hangs
_length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search

Wire = Callable[[int], bytes]


class Hung(Exception):
    """No answer came for QUIET_S, or a connection was closed under a request."""


class Closed(NamedTuple):
    """Of a closed loop: whole answers (head and body) in the order of the requests, and how long each took."""

    answers: list[bytes]
    took_s: "array[float]"
    seconds: float


class Opened(NamedTuple):
    """Of an open loop, by the number of the request: times in seconds from `began_wall_s`, of the wall clock."""

    began_wall_s: float
    due_s: "array[float]"
    sent_s: "array[float]"
    answered_s: "array[float]"
    statuses: Counter[bytes]  # b"202" -> how often

    @property
    def latency_s(self) -> list[float]:
        """From the planned time to the answer."""
        return [answered - due for answered, due in zip(self.answered_s, self.due_s, strict=True)]

    @property
    def late_s(self) -> list[float]:
        """From the planned time to the sending."""
        return [sent - due for sent, due in zip(self.sent_s, self.due_s, strict=True)]


class _Connection:
    __slots__ = ("missing", "parts", "socket", "ticket", "unsent")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.ticket = -1
        self.parts: list[bytes] = []  # of an answer that is not complete
        self.missing = 0  # bytes of it; -1 = its head is not complete
        self.unsent = b""


class Crowd:
    """Open connections to one gateway on 127.0.0.1, to be used in a `with`. While it waits the event loop stands still:
    whoever has something to do besides does it in another process.
    """

    def __init__(self, port: int, connections: int) -> None:
        self._poll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        for _ in range(connections):
            made = socket.create_connection(("127.0.0.1", port), 10.0)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setblocking(False)
            self._by_fd[made.fileno()] = _Connection(made)
            self._poll.register(made.fileno(), select.EPOLLIN)
        self.idle = deque(self._by_fd.values())  # first in, first out: all are used alike

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._by_fd.values():
            connection.socket.close()
        self._poll.close()

    def send(self, ticket: int, wire: bytes) -> None:
        """The request is on its way on an idle connection; there must be one."""
        connection = self.idle.popleft()
        connection.ticket = ticket
        self._write(connection, wire)

    def take(self, wait_s: float) -> list[tuple[int, bytes]]:
        """Tickets and answers that are complete, waiting at most so long (rounded up to ms) for the first of them.

        Raises: Hung, when a connection was closed under its request.
        """
        done = []
        for fd, event in self._poll.poll(wait_s):
            connection = self._by_fd[fd]
            if event & select.EPOLLOUT:
                self._poll.modify(fd, select.EPOLLIN)
                self._write(connection, connection.unsent)
            if event & ~select.EPOLLOUT:
                try:
                    data = connection.socket.recv(RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                answer = _collected(connection, data)
                if answer:
                    done.append((connection.ticket, answer))
                    self.idle.append(connection)
        return done

    def _write(self, connection: _Connection, wire: bytes) -> None:
        try:
            sent = connection.socket.send(wire)
        except BlockingIOError:
            sent = 0
        if sent < len(wire):  # a batch of many lines: the rest when there is room again
            connection.unsent = wire[sent:]
            self._poll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)


def _collected(connection: _Connection, data: bytes) -> bytes:
    """The answer if these bytes complete it, else b"". Raises Hung."""
    if not data:
        raise Hung("a connection was closed under its request")
    if connection.parts:
        connection.parts.append(data)
        if connection.missing > len(data):
            connection.missing -= len(data)
            return b""
        data = b"".join(connection.parts)
        connection.parts = []
    end = data.find(b"\r\n\r\n") + 4
    length = _length(data, 0, end) if end > 3 else None
    connection.missing = end + int(length[1]) - len(data) if length else 0
    if end < 4 or connection.missing > 0:
        connection.parts = [data]
        return b""
    assert connection.missing == 0, "an answer is longer than it says"
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the cyclic collector: it would stop the clock of every request at once."""
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def closed(port: int, wires: Sequence[bytes], connections: int) -> Closed:
    """As `closed_loop`, with connections of its own. Raises Hung."""
    with Crowd(port, min(connections, len(wires))) as crowd:
        return closed_loop(crowd, wires)


def closed_loop(crowd: Crowd, wires: Sequence[bytes], under_way: int | None = None) -> Closed:
    """All requests are answered, `under_way` of them at any time, or as many as the crowd has connections.

    With fewer than connections, these have their turns one after another. Raises: Hung.
    """
    answers, took_s = [b""] * len(wires), array("d", bytes(8 * len(wires)))
    clock = time.perf_counter
    following, answered = min(under_way or len(crowd.idle), len(crowd.idle), len(wires)), 0
    with _quiet():
        began_s = now_s = last_s = clock()
        for n in range(following):
            took_s[n] = -clock()
            crowd.send(n, wires[n])
        while answered < len(wires):
            done = crowd.take(QUIET_S)
            now_s = clock()
            if done:
                last_s = now_s
            elif now_s - last_s > QUIET_S:
                raise Hung(f"no answer for {QUIET_S:g} s")
            for ticket, answer in done:
                answers[ticket] = answer
                took_s[ticket] += now_s
                if following < len(wires):
                    took_s[following] = -clock()
                    crowd.send(following, wires[following])
                    following += 1
            answered += len(done)
    return Closed(answers, took_s, now_s - began_s)


def open_loop(crowd: Crowd, wire: Wire, rate: float, seconds: float, seed: int = 1) -> Opened:
    """`rate` requests a second for so long, at times as of independent buyers (Poisson), until all are answered.

    `wire(n)` makes the n-th request. Raises: Hung.
    """
    return open_plan(crowd, wire, planned(rate, seconds, seed))


def open_plan(crowd: Crowd, wire: Wire, due_s: "array[float]") -> Opened:
    """As open_loop, at these times, which ascend. Raises: Hung."""
    total = len(due_s)
    sent_s, answered_s = array("d", bytes(8 * total)), array("d", bytes(8 * total))
    statuses: Counter[bytes] = Counter()
    idle, send, take, clock = crowd.idle, crowd.send, crowd.take, time.perf_counter
    following = answered = 0
    with _quiet():
        began_wall_s, began_s = time.time(), clock()
        last_s = 0.0
        while answered < total:
            now_s = clock() - began_s
            while following < total and due_s[following] <= now_s and idle:
                sent_s[following] = now_s
                send(following, wire(following))
                following += 1
            # epoll counts milliseconds: what is due within one is at most so late, and its latency tells.
            wait_s = max(0.0, due_s[following] - now_s) if following < total and idle else QUIET_S
            done = take(wait_s)
            if not done:
                if now_s - last_s > QUIET_S and following > answered:
                    raise Hung(f"no answer for {QUIET_S:g} s")
                continue
            last_s = clock() - began_s
            for ticket, answer in done:
                answered_s[ticket] = last_s
                statuses[answer[9:12]] += 1
            answered += len(done)
    return Opened(began_wall_s, due_s, sent_s, answered_s, statuses)


def planned(rate: float, seconds: float, seed: int) -> "array[float]":
    """When each request is due, seconds from the beginning: exponential gaps, the same for the same seed."""
    draw, times, at_s = random.Random(seed).expovariate, array("d"), 0.0
    while (at_s := at_s + draw(rate)) < seconds:
        times.append(at_s)
    return times


# Ids as they are in earnest: a key of 36 characters, a buyer of 12, an address, a device of 16. All of one length, so
# that a request is one `%`.
_KEY = "%s-0000-4000-8000-%%012d"
_ORDER = (
    b'"buyer_id":"b%011d","items":[{"sku":"phone-red","quantity":1}],"client_ip":"10.%d.%d.%d","device_id":"d%015d"}'
)
MARK = re.compile(r"[0-9a-f]{8}")


def _numbers(n: int) -> tuple[int, ...]:
    return n, n, 100 + n // 10_000 % 100, 100 + n // 100 % 100, 100 + n % 100, n


def key_number(request_key: str) -> int:
    """The number of the order that has this key."""
    return int(request_key[-12:])


def order_wire(campaign: str, mark: str) -> Wire:
    """The n-th order of a new buyer with a new key. `mark`: 8 hexadecimal digits that begin its request key."""
    assert MARK.fullmatch(mark)
    body = b"{" + _ORDER
    template = _head(f"{campaign}/orders") + (
        b"idempotency-key: %b\r\ncontent-length: %d\r\n\r\n" % ((_KEY % mark).encode(), len(body % _numbers(0)[1:]))
    )
    whole = template + body
    return lambda n: whole % _numbers(n)


def batch_wire(campaign: str, mark: str, first: int, lines: int) -> bytes:
    """One `orders:batch` request with the orders from `first` on."""
    assert MARK.fullmatch(mark)
    line = b'{"request_key":"%b",' % (_KEY % mark).encode() + _ORDER
    body = b"\n".join(line % _numbers(n) for n in range(first, first + lines)) + b"\n"
    kind = b"content-type: application/x-ndjson\r\n"
    return _head(f"{campaign}/orders:batch") + kind + b"content-length: %d\r\n\r\n" % len(body) + body


def _head(path: str) -> bytes:
    words = f"POST /v1/campaigns/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {CHANNEL_KEY}\r\n"
    return words.encode()


def body_of(answer: bytes) -> bytes:
    return answer[answer.index(b"\r\n\r\n") + 4 :]
