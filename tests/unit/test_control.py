"""The control socket of `rushgate up`: for this user alone, bounded, and clear about what it will not do."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import ConfigInvalid
from ops import control
from ops.cli import main
from ops.control import CALLERS, LINE_BYTES, NotScaled, Request, call, serving
from ops.processes import Supervisor

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A stack without a stack: its workers sleep. The path is longer than one of a socket may be."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    (deep / control.SOCKET).touch()  # left by a stack that was killed
    async with Supervisor(grace_s=2.0) as supervisor:
        for kind in ("gateway", "ledger", "relay"):
            supervisor.know(kind, SLEEPER, os.environ)
        await supervisor.scale("gateway", 1)
        async with serving(deep, supervisor):
            yield deep
    assert not (deep / control.SOCKET).exists()


async def counted(folder: Path) -> dict[str, int]:
    children = await call(folder, Request("children"))
    return {kind: sum(c.kind == kind for c in children) for kind in ("gateway", "ledger", "relay")}


async def test_scale_starts_and_ends_processes_also_of_a_kind_that_had_none(folder: Path) -> None:
    children = await call(folder, Request("scale", {"ledger": 3, "relay": 1}))
    assert sorted(c.name for c in children) == ["gateway-1", "ledger-1", "ledger-2", "ledger-3", "relay-1"]
    assert all(c.pid and c.state == "running" for c in children)
    gone = next(c.pid for c in children if c.name == "ledger-3")
    await call(folder, Request("scale", {"ledger": 1}))
    assert await counted(folder) == {"gateway": 1, "ledger": 1, "relay": 1}
    assert gone is not None
    with pytest.raises(ProcessLookupError):
        os.kill(gone, 0)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({}, "name a kind"),
        ({"ledgers": 1}, "no kind 'ledgers'"),
        ({"ledger": 65}, "ledger: must be 0 to 64"),
        ({"ledger": -1}, "ledger: must be 0 to 64"),
        ({"gateway": 0}, "gateway: must be 1 to 64"),
        ({"relay": 2, "gateway": 0}, "gateway: must be 1 to 64"),
        ({"expiry": 1}, "KeyError"),  # of a stack that does not know it
    ],
)
async def test_wrong_number_is_refused_and_nothing_is_changed(folder: Path, kinds: dict[str, int], words: str) -> None:
    with pytest.raises(NotScaled, match=words):
        await call(folder, Request("scale", kinds))
    assert await counted(folder) == {"gateway": 1, "ledger": 0, "relay": 0}


async def test_socket_is_for_this_user_alone(folder: Path) -> None:
    assert stat.S_IMODE((folder / control.SOCKET).stat().st_mode) == 0o600


async def raw(folder: Path, data: bytes) -> bytes:
    with control._short_path(folder) as path:
        reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.readline(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b"\xff\n", b'{"do":"stop"}\n', b'{"do":"scale","kinds":3}\n',
                                  b'{"do":"children","more":1}\n'])  # fmt: skip
async def test_line_that_says_nothing_is_answered_and_harms_nobody(folder: Path, line: bytes) -> None:
    assert (await raw(folder, line)).startswith(b'{"ok":false,"error":"cannot be read')
    assert (await counted(folder))["gateway"] == 1


async def test_endless_line_is_cut_off(folder: Path) -> None:
    assert await raw(folder, b"x" * 4 * LINE_BYTES) == b""
    assert (await counted(folder))["gateway"] == 1


async def test_callers_are_bounded_and_make_room_when_they_go(folder: Path) -> None:
    with control._short_path(folder) as path:
        idle = [await asyncio.open_unix_connection(path) for _ in range(CALLERS)]
    for _, writer in idle:  # each is being served
        writer.write(b'{"do":"children"}\n')
    for reader, _ in idle:
        assert (await reader.readline()).startswith(b'{"ok":true')
    with pytest.raises(NotScaled, match="did not answer"):
        await call(folder, Request("children"))
    for reader, writer in idle:
        writer.close()
        assert await reader.read() == b""
    assert (await counted(folder))["gateway"] == 1


async def test_without_a_stack_it_is_said_what_scales_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"no stack runs in .*kubectl scale"):
        await call(tmp_path, Request("children"))
    with pytest.raises(ConfigInvalid, match="no stack runs in"):
        await call(tmp_path / "missing", Request("children"))


@pytest.mark.parametrize(
    ("kinds", "words"),
    [(["ledger"], "expected KIND=N"), (["ledger=many"], "expected KIND=N"), (["ledgers=2"], "no kind 'ledgers'"),
     (["gateway=0"], "gateway: must be 1 to 64"), (["relay=2", "ledger=65"], "ledger: must be 0 to 64")],
)  # fmt: skip
def test_command_with_a_wrong_number_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kinds: list[str], words: str
) -> None:
    assert main(["scale", *kinds, "--data-dir", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert main(["scale", "ledger=1", "--data-dir", str(tmp_path)]) == 78  # right, and nobody there to do it
