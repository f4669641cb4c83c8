"""Faults of the store: killed, stopped, kept busy, full, emptied of scripts and clients, its clock set."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from redis.exceptions import RedisError

from tests.faults.nemesis.faults import Scene, Skipped, fault, launched_with, meanwhile
from tests.faults.nemesis.stack import STORE_TIMEOUT_S

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
NO_FAKETIME = "" if FAKETIME.exists() else "libfaketime is not installed"
BUSY_S = 3.0  # valkey calls a script busy, and may be asked to kill it, after busy-reply-threshold
BUSY_SCRIPT = "local t = redis.call('TIME') local s = t[1] + 0 while true do t = redis.call('TIME') if t[1] - s > %d then break end end"  # noqa: E501


@fault("store")
async def store_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the store under load, and a start from its append-only file."""
    await scene.stack.store.kill()
    try:
        yield
    finally:
        await scene.stack.store.start()


@fault("store")
async def store_kill_rewrite(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the store while it rewrites its append-only file."""
    async with scene.redis() as store:
        await store.execute_command("CONFIG", "SET", "rdb-key-save-delay", "200")  # microseconds: it takes its time
        await store.execute_command("BGREWRITEAOF")
        await asyncio.sleep(scene.draw.uniform(0.05, 0.4))  # the moment is the fault's
    await scene.stack.store.kill()
    try:
        yield
    finally:
        await scene.stack.store.start()


@fault("store")
async def store_restart(scene: Scene) -> AsyncIterator[None]:
    """An orderly stop under load, and a start."""
    await scene.stack.store.stop()
    try:
        yield
    finally:
        await scene.stack.store.start()


@fault("store")
async def store_stop(scene: Scene) -> AsyncIterator[None]:
    """SIGSTOP beyond the clients' time limit: what they gave up is carried out afterwards."""
    pid = scene.stack.store.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(STORE_TIMEOUT_S)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@fault("store")
async def store_stutter(scene: Scene) -> AsyncIterator[None]:
    """The store stands still for 60 ms again and again, as with a disk that is slow to sync."""
    pid = scene.stack.store.pid
    assert pid is not None

    async def pause() -> None:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.06)
        os.kill(pid, signal.SIGCONT)

    try:
        async with meanwhile(pause, 0.04):
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


@fault("store")
async def script_flush(scene: Scene) -> AsyncIterator[None]:
    """SCRIPT FLUSH every 30 ms."""
    async with scene.redis() as store, meanwhile(store.script_flush, 0.03):
        yield


@fault("store")
async def store_clients_killed(scene: Scene) -> AsyncIterator[None]:
    """CLIENT KILL of all clients every 100 ms."""
    async with scene.redis() as store:

        async def kill() -> None:
            await store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        async with meanwhile(kill, 0.1):
            yield


@fault("store")
async def store_connections(scene: Scene) -> AsyncIterator[None]:
    """Every connection that the store has is used up, ours are ended, and no new one is taken."""
    async with scene.redis() as store:
        before = (await store.config_get("maxclients"))["maxclients"]
        await store.config_set("maxclients", 1)  # which is this one
        try:
            await store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            async with scene.redis() as other:
                with contextlib.suppress(RedisError):
                    await other.ping()
                    raise AssertionError("the store took another connection")
            yield
        finally:
            await store.config_set("maxclients", before)


@fault("store")
async def store_busy(scene: Scene) -> AsyncIterator[None]:
    """A script that does not end keeps the store busy, until it is killed."""
    async with scene.redis() as one, scene.redis() as other:
        await one.config_set("busy-reply-threshold", 200)
        running = asyncio.create_task(one.eval(BUSY_SCRIPT % BUSY_S, 0))
        try:
            yield
        finally:
            with contextlib.suppress(RedisError):
                await other.script_kill()
            with contextlib.suppress(RedisError):
                await running
            await other.config_set("busy-reply-threshold", 5_000)


@fault("store")
async def store_out_of_memory(scene: Scene) -> AsyncIterator[None]:
    """`maxmemory` is reached: nothing can be reserved, what gives memory back goes on."""
    async with scene.redis() as store:
        await store.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await store.config_set("maxmemory", 0)


@fault("store")
async def store_disk_full(scene: Scene) -> AsyncIterator[None]:
    """The disk of the append-only file is full; then there is room again."""
    if scene.stack.store.dir not in scene.stack.small_disks:
        raise Skipped("the store is not on a small disk of its own: no right to mount a tmpfs")
    ballast = scene.stack.store.dir / "ballast"
    await asyncio.to_thread(fill, ballast)
    try:
        yield
    finally:
        ballast.unlink()
        await scene.stack.store.start()  # if it ended of it


def fill(ballast: Path) -> None:
    """Not one byte is free any more."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))


@fault("store", missing=NO_FAKETIME)
async def store_clock(scene: Scene) -> AsyncIterator[None]:
    """The store is killed, comes back with a clock that is hours off, and later with the right one."""
    store = scene.stack.store
    await store.kill()
    with launched_with(store, faked(scene.draw.choice(("+2h", "+25h", "-2h")))):
        await store.start()
    try:
        yield
    finally:
        await store.kill()
        await store.start()


def faked(by: str) -> dict[str, str]:
    """The environment of a process whose wall clock is off by so much."""
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@fault("processes", missing=NO_FAKETIME)
async def worker_clock(scene: Scene) -> AsyncIterator[None]:
    """All workers are killed, come back with clocks that are hours off, and later with the right ones."""
    parts = [p for kind in ("ledger", "expiry", "relay", "reconcile") for p in scene.stack.of(kind)]
    by = scene.draw.choice(("+2h", "+25h", "-2h"))
    for part in parts:
        await part.end(signal.SIGKILL)
        part.start(faked(by))
    try:
        yield
    finally:
        for part in parts:
            await part.end(signal.SIGKILL)
            part.start()
