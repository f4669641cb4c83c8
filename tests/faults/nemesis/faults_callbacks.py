"""Callbacks that are early, late, twice and contradictory."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from core.signing import Signer
from tests.e2e.support import Client
from tests.faults.nemesis.faults import Scene, Skipped, fault, meanwhile, until
from tests.faults.nemesis.faults_data import conduct
from tests.faults.nemesis.stack import SECRET

AT_ONCE = 20  # orders that are called back about
EARLY_S = 5.0
USUAL = {"pay": 0.6, "cancel": 0.15, "ignore": 0.15, "pay_late": 0.1, "late_ms": 300}  # as the stack starts them
LATE = {"pay": 0.0, "cancel": 0.1, "ignore": 0.1, "pay_late": 0.8, "late_ms": 50}
REPORTS = (
    ("warehouse", "pick"), ("warehouse", "ship"), ("warehouse", "receive"), ("provisioning", "provision"),
    ("billing", "bill"),
)  # fmt: skip
ENDED = """SELECT order_id::text FROM orders WHERE campaign = $1 AND state IN ('cancelled', 'expired', 'refunded')
           ORDER BY order_id LIMIT $2"""


@fault("processes")
async def callbacks_early(scene: Scene) -> AsyncIterator[None]:
    """No ledger worker works, and payments are reported before the ledger has their orders: they must come again."""
    load, workers = scene.load, scene.stack.of("ledger")
    for worker in workers:
        worker.send(signal.SIGSTOP)
    seen, early = len(load._ids), load.answers["pay: on_its_way"]

    async def pay_new() -> None:
        nonlocal seen
        new, seen = load._ids[seen : seen + AT_ONCE], len(load._ids)
        await asyncio.gather(*(load._pay(order_id, "twice") for order_id in new))

    try:
        async with meanwhile(pay_new, 0.1):
            await until(lambda: load.answers["pay: on_its_way"] > early, EARLY_S)
            yield
    finally:
        for worker in workers:
            worker.send(signal.SIGCONT)
    if load.answers["pay: on_its_way"] == early:
        raise Skipped(f"no order was accepted in {EARLY_S} s")


@fault("partners")
async def callbacks_late(scene: Scene) -> AsyncIterator[None]:
    """Nearly every buyer pays when the time to pay is over."""
    client = Client(f"http://127.0.0.1:{scene.stack.partners_port}")

    async def put(values: dict[str, float]) -> None:
        reply = await asyncio.to_thread(client.call, "PUT", "/control/buyers", json.dumps(values).encode())
        assert reply.status == 200, reply

    await put(LATE)
    try:
        yield
    finally:
        await put(USUAL)


@fault("partners")
async def callbacks_twice(scene: Scene) -> AsyncIterator[None]:
    """Every callback of every partner comes twice, at once."""
    async with conduct(scene, duplicate=1.0):
        yield


@fault("clients")
async def callbacks_contradictory(scene: Scene) -> AsyncIterator[None]:
    """One payment is reported as paid, as failed and of another amount under one number, in any order and at once; and
    steps are reported of orders that are over, which must be refused."""
    load, signer, ledger = scene.load, Signer([SECRET]), scene.stack.desk
    assert ledger is not None

    async def contradict() -> None:
        ids = scene.draw.sample(load._ids, min(len(load._ids), 5))
        await asyncio.gather(*(_pay_otherwise(scene, order_id) for order_id in ids))

    async def report(order_id: str, partner: str, action: str) -> None:
        fields = {"order_id": order_id, "action": action, "at": datetime.now(UTC).isoformat()}
        body = json.dumps(fields).encode()
        head = signer.sign(f"late-{order_id}-{action}", int(time.time()), body)
        reply = await load._send("POST", f"/v1/partners/{partner}/callback", body, head)
        assert reply is None or reply.status != 200 or _was_known(reply.json), (partner, action, reply)

    async with meanwhile(contradict, 0.1):
        yield
    try:
        ended = [row["order_id"] for row in await ledger.ledger.fetch(ENDED, scene.campaign, AT_ONCE)]
    except OSError:
        ended = []  # the ledger is away: another fault's
    for order_id in ended:
        await asyncio.gather(*(report(order_id, *step) for step in REPORTS))


def _was_known(moved: dict[str, Any]) -> bool:
    """A step that was made before, in time, changes nothing and is answered so."""
    return not moved["moved"]


async def _pay_otherwise(scene: Scene, order_id: str) -> None:
    load, number = scene.load, f"said-{order_id[-12:]}"
    units = sum(n for _, n in load._orders[order_id].items)
    said = [("paid", 100 * units), ("failed", 100 * units), ("paid", 100 * units + 100)]
    scene.draw.shuffle(said)
    bodies = [
        json.dumps({
            "payment_no": number, "order_id": order_id, "amount": amount, "currency": "CNY", "status": status,
            "paid_at": datetime.now(UTC).isoformat(),
        }).encode()
        for status, amount in said
    ]  # fmt: skip
    await asyncio.gather(*(load._call_back(order_id, number, body) for body in bodies))
