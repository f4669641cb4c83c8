"""Faults of our own processes: killed, stopped, left by their clients, turned into zombies."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from tests.faults.nemesis.faults import Scene, fault
from tests.faults.nemesis.stack import Part


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


@fault("processes")
async def ledger_worker_zombie(scene: Scene) -> AsyncIterator[None]:
    """A ledger worker is stopped for so long that another one, a new one, claims its entries; then it goes on."""
    stack = scene.stack
    [zombie] = _one(scene, "ledger")
    other = Part("ledger-heir", zombie.log.with_name("ledger-heir.log"), zombie.args, zombie.env)
    zombie.send(signal.SIGSTOP)
    other.start()
    stack.parts["ledger-heir"] = other
    try:
        yield
    finally:
        zombie.send(signal.SIGCONT)


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
