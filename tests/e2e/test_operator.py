"""What an operator types at a stack: commands, where they work, and what is told of faults and deaths."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from redis import Redis

from ops.embedded import command_line, process_ids
from tests.e2e.support import Up, command, living, until
from tests.e2e.test_lifecycle import accepted, cancelled
from tests.e2e.test_up import up

__all__ = ["up"]  # the fixture

ORDER = "01a200d4-d86a-701e-a98f-5e7f8f7302b2"  # nobody's
SAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "sample" / "campaign.toml"


def test_campaign_commands_do_what_they_say(stack: Up, tmp_path: Path) -> None:
    def run(*args: str) -> str:
        done = stack.command(*args)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    file = tmp_path / "c.toml"
    file.write_text(SAMPLE.read_text().replace('campaign = "sample"', 'campaign = "by-command"'))
    file.write_text(file.read_text().replace("# after_sales_s = 604800", "after_sales_s = 4000"))
    applied = run("campaign", "apply", str(file))
    assert "campaign by-command: draft, version 1" in applied
    assert "type     goods; taken as received 1,296,000 s after it was shipped,\n" in applied
    assert "completed 4,000 s after it was received\n" in applied
    assert "admits   with a channel's key, or a ticket\n" in applied
    assert "campaign by-command: open" in run("campaign", "open", "by-command")
    two = [{"sku": "phone-red", "quantity": 2}]
    assert stack.client.order("by-command", items=two).status == 202
    assert "campaign by-command: paused" in run("campaign", "pause", "by-command")
    assert stack.client.order("by-command", items=two).code == "paused"
    assert "+5 units of phone-red (id x)" in run("campaign", "restock", "--id", "x", "by-command", "phone-red", "5")
    assert "repeated" in run("campaign", "restock", "--id", "x", "by-command", "phone-red", "5")
    assert "-3 units" in run("campaign", "restock", "by-command", "phone-red", "--", "-3")
    shown = run("campaign", "show", "by-command")
    assert "phone-red: Phone, red, 3,000 units at first" in shown
    assert "now      phone-red: left 3,000, held 2, sold 0, allocation 3,002" in shown
    stack.client.settled_audit("by-command")
    audit = json.loads(run("audit", "--json", "by-command"))
    assert (audit["ok"], audit["accepted"], audit["skus"][0]["allocation"]) == (True, 1, 3_002)
    assert run("audit", "by-command").splitlines()[-1] == (
        "audit: ok accepted=1 persisted=1 oversold=0 lost=0 duplicated=0 unsold=5000"
    )
    assert "campaign by-command: closed" in run("campaign", "close", "by-command")
    assert stack.client.order("by-command", items=two).code == "closed"
    assert run("migrate") == "the schema is current\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["campaign", "show", "no-such"], "no campaign is called no-such"),
        (["campaign", "open", "no-such"], "no campaign is called no-such"),
        (["audit", "no-such"], "no campaign is called no-such"),
        (["campaign", "restock", "no-such", "bad sku!", "5"], "rushgate: SKU: "),
        (["campaign", "restock", "no-such", "red", "999999999"], "rushgate: UNITS: "),
        (["campaign", "restock", "OPEN", "red", "0"], "rushgate: UNITS: must not be 0"),
        (["outbox", "replay"], "rushgate: --order, --topic, --all: one of them is needed"),
        (["dead-letters", "drop"], "rushgate: --order, --topic, --all: one of them is needed"),
        (["outbox", "list", "--order", "x"], "rushgate: --order: is no order id"),
        (["order", "refund", ORDER, "--line", "red"], "rushgate: --line: 'red' must be SKU=QTY"),
        (["campaign", "pause", "drafted"], "campaign drafted is a draft: open it first"),
        (["campaign", "restock", "drafted", "phone-red", "5"], "campaign drafted is a draft: open it first"),
        (["campaign", "apply", "/no/such.toml"], "/no/such.toml"),
    ],
)
def test_command_that_cannot_says_why_in_one_line(stack: Up, args: list[str], says: str) -> None:
    if "drafted" in args:
        assert stack.command("campaign", "apply", str(SAMPLE), "--name", "drafted").returncode == 0
    name = stack.client.sale() if "OPEN" in args else ""
    done = stack.command(*(name if arg == "OPEN" else arg for arg in args))
    usage = re.match(r"rushgate: (--|[A-Z]+:)", says)
    assert done.returncode in ((2,) if usage else (1, 78))
    [line] = done.stderr.splitlines()
    assert says in line


def test_frozen_relay_shows_by_what_it_does_not_carry(stack: Up) -> None:
    def late() -> list[str]:
        said = stack.command("doctor").stdout
        # In columns; and a frozen relay is one that is there.
        assert "\nok       relay worker     1 at work\nok       reconcile worker 1 at work\n" in said
        return re.findall(r"\nwarning +to store +1 message late; the oldest \(release\) .*, no attempt yet, ", said)

    relays, campaign = stack.children("relay"), stack.client.sale()
    order = accepted(stack.client, campaign)
    for pid in relays:
        os.kill(pid, signal.SIGSTOP)
    try:
        cancelled(stack.client, order)
        until(late)
    finally:
        for pid in relays:
            os.kill(pid, signal.SIGCONT)
    until(lambda: not late())


def test_show_tells_first_stock_and_what_is_left_now(stack: Up) -> None:
    draft = stack.client.define({"red": 1_500})
    assert "now" not in stack.command("campaign", "show", draft).stdout
    campaign = stack.client.sale({"red": 1_500, "blue": 7}, spread=4)
    assert stack.client.order(campaign).status == 202
    shown = stack.command("campaign", "show", campaign).stdout
    assert "red: red, 1,500 units at first" in shown
    assert "now      red: left 1,499, held 1, sold 0, allocation 1,500\n" in shown
    assert "now      blue: left 7, held 0, sold 0, allocation 7\n" in shown
    urls = {"RUSHGATE_STORE_URL": "redis://127.0.0.1:1", "RUSHGATE_LEDGER_DSN": stack.ready["ledger"]}
    away = command("campaign", "show", campaign, env=urls)
    assert away.returncode == 0
    assert "now      not known: the store cannot be reached" in away.stdout


def test_command_without_a_stack_says_where_it_looked(tmp_path: Path) -> None:
    for done in (
        command("audit", "x", "--data-dir", str(tmp_path)),
        command("audit", "x", env={"RUSHGATE_DATA_DIR": str(tmp_path)}),
    ):
        assert done.returncode == 78
        assert f"no stack runs in {tmp_path}" in done.stderr
        assert "--data-dir" in done.stderr


def test_data_dir_names_the_stack_of_a_command(stack: Up) -> None:
    folder = ["--data-dir", str(stack.data)]
    for args in (["migrate", *folder], ["doctor", *folder]):
        assert command(*args).returncode == 0
    for args in (
        ["audit", "none", *folder],
        ["campaign", *folder, "show", "none"],
        ["campaign", "show", "none", *folder],
    ):
        assert "no campaign is called none" in command(*args).stderr


def test_one_url_that_is_not_the_stacks_is_refused(stack: Up) -> None:
    refusal = "rushgate: set both RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN, or neither\n"
    for name, value in (
        ("RUSHGATE_STORE_URL", "redis://127.0.0.1:1"),
        ("RUSHGATE_LEDGER_DSN", "postgresql://postgres@127.0.0.1:1/x"),
    ):
        done = stack.command("audit", "x", **{name: value})
        assert (done.returncode, done.stderr) == (78, refusal)
    done = stack.command("audit", "x", RUSHGATE_STORE_URL=stack.ready["store"])
    assert "no campaign is called x" in done.stderr


def test_demo_on_foreign_services_without_keys_starts_nothing(stack: Up, tmp_path: Path) -> None:
    for names in (("STORE_URL", "LEDGER_DSN"), ("STORE_URL",), ("LEDGER_DSN",)):
        urls = {"STORE_URL": stack.ready["store"], "LEDGER_DSN": stack.ready["ledger"]}
        env = {f"RUSHGATE_{name}": urls[name] for name in names} | {"RUSHGATE_ADMIN_TOKEN": "x" * 16}
        done = command("demo", "--once", "--port", "0", "--data-dir", str(tmp_path / "d"), env=env)
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr == (
            "rushgate: RUSHGATE_CHANNEL_KEYS and RUSHGATE_ADMIN_TOKEN must be set where store or ledger is not the "
            "embedded one\n"
        )
        assert not (tmp_path / "d").exists()


def test_up_on_foreign_services_without_keys_warns(stack: Up, tmp_path: Path) -> None:
    env = {"RUSHGATE_STORE_URL": stack.ready["store"], "RUSHGATE_LEDGER_DSN": stack.ready["ledger"]}
    without = {"RUSHGATE_ADMIN_TOKEN": "", "RUSHGATE_CHANNEL_KEYS": ""}
    found = Up(tmp_path / "d", "--port", "0", env=env | without).wait_ready()
    assert found.end() == 0
    said = found.stderr.read_text()
    assert "rushgate: warning: RUSHGATE_ADMIN_TOKEN is empty: all admin calls are refused\n" in said
    only = "only channels of `rushgate channel add` can send orders"
    assert f"rushgate: warning: RUSHGATE_CHANNEL_KEYS is empty: {only}\n" in said


def test_stack_whose_parent_was_killed_is_told_dead(tmp_path: Path) -> None:
    found = Up(tmp_path / "d", "--port", "0").wait_ready()
    services = [argv for argv in living(found.data) if str(found.process.pid) not in argv]
    assert services
    found.end(signal.SIGKILL)
    died = f"the stack in {found.data} has died: start `rushgate up`"

    def doctor() -> str:
        return found.command("doctor").stdout

    try:
        until(lambda: "none is at work: `rushgate worker ledger`" in doctor())
        said = doctor()
        assert re.search(rf"^wrong +stack +{re.escape(died)}$", said, re.MULTILINE)
        for kind in ("ledger", "expiry", "relay", "reconcile"):
            assert re.search(rf"^wrong +{kind} worker ", said, re.MULTILINE)
        assert re.search(r"^ok +store ", said, re.MULTILINE)  # the services go on, and so do commands
        assert "no campaign is called x" in found.command("audit", "x").stderr
    finally:
        for pid in process_ids():
            if any(str(found.data) in part for part in command_line(pid)):
                os.kill(pid, signal.SIGKILL)
        until(lambda: living(found.data) == [])
    for args in (["audit", "x"], ["campaign", "show", "x"], ["migrate"]):
        done = found.command(*args)
        assert (done.returncode, done.stderr) == (78, f"rushgate: {died}\n")


def test_faults_of_the_store_are_logged_once_each_way(up: Up) -> None:
    def logged(name: str, event: str) -> int:
        return (up.data / "log" / f"{name}.log").read_text().count(event)

    campaign = up.client.sale()
    with Redis.from_url(up.ready["store"]) as store:
        [pid] = [p for p in process_ids() if str(up.data / "store") in " ".join(command_line(p))][:1]
        assert store.ping()
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert up.client.order(campaign).status == 503
        until(lambda: logged("ledger-1", "drain waits"))
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: up.client.order(campaign).status == 202)
    assert up.client.call("GET", "/readyz").status == 200
    assert (logged("gateway-1", '"store is away"'), logged("gateway-1", '"store is back"')) == (1, 1)
    until(lambda: logged("ledger-1", "drain goes on") == 1)
    assert up.end() == 0
    assert logged("gateway-1", '"gateway stopped"') == 1
