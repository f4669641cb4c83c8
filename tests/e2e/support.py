"""Real processes and a plain HTTP client for the end-to-end tests."""

import asyncio
import base64
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ops.embedded import command_line, process_ids, status
from tests.support import fresh

RUSHGATE = (sys.executable, "-m", "ops.cli")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
ADMIN = "e2e-admin-token-000"
APP_KEY, WEB_KEY = "e2e-app-key-00000000", "e2e-web-key-00000000"
PARTNER_SECRET = "whsec_" + base64.b64encode(b"e2e-partner-secret-0000000000000").decode()
TICKET_SECRET = "e2e-ticket-secret-000"
KEYS = {
    "RUSHGATE_ADMIN_TOKEN": ADMIN,
    "RUSHGATE_CHANNEL_KEYS": f"app={APP_KEY},web={WEB_KEY}",
    "RUSHGATE_PARTNER_SECRETS": PARTNER_SECRET,
    "RUSHGATE_TICKET_SECRETS": TICKET_SECRET,
}

_count = itertools.count(1)


def environment(values: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without any RUSHGATE_ variable, and `values`."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RUSHGATE_")}
    return ours | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "RUSHGATE_CONSOLE": "off"} | dict(values or {})


def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> Any:
    """The first true value of `condition`; AssertionError if there is none in time."""
    until_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until_s, f"still {value!r} after {timeout_s} s"
        time.sleep(every_s)


class Reply(NamedTuple):
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code, or '' for an answer that is none."""
        return str(self.json["code"]) if self.status >= 400 else ""


class Client:
    """Calls one gateway URL, a new connection each time, so that all processes behind it get some."""

    def __init__(self, url: str, channel_key: str = APP_KEY, admin_token: str = ADMIN) -> None:
        self.url = url
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.channel_key = channel_key
        self.admin_token = admin_token

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def get(self, path: str, key: str | None = None) -> Reply:
        return self.call("GET", path, headers=bearer(key or self.channel_key))

    def order(self, campaign: str, buyer: str = "", key: str = "", channel_key: str = "", **fields: Any) -> Reply:
        """One unit of `red` for a new buyer with a new key; `fields` replace parts of the body."""
        body = {"buyer_id": buyer or f"buyer-{next(_count)}", "items": [{"sku": "red", "quantity": 1}]} | fields
        headers = bearer(channel_key or self.channel_key) | {"Idempotency-Key": key or fresh("key")}
        return self.call("POST", f"/v1/campaigns/{campaign}/orders", json.dumps(body).encode(), headers)

    def batch(self, campaign: str, body: bytes, channel_key: str = "") -> Reply:
        return self.call(
            "POST", f"/v1/campaigns/{campaign}/orders:batch", body, bearer(channel_key or self.channel_key)
        )

    def admin(self, method: str, path: str, body: Any = None, token: str | None = None) -> Reply:
        data = None if body is None else json.dumps(body).encode()
        headers = bearer(self.admin_token if token is None else token)
        return self.call(method, f"/v1/admin/campaigns/{path}", data, headers)

    def define(self, stock: Mapping[str, int] | None = None, **fields: Any) -> str:
        """A draft; its name."""
        name = fresh("c")
        reply = self.admin("PUT", name, definition(stock, **fields))
        assert reply.status == 200, reply
        return name

    def sale(self, stock: Mapping[str, int] | None = None, **fields: Any) -> str:
        """An open campaign; its name."""
        name = self.define(stock, **fields)
        reply = self.admin("POST", f"{name}/open")
        assert reply.status == 200, reply
        return name

    def audit(self, campaign: str) -> dict[str, Any]:
        reply = self.admin("GET", f"{campaign}/audit")
        assert reply.status == 200, reply
        return dict(reply.json)

    def settled_audit(self, campaign: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The audit once nothing is on its way."""

        def calm() -> dict[str, Any] | None:
            reply = self.admin("GET", f"{campaign}/audit")
            return dict(reply.json) if reply.status == 200 and reply.json["in_flight"] == 0 else None

        found: dict[str, Any] = until(calm, timeout_s, 0.05)
        return found


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request on a connection that stays open if the server lets it."""
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def definition(stock: Mapping[str, int] | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a PUT: open since an hour, for an hour; every unit costs 100."""
    now = datetime.now(UTC)
    units = stock or {"red": 1_000}
    return {
        "opens_at": (now - timedelta(hours=1)).isoformat(),
        "closes_at": (now + timedelta(hours=1)).isoformat(),
        "currency": "CNY",
        "pay_within_s": 900,
        "skus": [{"sku": sku, "name": sku, "stock": count, "price": 100} for sku, count in units.items()],
    } | fields


class Up:
    """A `rushgate up` or `rushgate demo` in the foreground of nobody; stderr goes to a file."""

    def __init__(self, data: Path, *args: str, env: Mapping[str, str] | None = None, part: str = "up") -> None:
        self.data = data
        self.stderr = data.with_name(data.name + ".stderr")
        with self.stderr.open("ab") as err:
            self.process = subprocess.Popen(
                [*RUSHGATE, part, "--data-dir", str(data), *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment({**KEYS, **(env or {})}),
                text=True,
                start_new_session=True,
            )
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> "Up":
        line = self.read_line()
        assert line, f"no ready line: {self.stderr.read_text()}"
        self.ready = json.loads(line)
        return self

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    @property
    def client(self) -> Client:
        return Client(self.ready["gateway"], self.ready["channel_key"], self.ready["admin_token"])

    def children(self, kind: str) -> list[int]:
        """Process ids of the gateways or workers, by the words of their command lines."""
        return [
            pid
            for pid in process_ids()
            if kind in command_line(pid) and status(pid).get("PPid") == str(self.process.pid)
        ]

    def end(self, signum: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signalled and gone; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(timeout_s)
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()

    def command(self, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """A command of an operator on this stack."""
        return command(*args, env={"RUSHGATE_DATA_DIR": str(self.data), **env})


def command(*args: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """`rushgate <args>` to its end."""
    return subprocess.run(
        [*RUSHGATE, *args], env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )


def living(data: Path) -> list[list[str]]:
    """Command lines of processes, zombies apart, that carry the data directory."""
    return [
        argv
        for pid in process_ids()
        if status(pid).get("State", "Z") != "Z" and pid != os.getpid()
        for argv in [command_line(pid)]
        if any(str(data) in part for part in argv)
    ]


class Part:
    """One gateway or worker process with settings of its own; output goes to a file."""

    def __init__(self, log: Path, args: Sequence[str], env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*RUSHGATE, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(env)
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def gateway(self) -> Client:
        """A client of it, once it serves."""

        def port() -> str | None:
            assert self.process.poll() is None, self.text
            found = re.search(r'"gateway serves".*?"port":(\d+)', self.text)
            return found[1] if found else None

        return Client(f"http://127.0.0.1:{until(port)}")

    def end(self, signum: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(timeout_s)


class Wire:
    """A keep-alive connection of an asyncio client, for load."""

    def __init__(self, client: Client) -> None:
        self.client = client  # of the next connection
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.answered = 0  # on the connection that is open now, or was last

    async def connect(self) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.client.host, self.client.port)
            self.answered = 0

    async def order(self, campaign: str, key: str, buyer: str) -> Reply:
        """Raises OSError or EOFError when there is no answer; the next call connects again."""
        body = json.dumps({"buyer_id": buyer, "items": [{"sku": "red", "quantity": 1}]}).encode()
        head = (
            f"POST /v1/campaigns/{campaign}/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {APP_KEY}\r\n"
            f"idempotency-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return await self.send(head.encode() + body)

    async def send(self, request: bytes) -> Reply:
        try:
            await self.connect()
            assert self._streams is not None
            reader, writer = self._streams
            writer.write(request)
            reply = await read_reply(reader)
        except (OSError, EOFError):
            await self.close()
            raise
        self.answered += 1
        if reply.headers.get("connection") == "close":
            await self.close()
        return reply

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            try:
                await streams[1].wait_closed()
            except OSError:
                return


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """One answer with a content-length. Raises EOFError."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(first.split()[1]), headers, body)


class Crowd:
    """Clients that send orders one after another, each repeated with its key until its outcome is known."""

    def __init__(self, client: Client, campaign: str, clients: int) -> None:
        self._client = client
        self._campaign = campaign
        self._clients = clients
        self.accepted: dict[str, str] = {}  # key -> order id
        self.changed: list[str] = []  # keys that got two order ids
        self.answers: dict[str, int] = {}  # '202' or the code -> how many
        self.unmarked: list[Reply] = []  # 503 without Retry-After
        self.stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._wires: list[Wire] = []

    def turn_to(self, client: Client) -> None:
        """Connections from now on go there."""
        for wire in self._wires:
            wire.client = client

    async def __aenter__(self) -> "Crowd":
        self._tasks = [asyncio.create_task(self._go(n)) for n in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Every request that was begun has its outcome."""
        self.stopping = True
        await asyncio.gather(*self._tasks)

    async def _go(self, n: int) -> None:
        wire = Wire(self._client)
        self._wires.append(wire)
        try:
            for turn in itertools.count():
                if self.stopping:
                    return
                await self._insist(wire, f"{n}-{turn}", f"buyer-{n}-{turn}")
        finally:
            await wire.close()

    async def _insist(self, wire: Wire, key: str, buyer: str) -> None:
        until_s = time.monotonic() + 60
        while True:
            assert time.monotonic() < until_s, f"no outcome for {key}: {self.answers}"
            try:
                reply = await wire.order(self._campaign, key, buyer)
            except (OSError, EOFError):
                self._note("no answer")
                await asyncio.sleep(0.02)
                continue
            self._note(reply.code or str(reply.status))
            if reply.status == 503:
                if not reply.headers.get("retry-after", "").isdigit():
                    self.unmarked.append(reply)
                await asyncio.sleep(0.05)
                continue
            if reply.status == 202:
                order_id = reply.json["order_id"]
                if self.accepted.setdefault(key, order_id) != order_id:
                    self.changed.append(key)
            return

    def _note(self, what: str) -> None:
        self.answers[what] = self.answers.get(what, 0) + 1
