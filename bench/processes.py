"""The processes of a measurement: started, put on their cores, their CPU counted with that of their children."""

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.environment import pin
from bench.services import Services
from gateway.process import listen

STOP_S = 30.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Gateway(NamedTuple):
    """A running gateway process, listening on 127.0.0.1."""

    pid: int
    port: int


def all_cores() -> list[int]:
    return list(range(os.cpu_count() or 1))


def children(pid: int) -> list[int]:
    """Process ids of the living children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def own_cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its living threads; in ns where `cpu_s` counts ticks of 10 ms."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def family_cpu_s(pid: int) -> float:
    """CPU seconds so far of a process and of its children, the ended ones included (these in ticks of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used_s = own_cpu_s(pid) + (int(fields[13]) + int(fields[14])) * TICK_S  # cutime, cstime of proc(5)
    for child in children(pid):
        with contextlib.suppress(OSError):
            used_s += own_cpu_s(child)
    return used_s


def pin_family(pid: int, cores: Sequence[int]) -> None:
    """The process and its living children run on these cores alone, and so will its later children."""
    for one in (pid, *children(pid)):
        with contextlib.suppress(OSError):
            pin(one, cores)


def raise_open_files(least: int) -> None:
    """This process, and those that it starts, may open `least` files and more. Raises SystemExit if they may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < least:
        raise SystemExit(f"{least:,} open files are needed, {hard:,} are allowed: raise `ulimit -Hn`")
    if soft < least:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))


@contextlib.asynccontextmanager
async def gateway(services: Services, cores: Sequence[int]) -> AsyncIterator[Gateway]:
    """One gateway process with the settings of the services, on these cores."""
    sock: socket.socket = listen("127.0.0.1", 0, reuse_port=False)
    try:
        args = ("gateway", "--fd", str(sock.fileno()))
        async with _process(args, services, cores, pass_fds=[sock.fileno()]) as pid:
            yield Gateway(pid, sock.getsockname()[1])
    finally:
        sock.close()


@contextlib.asynccontextmanager
async def worker(services: Services, kind: str, cores: Sequence[int], **values: Any) -> AsyncIterator[int]:
    """One worker process of this kind, with these other values of settings; its process id."""
    own = services._replace(settings=services.settings.with_values(**values))
    async with _process(("worker", kind), own, cores) as pid:
        yield pid


@contextlib.asynccontextmanager
async def _process(
    args: Sequence[str], services: Services, cores: Sequence[int], pass_fds: Sequence[int] = ()
) -> AsyncIterator[int]:
    env = {**os.environ, **services.settings.to_env()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", *args, env=env, pass_fds=pass_fds
    )  # fmt: skip
    try:
        os.sched_setaffinity(process.pid, cores)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def pids(services: Services) -> tuple[int, int]:
    """Of the store and of the ledger's postmaster."""
    store, ledger = services.store_process.pid, services.ledger_process.pid
    assert store is not None
    assert ledger is not None
    return store, ledger
