"""What a server says of a campaign, its balance and its orders, over HTTP: for a judge at the end of a run.

Blocking, with the standard library: under locust gevent makes it wait without holding up anybody.
"""

import http.client
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from loadtest.exchange import Target

T = TypeVar("T")

TIMEOUT_S = 30.0
TRIES = 3
PAGE = 100  # orders; the server's own bound
ORDERS_MAX = 200_000  # of a campaign, that are looked at one by one: 2,000 pages


class ServerSilent(Exception):
    """The server did not answer, or not as it must; the text says what was asked and what came."""


class SkuFacts(msgspec.Struct, frozen=True):
    """A SKU on sale; price in minor units."""

    sku: str
    price: int = 0


class Sale(msgspec.Struct, frozen=True):
    """A campaign as a channel sees it. `now` is the server's clock."""

    campaign: str
    state: str
    now: datetime
    opens_at: datetime
    closes_at: datetime
    skus: tuple[SkuFacts, ...]
    limits: dict[str, int | None] = {}


class AuditSku(msgspec.Struct, frozen=True):
    """The balance of a SKU, in units."""

    sku: str
    allocation: int
    left: int
    held: int
    sold: int


class Audit(msgspec.Struct, frozen=True):
    """The server's own audit."""

    ok: bool
    accepted: int
    persisted: int
    oversold: int
    lost: int
    duplicated: int
    unsold: int
    phantom: int
    over_limit: int
    in_flight: int
    dead_lettered: int
    skus: tuple[AuditSku, ...]
    findings: tuple[str, ...] = ()

    @property
    def allocation(self) -> dict[str, int]:
        """SKU -> units that were ever put on sale."""
        return {sku.sku: sku.allocation for sku in self.skus}


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of an order."""

    sku: str
    quantity: int


class Seen(msgspec.Struct, frozen=True, gc=False):
    """An order as the ledger lists it."""

    order_id: str
    channel: str
    buyer_id: str
    state: str
    version: int
    items: tuple[Line, ...]
    accepted_at: datetime
    pay_by: datetime


class _Page(msgspec.Struct, frozen=True):
    orders: list[Seen]
    next: str | None = None


class _Live(msgspec.Struct, frozen=True):
    now: datetime


class Server:
    """One server, asked with one secret. `url` is `http(s)://host:port`. Raises ValueError for another one."""

    def __init__(self, url: str, secret: str, timeout_s: float = TIMEOUT_S) -> None:
        self._target = Target.from_url(url)
        self._secret = secret
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def campaign(self, campaign: str) -> Sale:
        """The campaign as a channel sees it. Raises ServerSilent."""
        return self._ask(f"/v1/campaigns/{quote(campaign, safe='')}", Sale)

    def audit(self, campaign: str) -> Audit:
        """The audit as it stands; the secret is the admin token. Raises ServerSilent."""
        return self._ask(f"/v1/admin/campaigns/{quote(campaign, safe='')}/audit", Audit)

    def settled_audit(self, campaign: str, wait_s: float) -> Audit:
        """The audit once nothing is on its way to the ledger, or the last one after `wait_s`. Raises ServerSilent."""
        until_s = time.monotonic() + wait_s
        while True:
            found = self.audit(campaign)
            if not found.in_flight or time.monotonic() >= until_s:
                return found
            time.sleep(0.1)

    def now(self) -> datetime:
        """The gateway's clock. Raises ServerSilent."""
        return self._ask("/livez", _Live).now

    def orders(self, campaign: str) -> Iterator[Seen]:
        """All orders of a campaign, page by page; the secret is the admin token. Raises ServerSilent."""
        after = ""
        while True:
            asked = {"campaign": campaign, "limit": str(PAGE)} | ({"after": after} if after else {})
            page = self._ask(f"/v1/orders?{urlencode(asked)}", _Page)
            yield from page.orders
            if page.next is None:
                return
            after = page.next

    def close(self) -> None:
        """No connection is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, path: str, shape: type[T]) -> T:
        where = f"GET {path.partition('?')[0]} on {self._target.authority}"
        said = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.3 * attempt)
            try:
                status, body = self._get(path)
            except (OSError, http.client.HTTPException) as exc:
                self.close()
                said = f"no answer ({str(exc) or type(exc).__name__})"
                continue
            if status == 200:
                try:
                    return msgspec.json.decode(body, type=shape)
                except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                    raise ServerSilent(f"{where}: an answer of another shape: {exc}") from exc
            said = f"{status} {body[:200].decode(errors='replace')}"
            if status not in (429, 503):
                break
        raise ServerSilent(f"{where}: {said}")

    def _get(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            host, port, timeout_s = self._target.host, self._target.port, self._timeout_s
            tls = self._target.tls
            if tls is None:
                self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
            else:
                self._connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {self._secret}"})
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, body
