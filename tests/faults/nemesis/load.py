"""Clients that record what they ask and are told: an open loop of orders, repeats, cancels, payments, restocks."""

import asyncio
import json
import random
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import count
from typing import Any

from msgspec import Struct

from core.signing import Signer
from loadtest.history import Recorder, body_hash
from tests.e2e.support import Reply, read_reply
from tests.faults.nemesis.stack import ADMIN, CHANNELS, SECRET, Stack

TIMEOUT_S = 4.0  # of one request
OPEN_MAX = 400  # requests under way; beyond it they wait, unsent
TRIES_MAX = 6  # of an order whose outcome is unknown
PRICE = 100


class LoadPlan(Struct, frozen=True):
    """The crowd: rates per second, shares of 1; units in `stock`."""

    rate: int
    seconds: float
    buyers: int
    stock: dict[str, int]
    limits: dict[str, int]
    repeats: float = 0.10
    other_bodies: float = 0.03
    cancels: float = 0.04
    payments: float = 0.06
    restocks: float = 0.01


class Wanted(Struct, frozen=True):
    """An order as a client wants it: sent again it is the same."""

    channel: str
    key: str
    buyer: str
    items: tuple[tuple[str, int], ...]
    ip: str
    device: str

    @property
    def body(self) -> dict[str, Any]:
        return {
            "buyer_id": self.buyer,
            "items": [{"sku": sku, "quantity": n} for sku, n in self.items],
            "client_ip": self.ip,
            "device_id": self.device,
        }

    @property
    def hash(self) -> str:
        """Of what the key stands for: not of the address, which may change."""
        return body_hash(repr((self.buyer, self.items, self.device)).encode())


class Load:
    """One run. `run` offers everything; `probe` asks until somebody answers; `stop` waits for what is under way."""

    def __init__(self, stack: Stack, campaign: str, plan: LoadPlan, recorder: Recorder, seed: int) -> None:
        self._stack = stack
        self._campaign = campaign
        self._plan = plan
        self._recorder = recorder
        self._draw = random.Random(seed)
        self._signer = Signer([SECRET])
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(OPEN_MAX)
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}
        self._sent: list[Wanted] = []
        self._orders: dict[str, Wanted] = {}  # accepted, by order id
        self._ids: list[str] = []
        self._restocks: list[tuple[str, str, int]] = []
        self.disconnects = 0.0  # share of the requests that are broken off on purpose: a fault
        self.answers: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.definite = 0  # answers to orders
        self.goes_on = False  # beyond its time: a fault that comes late has its load too
        self.also_expected: set[str] = set()  # codes of definite refusals that a fault explains

    async def run(self) -> None:
        """Everything was sent at its time, whatever the answers were, and more while `goes_on`."""
        plan, loop = self._plan, asyncio.get_running_loop()
        started_s, total = loop.time(), int(plan.rate * plan.seconds)
        for n in count():
            if n >= total and not self.goes_on:
                return
            wait_s = started_s + n / plan.rate - loop.time()
            if wait_s > 0.002:
                await asyncio.sleep(wait_s)
            self._spawn()

    async def probe(self, timeout_s: float) -> bool:
        """Whether somebody got a definite answer to an order, asked for until then."""
        loop = asyncio.get_running_loop()
        until_s, before = loop.time() + timeout_s, self.definite
        while self.definite == before and loop.time() < until_s:
            self._start(self._order(self._new(), TRIES_MAX))
            await asyncio.sleep(0.1)
        return self.definite > before

    async def stop(self) -> None:
        """Nothing is under way any more, all connections are closed."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()
        self._idle.clear()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.unexpected.append(f"the load itself failed: {task.exception()!r}")

    def _spawn(self) -> None:
        """One operation of a drawn kind."""
        draw, plan = self._draw, self._plan
        point = draw.random()
        for share, begin in (
            (plan.repeats, self._begin_repeat),
            (plan.other_bodies, self._begin_other_body),
            (plan.cancels, self._begin_cancel),
            (plan.payments, self._begin_payment),
            (plan.restocks, self._begin_restock),
        ):
            if point < share and begin():
                return
            point -= share
        self._start(self._order(self._new(), 1))

    def _new(self) -> Wanted:
        draw, plan, n = self._draw, self._plan, next(self._numbers)
        skus = list(plan.stock)
        some = draw.sample(skus, min(len(skus), draw.choice((1, 1, 1, 2))))
        items = tuple((sku, draw.choice((1, 1, 1, 2))) for sku in some)
        buyer = draw.randrange(plan.buyers)
        wanted = Wanted(
            draw.choice(list(CHANNELS)),
            f"k{n}",
            f"b{buyer}",
            items,
            f"10.0.{buyer % 199}.{buyer % 13}",
            f"d{buyer // 2}",
        )
        if len(self._sent) < 50_000:
            self._sent.append(wanted)
        return wanted

    def _begin_repeat(self) -> bool:
        if self._sent:
            self._start(self._order(self._draw.choice(self._sent[-2_000:]), 1))
        return bool(self._sent)

    def _begin_other_body(self) -> bool:
        if self._sent:
            old = self._draw.choice(self._sent[-2_000:])
            items = tuple((sku, n + 1) for sku, n in old.items)
            self._start(self._order(Wanted(old.channel, old.key, old.buyer, items, old.ip, old.device), TRIES_MAX))
        return bool(self._sent)

    def _begin_cancel(self) -> bool:
        if self._ids:
            self._start(self._cancel(self._draw.choice(self._ids[-500:])))
        return bool(self._ids)

    def _begin_payment(self) -> bool:
        if self._ids:
            order_id = self._draw.choice(self._ids[-500:])
            self._start(self._pay(order_id, self._draw.choice(("paid", "twice", "failed", "other", "wrong"))))
        return bool(self._ids)

    def _begin_restock(self) -> bool:
        draw = self._draw
        if self._restocks and draw.random() < 0.3:
            move = draw.choice(self._restocks)
        else:
            units = draw.choice((1, 1, 2, 5, -2, -5))
            move = (f"r{next(self._numbers)}", draw.choice(list(self._plan.stock)), units)
            self._restocks.append(move)
        self._start(self._restock(*move))
        return True

    async def _order(self, wanted: Wanted, tries: int) -> None:
        body = json.dumps(wanted.body).encode()
        head = {"Authorization": f"Bearer {CHANNELS[wanted.channel]}", "Idempotency-Key": wanted.key}
        path = f"/v1/campaigns/{self._campaign}/orders"
        async with self._room:
            n = self._recorder.order(
                wanted.channel, wanted.key, wanted.hash, wanted.buyer, wanted.items, wanted.ip, wanted.device
            )
            reply = await self._send("POST", path, body, head)
            code = self._told(n, reply, "order", {202})
        if reply is not None and reply.status == 202:
            order_id = reply.json["order_id"]
            if self._orders.setdefault(order_id, wanted) is wanted and order_id not in self._ids[-1_000:]:
                self._ids.append(order_id)
        if code == "unknown" and tries < TRIES_MAX and self._draw.random() < 0.85:
            await asyncio.sleep(min(1.0, 0.1 * 2**tries) * self._draw.uniform(0.5, 1.0))
            self._start(self._order(wanted, tries + 1))

    async def _cancel(self, order_id: str) -> None:
        head = {"Authorization": f"Bearer {CHANNELS[self._orders[order_id].channel]}"}
        async with self._room:
            n = self._recorder.act("cancel", order_id)
            self._told(n, await self._send("POST", f"/v1/orders/{order_id}/cancel", b"", head), "cancel", {200})

    async def _pay(self, order_id: str, how: str) -> None:
        """A callback of the payment centre: right, twice, of a failure, under another number, of a wrong amount."""
        amount = sum(PRICE * n for _, n in self._orders[order_id].items) + (1 if how == "wrong" else 0)
        number = f"own-{order_id[-12:]}" + (f"-{next(self._numbers)}" if how == "other" else "")
        if how in ("failed", "wrong"):
            number += f"-{how}"
        fields = {
            "payment_no": number, "order_id": order_id, "amount": amount, "currency": "CNY",
            "status": "failed" if how == "failed" else "paid", "paid_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        body = json.dumps(fields).encode()
        await asyncio.gather(*(self._call_back(order_id, number, body) for _ in range(2 if how == "twice" else 1)))

    async def _call_back(self, order_id: str, number: str, body: bytes) -> None:
        head = self._signer.sign(number, int(time.time()), body)
        async with self._room:
            n = self._recorder.act("pay", order_id)
            self._told(n, await self._send("POST", "/v1/payments/callback", body, head), "pay", {200})

    async def _restock(self, move_id: str, sku: str, units: int) -> None:
        body = json.dumps({"id": move_id, "sku": sku, "units": units}).encode()
        path, head = f"/v1/admin/campaigns/{self._campaign}/restock", {"Authorization": f"Bearer {ADMIN}"}
        async with self._room:
            n = self._recorder.act("restock", sku=sku, units=units, move_id=move_id)
            code = self._told(n, await self._send("POST", path, body, head), "restock", {200})
        if code == "unknown":
            # An operator asks again until told: else a move stays half made, by design.
            await asyncio.sleep(0.5)
            self._start(self._restock(move_id, sku, units))

    def _told(self, n: int, reply: Reply | None, what: str, good: set[int]) -> str:
        """The answer is on record; `ok`, `fail` or `unknown`."""
        if reply is None:
            self._recorder.unknown(n)
            self.answers[f"{what}: none"] += 1
            return "unknown"
        status = reply.status
        if status in good:
            found = reply.json
            order_id = found.get("order_id", "") if what == "order" else ""
            self._recorder.ok(n, status, order_id, reply.headers.get("idempotent-replayed") == "true")
            self.answers[f"{what}: {status}"] += 1
            self.definite += what == "order"
            return "ok"
        code = reply.code
        self.answers[f"{what}: {code}"] += 1
        if status >= 500:
            if status != 503 or not reply.headers.get("retry-after"):
                self.unexpected.append(f"operation {n}, {what}: {status} {reply.body[:300]!r}")
            self._recorder.unknown(n, status, code)
            return "unknown"
        self._recorder.fail(n, status, code, str(reply.json.get("sku", "")))
        if code not in EXPECTED[what] | self.also_expected:
            self.unexpected.append(f"operation {n}, {what}: {status} {reply.body[:300]!r}")
        self.definite += what == "order" and status != 429
        return "fail"

    async def _send(self, method: str, path: str, body: bytes, head: dict[str, str]) -> Reply | None:
        """The answer, None if there was none. One request at a time on a connection."""
        which = self._draw.randrange(self._stack.shape.gateways)
        lines = [f"{method} {path} HTTP/1.1", "host: nemesis", f"content-length: {len(body)}"]
        request = "\r\n".join([*lines, *(f"{k}: {v}" for k, v in head.items()), "", ""]).encode() + body
        broken = self._draw.random() < self.disconnects
        idle = self._idle.setdefault(which, [])
        try:
            async with asyncio.timeout(TIMEOUT_S):
                port = self._stack.links[f"client-gateway-{which}"].port
                streams = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        except (OSError, TimeoutError):
            return None
        reply = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if broken:  # in the head, in the body, or after it
                    streams[1].write(request[: self._draw.randrange(1, len(request) + 1)])
                    await streams[1].drain()
                    await asyncio.sleep(self._draw.choice((0, 0.001, 0.005)))
                else:
                    streams[1].write(request)
                    reply = await read_reply(streams[0])
        except (OSError, TimeoutError, EOFError):
            reply = None
        finally:
            if reply is None or reply.headers.get("connection") == "close":
                streams[1].close()
            else:
                idle.append(streams)
        return reply


EXPECTED = {
    "order": {"sold_out", "over_limit", "key_reused"},
    "cancel": {"not_allowed", "conflict", "unknown_order"},
    "pay": {"contradicts", "not_allowed", "unknown_order"},
    "restock": {"conflict"},
}
