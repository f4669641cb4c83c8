"""A small shop over real HTTP for the tests of the rush, and the control that shows it is a correct one."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from loadtest.client import fetch
from loadtest.exchange import Target


@dataclass
class Asked:
    """One request as the server saw it; `number` counts the orders from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    number: int

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")


@dataclass
class Reply:
    """`drop` closes the connection instead of answering; `close` closes it after the answer."""

    status: int
    body: dict[str, Any] | bytes
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    close: bool = False

    def wire(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Length": str(len(body)), **self.headers}
        if self.close:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem(status: int, code: str, **headers: str) -> Reply:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": ""}
    return Reply(status, body, {"Content-Type": "application/problem+json", **headers})


class Shop:
    """A correct shop with a stock and a buyer limit; a test overrides `order` to make it wrong."""

    def __init__(self, stock: int = 1_000_000, buyer_limit: int = 2) -> None:
        self.stock = stock
        self.buyer_limit = buyer_limit
        self.skus = [
            {"sku": "red", "name": "Red", "price": 100},
            {"sku": "blue", "name": "Blue", "price": 300},
        ]
        self.orders: dict[str, str] = {}
        self.bought: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.connections = 0
        self.connections_now = 0
        self.connections_most = 0
        self.asked: list[Asked] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "Shop":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def campaign(self, asked: Asked) -> Reply:
        limits = {"buyer": self.buyer_limit, "ip": None}
        return Reply(200, {"campaign": "sale", "state": "open", "currency": "CNY", "limits": limits, "skus": self.skus})

    async def order(self, asked: Asked) -> Reply:
        if not asked.key:
            return problem(400, "key_missing")
        try:
            body = json.loads(asked.body)
        except ValueError:
            return problem(400, "malformed")
        if not (isinstance(body, dict) and isinstance(body.get("buyer_id"), str) and _good(body.get("items"))):
            return problem(422, "invalid")
        if not {item["sku"] for item in body["items"]} <= {sku["sku"] for sku in self.skus}:
            return problem(422, "unknown_sku")
        if asked.key in self.orders:
            return self.accepted(self.orders[asked.key], replayed=True)
        units = sum(item["quantity"] for item in body["items"])
        if self.bought[body["buyer_id"]] + units > self.buyer_limit:
            return problem(409, "over_limit")
        if units > self.stock:
            return problem(409, "sold_out")
        self.stock -= units
        self.bought[body["buyer_id"]] += units
        self.orders[asked.key] = f"order-{len(self.orders)}"
        return self.accepted(self.orders[asked.key])

    def accepted(self, order_id: str, replayed: bool = False) -> Reply:
        headers = {"Idempotent-Replayed": "true"} if replayed else {}
        return Reply(202, {"order_id": order_id, "status": "accepted"}, headers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.connections_now += 1
        self.connections_most = max(self.connections_most, self.connections_now)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.connections_now -= 1
            writer.transport.abort()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "POST":
            self.attempts[headers.get("idempotency-key", "")] += 1
        asked = Asked(method, path, headers, body, self.attempts.total())
        self.asked.append(asked)
        reply = await (self.order(asked) if method == "POST" else self.campaign(asked))
        if reply.drop:
            return False
        writer.write(reply.wire())
        await writer.drain()
        if reply.close:
            writer.write_eof()
        return not reply.close


def _good(items: object) -> bool:
    return (
        isinstance(items, list)
        and bool(items)
        and all(isinstance(i, dict) and type(i.get("quantity")) is int and i["quantity"] > 0 for i in items)
    )


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens: bound, so that nobody else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def order_wire(key: str, quantity: int = 1) -> bytes:
    body = json.dumps({"buyer_id": "b1", "items": [{"sku": "red", "quantity": quantity}]})
    return (
        f"POST /v1/campaigns/sale/orders HTTP/1.1\r\nhost: x\r\nidempotency-key: {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def test_shop_accepts_replays_limits_and_sells_out() -> None:
    """Control: the shop keeps state as a correct server does; the rush's checks are measured against it."""
    async with Shop(stock=3, buyer_limit=3) as shop:
        target = Target.from_url(shop.url)
        first = await fetch(target, order_wire("k1"), 1.0)
        again = await fetch(target, order_wire("k1"), 1.0)
        assert (first.status, first.replayed) == (202, False)
        assert (again.status, again.replayed, again.body) == (202, True, first.body)
        assert b"over_limit" in (await fetch(target, order_wire("k2", quantity=3), 1.0)).body
        shop.buyer_limit = 9
        assert b"sold_out" in (await fetch(target, order_wire("k3", quantity=3), 1.0)).body
        assert shop.stock == 2
