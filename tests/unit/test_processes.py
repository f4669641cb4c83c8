"""The supervisor, with real processes and real signals."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.embedded import process_ids, status
from ops.processes import EX_CONFIG, ChildInfo, ChildMisconfigured, Supervisor

PATIENCE_S = 15.0
SLEEPER = "import time; time.sleep(1000)"
DEAF = (
    "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(1000)"
)


def python(code: str, *args: str | Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *map(str, args)]


def is_running(pid: int) -> bool:
    return status(pid).get("State", "Z") != "Z"


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def only_child(supervisor: Supervisor) -> ChildInfo:
    (child,) = supervisor.children()
    return child


async def test_spawn_lists_the_child_and_stop_leaves_nothing() -> None:
    supervisor = Supervisor()
    await supervisor.spawn("worker", python(SLEEPER), os.environ)
    child = only_child(supervisor)
    assert (child.name, child.kind, child.state, child.restarts) == ("worker-1", "worker", "running", 0)
    assert child.pid is not None
    assert is_running(child.pid)
    assert os.getsid(child.pid) == child.pid  # the terminal's Ctrl-C does not reach it

    await supervisor.stop()
    assert supervisor.children() == []
    assert not is_running(child.pid)
    await asyncio.wait_for(supervisor.wait(), PATIENCE_S)
    with pytest.raises(RuntimeError):
        await supervisor.scale("worker", 1)


async def test_spawn_gives_env_descriptors_and_log(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    code = "import os, sys; os.write(int(sys.argv[1]), os.environ['COLOUR'].encode()); print('hi', flush=True);"
    async with Supervisor(tmp_path / "log") as supervisor:
        await supervisor.spawn("w", python(code + SLEEPER, str(writing)), {"COLOUR": "red"}, pass_fds=[writing])
        assert await asyncio.to_thread(os.read, reading, 10) == b"red"
        await until(lambda: (tmp_path / "log" / "w-1.log").read_text() == "hi\n")
    os.close(reading)
    os.close(writing)


async def test_killed_child_is_started_again() -> None:
    async with Supervisor() as supervisor:
        await supervisor.spawn("worker", python(SLEEPER), os.environ)
        first = only_child(supervisor).pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: only_child(supervisor).restarts == 1)
        second = only_child(supervisor).pid
        assert second is not None
        assert second != first
        assert is_running(second)


async def test_restart_pauses_double_up_to_the_longest(tmp_path: Path) -> None:
    births = tmp_path / "births"
    code = "import sys, time; print(time.time(), file=open(sys.argv[1], 'a'))"
    async with Supervisor(backoff_s=(0.1, 0.4)) as supervisor:
        await supervisor.spawn("worker", python(code, births), os.environ)
        await until(lambda: births.exists() and len(births.read_text().split()) >= 6)
    at = [float(line) for line in births.read_text().split()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    # Lower bounds only: a busy machine adds to a pause, nothing takes from it.
    for pause, least in zip(pauses, [0.1, 0.2, 0.4, 0.4, 0.4], strict=False):
        assert pause > 0.9 * least, pauses


async def test_restart_pause_starts_over_after_a_healthy_life(tmp_path: Path) -> None:
    births = tmp_path / "births"
    code = "import sys, time; print(time.time(), file=open(sys.argv[1], 'a')); time.sleep(0.2)"
    began = time.monotonic()
    async with Supervisor(backoff_s=(0.01, 1_000.0), healthy_s=0.1) as supervisor:
        await supervisor.spawn("worker", python(code, births), os.environ)
        # Without the reset the pauses of 12 deaths would add up to 40 s.
        await until(lambda: births.exists() and len(births.read_text().split()) >= 13)
    assert time.monotonic() - began < PATIENCE_S


async def test_stop_in_the_pause_before_a_restart_ends_at_once() -> None:
    supervisor = Supervisor(backoff_s=(1_000.0, 1_000.0))
    await supervisor.spawn("worker", python("pass"), os.environ)
    await until(lambda: only_child(supervisor).state == "waiting")
    assert only_child(supervisor).pid is None
    await asyncio.wait_for(supervisor.stop(), PATIENCE_S)
    assert supervisor.children() == []


async def test_exit_78_ends_the_supervisor_and_names_the_child() -> None:
    async with Supervisor() as supervisor:
        await supervisor.spawn("worker", python(SLEEPER), os.environ)
        other = only_child(supervisor).pid
        await supervisor.spawn("gateway", python(f"raise SystemExit({EX_CONFIG})"), os.environ)
        with pytest.raises(ChildMisconfigured, match="gateway-1"):
            await asyncio.wait_for(supervisor.wait(), PATIENCE_S)
        assert supervisor.children() == []
        assert other is not None
        assert not is_running(other)


async def test_missing_program_is_a_death_with_a_reason_in_the_log(tmp_path: Path) -> None:
    async with Supervisor(tmp_path, backoff_s=(1_000.0, 1_000.0)) as supervisor:
        await supervisor.spawn("worker", [str(tmp_path / "nothing")], os.environ)
        await until(lambda: only_child(supervisor).state == "waiting")
        assert "nothing: No such file" in (tmp_path / "worker-1.log").read_text()


async def test_scale_adds_and_removes_the_highest_numbers() -> None:
    async with Supervisor() as supervisor:
        await supervisor.spawn("worker", python(SLEEPER), os.environ)
        await supervisor.spawn("gateway", python(SLEEPER), os.environ)
        await supervisor.scale("worker", 3)
        pids = {child.name: child.pid for child in supervisor.children()}
        assert sorted(pids) == ["gateway-1", "worker-1", "worker-2", "worker-3"]

        await supervisor.scale("worker", 1)
        left = {child.name: child.pid for child in supervisor.children()}
        assert left == {name: pids[name] for name in ("worker-1", "gateway-1")}
        gone = [pids["worker-2"], pids["worker-3"]]
        assert not any(is_running(pid) for pid in gone if pid is not None)

        await supervisor.scale("worker", 0)
        assert [child.name for child in supervisor.children()] == ["gateway-1"]
        await supervisor.scale("worker", 2)
        assert len(supervisor.children()) == 3


async def test_child_deaf_to_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    supervisor = Supervisor(grace_s=0.3)
    await supervisor.spawn("worker", python(DEAF, tmp_path / "deaf"), os.environ)
    await until((tmp_path / "deaf").exists)
    pid = only_child(supervisor).pid
    assert pid is not None
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began >= 0.3
    assert not is_running(pid)


async def test_stop_leaves_no_grandchild(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys; child = subprocess.Popen(['sleep', '1000']);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); child.wait()"
    )
    supervisor = Supervisor()
    await supervisor.spawn("worker", [sys.executable, "-c", code, str(told)], os.environ)
    await until(lambda: told.exists() and told.read_text() != "")
    grandchild = int(told.read_text())
    assert is_running(grandchild)
    await supervisor.stop()
    await until(lambda: not is_running(grandchild))


OWNER = """
import asyncio, os, sys
from ops.processes import Supervisor

async def main():
    supervisor = Supervisor()
    await supervisor.spawn("worker", ["sleep", "1000"], os.environ)
    await supervisor.scale("worker", 2)
    print(*(child.pid for child in supervisor.children()), flush=True)
    await supervisor.wait()

asyncio.run(main())
"""


def run_owner() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)


async def test_children_die_with_an_owner_killed_by_sigkill() -> None:
    with run_owner() as owner:
        assert owner.stdout is not None
        line = await asyncio.to_thread(owner.stdout.readline)
        pids = [int(word) for word in line.split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        owner.kill()
    # A child killed in its shim, before it asked for the signal, finds another parent and ends by itself.
    await until(lambda: not any(is_running(pid) for pid in pids))


async def test_shim_ends_when_the_parent_was_gone_before_it_asked() -> None:
    """The race, made certain: the shim is told a parent that is not its parent."""
    from ops.processes import SHIM

    shim = [sys.executable, "-I", "-S", "-c", SHIM, "1", *python(SLEEPER)]
    done = await asyncio.to_thread(subprocess.run, shim, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert b"the parent is gone" in done.stderr


async def test_cancelled_owner_task_leaves_no_child() -> None:
    seen: list[int] = []

    async def own() -> None:
        async with Supervisor() as supervisor:
            await supervisor.spawn("worker", python(SLEEPER), os.environ)
            seen.extend(child.pid for child in supervisor.children() if child.pid is not None)
            await supervisor.wait()

    task = asyncio.create_task(own())
    await until(lambda: bool(seen))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not any(is_running(pid) for pid in seen)
    assert not any(status(pid).get("PPid") == str(os.getpid()) for pid in process_ids() if pid in seen)
