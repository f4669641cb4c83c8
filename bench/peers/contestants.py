"""The contestants of the comparison as running processes on one core: their campaigns, and what is true of them."""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import RedisError

from bench.peers.install import FASTAPI, FASTIFY, FOLDER, NGINX_MODULES, PYTHON
from bench.processes import gateway
from bench.services import CHANNEL_KEY, UNITS, Services, campaign_spec
from lua.connection import Command
from lua.keys import home_shards, sale_keys
from workers.entries import Entry, read_entry

READY_S, STOP_S = 20.0, 10.0
SCAN = 500  # entries of a stream that are read at a time
ECHO, NGINX = FOLDER / "echo", FOLDER / "nginx"


class Answer(NamedTuple):
    """What a contestant says to one order: the echo gives it back."""

    status: int
    content_type: str
    body: str


class Contestant(ABC):
    """A running program that takes orders under `/v1/campaigns/{campaign}/orders`."""

    def __init__(self, name: str, pid: int, port: int, services: Services) -> None:
        self.name = name
        self.pid = pid
        self.port = port
        self.services = services

    @property
    def url(self) -> str:
        """Of its HTTP port on the loopback address."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    async def open(self, campaign: str, units: int = UNITS) -> None:
        """The campaign sells so many units of `phone-red`, 2 to a buyer."""

    @abstractmethod
    async def taken(self, campaign: str) -> int | None:
        """Orders of the campaign that are in the stream, counted one by one; None if it keeps none."""

    @abstractmethod
    async def drop(self, campaign: str) -> None:
        """What grows with the orders is gone from the store."""

    async def tell(self, *commands: Command) -> list[Any]:
        """The store's replies; an error reply is raised."""
        replies = await self.services.store.exchange(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return replies

    async def _entries(self, key: bytes | str) -> AsyncIterator[list[bytes]]:
        """The fields of each entry of a stream, in order."""
        first: bytes = b"-"
        while True:
            [found] = await self.tell(("XRANGE", key, first, "+", "COUNT", SCAN))
            for _, fields in found:
                yield fields
            if len(found) < SCAN:
                return
            first = b"(" + found[-1][0]


class Rushgate(Contestant):
    """The gateway process as shipped. No worker runs: its stream stays as it is until it is dropped."""

    async def open(self, campaign: str, units: int = UNITS) -> None:
        spec = campaign_spec()
        skus = [msgspec.structs.replace(sku, stock=units) for sku in spec.skus]
        await self.services.desk.put(campaign, msgspec.structs.replace(spec, skus=skus))
        await self.services.desk.open(campaign)

    def _shard(self, campaign: str) -> int:
        return home_shards(campaign, 1, self.services.settings.shards)[0]

    async def taken(self, campaign: str) -> int:
        shard = self._shard(campaign)
        count = 0
        async for fields in self._entries(sale_keys(shard, campaign).intake):
            rows, dead = read_entry(Entry(shard, b"0-1", fields))
            if dead:
                raise AssertionError(f"no worker could read {len(dead)} orders: {dead[0].reason}")
            count += sum(row.header.campaign == campaign for row in rows)
        return count

    async def drop(self, campaign: str) -> None:
        keys = sale_keys(self._shard(campaign), campaign)
        await self.tell(("DEL", keys.intake, keys.requests, keys.holds, keys.used))


class Peer(Contestant):
    """A peer around order.lua."""

    async def open(self, campaign: str, units: int = UNITS) -> None:
        await self.tell(("HSET", f"{{{campaign}}}:stock", "phone-red", units))

    async def taken(self, campaign: str) -> int | None:
        [count] = await self.tell(("XLEN", f"{{{campaign}}}:orders"))
        return int(count)

    async def drop(self, campaign: str) -> None:
        await self.tell(("DEL", *(f"{{{campaign}}}:{name}" for name in ("stock", "buyers", "requests", "orders"))))


class Echo(Contestant):
    """The ceiling. It has no store."""

    async def open(self, campaign: str, units: int = UNITS) -> None: ...

    async def taken(self, campaign: str) -> int | None:
        return None

    async def drop(self, campaign: str) -> None: ...


@contextlib.asynccontextmanager
async def rushgate(services: Services, core: int) -> AsyncIterator[Contestant]:
    """Rushgate's gateway, running and ready."""
    async with gateway(services, [core]) as found:
        contestant = Rushgate("rushgate", found.pid, found.port, services)
        await _ready(contestant.port)
        yield contestant


@contextlib.asynccontextmanager
async def echo(services: Services, core: int, answer: Answer) -> AsyncIterator[Contestant]:
    """The bare echo of this answer, running and ready."""
    async with echoing(core, answer) as (pid, port):
        yield Echo("echo", pid, port, services)


@contextlib.asynccontextmanager
async def echoing(core: int, answer: Answer) -> AsyncIterator[tuple[int, int]]:
    """Process id and port of an echo: uvicorn as Rushgate runs it, without its default headers."""
    port = free_port()
    command = [*_uvicorn(sys.executable, ECHO, port), "--no-server-header", "--no-date-header"]
    env = {"ECHO_STATUS": str(answer.status), "ECHO_TYPE": answer.content_type, "ECHO_BODY": answer.body}
    async with _process("echo", command, env, port, core) as pid:
        yield pid, port


@contextlib.asynccontextmanager
async def fastapi(services: Services, core: int) -> AsyncIterator[Contestant]:
    """FastAPI and redis-py, running and ready."""
    port = free_port()
    async with _process("fastapi", _uvicorn(str(PYTHON), FASTAPI, port), _env(services), port, core) as pid:
        yield Peer("fastapi", pid, port, services)


@contextlib.asynccontextmanager
async def fastify(services: Services, core: int) -> AsyncIterator[Contestant]:
    """Fastify and ioredis, running and ready."""
    port = free_port()
    env = {**_env(services), "PORT": str(port), "NODE_ENV": "production"}
    # As `npm start`: a larger young generation, as the collector had a fifth of the CPU (node --cpu-prof).
    command = ["node", "--max-semi-space-size=64", str(FASTIFY / "server.mjs")]
    async with _process("fastify", command, env, port, core) as pid:
        yield Peer("fastify", pid, port, services)


@contextlib.asynccontextmanager
async def nginx(services: Services, core: int, folder: Path) -> AsyncIterator[Contestant]:
    """nginx with Lua, running and ready, in the empty `folder`: nothing of it is in nginx's own folders."""
    port = free_port()
    text = (NGINX / "nginx.conf").read_text("utf-8")
    for name, value in (("FOLDER", NGINX), ("MODULES", NGINX_MODULES), ("PORT", port)):
        text = text.replace(f"@{name}@", str(value))
    conf = folder / "nginx.conf"
    conf.write_text(text, "utf-8")
    binary = shutil.which("nginx") or "nginx"
    command = [binary, "-p", str(folder), "-c", str(conf), "-e", "stderr"]
    async with _process("nginx", command, _env(services), port, core) as pid:
        yield Peer("nginx", pid, port, services)


async def ask(port: int, campaign: str, request_key: str, body: str) -> Answer:
    """The answer to one order, on a connection of its own."""
    head = (
        f"POST /v1/campaigns/{campaign}/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {CHANNEL_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nIdempotency-Key: {request_key}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((head + body).encode())
    said = (await asyncio.wait_for(reader.read(), READY_S)).decode()
    writer.close()
    await writer.wait_closed()
    top, _, answer = said.partition("\r\n\r\n")
    status, *headers = top.split("\r\n")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    return Answer(int(status.split()[1]), found["content-type"], answer)


def free_port() -> int:
    """A TCP port of the loopback address on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _uvicorn(python: str, folder: Path, port: int) -> list[str]:
    return [
        python, "-m", "uvicorn", "app:app", "--app-dir", str(folder), "--host", "127.0.0.1", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--backlog", "4096",
    ]  # fmt: skip


def _env(services: Services) -> dict[str, str]:
    return {"STORE_URL": services.settings.store_url, "CHANNEL_KEY": CHANNEL_KEY}


@contextlib.asynccontextmanager
async def _process(
    name: str, command: Sequence[str], env: Mapping[str, str], port: int, core: int
) -> AsyncIterator[int]:
    """The process on its core, all its threads and children with it; what it says on stderr goes to ours."""
    process = await asyncio.create_subprocess_exec(
        "taskset", "-c", str(core), *command, env={**os.environ, **env}, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        ready = asyncio.create_task(_ready(port))
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            raise RuntimeError(f"{name} ended with {process.returncode} before it was ready")
        await ready
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ready(port: int) -> None:
    """Something accepts connections on the port."""
    until_s = time.monotonic() + READY_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return
