"""The stack under test: store, ledger, gateways, workers and partners as real processes, a proxy between any two."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct
from redis.asyncio import Redis

from core.ledger.migrate import migrate
from core.settings import Settings
from ops.check_facts import Collector, Standing
from ops.desk import Desk, connect_ledger, open_desk
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from ops.processes import SHIM
from tests.e2e.support import environment
from tests.faults.nemesis.ports import free_port, let_go
from tests.faults.nemesis.proxy import Link
from tests.faults.nemesis.small_disk import mounted, onto_small_disk, unmounted

ADMIN = "nemesis-admin-token-0"
CHANNELS = {"app": "nemesis-app-key-00000", "web": "nemesis-web-key-00000"}
SECRET = "whsec_" + base64.b64encode(b"nemesis-secret-00000000000000000000").decode()
STORE_TIMEOUT_S, LEDGER_TIMEOUT_S, CLAIM_IDLE_MS = 1.0, 3.0, 800
READY_S = 60.0  # a machine busy with several rounds needs half of it
STOP_S = 15.0
STILL_S = 1.5
SMALL_DISK = "64m"
WORKERS = ("ledger", "expiry", "relay", "reconcile")


class Shape(Struct, frozen=True):
    """How many processes of each kind there are, and how the campaign is spread."""

    gateways: int = 1
    ledger: int = 1
    expiry: int = 1
    relay: int = 1
    reconcile: int = 1
    spread: int = 1
    order_type: str = "goods"


class StackBroken(AssertionError):
    """A process did not come up, or ended without being told to."""


class Part:
    """A process that may be killed, stopped and started again; its output goes to one file."""

    def __init__(self, name: str, log: Path, args: list[str], env: Mapping[str, str]) -> None:
        self.name, self.log, self.args = name, log, args
        self.env = environment(env)
        self.process: subprocess.Popen[bytes] | None = None
        self.is_meant_to_run = False

    @property
    def pid(self) -> int | None:
        """Process id; None when it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self, extra: Mapping[str, str] | None = None) -> None:
        """It runs, if it did not; `extra` is environment for this life only."""
        self.is_meant_to_run = True
        if self.pid is None:
            with self.log.open("ab") as out:
                # The shim: whatever becomes of us, the kernel ends them when we die.
                command = [sys.executable, "-c", SHIM, str(os.getpid()), sys.executable, "-m", "ops.cli", *self.args]
                env = self.env | dict(extra or {})
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

    def send(self, signum: signal.Signals) -> None:
        """Signalled, if it runs."""
        if self.process is not None and self.pid is not None:
            self.process.send_signal(signum)

    async def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Gone; its exit status. After STOP_S without effect it is killed."""
        self.is_meant_to_run = False
        if self.process is None:
            return 0
        self.send(signum)
        try:
            return await asyncio.to_thread(self.process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return await asyncio.to_thread(self.process.wait, STOP_S)

    def died(self) -> bool:
        """It ended by itself."""
        return self.is_meant_to_run and self.pid is None


class Stack:
    """One data directory with all that runs on it. `start`, then `stop`, whatever happens in between."""

    def __init__(self, shape: Shape, draw: random.Random, small_disk: bool = False, replicated: bool = False) -> None:
        """`small_disk`: the store is on a tmpfs of SMALL_DISK, where this may be mounted. `replicated`: the level,
        and a replica that follows the store by the link `line`."""
        self.shape = shape
        self.small_disk = small_disk
        self.folder = Path(tempfile.mkdtemp(prefix="rushgate-nemesis-"))
        self._ports = draw
        self.replicated = replicated
        self.small_ledger = False  # set before `start`: the ledger's data are put on one, where it can be mounted
        self.store = EmbeddedStore(self.folder, port=free_port(draw))
        self.replica: EmbeddedStore | None = None
        self.line: Link | None = None
        self.ledger = EmbeddedLedger(self.folder)
        self.parts: dict[str, Part] = {}
        self.links: dict[str, Link] = {}
        self.gateway_ports: list[int] = []
        self.desk: Desk | None = None
        self.settings = Settings()
        self.small_disks: list[Path] = []  # mounted; a failover moves the store to another folder
        self.partners_said = b""  # their records, read right before they are ended
        self._undo = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Everything runs and every gateway is ready. Raises StackBroken."""
        if self.small_disk:
            self.store.dir.mkdir(mode=0o700)
            self.small_disks += [self.store.dir] if await mounted(self.store.dir, SMALL_DISK) else []
        store_url, dsn = await asyncio.gather(self.store.start(), self.ledger.start())
        if self.small_ledger:
            self.small_disks += [self.ledger.dir] if await onto_small_disk(self.ledger) else []
        connection = await connect_ledger(Settings(ledger_dsn=dsn))
        await migrate(connection)
        await connection.close()
        shape = self.shape
        if self.replicated:
            self.line = Link("store-replica", self._store_place())
            await self.line.start()
            self.replica = self._follower("store-b", free_port(self._ports))
            await self.replica.start()
        self.settings = Settings(store_url=store_url, ledger_dsn=dsn, partners_url="http://partners")
        self.desk = await self._undo.enter_async_context(open_desk(self.settings))
        store = self._store_place()
        socket_path = str(self.ledger._socket_dir() / ".s.PGSQL.5432")
        for who in ("gateway", "worker"):
            await self._link(f"{who}-store", store)
            await self._link(f"{who}-ledger", socket_path)
        self.gateway_ports = [free_port(self._ports) for _ in range(shape.gateways)]
        for n, port in enumerate(self.gateway_ports):
            await self._link(f"client-gateway-{n}", ("127.0.0.1", port))
        partners_port = free_port(self._ports)
        await self._link("worker-partners", ("127.0.0.1", partners_port))
        for n in range(shape.gateways):
            port_env = {"RUSHGATE_PORT": str(self.gateway_ports[n])}
            self._part(f"gateway-{n}", ["gateway"], self._env("gateway") | port_env)
        for kind in WORKERS:
            for n in range(getattr(shape, kind)):
                self._part(f"{kind}-{n}", ["worker", kind], self._env("worker"))
        await self._link("partners-gateway", ("127.0.0.1", self.gateway_ports[0]))
        gateway = f"http://127.0.0.1:{self.links['partners-gateway'].port}"
        flags = "--pay 0.6 --cancel 0.15 --ignore 0.15 --pay-late 0.1 --think-ms 300 --late-ms 300 --step-ms 50"
        flags += " --failure 0.01 --lost-answer 0.01 --duplicate 0.05"
        args = ["partners", "--port", str(partners_port), "--gateway", gateway, *flags.split()]
        keys = ",".join(f"{name}={key}" for name, key in CHANNELS.items())
        self._part("partners", args, {"RUSHGATE_PARTNER_SECRETS": SECRET, "RUSHGATE_CHANNEL_KEYS": keys})
        for part in self.parts.values():
            part.start()
        await self.ready()

    async def stop(self) -> None:
        """Nothing of it runs, and its folder is gone."""
        try:
            for part in self.parts.values():
                part.send(signal.SIGCONT)
            await asyncio.gather(*(part.end(signal.SIGKILL) for part in self.parts.values()))
            for link in [*self.links.values(), *([self.line] if self.line else [])]:
                await link.stop()
            await self._undo.aclose()
        finally:
            for store in (self.replica, self.store):
                if store is not None:
                    await store.stop()
            await self.ledger.stop()
            for path in self.small_disks:
                await unmounted(path)
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
            let_go()

    async def promote(self) -> None:
        """The replica is a primary of its own; the old one, if it lives, does not know. No link leads to it yet."""
        assert self.replica is not None
        async with Redis.from_url(self.replica.url, socket_timeout=10) as store:
            await store.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        self.replica._primary, self.replica._extra_config = None, ()  # it stays a primary when it is started again
        self.store, self.replica = self.replica, self.store
        self.settings = self.settings.with_values(store_url=self.store.url)
        self.desk = await self._undo.enter_async_context(open_desk(self.settings))

    def lead(self, who: str) -> None:
        """`gateway` or `worker`: these processes reach the primary of now."""
        self.links[f"{who}-store"].turn_to(self._store_place())

    async def rejoin(self) -> None:
        """The old primary comes back as the replica of the new one; what only it had is gone."""
        assert self.replica is not None
        assert self.line is not None
        await self.replica.kill()
        self.line.set("none")
        self.line.turn_to(self._store_place())
        self.replica = self._follower(self.replica.dir.name, self.replica.port)
        await self.replica.start()

    def of(self, kind: str) -> list[Part]:
        """The processes of a kind."""
        return [part for name, part in self.parts.items() if name.rpartition("-")[0] == kind]

    async def ready(self) -> None:
        """Every gateway says that it takes orders, and the partners answer. Raises StackBroken."""
        loop = asyncio.get_running_loop()
        asked = [(f"gateway-{n}", port, "/readyz") for n, port in enumerate(self.gateway_ports)]
        for name, port, path in [*asked, ("partners", self.partners_port, "/control")]:
            until_s, part = loop.time() + READY_S, self.parts[name]
            while (await asyncio.to_thread(answer, port, path))[0] != 200:
                if loop.time() > until_s or part.died():
                    raise StackBroken(f"{name} is not ready:\n{part.log.read_text()[-2_000:]}")
                await asyncio.sleep(0.05)

    def broken(self) -> list[str]:
        """What ended by itself, or logged a stack trace."""
        found = []
        for part in self.parts.values():
            if part.died():
                assert part.process is not None
                found.append(f"{part.name} ended by itself, status {part.process.returncode}")
            if part.log.exists() and "Traceback" in (text := part.log.read_text(errors="replace")):
                found.append(f"{part.name} logged: " + text[text.index("Traceback") :][:1_500])
        return found

    def collector(self, campaign: str) -> Collector:
        """Reads the facts past all proxies."""
        assert self.desk is not None
        return Collector(self.desk, campaign, self.settings.shards)

    @property
    def partners_port(self) -> int:
        """Past all proxies."""
        return int(self.parts["partners"].args[2])

    async def pending_callbacks(self) -> int:
        """Callbacks that partners still have to make."""
        _, body = await asyncio.to_thread(answer, self.partners_port, "/control")
        return int(json.loads(body)["pending_callbacks"]) if body else -1

    async def drained(self, campaign: str, timeout_s: float) -> bool:
        """Whether nothing is on its way any more and no order waits for its payment. The partners are ended then: what
        they would still report is refused for good, as of parcels of cancelled orders, and tried for minutes."""
        loop = asyncio.get_running_loop()
        until_s, since_s, collector = loop.time() + timeout_s, loop.time(), self.collector(campaign)
        before: tuple[Standing, int] | None = None
        while loop.time() < until_s:
            now = await collector.standing(), await self.pending_callbacks()
            waits = now[0].intake, *(now[0].ledger[name] for name in ("due", "waiting", "pending"))
            if any(waits) or now != before:
                since_s = loop.time()
            elif loop.time() - since_s > STILL_S or now[1] == 0:
                _, self.partners_said = await asyncio.to_thread(answer, self.partners_port, "/control/records")
                await self.parts["partners"].end()
                return True
            before = now
            await asyncio.sleep(0.2)
        return False

    def _part(self, name: str, args: list[str], env: Mapping[str, str]) -> None:
        self.parts[name] = Part(name, self.folder / "log" / f"{name}.log", args, env)

    def _follower(self, name: str, port: int) -> EmbeddedStore:
        """A store that follows the primary of now by `line`."""
        assert self.line is not None
        follow = [f"replicaof 127.0.0.1 {self.line.port}"]
        return EmbeddedStore(self.folder, name=name, port=port, replica_of=self.store, extra_config=follow)

    def _store_place(self) -> tuple[str, int]:
        return "127.0.0.1", self.store.port

    async def _link(self, name: str, target: tuple[str, int] | str) -> None:
        self.links[name] = Link(name, target)
        await self.links[name].start()

    def _env(self, who: str) -> dict[str, str]:
        parts = urlsplit(self.store.url)
        return {
            "RUSHGATE_STORE_URL": f"redis://:{parts.password}@127.0.0.1:{self.links[f'{who}-store'].port}/0",
            "RUSHGATE_LEDGER_DSN": f"postgresql://postgres@127.0.0.1:{self.links[f'{who}-ledger'].port}/rushgate"
            "?sslmode=disable",
            "RUSHGATE_ADMIN_TOKEN": ADMIN,
            "RUSHGATE_CHANNEL_KEYS": ",".join(f"{name}={key}" for name, key in CHANNELS.items()),
            "RUSHGATE_PAYMENT_SECRETS": SECRET,
            "RUSHGATE_PARTNER_SECRETS": SECRET,
            "RUSHGATE_PARTNERS_URL": f"http://127.0.0.1:{self.links['worker-partners'].port}"
            if "worker-partners" in self.links
            else "",
            "RUSHGATE_STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
            "RUSHGATE_LEDGER_TIMEOUT_S": str(LEDGER_TIMEOUT_S),
            "RUSHGATE_CLAIM_IDLE_MS": str(CLAIM_IDLE_MS),
            "RUSHGATE_RECONCILE_EVERY_S": "1",
        } | ({"RUSHGATE_DURABILITY": "replicated", "RUSHGATE_REPLICA_WAIT_MS": "200"} if self.replicated else {})


def answer(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET on 127.0.0.1; (0, b"") if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def define(shape: Shape, stock: Mapping[str, int], limits: Mapping[str, int], pay_within_s: int) -> dict[str, Any]:
    """The body of a PUT: open since days, for days, whatever a clock says; every unit costs 100."""
    return {
        "order_type": shape.order_type, "opens_at": "2026-01-01T00:00:00Z", "closes_at": "2099-01-01T00:00:00Z",
        "currency": "CNY", "pay_within_s": pay_within_s, "spread": shape.spread, "limits": dict(limits),
        "skus": [{"sku": s, "name": s, "stock": n, "price": 100} for s, n in stock.items()],
    }  # fmt: skip
