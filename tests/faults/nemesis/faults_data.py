"""Faults of the data: poison in the intake, entries twice, partners that fail, repeat and lose their answers."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

from core.ids import IdSource, campaign_tag
from lua.keys import home_shards, intake_key
from tests.e2e.support import Client
from tests.faults.nemesis.faults import Scene, fault

POISON = "poison"  # the campaign that the poison names, so that its dead letters are not taken for orders of ours
COPIES = 5


@fault("store", "processes")
async def intake_poison(scene: Scene) -> AsyncIterator[None]:
    """Entries that no worker can read, among the good ones: no order, no header, a bad id, none at all."""
    shards = scene.stack.settings.shards
    home = home_shards(scene.campaign, scene.stack.shape.spread, shards)
    shard = home[0]
    elsewhere = (home[-1] + 1) % shards
    order_id = IdSource().new(shard, campaign_tag(POISON))
    header = f"1|{POISON}|1|1700000000000|1700000000000|1"
    bad: list[tuple[int, dict[str | bytes, str | bytes]]] = [
        (shard, {"h": header, order_id: b"\xff\xff"}),
        (shard, {"h": header, b"short": b"\x90"}),
        (elsewhere, {"h": "2|next version"}),
        (elsewhere, {"what": "ever"}),
    ]
    async with scene.redis() as store:
        for at, fields in bad:
            await store.xadd(intake_key(at), fields)
    yield


@fault("store", "processes")
async def intake_entry_twice(scene: Scene) -> AsyncIterator[None]:
    """Entries of orders stand in the intake a second time, under other ids."""
    keys = [intake_key(s) for s in home_shards(scene.campaign, scene.stack.shape.spread, scene.stack.settings.shards)]
    workers = scene.stack.of("ledger")
    for worker in workers:
        worker.send(signal.SIGSTOP)
    try:
        async with scene.redis() as store:
            await asyncio.sleep(0.3)  # orders come in meanwhile: the load goes on
            for key in keys:
                for _, fields in await store.xrange(key, count=COPIES):
                    await store.xadd(key, fields)
    finally:
        for worker in workers:
            worker.send(signal.SIGCONT)
    yield


@contextlib.asynccontextmanager
async def conduct(scene: Scene, **conduct: Any) -> AsyncIterator[None]:
    client = Client(f"http://127.0.0.1:{scene.stack.parts['partners'].args[2]}")

    async def put(values: dict[str, Any]) -> None:
        for partner in ("payment", "warehouse", "provisioning", "billing", "notification", "channel"):
            body = json.dumps(values).encode()
            reply = await asyncio.to_thread(client.call, "PUT", f"/control/{partner}", body)
            assert reply.status == 200, reply

    await put(conduct)
    try:
        yield
    finally:
        await put({"failure": 0.01, "lost_answer": 0.01, "duplicate": 0.05, "away": False, "latency_ms": 0})


@fault("partners")
async def partners_bad(scene: Scene) -> AsyncIterator[None]:
    """Partners fail, answer late or not at all, and call back twice."""
    async with conduct(scene, failure=0.3, lost_answer=0.3, duplicate=0.6, latency_ms=50):
        yield


@fault("partners")
async def partners_away(scene: Scene) -> AsyncIterator[None]:
    """Every partner answers 503."""
    async with conduct(scene, away=True):
        yield
