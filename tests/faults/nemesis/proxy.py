"""A TCP proxy between two parts of the stack, which cuts, delays, loses replies and leaves connections half open."""

import asyncio
from collections import deque
from typing import Literal

Trouble = Literal["none", "cut", "delay", "replies_lost", "requests_lost", "half_open"]
BACKLOG = 1_024
PENDING_BYTES = 1 << 22  # of one direction that waits; beyond it the sender is kept from sending


class Link:
    """Listens on a port of 127.0.0.1 and leads to one address: `(host, port)`, or the path of a Unix socket."""

    def __init__(self, name: str, target: tuple[str, int] | str) -> None:
        self.name = name
        self.target = target
        self.trouble: Trouble = "none"
        self.harmed = 0  # connections that were reset, and pieces that were lost or late
        self.delay_s = 0.0
        self.port = 0
        self.keeps_open = False  # what the far side ends stays open for the near side, which has read all there was
        self.far_ended = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.pairs: set[_Pair] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """It listens; `port` is known."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self.port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """No connection is left, and nothing listens."""
        if self._server is not None:
            self._server.close()
        self.abort_all()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def set(self, trouble: Trouble, delay_s: float = 0.0) -> None:
        """From now on so. What passed half is not put together again: a connection that lost replies is cut at the end
        of that trouble; one that was half open stays dead until somebody closes it."""
        before, self.trouble, self.delay_s = self.trouble, trouble, delay_s
        if trouble == "cut" or before in ("replies_lost", "requests_lost"):
            self.abort_all()
        for pair in self.pairs if trouble == "half_open" else ():
            pair.dead = True

    def turn_to(self, target: tuple[str, int] | str) -> None:
        """It leads elsewhere from now on; connections to where it led are reset."""
        self.target = target
        self.abort_all()

    def abort_all(self) -> None:
        """Every connection is reset."""
        for pair in list(self.pairs):
            pair.abort()

    def _accept(self) -> asyncio.Protocol:
        pair = _Pair(self)
        self.pairs.add(pair)
        return pair.near

    def open_far(self, pair: "_Pair") -> None:
        """The other half of a connection is being made."""
        task = asyncio.get_running_loop().create_task(self._connect(pair))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, pair: "_Pair") -> None:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(self.target, str):
                await loop.create_unix_connection(lambda: pair.far, self.target)
            else:
                await loop.create_connection(lambda: pair.far, *self.target)
        except OSError:
            pair.abort()


class _Pair:
    """One connection through the proxy: the near half to who called, the far half to where it leads."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.dead = link.trouble == "half_open"
        self.near = _Half(self, is_near=True)
        self.far = _Half(self, is_near=False)
        self.near.other, self.far.other = self.far, self.near

    def abort(self) -> None:
        self.link.harmed += self.link.trouble == "cut"
        self.link.pairs.discard(self)
        for half in (self.near, self.far):
            half.closed = True
            if half.transport is not None:
                half.transport.abort()


class _Half(asyncio.Protocol):
    other: "_Half"

    def __init__(self, pair: _Pair, is_near: bool) -> None:
        self.pair = pair
        self.is_near = is_near
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.waiting: deque[bytes] = deque()  # to be written to this half, in order; None of the far one is made yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(PENDING_BYTES)
        if self.closed or self.pair.link.trouble == "cut":
            self.pair.abort()
        elif self.is_near:
            self.pair.link.open_far(self.pair)
        else:
            while self.waiting:
                transport.write(self.waiting.popleft())

    def data_received(self, data: bytes) -> None:
        link = self.pair.link
        lost: Trouble = "requests_lost" if self.is_near else "replies_lost"
        link.harmed += self.pair.dead or link.trouble in (lost, "delay")
        if self.pair.dead or link.trouble == lost:
            return
        self.other.waiting.append(data)
        if link.delay_s:
            # The oldest goes with each timer, so that order is kept whatever the delays are.
            asyncio.get_running_loop().call_later(link.delay_s, self.other.write_one)
        else:
            self.other.write_one()

    def write_one(self) -> None:
        if self.transport is not None and self.waiting and not self.closed:
            self.transport.write(self.waiting.popleft())

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.closed:
            self.other.transport.resume_reading()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.is_near:
            self.pair.link.far_ended.set()
            if self.pair.link.keeps_open:
                return
        if self.pair.dead and self.is_near:
            self.pair.abort()  # who called has given up
        elif not self.pair.dead:
            self._close_other()

    def _close_other(self) -> None:
        self.pair.link.pairs.discard(self.pair)
        if self.other.transport is not None and not self.other.closed:
            while self.other.waiting:
                self.other.transport.write(self.other.waiting.popleft())
            self.other.closed = True
            self.other.transport.close()
        else:
            self.other.closed = True
