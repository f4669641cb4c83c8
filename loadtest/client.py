"""An HTTP/1.1 client for load: few bytes, few objects, a callback per answer.

One request at a time on a connection (no pipelining), a bounded number of connections, and a FIFO of the
requests that found none free. Nothing is repeated here: whether a lost answer is asked for again is the
caller's decision, because only the caller knows that the request carries a key.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import httptools

from loadtest.exchange import Answer, Target

T = TypeVar("T")

ANSWER_BYTES_MAX = 1_048_576
SWEEP_S = 0.05  # how late a timeout may be seen; one timer for all requests costs less than one each
REOPEN_S = 0.05  # pause after a refused connection, so that a dead server is not hammered in a loop
CONNECT_S_MAX = 5.0
OPENING_MAX = 64  # connections opened at once: past a listen backlog (asyncio: 100) a SYN is lost for 1 s

mono_s = time.monotonic


class _Connection(asyncio.Protocol, Generic[T]):
    """One connection: idle, or busy with one ticket."""

    def __init__(self, pool: "Pool[T]") -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.ticket: T | None = None  # None: idle
        self.sent_s = 0.0
        self.retired = False
        self.parser = httptools.HttpResponseParser(self)
        self._forget_answer()

    def _forget_answer(self) -> None:
        self.body = b""
        self.replayed = False
        self.retry_after_s: float | None = None
        self.status = 0
        self.complete = False
        self.surplus = False
        self.keep_alive = True

    def send(self, ticket: T, wire: bytes) -> None:
        assert self.transport is not None  # noqa: S101  for the type checker: only made connections are idle
        self.ticket = ticket
        self.sent_s = mono_s()
        self.transport.write(wire)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # create_connection makes a Transport
        self.pool._opened(self)

    def eof_received(self) -> None:
        self.pool._lost(self, "closed")  # at once: an idle connection must not be handed out any more

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool._lost(self, "closed")
        self.pool._gone(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.pool._lost(self, "protocol")
            return
        if self.complete:
            self._deliver()
        elif len(self.body) > ANSWER_BYTES_MAX:
            self.pool._lost(self, "protocol")

    def _deliver(self) -> None:
        ticket = self.ticket
        if ticket is None or self.surplus:
            self.pool._lost(self, "protocol")  # an answer too many
            return
        answer = Answer(self.status, "", self.body, self.replayed, self.retry_after_s, self.sent_s, mono_s())
        self.ticket = None
        keep_alive = self.keep_alive
        self._forget_answer()
        if keep_alive:
            self.pool._freed(self)
        else:
            self.pool._lost(self, "closed")
        self.pool.on_done(ticket, answer)

    # Called by the parser. Lengths are compared first: most headers are of no interest, and the case varies.
    def on_header(self, name: bytes, value: bytes) -> None:
        length = len(name)
        if length == 19:
            if name.lower() == b"idempotent-replayed":
                self.replayed = value.lower() == b"true"
        elif length == 11 and name.lower() == b"retry-after" and value.isdigit():
            self.retry_after_s = float(value)

    def on_body(self, body: bytes) -> None:
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        if self.complete:
            self.surplus = True  # two answers to one request: nobody can say which is meant
        self.status = self.parser.get_status_code()
        self.complete = self.status >= 200  # 1xx comes before the answer
        self.keep_alive = self.parser.should_keep_alive()


class Pool(Generic[T]):
    """At most `connections` connections to one target; calls `on_done(ticket, answer)` once per ticket.

    Args:
        connections: upper bound; they open when needed, or beforehand with `warm`.
        timeout_s: from sending to the whole answer. Waiting for a free connection has no timeout of its own:
            the caller bounds it with `stop`.
        on_done: called from the event loop; must not raise. It may submit again.
    """

    def __init__(
        self, target: Target, connections: int, timeout_s: float, on_done: Callable[[T, Answer], None]
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.on_done = on_done
        self.sent = 0  # requests written, repeats included
        self._max = connections
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection[T]] = set()
        self._closing: set[_Connection[T]] = set()
        self._idle: list[_Connection[T]] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[T, bytes]] = deque()
        self._reopen_at_s = 0.0
        self._stopped = False
        self._all_gone = asyncio.Event()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    @property
    def connections(self) -> int:
        """Open connections, busy or idle."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Requests in the FIFO."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Requests written and not yet answered."""
        return len(self._open) - len(self._idle)

    async def warm(self) -> int:
        """Open all connections; return how many are open. Refused ones are no error: requests will tell."""
        while (missing := self._max - len(self._open)) > 0:
            before = len(self._open)
            await asyncio.gather(*(self._connect() for _ in range(min(missing, OPENING_MAX))))
            if len(self._open) <= before:
                break
        return len(self._open)

    def submit(self, ticket: T, wire: bytes) -> None:
        """Send `wire` on a free connection, now or when one is free, in the order of submission."""
        if self._idle:
            self.sent += 1
            self._idle.pop().send(ticket, wire)
            return
        self._waiting.append((ticket, wire))
        if len(self._open) < self._max:
            self._grow()

    def stop(self) -> None:
        """End every request that is waiting or in flight with the failure `stopped`, and send no more."""
        self._stopped = True
        self._fail_waiting("stopped")
        for connection in list(self._open):
            self._lost(connection, "stopped")

    async def close(self) -> None:
        """Stop, and wait (at most a second) until the sockets are closed."""
        self.stop()
        self._sweeper.cancel()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        if self._closing:
            try:
                async with asyncio.timeout(1.0):
                    await self._all_gone.wait()
            except TimeoutError:
                pass  # a TLS peer that never says goodbye; the sockets are aborted anyway

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(min(self.timeout_s, CONNECT_S_MAX)):
                await self._loop.create_connection(
                    lambda: _Connection(self), self.target.host, self.target.port, ssl=self.target.tls
                )
        except (OSError, TimeoutError, UnicodeError):  # the last: a host that is no name
            self._reopen_at_s = mono_s() + REOPEN_S
            if not self._open:
                # Nobody answers: those who wait learn it now, as a real client would.
                self._fail_waiting("connect")

    def _grow(self) -> None:
        if self._stopped or mono_s() < self._reopen_at_s:
            return  # the sweep comes back to it
        room = min(self._max - len(self._open), OPENING_MAX) - len(self._opening)
        for _ in range(min(room, len(self._waiting) - len(self._opening))):
            task = self._loop.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _fail_waiting(self, failure: str) -> None:
        failed, self._waiting = self._waiting, deque()
        now = mono_s()
        for ticket, _ in failed:
            self.on_done(ticket, Answer(0, failure, b"", False, None, None, now))

    def _opened(self, connection: _Connection[T]) -> None:
        self._open.add(connection)
        if self._stopped:
            self._lost(connection, "stopped")
        else:
            self._freed(connection)

    def _freed(self, connection: _Connection[T]) -> None:
        if self._waiting:
            self.sent += 1
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _lost(self, connection: _Connection[T], failure: str) -> None:
        """Take a connection out of use, once, and end its request."""
        if connection.retired:
            return
        connection.retired = True
        self._open.discard(connection)
        ticket, connection.ticket = connection.ticket, None
        if ticket is None and connection in self._idle:
            self._idle.remove(connection)
        self._closing.add(connection)
        self._all_gone.clear()
        if connection.transport is not None:
            connection.transport.abort()
        if ticket is not None:
            self.on_done(ticket, Answer(0, failure, b"", False, None, connection.sent_s, mono_s()))
        if self._waiting:
            self._grow()

    def _gone(self, connection: _Connection[T]) -> None:
        self._closing.discard(connection)
        if not self._closing:
            self._all_gone.set()

    def _sweep(self) -> None:
        too_old_s = mono_s() - self.timeout_s
        for connection in [c for c in self._open if c.ticket is not None and c.sent_s < too_old_s]:
            self._lost(connection, "timeout")
        if self._waiting:
            self._grow()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)


async def fetch(target: Target, wire: bytes, timeout_s: float) -> Answer:
    """Send one request on a connection of its own; a failure is an `Answer` too, never an exception."""
    done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_done(_: bool, answer: Answer) -> None:
        if not done.done():  # a cancelled wait is done too
            done.set_result(answer)

    pool: Pool[bool] = Pool(target, 1, timeout_s, on_done)
    try:
        pool.submit(True, wire)
        return await done
    finally:
        await pool.close()
