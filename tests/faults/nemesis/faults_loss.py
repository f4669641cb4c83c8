"""Faults after which the store has less than it had acknowledged: emptied, an older copy, a cut tail, a failover."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from tests.faults.nemesis.faults import Scene, fault
from tests.support import eventually

AOF = "appendonlydir"
WHOLE_S = 10.0  # longest wait for a store to have its replica
REPLICATED = frozenset({"store_failover", "store_two_primaries"})  # they want a store with a replica
# `recovering`: an earlier loss is not mended yet, and its rebuild waits for a replica too.
REFUSED = frozenset({"order: store_unavailable", "order: store_not_as_promised", "order: recovering"})
NO_YES_S = 1.0  # after a promotion: answers under way have come by then, and leases of `sold_out` are over


@fault("store")
async def store_emptied(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the store, and it comes back with an empty disk."""
    store = scene.stack.store
    await store.kill()
    try:
        await asyncio.to_thread(shutil.rmtree, store.dir / AOF)
        yield
    finally:
        await store.start()


@fault("store")
async def store_flushed(scene: Scene) -> AsyncIterator[None]:
    """FLUSHALL: nothing restarts, and everything is gone."""
    async with scene.redis() as store:
        await store.execute_command("FLUSHALL")
    yield


@fault("store")
async def store_older_file(scene: Scene) -> AsyncIterator[None]:
    """The disk is as it was a while ago: a snapshot of the append-only file under load, put back later."""
    store = scene.stack.store
    old = store.dir / "older"
    await asyncio.to_thread(snapshot, store.pid, store.dir / AOF, old)
    try:
        yield
    finally:
        await store.kill()
        await asyncio.to_thread(put_back, old, store.dir / AOF)
        await store.start()


@fault("store", "processes")
async def store_older_undrained(scene: Scene) -> AsyncIterator[None]:
    """The same, and no ledger worker works between snapshot and loss: what is lost was accepted, and the ledger has
    nothing that could tell."""
    store, workers = scene.stack.store, scene.stack.of("ledger")
    old = store.dir / "older"
    for worker in workers:
        worker.send(signal.SIGSTOP)
    try:
        await asyncio.to_thread(snapshot, store.pid, store.dir / AOF, old)
        yield
    finally:
        await store.kill()
        await asyncio.to_thread(put_back, old, store.dir / AOF)
        await store.start()
        for worker in workers:
            worker.send(signal.SIGCONT)


@fault("store")
async def store_cut_file(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the store, and the tail of its append-only file is gone: somewhere, so most often inside a record."""
    store = scene.stack.store
    await store.kill()
    try:
        cut_tail(store.dir / AOF, scene.draw.choice((0.002, 0.05, 0.5)) * scene.draw.random())
        yield
    finally:
        await store.start()


@fault("store")
async def store_failover(scene: Scene) -> AsyncIterator[None]:
    """At level `replicated` the primary dies and its replica takes over, after a time in which it lagged, or heard
    nothing at all; the old primary comes back as a replica."""
    stack = scene.stack
    async with _lagging(scene):
        await stack.store.kill()
        await stack.promote()
        stack.lead("gateway")
        stack.lead("worker")
        yield


@fault("store")
async def store_two_primaries(scene: Scene) -> AsyncIterator[None]:
    """The replica takes over, and the old primary lives on with the gateways still talking to it."""
    async with _lagging(scene):
        await _two_primaries(scene)
        yield


@contextlib.asynccontextmanager
async def _lagging(scene: Scene) -> AsyncIterator[None]:
    """The replica lags; at last all talk to the new primary, and the old one follows it."""
    stack = scene.stack
    assert stack.line is not None, "the stack has no replica"
    await _whole(scene)
    if scene.draw.random() < 0.5:
        stack.line.set("delay", scene.draw.choice((0.01, 0.05, 0.15)))
    else:
        stack.line.set("half_open")
    try:
        await asyncio.sleep(scene.draw.uniform(0.1, 0.5))  # the time it lagged is the fault's
        yield
    finally:
        stack.lead("gateway")
        stack.lead("worker")
        await stack.rejoin()


async def _two_primaries(scene: Scene) -> None:
    """The workers have the new primary, the gateways the old one: it carries out what it is asked, and none of it may
    be told as accepted. Raises AssertionError if one was, or if nobody asked it."""
    stack = scene.stack
    await stack.promote()
    stack.lead("worker")
    await asyncio.sleep(NO_YES_S)
    before, definite = scene.load.answers.copy(), scene.load.definite

    async def refused() -> bool:
        return bool(REFUSED & (scene.load.answers - before).keys())

    await eventually(refused, WHOLE_S)
    told = scene.load.answers - before
    assert scene.load.definite == definite, f"orders were decided on the old primary alone: {told}"


async def _whole(scene: Scene) -> None:
    """The primary has its replica: else a promotion would be an operator's error, not a fault."""
    async with scene.redis() as store:

        async def followed() -> bool:
            return bool((await store.role())[2])

        await eventually(followed, WHOLE_S)


def snapshot(pid: int | None, folder: Path, copy: Path) -> None:
    """A copy of the folder as it is at one moment."""
    assert pid is not None
    shutil.rmtree(copy, ignore_errors=True)
    os.kill(pid, signal.SIGSTOP)
    try:
        shutil.copytree(folder, copy)
    finally:
        os.kill(pid, signal.SIGCONT)


def put_back(copy: Path, folder: Path) -> None:
    """The folder is the copy, which is gone."""
    shutil.rmtree(folder)
    copy.rename(folder)


def cut_tail(folder: Path, share: float) -> None:
    """The newest file has lost a share of its bytes, one at least."""
    newest = max(folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    size = newest.stat().st_size
    os.truncate(newest, max(0, size - max(1, int(size * share))))
