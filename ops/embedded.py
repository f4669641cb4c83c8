"""What the embedded store and ledger share: one owner per data directory, processes without pid races."""

import asyncio
import errno
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from core.errors import Fault

PROC = Path("/proc")
KILL_WAIT_S = 5.0  # SIGKILL needs no help from the process; longer means the kernel is stuck in a write
POLL_S = 0.01  # seconds between two looks at a server that is coming up
LOG_TAIL_BYTES = 2_000  # enough for the reason a server gave before it died


class EmbeddedFault(Fault):
    """Base of what the embedded services raise on purpose; the text is for the person at the terminal."""


class DataDirBusy(EmbeddedFault):
    """Another living process owns the data directory. Nothing was touched.

    Args:
        data_dir: the directory.
        pid: its owner, or None when the owner has not written its pid yet.
    """

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        self.pid = pid
        owner = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{data_dir} is in use by {owner}: stop that one, or choose another data directory "
            "(RUSHGATE_DATA_DIR or --data-dir)"
        )


class PortTaken(EmbeddedFault):
    """Something else listens on the wanted port. Nothing of ours runs.

    Args:
        port: the wanted TCP port on 127.0.0.1.
        setting: name of the setting to change, as the person knows it.
    """

    def __init__(self, port: int, setting: str) -> None:
        self.port = port
        self.setting = setting
        super().__init__(f"port {port} is taken: set {setting} to another port, or to 0 for any free one")


class ServiceFailed(EmbeddedFault):
    """A service did not come up or did not keep its promise; the text ends with what its log said last."""


class DataDirLock:
    """One living process per data directory, by flock on `<data>/lock`.

    Within a process any number of holders share it: the store, the ledger and the command that runs both.
    The kernel drops the lock at any death of the owner, so there is no stale lock. Not for use from several
    threads.
    """

    _held: ClassVar[dict[Path, tuple[int, int]]] = {}  # data dir -> descriptor, holders in this process

    def __init__(self, data_dir: Path | str) -> None:
        self.data_dir = Path(data_dir).resolve()
        self._mine = False

    def acquire(self) -> None:
        """Own the directory, made with mode 0700 when missing. Twice is once.

        Raises:
            DataDirBusy: another living process owns it.
        """
        if self._mine:
            return
        held = self._held.get(self.data_dir)
        fd, holders = held or (self._open(), 0)
        self._held[self.data_dir] = (fd, holders + 1)
        self._mine = True

    def release(self) -> None:
        """Give up this holder's part; the last one frees the directory. Twice is once."""
        if not self._mine:
            return
        self._mine = False
        fd, holders = self._held.pop(self.data_dir)
        if holders > 1:
            self._held[self.data_dir] = (fd, holders - 1)
        else:
            os.close(fd)

    def __enter__(self) -> "DataDirLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _open(self) -> int:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Python opens with O_CLOEXEC: a service that outlives us must not keep the lock.
        fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.read(fd, 32).strip()
            os.close(fd)
            if exc.errno != errno.EWOULDBLOCK:
                raise
            raise DataDirBusy(self.data_dir, int(owner) if owner.isdigit() else None) from None
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        return fd


def is_owned(data_dir: Path) -> bool:
    """A living process owns the data directory. Looks through the lock, and changes nothing."""
    try:
        fd = os.open(data_dir / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class ServerProcess:
    """One running server, held by a pidfd: whatever the kernel does with its number, no other process is
    signalled.

    Args:
        pid: the process; with `child` given, an unreaped child of ours.
        child: our handle of it, reaped when it is gone.
    """

    def __init__(self, pid: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._child = child
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def alive(self) -> bool:
        """False once it has ended, reaped or not."""
        return self._fd >= 0 and not self._poll.poll(0)

    def send(self, signum: signal.Signals) -> None:
        """Signal it, if it is still there."""
        if self.alive:
            signal.pidfd_send_signal(self._fd, signum)

    async def gone(self, timeout_s: float) -> bool:
        """Wait for its end, at most timeout_s; True when it has ended. A child of ours is reaped then."""
        if self.alive:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            watched = os.dup(self._fd)  # one descriptor has one reader, and two may wait at a time
            loop.add_reader(watched, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), timeout_s)
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        self.close()
        return True

    def close(self) -> None:
        """Forget the process; one that has ended is reaped, one that lives goes on."""
        if self._fd < 0:
            return
        if self._child is not None and not self.alive:
            self._child.wait()
        os.close(self._fd)
        self._fd = -1


async def end_process(server: ServerProcess, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Send each signal in turn and wait its seconds, until the process is gone; False if it outlived all."""
    for signum, wait_s in steps:
        server.send(signum)
        if await server.gone(wait_s):
            return True
    return False


async def kill_with_children(server: ServerProcess) -> None:
    """A server is gone by SIGKILL, and its children by noticing its death or by SIGKILL too.

    Raises:
        ServiceFailed: the server outlived SIGKILL.
    """
    children = []
    for pid in process_ids():
        if status(pid).get("PPid") == str(server.pid):
            try:
                children.append(ServerProcess(pid))
            except ProcessLookupError:
                continue  # has just ended
    if not await end_process(server, [(signal.SIGKILL, KILL_WAIT_S)]):
        raise ServiceFailed(f"process {server.pid} outlived SIGKILL by {KILL_WAIT_S} s")
    for child in children:
        if not await child.gone(KILL_WAIT_S):
            await end_process(child, [(signal.SIGKILL, KILL_WAIT_S)])
        child.close()


def find_servers(is_ours: Callable[[list[str]], bool], uid: int) -> list[ServerProcess]:
    """Every running process of `uid` whose whole command line `is_ours` accepts, parents before their forks
    left out.

    A pid file can name a process that is long gone and whose number belongs to someone else by now; a
    command line that carries our data directory cannot. Zombies have none and are never found.
    """
    found = [pid for pid in process_ids() if is_ours(command_line(pid)) and status(pid).get("Uid") == str(uid)]
    servers = []
    for pid in found:
        if int(status(pid).get("PPid", "0")) in found:
            continue  # a fork of a server in the list: it goes with its parent
        try:
            server = ServerProcess(pid)
        except ProcessLookupError:
            continue
        if is_ours(command_line(pid)):  # once more: the pidfd may be of a process that took the number just now
            servers.append(server)
        else:
            server.close()
    return servers


def process_ids() -> list[int]:
    """Process ids of this machine (this pid namespace) as of now."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty for a zombie, a kernel thread and a process that is not there."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]


def status(pid: int) -> dict[str, str]:
    """First word of each line of /proc/<pid>/status, such as PPid and the real Uid; empty if it is gone."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: (value.split() or [""])[0] for name, _, value in fields}


def log_since(log: Path, offset: int) -> str:
    """What was written to a log after `offset` bytes, at most its last LOG_TAIL_BYTES."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset, end - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
