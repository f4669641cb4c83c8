"""GET /metrics of one process, on its own event loop and its own port: bounded, and never in the way of its work."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from core.errors import ConfigInvalid
from core.metrics import CONTENT_TYPE, Book, Buckets, Row
from core.metrics_table import SHORT_S

logger = logging.getLogger("rushgate.metrics")

CONNECTIONS = 8  # at once; more are closed
HEAD_BYTES = 8_192
PATIENCE_S = 5.0  # for a request's head, and for the client to read the answer
LOOK_S = 0.25  # between two looks at the event loop
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


def address(listen: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[host]:port`; None for '': there are no metrics. Raises ConfigInvalid."""
    if not listen:
        return None
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigInvalid("RUSHGATE_METRICS_LISTEN: must be host:port, or empty for no metrics")
    return host.removeprefix("[").removesuffix("]"), int(port)


class LoopLag:
    """How late the event loop is: timers that should have run earlier."""

    def __init__(self) -> None:
        self.late_s = Buckets(SHORT_S)

    async def watch(self) -> None:
        """Looks until it is cancelled."""
        while True:
            due_s = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self.late_s.add(max(0.0, time.monotonic() - due_s))

    def rows(self) -> Iterable[Row]:
        return [("rushgate_event_loop_lag_seconds", (), self.late_s)]


class MetricsServer:
    """Serves a book; also watches the event loop for it. Made in a running event loop, closed by `stop`.

    A port that is taken is no reason for a process not to work: it takes a free one, tells so in the log, and its sign
    of life names it.
    """

    def __init__(self, book: Book, listen: str) -> None:
        """Raises: ConfigInvalid."""
        self.book = book
        self.url = ""  # where it serves, once it does
        self._address = address(listen)
        self._lag = LoopLag()
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """It serves, if it is to."""
        if self._address is None:
            return
        self.book.add(self._lag.rows)
        self._watch = asyncio.get_running_loop().create_task(self._lag.watch(), name="event loop lag")
        host, port = self._address
        for wanted in dict.fromkeys((port, 0)):
            try:
                self._server = await asyncio.start_server(self._serve, host or None, wanted, limit=HEAD_BYTES)
                break
            except OSError as exc:
                facts = {"host": host, "port": wanted, "why": exc.strerror or str(exc)}
                logger.warning("metrics cannot be served here", extra=facts)
        if self._server is not None:
            name, bound = self._server.sockets[0].getsockname()[:2]
            name = ANY.get(name, name)
            self.url = f"http://{f'[{name}]' if ':' in name else name}:{bound}/metrics"
            logger.info("metrics served", extra={"url": self.url})

    async def stop(self) -> None:
        """No task and no socket of it is left."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: each connection has a task of its own
        self._open.add(task)
        try:
            async with asyncio.timeout(PATIENCE_S):
                with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer(head, self.book.exposition))
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError):
            pass
        except Exception:
            logger.exception("metrics not told")
        finally:
            writer.transport.abort()  # nothing, if it is closed
            self._open.discard(task)


def answer(head: bytes, exposition: Callable[[], bytes]) -> bytes:
    """The whole answer to a request's head."""
    line = head.partition(b"\r\n")[0].split(b" ")
    method, path = (line[0], line[1].partition(b"?")[0]) if len(line) == 3 else (b"", b"")
    more = b""
    if method not in (b"GET", b"HEAD"):
        status, body, kind, more = b"405 Method Not Allowed", b"only GET\n", b"text/plain", b"allow: GET, HEAD\r\n"
    elif path != b"/metrics":
        status, body, kind = b"404 Not Found", b"only /metrics\n", b"text/plain"
    else:
        status, body, kind = b"200 OK", exposition(), CONTENT_TYPE.encode()
    found = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
    return found % (status, kind, len(body), more) + (b"" if method == b"HEAD" else body)
