"""A shop that can lie, over real HTTP, for tests of those who should find out."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

STOCK = 100_000
Lie = Literal["", "another order for the same key", "forgets an order", "503 without Retry-After"]


class Till(ThreadingHTTPServer):
    """Sells `red` without limits, and tells the truth but for one lie. No order ever moves."""

    daemon_threads = True

    def __init__(self, lie: Lie) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.lie = lie
        self.lock = threading.Lock()
        self.orders: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.count = itertools.count(1)
        self.lied = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def order(self, key: str, body: dict[str, Any]) -> tuple[str, bool]:
        """The order's id, and whether it is a replay."""
        with self.lock:
            known = self.by_key.get(key)
            if known is not None and self.lie != "another order for the same key":
                return known, True
            self.lied += known is not None
            number = next(self.count)
            order_id = self.by_key[key] = f"order-{number}"
            if self.lie == "forgets an order" and number == 3:
                self.lied += 1
                return order_id, False
            now = datetime.now(UTC)
            self.orders[order_id] = {
                "order_id": order_id, "channel": "app", "buyer_id": body["buyer_id"], "state": "accepted",
                "version": 1, "items": body["items"], "amount": 100, "currency": "CNY",
                "accepted_at": now.isoformat(), "pay_by": (now + timedelta(hours=1)).isoformat(),
            }  # fmt: skip
            return order_id, known is not None

    def audit(self) -> dict[str, Any]:
        with self.lock:
            orders = list(self.orders.values())
        units = sum(line["quantity"] for order in orders for line in order["items"])
        sku = {"sku": "red", "allocation": STOCK, "left": STOCK - units, "held": units, "sold": 0}
        found = dict.fromkeys(("oversold", "lost", "duplicated", "phantom", "over_limit", "in_flight"), 0)
        return found | {
            "ok": True, "accepted": len(orders), "persisted": len(orders), "unsold": STOCK - units, "dead_lettered": 0,
            "skus": [sku], "findings": [],
        }  # fmt: skip


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Till

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path, now = self.path.partition("?")[0], datetime.now(UTC)
        if path.endswith("/audit"):
            self._say(200, self.server.audit())
        elif path == "/v1/orders":
            with self.server.lock:
                self._say(200, {"orders": list(self.server.orders.values()), "next": None})
        elif path == "/livez":
            self._say(200, {"now": now.isoformat()})
        elif path.startswith("/v1/campaigns/"):
            window = {"opens_at": (now - timedelta(hours=1)).isoformat(), "closes_at": "2099-01-01T00:00:00Z"}
            skus = [{"sku": "red", "price": 100}]
            self._say(200, {"campaign": "sale", "state": "open", "now": now.isoformat(), "skus": skus} | window)
        elif (order := self.server.orders.get(path.rpartition("/")[2])) is not None:
            self._say(200, order)
        else:  # the one that it has forgotten
            self._say(200, self.server.orders["order-1"] | {"order_id": path.rpartition("/")[2]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lie, key = self.server.lie, self.headers["Idempotency-Key"]
        if lie == "503 without Retry-After" and key not in self.server.by_key and not self.server.lied:
            self.server.lied += 1
            return self._say(503, {"type": "/problems/x", "title": "x", "status": 503, "code": "overloaded"})
        order_id, replayed = self.server.order(key, json.loads(body))
        said = {
            "order_id": order_id, "status": "accepted", "status_url": f"/v1/orders/{order_id}",
            "pay_by": "2099-01-01T00:00:00Z", "durability": "fsync",
        }  # fmt: skip
        return self._say(202, said, {"Idempotent-Replayed": "true"} if replayed else {})

    def _say(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def served(lie: Lie) -> Iterator[Till]:
    """The shop serves until the end."""
    till = Till(lie)
    thread = threading.Thread(target=till.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield till
    finally:
        till.shutdown()
        thread.join()
        till.server_close()
