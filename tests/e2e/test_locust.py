"""Real runs of locust: every shape, several processes, its reports, and its exit status when a shop lies.

Runs that go together are started together: most of a run is waiting.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.locust_till import Lie, served
from tests.e2e.support import ROOT, Up, environment, until

LOCUST = (sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless")
WITHIN_S = 60.0


class Locust:
    """One run; its files are in a folder of its own."""

    def __init__(self, folder: Path, url: str, campaign: str, flags: Sequence[str], env: Mapping[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        files = ("--html", str(folder / "r.html"), "--csv", str(folder / "r"), "--history", str(folder / "history"))
        arguments = [*LOCUST, "--host", url, "--campaign", campaign, "--only-summary", *files, *flags]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=folder, env=environment(env))

    def exit_code(self) -> int:
        try:
            return self.process.wait(WITHIN_S)
        finally:
            self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def audit(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "r_audit.json").read_text()))

    @property
    def page(self) -> str:
        return (self.folder / "r.html").read_text()

    @property
    def names(self) -> set[str]:
        """Of the statistics."""
        return {line.split(",")[1] for line in (self.folder / "r_stats.csv").read_text().splitlines()[1:]}


def secrets(stack: Up) -> dict[str, str]:
    return {
        "RUSHGATE_CHANNEL_KEY": stack.ready["channel_key"],
        "RUSHGATE_ADMIN_TOKEN": stack.ready["admin_token"],
        "RUSHGATE_PAYMENT_SECRETS": stack.ready["payment_secret"],
    }


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.fixture
def runs() -> Any:
    """Whatever a test starts is ended."""
    with ExitStack() as all_of_them:

        def start(*args: Any) -> Locust:
            run = Locust(*args)
            all_of_them.callback(run.end)
            return run

        yield start


def test_every_shape_is_judged_and_kept_its_promises(stack: Up, tmp_path: Path, runs: Any) -> None:
    port = free_port()
    wanted = {
        "spike": ("-u", "20", "-t", "5", "--processes", "2", "--master-bind-port", port, "--master-port", port),
        "ramp": ("-u", "12", "-t", "2"),
        "wave": ("-u", "12", "-t", "2"),
        "soak": ("-u", "12", "-t", "2"),
    }
    found = {}
    for shape, flags in wanted.items():
        # Little stock for the spike: somebody must be told that it is gone.
        campaign = stack.client.sale({"red": 60 if shape == "spike" else 5_000}, limits={"buyer": 2})
        flags = (*flags, "--shape", shape, "--pause", "0.2", "--batch-lines", "10")
        found[shape] = runs(tmp_path / shape, stack.ready["gateway"], campaign, flags, secrets(stack))
    for shape, run in found.items():
        assert run.exit_code() == 0, (shape, run.log)
        audit = run.audit
        assert (audit["verdict"], audit["violations"], audit["unjudged"]) == ("kept", [], []), shape
        assert audit["server"]["ok"]
        unknown = audit["operations"].get("order unknown", 0)  # under way when the run was over
        assert 0 < audit["orders"] <= audit["server"]["persisted"] <= audit["orders"] + unknown
        assert 'id="rushgate-audit"' in run.page
        assert "No invariant broke" in run.page
        assert "order: accepted" in run.names, run.names
        assert (run.folder / "r_failures.csv").read_text().count("\n") == 1  # the head
    assert {"order: sold out", "countdown", "line: accepted", "batch"} <= found["spike"].names
    assert len(found["spike"].audit["histories"]) == 2
    assert len(list((tmp_path / "spike" / "history").glob("*.jsonl"))) == 2
    assert {"pay", "look"} & set().union(*(run.names for run in found.values()))
    # The twelve invariants too, over both processes' histories together.
    checked = stack.command("check", str(tmp_path / "spike" / "history"), "--json")
    assert checked.returncode == 0, checked.stdout
    for name in secrets(stack).values():
        assert name not in found["spike"].page
        assert name not in found["spike"].log


TILL_KEYS = {"RUSHGATE_CHANNEL_KEY": "till-channel-key", "RUSHGATE_ADMIN_TOKEN": "till-admin-token"}
FLAGS = ("-u", "10", "-r", "10", "-t", "1", "--bots", "0", "--channels", "0", "--cancel", "0", "--pause", "0.05")
LIES: dict[Lie, int] = {
    "": 0,
    "another order for the same key": 3,
    "forgets an order": 3,
    "503 without Retry-After": 1,
}


def test_exit_status_tells_a_lie_and_nothing_else(tmp_path: Path, runs: Any) -> None:
    """The first run is the control: the same shop, and the truth."""
    with ExitStack() as tills:
        shops = {lie: tills.enter_context(served(lie)) for lie in LIES}
        found = {
            lie: runs(tmp_path / f"r{n}", shop.url, "sale", FLAGS, TILL_KEYS)
            for n, (lie, shop) in enumerate(shops.items())
        }
        codes = {lie: run.exit_code() for lie, run in found.items()}
    assert codes == LIES, "\n".join(run.log for run in found.values())
    assert all(shops[lie].lied for lie in LIES if lie)
    assert "two_orders" in found["another order for the same key"].audit["counts"]
    assert found["forgets an order"].audit["counts"].keys() >= {"lost"}
    for lie, run in found.items():
        assert ("An invariant broke" in run.page) == (LIES[lie] == 3), lie


def test_run_that_cannot_begin_says_why(stack: Up, tmp_path: Path, runs: Any) -> None:
    wrong: dict[str, tuple[str, tuple[str, ...], dict[str, str], str]] = {
        "no key": ("c", (), {}, "set RUSHGATE_CHANNEL_KEY"),
        "no such campaign": ("nobody-has-it", ("-t", "5"), secrets(stack), "unknown_campaign"),
    }
    found = {
        name: (runs(tmp_path / name, stack.ready["gateway"], campaign, flags, env), says)
        for name, (campaign, flags, env, says) in wrong.items()
    }
    for name, (run, says) in found.items():
        assert run.exit_code() == 2, (name, run.log)
        assert says in run.log


def test_interrupted_run_is_judged_all_the_same(stack: Up, tmp_path: Path, runs: Any) -> None:
    campaign = stack.client.sale({"red": 5_000})
    run: Locust = runs(tmp_path / "r", stack.ready["gateway"], campaign, ("-u", "5", "-r", "5"), secrets(stack))
    until(lambda: stack.client.audit(campaign)["accepted"] > 5 or run.process.poll() is not None)
    os.kill(run.process.pid, signal.SIGTERM)
    began_s = time.monotonic()
    assert run.exit_code() == 0, run.log
    assert time.monotonic() - began_s < 20
    assert run.audit["verdict"] == "kept"
