"""What a connection may cost: how many there are, and how long one may take to say what it wants and to hear it."""

import asyncio
import contextlib
import resource
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from gateway.peer import network_of
from gateway.problems import problem

if TYPE_CHECKING:
    from gateway.http import BoundedProtocol

TICK_S = 1.0
SLICE = 2_000  # connections looked at in one turn of the event loop
SPARE_FILES = 256  # for store, ledger, logs and the rest


def _last(status: bytes, code: str, more: bytes = b"") -> bytes:
    """A whole answer that is its connection's last."""
    body = msgspec.json.encode(problem(code))
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/problem+json\r\n"
        b"content-length: %d\r\n%bconnection: close\r\n\r\n%b" % (status, len(body), more, body)
    )


TOO_LARGE = _last(b"431 Request Header Fields Too Large", "head_too_large")
BAD_HTTP = _last(b"400 Bad Request", "bad_http")
TOO_SLOW = _last(b"408 Request Timeout", "too_slow")


class Edge:
    """The connections of one process: counted when they come, looked at once a second, cut off when too slow."""

    def __init__(
        self, most: int = 10_000, per_address: int = 0, request_s: float = 30.0, idle_s: float = 75.0,
        retry_after_s: int = 1,
    ) -> None:  # fmt: skip
        """`most` connections, of one address `per_address` (0: as many as there may be); a request is read in
        `request_s`, an answer begins to be taken in `request_s`, and the first request comes within `idle_s`."""
        self.most = most
        self.per_address = per_address
        self._request_ticks = max(1, round(request_s / TICK_S))
        self._idle_ticks = max(1, round(idle_s / TICK_S))
        self.connections: set[BoundedProtocol] = set()
        self.refused = 0  # connections, since the start
        self.cut = 0
        self._of_address: Counter[str] = Counter()
        self._full = _last(b"503 Service Unavailable", "too_many_connections", b"retry-after: %d\r\n" % retry_after_s)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Slow clients are cut off from now on."""
        self._task = asyncio.create_task(self._watch(), name="edge")

    async def stop(self) -> None:
        """Nobody is looked at any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def enter(self, protocol: "BoundedProtocol") -> bool:
        """Whether the connection may stay; otherwise it has its answer and is closing."""
        address = _address_of(protocol) if self.per_address else ""
        too_many = len(self.connections) >= self.most or (
            self.per_address > 0 and self._of_address[address] >= self.per_address
        )
        if too_many:
            self.refused += 1
            protocol.transport.write(self._full)
            protocol.transport.close()
            return False
        self.connections.add(protocol)
        if self.per_address:
            self._of_address[address] += 1
        return True

    def leave(self, protocol: "BoundedProtocol") -> None:
        """The connection is gone."""
        if protocol not in self.connections:
            return
        self.connections.discard(protocol)
        if self.per_address:
            address = _address_of(protocol)
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for n, protocol in enumerate(list(self.connections), 1):
                if protocol.slow(self._request_ticks, self._idle_ticks):
                    self.cut += 1
                if n % SLICE == 0:
                    await asyncio.sleep(0)


def _address_of(protocol: "BoundedProtocol") -> str:
    """What counts as one address; "" of a socket without one."""
    return network_of(protocol.client[0]) if protocol.client else ""


def open_files(most: int) -> int:
    """How many files this process may open, after it has asked for as many as `most` connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else soft
