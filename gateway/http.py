"""The HTTP protocol of the gateway: uvicorn's, with a bound on what a client may send before its body.

uvicorn's httptools protocol keeps header bytes for as long as they come; one connection could fill the memory.
"""

from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.problems import problem

HEAD_BYTES = 65_536  # request line and headers that span more than one read, at most
_BODY = msgspec.json.encode(problem("head_too_large"))
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection with 431 when a request's head is larger than HEAD_BYTES and one read together."""

    _in_head = False
    _head_bytes = 0

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
        return super().on_headers_complete()
