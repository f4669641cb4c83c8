"""Faults of our own processes: killed, stopped, left by their clients, turned into zombies."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from tests.faults.nemesis.faults import Scene, Skipped, fault, until
from tests.faults.nemesis.stack import CLAIM_IDLE_MS, WORKERS, Part

LONG_S = 10.0
UP_S = 15.0


@contextlib.asynccontextmanager
async def _killed(parts: list[Part], signum: signal.Signals = signal.SIGKILL) -> AsyncIterator[None]:
    await asyncio.gather(*(part.end(signum) for part in parts))
    try:
        yield
    finally:
        for part in parts:
            part.start()


def _one(scene: Scene, kind: str) -> list[Part]:
    return [scene.draw.choice(scene.stack.of(kind))]


@fault("processes")
async def gateway_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of a gateway; it comes back on the same port."""
    async with _killed(_one(scene, "gateway")):
        yield


@fault("processes")
async def gateway_restart(scene: Scene) -> AsyncIterator[None]:
    """A graceful stop of all gateways under load, and a start on the same ports."""
    async with _killed(scene.stack.of("gateway"), signal.SIGTERM):
        yield


@fault("processes")
async def all_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of every gateway and every worker."""
    parts = [p for name, p in scene.stack.parts.items() if name != "partners"]
    async with _killed(parts):
        yield


@contextlib.asynccontextmanager
async def _stopped(parts: list[Part]) -> AsyncIterator[None]:
    for part in parts:
        part.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for part in parts:
            part.send(signal.SIGCONT)


@fault("processes")
async def gateway_stop(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP of a gateway, then it goes on with what it had in hand."""
    async with _stopped(_one(scene, "gateway")):
        yield


@fault("clients")
async def client_disconnect(scene: Scene) -> AsyncIterator[None]:
    """Clients leave in mid-request: in the head, in the body, before the answer."""
    scene.load.disconnects = 0.5
    try:
        yield
    finally:
        scene.load.disconnects = 0.0


@fault("processes")
async def ledger_worker_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of a ledger worker, its entries unacknowledged."""
    async with _killed(_one(scene, "ledger")):
        yield


@fault("processes")
async def ledger_worker_kill_all(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of all ledger workers."""
    async with _killed(scene.stack.of("ledger")):
        yield


@contextlib.asynccontextmanager
async def _zombie(scene: Scene, kind: str) -> AsyncIterator[None]:
    """A worker is stopped, another one of its kind has come up and does its work; then the first one goes on."""
    stack = scene.stack
    [zombie] = _one(scene, kind)
    name = f"{kind}-heir{len(stack.parts)}"
    heir = Part(name, zombie.log.with_name(f"{name}.log"), zombie.args, zombie.env)
    zombie.send(signal.SIGSTOP)
    try:
        heir.start()
        stack.parts[name] = heir
        is_up = await until(lambda: b"worker runs" in heir.log.read_bytes(), UP_S)
        yield
    finally:
        zombie.send(signal.SIGCONT)
    if not is_up:
        raise Skipped(f"the heir of a {kind} worker was not up after {UP_S} s")


@fault("processes")
async def ledger_worker_zombie(scene: Scene) -> AsyncIterator[None]:
    """A ledger worker is stopped for so long that another one, a new one, claims its entries; then it goes on."""
    async with _zombie(scene, "ledger"):
        await asyncio.sleep(CLAIM_IDLE_MS / 1_000)
        yield


@fault("processes")
async def expiry_zombie(scene: Scene) -> AsyncIterator[None]:
    """The expiry worker is stopped in its work, another one does it, and the first one goes on with what it had."""
    async with _zombie(scene, "expiry"):
        yield


@fault("processes")
async def reconcile_zombie(scene: Scene) -> AsyncIterator[None]:
    """The reconcile worker is stopped in a round, another one makes rounds, and the first one goes on with its own."""
    async with _zombie(scene, "reconcile"):
        yield


@fault("processes", hold_s=LONG_S)
async def gateway_stop_long(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP of every gateway for 10 s: all their clients have given up when they go on."""
    async with _stopped(scene.stack.of("gateway")):
        yield


@fault("processes", hold_s=LONG_S)
async def worker_stop_long(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP of all workers of one kind for 10 s, longer than a claim and than the time to pay."""
    async with _stopped(scene.stack.of(scene.draw.choice(WORKERS))):
        yield


@fault("processes")
async def relay_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of a relay with messages in hand."""
    async with _killed(_one(scene, "relay")):
        yield


@fault("processes")
async def relay_zombie(scene: Scene) -> AsyncIterator[None]:
    """A relay is stopped with messages in hand, and goes on."""
    async with _stopped(scene.stack.of("relay")):
        yield


@fault("processes")
async def expiry_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the expiry worker."""
    async with _killed(scene.stack.of("expiry")):
        yield


@fault("processes")
async def reconcile_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the reconcile worker."""
    async with _killed(scene.stack.of("reconcile")):
        yield
