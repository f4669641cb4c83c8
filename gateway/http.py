"""The HTTP protocol of the gateway: uvicorn's, with a bound on a request's head and a short way to refuse an order.

uvicorn's httptools protocol keeps header bytes for as long as they come; one connection could fill the memory. And to
it a refused order costs as much as an accepted one (a task, a scope, a decoded body): of ten times as many as can be
served the gateway would do nothing but refuse.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.intake import FULL
from gateway.problems import problem

HEAD_BYTES = 65_536  # request line and headers that span more than one read, at most
_BODY = msgspec.json.encode(problem("head_too_large"))
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
CAMPAIGNS, ORDERS, BATCH = b"/v1/campaigns/", b"/orders", b"/orders:batch"
SKIPPED = (
    1 << 20
)  # bytes of a body that is not looked at, at most: more, or unknown, goes the long way and is refused there


def overloaded(retry_after_s: int) -> bytes:
    """The whole answer to an order that is refused before it is looked at; the connection stays of use."""
    body = msgspec.json.encode(problem("overloaded", FULL))
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
        b"content-length: %d\r\nretry-after: %d\r\n\r\n%b" % (len(body), retry_after_s, body)
    )


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection with 431 when a request's head is larger than HEAD_BYTES and one read together.

    Answers orders with `refused` as long as `full` says that no more may wait; `serve` gives it both.
    """

    full: Callable[[], bool] = staticmethod(lambda: False)
    refused = b""
    _in_head = False
    _head_bytes = 0
    _refuses = False  # the request whose body comes now

    def data_received(self, data: bytes) -> None:
        # What begins in this very read is as large as a read at most; what goes on from earlier ones is counted.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.write(TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> Any:
        self._in_head = False
        if self.full() and self._may_refuse():
            self._refuses = True
            return None
        self._unset_keepalive_if_required()  # a refusal in the very same read has set it
        return super().on_headers_complete()

    def _may_refuse(self) -> bool:
        """Whether this is an order, and nothing about its answer is special: its turn, the connection, the body."""
        return (
            self.url.startswith(CAMPAIGNS)
            and self.url.endswith((ORDERS, BATCH))
            and b"?" not in self.url
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused  # else who never reads its answers would fill our memory with them
            and not self.expect_100_continue
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.server_state.default_headers  # `connection: close` of a server that stops
            and self._body_bytes() <= SKIPPED
        )

    def _body_bytes(self) -> int:
        """As the head says; of a chunked one that is not known."""
        for name, value in self.headers:
            if name == b"transfer-encoding":
                return SKIPPED + 1
            if name == b"content-length":
                return int(value)  # the parser has looked at it
        return 0

    def on_body(self, body: bytes) -> None:
        if not self._refuses:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refuses:
            return super().on_message_complete()
        self._refuses = False
        self.server_state.total_requests += 1
        self.transport.write(self.refused)
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        return None
