"""The whole stack on one machine: embedded services where none are named, migrations, gateways, workers."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import secrets
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from core.errors import ConfigInvalid, Fault
from core.ledger.migrate import migrate
from core.settings import Settings
from gateway.process import listen
from ops import control
from ops.console import address
from ops.desk import STACK_FILE, connect_ledger
from ops.embedded import DataDirLock
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore, write_private
from ops.in_service import FirstLook, first_look, out_of_service
from ops.keeper import kept
from ops.played import Played, prepare
from ops.processes import Supervisor

SECRETS_FILE = "secrets.json"  # in the data directory, 0600
EMBEDDED_CHANNEL = "app"
READY_S = 60.0
REPLICA_S = 20.0  # for a replica to get its primary's data; then it is started again


class NotReady(Fault):
    """The gateway takes no orders, and no setting is the reason."""

    code = "not_ready"


class Stack:
    """A running stack. `settings` are complete; `gateway` is the URL to call; `played` that of the partners which the
    stack plays itself, "" if it plays none; `missing` are the campaigns that were still out of service when it came up;
    `console` is where operators look, "" if there is none.
    """

    def __init__(
        self, settings: Settings, gateway: str, channel_key: str, supervisor: Supervisor, played: str = "",
        missing: Sequence[str] = (), console: str = "",
    ) -> None:  # fmt: skip
        self.settings = settings
        self.gateway = gateway
        self.channel_key = channel_key
        self.played = played
        self.missing = missing
        self.console = console
        self.supervisor = supervisor

    def ready_line(self) -> str:
        """The line of JSON that tells a program where everything is."""
        return json.dumps(
            {
                "ready": True,
                "gateway": self.gateway,
                "console": self.console,
                "store": self.settings.store_url,
                "ledger": self.settings.ledger_dsn,
                "admin_token": self.settings.admin_token,
                "channel_key": self.channel_key,
                "payment_secret": next(iter(self.settings.payment_secrets), ""),
                "partner_secret": next(iter(self.settings.partner_secrets), ""),
                "partners": self.settings.partners_url,
            },
            separators=(",", ":"),
        )


@contextlib.asynccontextmanager
async def running(settings: Settings, *, play: bool = False) -> AsyncIterator[Stack]:
    """The stack is up and takes orders; afterwards all that this call started is gone.

    `play`: play the partners too, unless RUSHGATE_PARTNERS_URL names some.

    Raises: ConfigInvalid, DataDirBusy, NotReady, PortTaken, ServiceFailed, each with what to do about it.
    """
    data = Path(settings.data_dir).resolve()  # noqa: ASYNC240 - once, at the start
    async with contextlib.AsyncExitStack() as undo:
        try:
            undo.enter_context(DataDirLock(data))
        except OSError as exc:
            raise ConfigInvalid(f"RUSHGATE_DATA_DIR (or --data-dir): {data} cannot be used: {exc.strerror}") from exc
        # First what fails fastest: a taken port is told before services are started.
        sock = undo.enter_context(contextlib.closing(listen(settings.host, settings.port, reuse_port=False)))
        settings = _with_secrets(settings, data)
        played: Played | None = None
        if play and not settings.partners_url:
            played = prepare(settings)
            undo.callback(played.sock.close)
            settings = settings.with_values(partners_url=played.url)
        settings = await _with_services(settings, data, undo)
        connection = await connect_ledger(settings)
        try:
            await migrate(connection)
        finally:
            await connection.close()

        supervisor = await undo.enter_async_context(Supervisor(data / "log", grace_s=settings.grace_s))
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUSHGATE_")} | settings.to_env()
        command = [sys.executable, "-m", "ops.cli"]
        fd = sock.fileno()
        supervisor.know("gateway", [*command, "gateway", "--fd", str(fd)], env, pass_fds=(fd,))
        await supervisor.scale("gateway", settings.gateway_workers)
        workers = {
            "ledger": settings.ledger_workers,
            "expiry": settings.expiry_workers,
            "relay": settings.relay_workers,
            "reconcile": settings.reconcile_workers,
        }
        for kind, count in workers.items():
            supervisor.know(kind, [*command, "worker", kind], env)
            await supervisor.scale(kind, count)

        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
        scheme = "https" if settings.tls_cert else "http"
        gateway = f"{scheme}://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
        if played:
            await supervisor.spawn("partners", played.argv(gateway), played.env(), pass_fds=(played.sock.fileno(),))
        look = None if settings.reconcile_workers else await undo.enter_async_context(first_look(settings))
        await _until_ready(gateway, supervisor, data / "log", look)
        channel_key = next(iter(settings.channel_keys.values()), "")
        known = data / STACK_FILE
        write_private(known, json.dumps({"gateway": gateway, "settings": msgspec.structs.asdict(settings)}))
        undo.callback(known.unlink, missing_ok=True)
        missing = await out_of_service(settings)
        await undo.enter_async_context(control.serving(data, supervisor))
        console = ""
        if settings.console == "on" and settings.admin_token:
            page = undo.enter_context(contextlib.closing(address.listening(settings, or_free=True)))
            fd, console = page.fileno(), address.url_of(settings, page)
            await supervisor.spawn("console", [*command, "console", "--fd", str(fd)], env, pass_fds=(fd,))
        yield Stack(settings, gateway, channel_key, supervisor, played.url if played else "", missing, console)


def _with_secrets(settings: Settings, data: Path) -> Settings:
    """Secrets where none are set: drawn once, kept in the data directory for this user alone."""
    embedded = not settings.store_url and not settings.ledger_dsn
    if not embedded:
        return settings
    path = data / SECRETS_FILE
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    fresh = {
        "admin_token": secrets.token_urlsafe(24),
        "channel_key": secrets.token_urlsafe(24),
        "payment_secret": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "partner_secret": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "ticket_secret": secrets.token_urlsafe(32),
        "signing_secret": secrets.token_urlsafe(32),
    }
    if not fresh.keys() <= kept.keys():
        kept = fresh | kept
        write_private(path, json.dumps(kept))
    return settings.with_values(
        admin_token=settings.admin_token or kept["admin_token"],
        channel_keys=settings.channel_keys or {EMBEDDED_CHANNEL: kept["channel_key"]},
        payment_secrets=settings.payment_secrets or (kept["payment_secret"],),
        partner_secrets=settings.partner_secrets or (kept["partner_secret"],),
        ticket_secrets=settings.ticket_secrets or (kept["ticket_secret"],),
        signing_secrets=settings.signing_secrets or (kept["signing_secret"],),
    )


async def _with_services(settings: Settings, data: Path, undo: contextlib.AsyncExitStack) -> Settings:
    """Store and ledger run; those that no setting names are embedded ones."""
    starts = []
    replicas: list[EmbeddedStore] = []
    services: list[EmbeddedStore | EmbeddedLedger] = []
    if not settings.store_url:
        on_disk = settings.durability != "memory"
        store = EmbeddedStore(data, port=settings.embedded_store_port, appendonly=on_disk)
        if settings.durability == "replicated":
            names = [f"replica-{n}" for n in range(1, settings.replicas + 1)]
            replicas = [EmbeddedStore(data, replica_of=store, name=name, ready_s=REPLICA_S) for name in names]
        services.append(store)
        undo.push_async_callback(store.stop)
        starts.append(store.start())
    if not settings.ledger_dsn:
        ledger = EmbeddedLedger(data)
        services.append(ledger)
        undo.push_async_callback(ledger.stop)
        starts.append(ledger.start())
    urls = iter(await asyncio.gather(*starts))
    for replica in replicas:
        undo.push_async_callback(replica.stop)
        await replica.start()
    await undo.enter_async_context(kept([*services, *replicas]))
    return settings.with_values(
        store_url=settings.store_url or next(urls), ledger_dsn=settings.ledger_dsn or next(urls)
    )


async def _until_ready(gateway: str, supervisor: Supervisor, logs: Path, look: FirstLook | None = None) -> None:
    """The gateway says that it takes orders. `look`: at the store, where no reconcile worker judges it.

    Raises with the gateway's own words: ConfigInvalid if the store is not set as it should; NotReady.
    """
    watch = asyncio.create_task(supervisor.wait())
    loop = asyncio.get_running_loop()
    until_s = loop.time() + READY_S
    said = "nothing"
    try:
        while loop.time() < until_s:
            if watch.done():
                await watch
            status, said = await asyncio.to_thread(readyz, gateway)
            if status == 200:
                return
            if "not_as_promised" in said:
                raise ConfigInvalid(f"the gateway is not ready: it says {said}; see {logs}")
            await asyncio.sleep(0.05)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    why = f"the store was not admitted: {look.why}; " if look and look.why else ""
    raise NotReady(f"the gateway is not ready after {READY_S:g} s: it says {said}; {why}see {logs}")


def readyz(gateway: str) -> tuple[int, str]:
    """Status and body of the gateway's answer; 0 and the reason when there is none."""
    parts = urlsplit(gateway)
    host = parts.hostname or ""
    if parts.scheme == "https":  # our own child on this machine, by its address: the certificate names another
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=5, context=unchecked
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as exc:
        return 0, str(exc)
    finally:
        connection.close()
