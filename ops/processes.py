"""Keeps the child processes of `rushgate up` running: gateways and workers, none of which outlives us."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.errors import Fault

logger = logging.getLogger(__name__)

EX_CONFIG = 78  # sysexits.h: a child that cannot run as it is set up; starting it again changes nothing
# Runs in the child before the program takes its place: asks the kernel for SIGTERM at our death, then looks
# whether we died before it asked. Python code between fork and exec (preexec_fn) could deadlock instead. An
# ignored or blocked SIGTERM would be inherited, so it is set right here.
SHIM = """
import ctypes, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as exc:
    print(f"{sys.argv[2]}: {exc.strerror}", file=sys.stderr)
    sys.exit(127)
"""

State = Literal["running", "waiting", "stopping", "failed"]


class ChildMisconfigured(Fault):
    """A child ended with exit status 78; all other children have been stopped.

    Args:
        name: the child.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} cannot run with these settings (exit status {EX_CONFIG}): see its log")


@dataclass(frozen=True)
class ChildInfo:
    """One child as it stands; `waiting` is the pause before a restart, in which it has no pid."""

    name: str
    kind: str
    pid: int | None
    state: State
    restarts: int


@dataclass
class _Kind:
    """One command, run any number of times."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    pass_fds: tuple[int, ...]


@dataclass
class _Child:
    """A place for one process at a time, and the task that keeps it filled."""

    name: str
    kind: str
    process: asyncio.subprocess.Process | None = None
    state: State = "running"
    restarts: int = 0
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class Supervisor:
    """Starts children, starts them again when they die, and ends them all.

    Each child leads a session of its own, so Ctrl-C in the terminal reaches only us; it gets SIGTERM from
    the kernel when we die, even by kill -9. The kernel means the thread that started the child, so run this
    in the main thread.

    Args:
        log_dir: output of a child is appended to `<log_dir>/<name>.log`; None = it is ours.
        grace_s: seconds between SIGTERM and SIGKILL.
        backoff_s: first and longest pause before a restart, doubling in between.
        healthy_s: a child that lived this long starts again with the first pause.
    """

    def __init__(
        self,
        log_dir: Path | None = None,
        *,
        grace_s: float = 10.0,
        backoff_s: tuple[float, float] = (0.2, 5.0),
        healthy_s: float = 10.0,
    ) -> None:
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._backoff_s = backoff_s
        self._healthy_s = healthy_s
        self._kinds: dict[str, _Kind] = {}
        self._children: dict[str, _Child] = {}
        self._scaling = asyncio.Lock()
        self._stopped = False
        self._ended = asyncio.Event()
        self._misconfigured: str | None = None

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        """One child `<name>-1` of the kind `name` runs; `scale` gives it more. Arguments: as `know`.

        Raises:
            OSError: the process could not be made. A program that is not there is a child that died (status
            127).
        """
        self.know(name, argv, env, pass_fds)
        await self.scale(name, 1)

    def know(self, name: str, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        """The kind `name` can be scaled; none of it runs yet.

        Args:
            name: the kind; new to this supervisor.
            argv: program, found by the PATH of `env`, and arguments.
            env: the whole environment of the child.
            pass_fds: descriptors the child inherits under the same numbers; to be kept open by the caller
            as long as
                the supervisor lives, since a restarted child inherits them again.
        """
        if name in self._kinds:
            raise ValueError(f"there is a kind {name} already: scale it")
        self._kinds[name] = _Kind(tuple(argv), dict(env), tuple(pass_fds))

    async def scale(self, name: str, n: int) -> None:
        """Exactly n children of the kind run: `<name>-1` to `<name>-n`, n >= 0.

        Those too many, the highest numbers first, have ended when this returns: SIGTERM, then SIGKILL after
        grace_s.
        """
        async with self._scaling:
            if self._stopped:
                raise RuntimeError("the supervisor has stopped")
            wanted = {f"{name}-{number}" for number in range(1, n + 1)}
            surplus = [child for child in self._children.values() if child.kind == name]
            await self._end([child for child in surplus if child.name not in wanted])
            for number in range(1, n + 1):
                if f"{name}-{number}" not in self._children:
                    await self._add(f"{name}-{number}", name)

    def children(self) -> list[ChildInfo]:
        """Every child, in the order they were started."""
        return [
            ChildInfo(
                name=child.name,
                kind=child.kind,
                pid=child.process.pid if child.process is not None else None,
                state=child.state,
                restarts=child.restarts,
            )
            for child in self._children.values()
        ]

    async def wait(self) -> None:
        """Wait until `stop` is called or a child turns out misconfigured.

        Raises:
            ChildMisconfigured: a child ended with status 78; all children have ended.
        """
        await self._ended.wait()
        if self._misconfigured is not None:
            await self.stop()
            raise ChildMisconfigured(self._misconfigured)

    async def stop(self) -> None:
        """No child is left, nor anything a child started in its process group. Twice is once."""
        self._stopped = True
        async with self._scaling:
            await self._end(list(self._children.values()))
        self._ended.set()

    async def _add(self, name: str, kind: str) -> None:
        child = _Child(name, kind)
        child.process = await self._start(child)
        child.task = asyncio.create_task(self._tend(child), name=name)
        self._children[name] = child

    async def _end(self, children: list[_Child]) -> None:
        for child in children:
            child.stop_asked.set()
        tasks = [child.task for child in children if child.task is not None]
        if tasks:
            await asyncio.wait(tasks)  # not each in turn: our being cancelled must not cancel one of them
        for child in children:
            self._children.pop(child.name, None)

    async def _tend(self, child: _Child) -> None:
        """Keep the place filled until asked to stop or misconfigured; then it is empty."""
        first_s, longest_s = self._backoff_s
        pause_s = first_s
        try:
            while True:
                began_s = time.monotonic()
                code = await self._run_to_its_end(child)
                if child.stop_asked.is_set():
                    return
                if code == EX_CONFIG:
                    child.state = "failed"
                    self._misconfigured = self._misconfigured or child.name
                    self._ended.set()
                    return
                if time.monotonic() - began_s >= self._healthy_s:
                    pause_s = first_s
                logger.warning(
                    "child died, will be started again",
                    extra={"child": child.name, "status": code, "pause_s": pause_s},
                )
                child.state = "waiting"
                while child.process is None:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(child.stop_asked.wait(), pause_s)
                        return
                    pause_s = min(2 * pause_s, longest_s)
                    try:
                        child.process = await self._start(child)
                    except OSError as exc:  # no memory or no process slot now; there may be at the next try
                        logger.warning("child could not be started", extra={"child": child.name, "error": str(exc)})
                child.restarts += 1
                child.state = "running"
        finally:
            if child.process is not None:  # cancelled from outside
                kill_group(child.process.pid)

    async def _run_to_its_end(self, child: _Child) -> int:
        """Wait for the process to end, by itself or, when asked to stop, by us; its exit status."""
        process = child.process
        assert process is not None  # noqa: S101 - for mypy: both callers have just started it
        ended = asyncio.ensure_future(process.wait())
        asked = asyncio.ensure_future(child.stop_asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.state = "stopping"
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait({ended}, timeout=self._grace_s)
            # What the child started, and the child itself if it would not go.
            kill_group(process.pid)
            code = await ended
        finally:
            asked.cancel()
            ended.cancel()
        child.process = None
        return code

    async def _start(self, child: _Child) -> asyncio.subprocess.Process:
        kind = self._kinds[child.kind]
        shim = [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), *kind.argv]
        log = self._open_log(child.name)
        try:
            return await asyncio.create_subprocess_exec(
                *shim,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=kind.env,
                pass_fds=kind.pass_fds,
                start_new_session=True,
            )
        finally:
            if log is not None:
                os.close(log)

    def _open_log(self, name: str) -> int | None:
        if self._log_dir is None:
            return None
        self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._log_dir / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def kill_group(pid: int) -> None:
    """SIGKILL what is left of the process group that the child with this pid led; nothing may be left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
