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
from typing import Any

import asyncpg
import pytest
from redis import Redis

from ops.demo import SAMPLE
from ops.embedded import command_line, process_ids
from tests.e2e.support import KEYS, RUSHGATE, Client, Up, command, environment, living, until

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
    secrets = ["admin_token", "channel_key", "payment_secret", "partner_secret"]
    assert list(stack.ready) == ["ready", "gateway", "console", "store", "ledger", *secrets, "partners"]
    assert stack.ready["ready"] is True
    assert stack.ready["partner_secret"] == KEYS["RUSHGATE_PARTNER_SECRETS"]
    assert stack.ready["partners"] == ""  # an order must not pay itself by surprise
    assert stack.children("partners") == []
    assert stack.client.call("GET", "/readyz").status == 200
    with Redis.from_url(stack.ready["store"]) as store:
        assert store.ping()
    campaign = stack.client.sale()
    assert stack.client.order(campaign).status == 202
    stack.client.settled_audit(campaign)
    assert asyncio.run(orders_in(stack.ready["ledger"], campaign)) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_leaves_no_process_and_exits_0(tmp_path: Path, signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.default_int_handler)  # not ignored, as under `nohup`
    try:
        found = Up(tmp_path / "d", "--port", "0", "--gateway-workers", "2").wait_ready()
    finally:
        signal.signal(signum, before)
    pids = [*found.children("gateway"), *found.children("worker")]
    assert len(pids) == 6  # two gateways, a worker of each kind
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
    for kind in ("ledger", "expiry", "relay", "reconcile", "gateway"):
        [pid] = up.children(kind)
        os.kill(pid, signal.SIGKILL)
        until(partial(another, up, kind, pid))
        until(lambda: serves(up.client))
        assert up.client.order(campaign).status == 202
        audit = up.client.settled_audit(campaign)
        assert (audit["ok"], audit["persisted"]) == (True, audit["accepted"])
    assert up.client.audit(campaign)["accepted"] == 5


def another(up: Up, kind: str, pid: int) -> bool:
    return any(p != pid for p in up.children(kind))


def serves(client: Client) -> bool:
    try:
        return client.call("GET", "/readyz").status == 200
    except OSError:
        return False


def control(ready: dict[str, str]) -> dict[str, Any]:
    reply = Client(ready["partners"]).call("GET", "/control")
    assert reply.status == 200
    return dict(reply.json)


def test_up_with_partners_brings_orders_on_and_leaves_no_process(tmp_path: Path) -> None:
    found = Up(tmp_path / "d", "--port", "0", "--partners").wait_ready()
    try:
        campaign = found.client.sale()
        orders = [found.client.order(campaign).json["order_id"] for _ in range(20)]
        until(lambda: states(found.client, orders) & {"shipped", "received"})
        done = control(found.ready)["partners"]
        assert done["warehouse"]["topics"]["warehouse"]["callbacks_taken"] > 0
        assert {done[name]["rejected"] for name in done} == {0}
        [pid] = found.children("partners")
        os.kill(pid, signal.SIGKILL)
        until(partial(another, found, "partners", pid))
        assert control(found.ready)["partners"]["payment"]["topics"] == {}  # another process at the same address
        [pid] = found.children("partners")
    finally:
        assert found.end() == 0
    assert not Path(f"/proc/{pid}/exe").exists()
    assert living(found.data) == []


def states(client: Client, orders: list[str]) -> set[str]:
    return {client.get(f"/v1/orders/{order}").json["state"] for order in orders}


def test_up_plays_no_partners_where_others_are_named(tmp_path: Path) -> None:
    env = {"RUSHGATE_PARTNERS_URL": "http://127.0.0.1:9"}
    found = Up(tmp_path / "d", "--port", "0", "--partners", env=env).wait_ready()
    try:
        assert found.ready["partners"] == "http://127.0.0.1:9"
        assert found.children("partners") == []
        assert "no partners are played: RUSHGATE_PARTNERS_URL" in found.stderr.read_text()
    finally:
        assert found.end() == 0


def test_partners_without_secrets_are_told_so_before_anything_starts(tmp_path: Path) -> None:
    env = {
        "RUSHGATE_LEDGER_DSN": "postgresql://x@127.0.0.1:1/x",
        "RUSHGATE_PARTNER_SECRETS": KEYS["RUSHGATE_PARTNER_SECRETS"],
    }
    done = command("up", "--partners", "--port", "0", "--data-dir", str(tmp_path / "d"), env=env)
    assert (done.returncode, done.stdout) == (78, "")
    [line] = done.stderr.splitlines()
    assert "RUSHGATE_PAYMENT_SECRETS, RUSHGATE_CHANNEL_KEYS must be set" in line
    assert living(tmp_path / "d") == []


def test_secrets_are_drawn_once_and_new_ones_join_the_old(tmp_path: Path) -> None:
    kept = tmp_path / "d" / "secrets.json"
    kept.parent.mkdir()
    kept.write_text('{"admin_token":"an-old-admin-token","channel_key":"an-old-channel-key"}')
    ready = []
    for _ in range(2):
        found = Up(tmp_path / "d", "--port", "0", env=dict.fromkeys(KEYS, "")).wait_ready()
        ready.append(found.ready)
        assert found.end() == 0
    names = ("admin_token", "channel_key", "payment_secret", "partner_secret")
    on_disk = json.loads(kept.read_text())
    secrets = [[found[name] for name in names] for found in (*ready, on_disk)]
    assert secrets[0] == secrets[1] == secrets[2]
    assert secrets[0][:2] == ["an-old-admin-token", "an-old-channel-key"]
    assert len(set(secrets[0])) == 4
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The sample campaign with so few units that it comes to its end in seconds."""
    path = tmp_path / "small.toml"
    path.write_text(re.sub(r"stock = \d+", "stock = 20", SAMPLE.read_text()))
    return path


def demo(data: Path, campaign: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    given = ["--once", "--buyers", "300", "--port", "0", "--campaign-file", str(campaign), *args]
    return command("demo", *given, "--data-dir", str(data), env={"COLUMNS": "100"})


def test_demo_brings_every_order_to_its_end_and_the_next_one_takes_the_next_name(tmp_path: Path, small: Path) -> None:
    for campaign in ("sample", "sample-2"):
        done = demo(tmp_path / "d", small, "--pay-within-s", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        found = AUDIT.match(done.stdout.splitlines()[-1])
        assert found, done.stdout
        accepted, persisted, unsold = map(int, found.groups())
        assert accepted == persisted > 0
        assert unsold == 0
        assert re.search(rf"campaign {campaign}: 40 units, 300 buyers", done.stdout)
        assert "2 s to pay and 1 s for returns, where small.toml has 900 and 604,800" in done.stdout
        ends = {state: int(n) for state, n in re.findall(r"(completed|cancelled|expired|refunded) +(\d+) +[\d.]+%",
                                                         done.stdout)}  # fmt: skip
        assert sum(ends.values()) == accepted
        assert ends["completed"] > 0
        sold_again = re.search(r"came back and were sold again +(\d+) units", done.stdout)
        assert sold_again
        assert int(sold_again[1]) >= accepted - 40 - ends["completed"]  # an order has one unit or two
        for stage in ("asked to pay", "paid", "hold settled", "picking", "shipped", "received", "completed"):
            assert re.search(rf"│.* {stage} +\d+ +[\d.]+ m?s +[\d.]+ m?s", done.stdout), stage
        assert "every order at its end" in done.stdout
        assert "Traceback" not in done.stderr
    assert living(tmp_path / "d") == []
    assert [argv for argv in map(command_line, process_ids()) if str(tmp_path) in " ".join(argv)] == []


def test_demo_that_does_not_end_in_time_says_what_is_open_with_1(tmp_path: Path, small: Path) -> None:
    done = demo(tmp_path / "d", small, "--pay-within-s", "60", "--end-within-s", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^rushgate: not at the end after 1 s: .*\d+ orders accepted", done.stderr, re.MULTILINE)
    assert "not at its end" in done.stdout
    assert re.search(r"^audit: ok ", done.stdout, re.MULTILINE)
    assert living(tmp_path / "d") == []


def test_demo_with_impossible_buyers_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = command("demo", "--once", "--buyers", "0", "--port", "0", "--data-dir", str(tmp_path / "d"))
    assert (done.returncode, done.stdout) == (78, "")
    assert "--buyers" in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--pay-within-s", "0"), ("--pay-within-s", "9999"), ("--end-within-s", "nan")]
)
def test_demo_with_an_impossible_time_is_told_so(tmp_path: Path, flag: str, value: str) -> None:
    done = command("demo", "--once", flag, value, "--port", "0", "--data-dir", str(tmp_path / "d"))
    assert (done.returncode, done.stdout) == (78, "")
    assert flag in done.stderr
    assert not (tmp_path / "d").exists()


def test_demo_prints_curl_lines_that_work_as_printed(tmp_path: Path, small: Path) -> None:
    given = ["--port", "0", "--buyers", "300", "--pay-within-s", "2", "--campaign-file", str(small)]
    found = Up(tmp_path / "d", *given, part="demo")
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
        assert first["campaign"] == "sample"
        assert first["state"] in ("completed", "cancelled", "expired", "refunded")
        # The order that was just bought is paid, or not, like any other.
        until(lambda: found_state(script, bought["order_id"]) != "accepted")
    finally:
        assert found.end(signal.SIGINT) == 0
    assert living(found.data) == []


def found_state(script: str, order: str) -> str:
    """By the last curl line of the script, of another order."""
    line = re.sub(r"/v1/orders/[0-9a-f-]+", f"/v1/orders/{order}", script.splitlines()[-1])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30)
    return str(json.loads(done.stdout)["state"])


def test_doctor_of_a_sound_stack_finds_nothing_wrong(stack: Up) -> None:
    found = json.loads(stack.command("doctor", "--json").stdout)
    # Other tests of this stack empty the store under a campaign of theirs, and the reconcile worker says so.
    checks = {c["name"]: c["verdict"] for c in found if c["name"] != "alert" or "store_lost" not in c["words"]}
    kinds = ("ledger", "expiry", "relay", "reconcile")
    sound = ("versions", "settings", "gateway", "store", "channels", "ledger", *(f"{kind} worker" for kind in kinds))
    assert {checks[name] for name in sound} == {"ok"}
    assert "disk" in checks
    assert "wrong" not in checks.values()


@pytest.mark.parametrize("dsn", ["postgresql://postgres@127.0.0.1:1/x", "postgresql://nowhere.invalid/x"])
def test_doctor_without_ledger_says_so(stack: Up, tmp_path: Path, dsn: str) -> None:
    env = {"RUSHGATE_STORE_URL": stack.ready["store"], "RUSHGATE_LEDGER_DSN": dsn}
    done = command("doctor", env={**env, "RUSHGATE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert re.search(r"^wrong +ledger ", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +store ", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_doctor_tells_a_ledger_that_is_no_address(stack: Up, tmp_path: Path) -> None:
    env = {"RUSHGATE_STORE_URL": stack.ready["store"], "RUSHGATE_LEDGER_DSN": "nonsense"}
    done = command("doctor", env={**env, "RUSHGATE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert re.search(r"^wrong +settings RUSHGATE_LEDGER_DSN: must begin with ", done.stdout, re.MULTILINE)
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
