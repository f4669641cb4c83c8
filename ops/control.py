"""The control socket of `rushgate up`: what children run, and how many of each kind shall.

A Unix socket in the data directory, for this user alone: `control.sock`, 0600. A line of JSON asks, a line of JSON
answers, any number of times on one connection:

    {"do": "children"}                          -> {"ok": true, "children": [{"name", "kind", "pid", "state", …}]}
    {"do": "scale", "kinds": {"ledger": 3}}     -> the same, once those that are too many have ended
    anything else                               -> {"ok": false, "error": "why"}
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from core.errors import ConfigInvalid, Fault
from ops.processes import ChildInfo, Supervisor

logger = logging.getLogger("rushgate.ops")

SOCKET = "control.sock"
LEAST = {"gateway": 1, "ledger": 0, "expiry": 0, "relay": 0, "reconcile": 0}  # of each kind that can be scaled
MOST = 64  # of a kind, as in the settings
LINE_BYTES = 4_096
CALLERS = 8  # at once
IDLE_S = 30.0  # a caller that says nothing for so long is cut off
ANSWER_S = 20.0  # longest wait for an answer, beside the children's time to stop


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller wants. `kinds`: of `scale`, how many of each shall run."""

    do: Literal["children", "scale"]
    kinds: dict[str, int] = {}


class Child(msgspec.Struct):
    """As ops/processes.py ChildInfo."""

    name: str
    kind: str
    pid: int | None
    state: str
    restarts: int


class Answer(msgspec.Struct, omit_defaults=True):
    """`children` after what was asked for; or why it was not done."""

    ok: bool
    children: list[Child] = []
    error: str = ""


class NotScaled(Fault):
    """The stack will not do it, or could not."""

    code = "not_scaled"


def wrong_with(kinds: Mapping[str, int]) -> str:
    """What is wrong with these numbers of processes, in words; "" = nothing."""
    if not kinds:
        return f"name a kind and a number: {', '.join(LEAST)}"
    for kind, n in kinds.items():
        if kind not in LEAST:
            return f"there is no kind {kind!r}: {', '.join(LEAST)}"
        if not LEAST[kind] <= n <= MOST:
            return f"{kind}: must be {LEAST[kind]} to {MOST}"
    return ""


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """A path to the socket that is short enough for the kernel, whatever the folder's is."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


class _Control:
    """Serves the callers of one stack."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._callers: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A caller has come; one too many, or another user, is sent away."""
        if len(self._callers) >= CALLERS or not _is_ours(writer):
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def stop(self) -> None:
        """Nobody is served any more."""
        for task in self._callers:
            task.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await asyncio.wait_for(reader.readline(), IDLE_S):
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_S)
        except (OSError, ValueError, TimeoutError) as exc:  # ValueError: a line that is too long
            logger.debug("caller of the control socket cut off", extra={"why": str(exc)})
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.MsgspecError as exc:
            return Answer(ok=False, error=f"cannot be read: {exc}")
        if request.do == "scale":
            if why := wrong_with(request.kinds):
                return Answer(ok=False, error=why)
            try:
                for kind, n in request.kinds.items():
                    logger.info("scaled", extra={"kind": kind, "processes": n})
                    await self._supervisor.scale(kind, n)
            except (OSError, RuntimeError, KeyError) as exc:
                return Answer(ok=False, error=f"{type(exc).__name__}: {exc}")
        return Answer(ok=True, children=[_child(info) for info in self._supervisor.children()])


def _child(info: ChildInfo) -> Child:
    return Child(info.name, info.kind, info.pid, info.state, info.restarts)


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the caller is this user, or root."""
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", found)[1] in (0, os.getuid())


@contextlib.asynccontextmanager
async def serving(folder: Path, supervisor: Supervisor) -> AsyncIterator[None]:
    """The socket of `folder` is served while inside; the folder is this process's alone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.closing(sock), _short_path(folder) as path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a stack that was killed
        os.fchmod(sock.fileno(), 0o600)  # before it has a name: at no moment is it anybody else's
        sock.bind(path)
        control = _Control(supervisor)
        server = await asyncio.start_unix_server(control.accept, sock=sock, limit=LINE_BYTES)
        try:
            yield
        finally:
            server.close()
            await control.stop()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def call(folder: Path, request: Request, stop_s: float = 0.0) -> list[Child]:
    """The children of the stack that runs in `folder`, after it has done what was asked for.

    `stop_s`: the longest graceful stop of a child. Raises: ConfigInvalid, no stack runs there; NotScaled.
    """
    try:
        with _short_path(folder) as path:
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), ANSWER_S)
    except (OSError, TimeoutError) as exc:
        raise ConfigInvalid(no_stack(folder)) from exc
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        line = await asyncio.wait_for(reader.readline(), ANSWER_S + stop_s * max(1, len(request.kinds)))
        answer = msgspec.json.decode(line, type=Answer)
    except (OSError, TimeoutError, msgspec.MsgspecError) as exc:
        raise NotScaled(f"the stack in {folder} did not answer: {str(exc) or type(exc).__name__}") from exc
    finally:
        writer.close()
    if not answer.ok:
        raise NotScaled(answer.error)
    return answer.children


def no_stack(folder: Path) -> str:
    """What to say where no `rushgate up` runs."""
    return (
        f"no stack runs in {folder}: `rushgate scale` changes the processes of `rushgate up` on this machine; name its "
        "folder with --data-dir. Elsewhere the system that runs the processes scales them, for instance `systemctl "
        "start rushgate-worker@ledger-2` or `kubectl scale deployment rushgate-ledger --replicas=3`, and KEDA by itself"
    )
