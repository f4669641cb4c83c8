"""`rushgate up`, `demo` and the commands of an operator, as processes."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from redis import Redis

from tests.e2e.support import RUSHGATE, Client, Up, command, environment, living, until

AUDIT = re.compile(r"^audit: ok accepted=(\d+) persisted=(\d+) oversold=0 lost=0 duplicated=0 unsold=(\d+)$")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A small stack of its own."""
    found = Up(tmp_path / "d", "--port", "0")
    try:
        yield found.wait_ready()
    finally:
        found.end()


async def orders_in(dsn: str, campaign: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM orders WHERE campaign = $1", campaign))
    finally:
        await connection.close()


def test_ready_line_tells_how_to_reach_everything(stack: Up) -> None:
    assert list(stack.ready) == ["ready", "gateway", "store", "ledger", "admin_token", "channel_key", "payment_secret"]
    assert stack.ready["ready"] is True
    assert stack.client.call("GET", "/readyz").status == 200
    with Redis.from_url(stack.ready["store"]) as store:
        assert store.ping()
    campaign = stack.client.sale()
    assert stack.client.order(campaign).status == 202
    stack.client.settled_audit(campaign)
    assert asyncio.run(orders_in(stack.ready["ledger"], campaign)) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_no_process_and_exits_0(tmp_path: Path, signum: signal.Signals) -> None:
    found = Up(tmp_path / "d", "--port", "0", "--gateway-workers", "2").wait_ready()
    pids = [*found.children("gateway"), *found.children("worker")]
    assert len(pids) == 5  # two gateways, a worker of each kind
    assert len(living(found.data)) >= 3  # store, ledger and `up` itself
    assert found.end(signum) == 0
    assert living(found.data) == []
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
    assert not (found.data / "stack.json").exists()
    assert "Traceback" not in found.stderr.read_text()


def test_signal_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    found = Up(tmp_path / "d", "--port", "0")
    until(lambda: living(found.data / "store"), every_s=0.005)
    assert found.end(signal.SIGTERM) == 0
    assert living(found.data) == []


def test_killed_up_is_followed_by_one_that_finds_its_orders(tmp_path: Path) -> None:
    first = Up(tmp_path / "d", "--port", "0").wait_ready()
    campaign = first.client.sale({"red": 100})
    made = [first.client.order(campaign, f"b{n}", f"k{n}") for n in range(50)]
    assert {r.status for r in made} == {202}
    first.end(signal.SIGKILL)
    second = Up(first.data, "--port", "0").wait_ready()
    try:
        assert second.client.order(campaign, "b7", "k7").body == made[7].body
        audit = second.client.settled_audit(campaign)
        assert (audit["ok"], audit["accepted"], audit["persisted"]) == (True, 50, 50)
    finally:
        assert second.end() == 0
    assert living(first.data) == []


def test_taken_port_is_told_in_one_line_with_78(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("up", "--port", str(port), "--data-dir", str(tmp_path / "d"))
    assert (done.returncode, done.stdout) == (78, "")
    [line] = done.stderr.splitlines()
    assert str(port) in line
    assert "RUSHGATE_PORT" in line
    assert "--port" in line


def test_second_up_on_the_same_data_dir_is_told_so(stack: Up) -> None:
    done = command("up", "--port", "0", "--data-dir", str(stack.data))
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert str(stack.data) in line
    assert str(stack.process.pid) in line
    assert stack.client.call("GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUSHGATE_SHARDS", "0"),
        ("RUSHGATE_PORT", "http"),
        ("RUSHGATE_DURABILITY", "maybe"),
        ("RUSHGATE_ADMIN_TOKEN", "short"),
        ("RUSHGATE_CHANNEL_KEYS", "app"),
        ("RUSHGATE_LEDGER_DSN", "nonsense"),
        ("RUSHGATE_SHARD", "64"),
        ("RUSHGATE_DATA_DIR", "/dev/null/x"),
        ("RUSHGATE_CONFIG", "/no/such.toml"),
    ],
)
def test_bad_setting_is_told_by_name_with_78(tmp_path: Path, name: str, value: str) -> None:
    done = command("up", env={"RUSHGATE_PORT": "0", "RUSHGATE_DATA_DIR": str(tmp_path / "d"), name: value})
    assert (done.returncode, done.stdout) == (78, "")
    [line] = done.stderr.splitlines()
    assert name in line
    assert living(tmp_path / "d") == []


def test_port_out_of_range_is_told_by_name(tmp_path: Path) -> None:
    done = command("up", "--port", "99999", "--data-dir", str(tmp_path / "d"))
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert "RUSHGATE_PORT" in done.stderr


def test_store_that_is_not_as_promised_stops_up_with_78(up: Up, tmp_path: Path) -> None:
    with Redis.from_url(up.ready["store"]) as store:
        store.config_set("appendfsync", "everysec")
    env = {"RUSHGATE_STORE_URL": up.ready["store"], "RUSHGATE_LEDGER_DSN": up.ready["ledger"], "RUSHGATE_PORT": "0"}
    done = command("up", "--data-dir", str(tmp_path / "other"), env=env)
    assert (done.returncode, done.stdout) == (78, "")
    assert "appendfsync" in done.stderr
    found = up.command("doctor")
    assert found.returncode == 1
    assert re.search(r"^wrong +store +appendfsync is 'everysec'", found.stdout, re.MULTILINE)


def test_worker_and_gateway_killed_are_started_again(up: Up) -> None:
    campaign = up.client.sale()
    for kind in ("ledger", "expiry", "relay", "gateway"):
        [pid] = up.children(kind)
        os.kill(pid, signal.SIGKILL)
        until(partial(another, up, kind, pid))
        until(lambda: serves(up.client))
        assert up.client.order(campaign).status == 202
        audit = up.client.settled_audit(campaign)
        assert (audit["ok"], audit["persisted"]) == (True, audit["accepted"])
    assert up.client.audit(campaign)["accepted"] == 4


def another(up: Up, kind: str, pid: int) -> bool:
    return any(p != pid for p in up.children(kind))


def serves(client: Client) -> bool:
    try:
        return client.call("GET", "/readyz").status == 200
    except OSError:
        return False


def demo(data: Path) -> "subprocess.CompletedProcess[str]":
    return command("demo", "--once", "--buyers", "3000", "--port", "0", "--data-dir", str(data))


def test_demo_ends_with_the_audit_and_the_next_one_takes_the_next_name(tmp_path: Path) -> None:
    for campaign in ("sample", "sample-2"):
        done = demo(tmp_path / "d")
        assert done.returncode == 0, done.stdout + done.stderr
        found = AUDIT.match(done.stdout.splitlines()[-1])
        assert found, done.stdout
        accepted, persisted, unsold = map(int, found.groups())
        assert accepted == persisted > 0
        assert accepted <= 5_000
        assert re.search(rf"campaign {campaign}: 5,000 units, 3,000 buyers", done.stdout)
        assert unsold < 5_000
        assert "Traceback" not in done.stderr
    assert living(tmp_path / "d") == []


def test_demo_with_impossible_buyers_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = command("demo", "--once", "--buyers", "0", "--port", "0", "--data-dir", str(tmp_path / "d"))
    assert (done.returncode, done.stdout) == (78, "")
    assert "--buyers" in done.stderr
    assert not (tmp_path / "d").exists()


def test_demo_prints_curl_lines_that_work_as_printed(tmp_path: Path) -> None:
    found = Up(tmp_path / "d", "--port", "0", "--buyers", "8000", part="demo")
    lines: list[str] = []
    try:
        while not lines or "Ctrl-C" not in lines[-1]:
            line = found.read_line()
            assert line, found.stderr.read_text()
            lines.append(line.rstrip("\n"))
        after = next(n for n, line in enumerate(lines) if "another terminal" in line)
        script = "\n".join(lines[after + 1 : -1])
        assert script.count("curl -s ") == 3
        assert all(shlex.split(line, comments=True) is not None for line in script.splitlines())
        done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=True, timeout=30)
        restocked, bought, first = (json.loads(line) for line in done.stdout.splitlines())
        assert (restocked["units"], restocked["repeated"]) == (10, False)
        assert bought["status"] == "accepted"
        assert (first["campaign"], first["state"]) == ("sample", "accepted")
    finally:
        assert found.end(signal.SIGINT) == 0
    assert living(found.data) == []


def test_doctor_of_a_sound_stack_finds_nothing_wrong(stack: Up) -> None:
    done = stack.command("doctor", "--json")
    assert done.returncode == 0, done.stdout
    checks = {c["name"]: c["verdict"] for c in json.loads(done.stdout)}
    sound = ("versions", "settings", "gateway", "store", "ledger", "ledger worker", "expiry worker", "relay worker")
    assert {checks[name] for name in sound} == {"ok"}
    assert "disk" in checks
    assert "0 wrong" in stack.command("doctor").stdout


@pytest.mark.parametrize("dsn", ["postgresql://postgres@127.0.0.1:1/x", "nonsense"])
def test_doctor_without_ledger_says_so(stack: Up, tmp_path: Path, dsn: str) -> None:
    env = {"RUSHGATE_STORE_URL": stack.ready["store"], "RUSHGATE_LEDGER_DSN": dsn}
    done = command("doctor", env={**env, "RUSHGATE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert re.search(r"^wrong +ledger ", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +store ", done.stdout, re.MULTILINE)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "args",
    [[], ["up"], ["demo"], ["gateway"], ["worker"], ["migrate"], ["doctor"], ["campaign"], ["audit"], ["rush"]]
    + [["campaign", action] for action in ("apply", "open", "pause", "close", "show", "restock")],
)
def test_help_is_there_for_every_part(args: list[str]) -> None:
    done = subprocess.run([*RUSHGATE, *args, "--help"], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rushgate" + "".join(f" {a}" for a in args))


@pytest.mark.parametrize("args", [["gateway"], ["worker", "ledger"]])
def test_process_without_services_exits_78(args: list[str]) -> None:
    done = command(*args, env={"RUSHGATE_PORT": "0"})
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert "RUSHGATE_STORE_URL" in done.stderr
