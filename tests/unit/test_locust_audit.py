"""The verdict of a run as a file, as a section of a page, and as an exit status; and what a run may be told."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtest.history import Recorder
from loadtest.history_check_facts import Violation
from loadtest.locust_audit import EXIT_BROKEN, EXIT_UNJUDGED, AuditReport, verdict_of, write_json
from loadtest.locust_options import Secrets, add_arguments, check
from loadtest.locust_report import section, with_section
from loadtest.server_facts import Sale
from tests.e2e.locust_till import served

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SALE = Sale("sale", "open", NOW, NOW, NOW, ())
PAGE = '<html><body><div id="root"></div><script>window.theme = "light"</script></body></html>'


def report(**fields: Any) -> AuditReport:
    values: dict[str, Any] = {
        "verdict": "kept", "run": "r1", "campaign": "sale", "host": "http://h", "at": NOW,
        "operations": {"order ok": 2}, "orders": 2,
        "violations": [], "counts": {}, "unjudged": [], "why": [], "histories": [],
    }  # fmt: skip
    return AuditReport(**values | fields)


def record(path: Path, order_id: str = "order-1") -> Path:
    with Recorder(path, "sale") as recorder:
        n = recorder.order("app", "r1-k", "h", "r1-b", [("red", 1)])
        recorder.ok(n, 202, order_id)
    return path


def test_broken_and_unjudged_runs_have_a_status_of_their_own() -> None:
    codes = [report(verdict=verdict).exit_code for verdict in ("kept", "broken", "unjudged")]
    assert codes == [None, EXIT_BROKEN, EXIT_UNJUDGED]
    assert 0 not in codes[1:]
    assert 1 not in codes[1:]  # locust's own


def test_tampered_history_breaks_the_verdict_of_a_server_that_is_right(tmp_path: Path) -> None:
    """The control is the history as it was."""
    with served("") as till:
        till.order("r1-k", {"buyer_id": "r1-b", "items": [{"sku": "red", "quantity": 1}]})
        good, bad = record(tmp_path / "good"), record(tmp_path / "bad", "order-2")
        found = [verdict_of("r1", till.url, SALE, "token", None, [file], [], 1.0) for file in (good, bad)]
    assert [r.verdict for r in found] == ["kept", "broken"]
    assert found[1].counts.keys() == {"lost", "phantom"}


def test_run_is_unjudged_when_a_history_or_the_server_is_missing(tmp_path: Path) -> None:
    file = record(tmp_path / "h")
    gone = verdict_of("r1", "http://127.0.0.1:1", SALE, "token", None, [file], [], 0.0)
    assert (gone.verdict, gone.exit_code) == ("unjudged", EXIT_UNJUDGED)
    assert "no answer" in gone.why[0]
    lone = verdict_of("r1", "http://h", SALE, "", None, [file], ["worker x"], 0.0)
    assert lone.verdict == "unjudged"
    assert verdict_of("r1", "http://h", SALE, "", None, [], [], 0.0).verdict == "unjudged"


def test_without_the_admin_token_the_history_is_judged_alone(tmp_path: Path) -> None:
    found = verdict_of("r1", "http://h", SALE, "", None, [record(tmp_path / "h")], [], 0.0)
    assert (found.verdict, found.orders) == ("kept", 1)
    assert any("RUSHGATE_ADMIN_TOKEN" in line for line in found.unjudged)


def test_section_goes_in_once_and_escapes(tmp_path: Path) -> None:
    wrong = Violation(2, "lost", [1], ["o1"], "<b>o1</b> is nowhere")
    found = report(verdict="broken", violations=[wrong], counts={"lost": 7}, campaign="<i>")
    page = with_section(with_section(PAGE, found), found)
    assert page.count('id="rushgate-audit"') == 1
    assert page.index("rushgate-audit") < page.index('id="root"')
    assert "&lt;b&gt;o1" in page
    assert "<i>" not in page
    assert "and 6 more" in page
    assert with_section("<html></html>", found) == "<html></html>"
    assert "data-dark" in section(found, dark=True)
    write_json(tmp_path / "x" / "a.json", found)
    assert msgspec.json.decode((tmp_path / "x" / "a.json").read_bytes())["counts"] == {"lost": 7}


def options(*flags: str) -> Any:
    parser = ArgumentParser()
    for flag in ("--host", "--run-time"):
        parser.add_argument(flag)
    add_arguments(parser)
    return parser.parse_args(["--host", "http://h", "--campaign", "c", *flags])


def test_options_are_bounded() -> None:
    check(options())
    for flags, says in (
        (("--host", ""), "--host"),
        (("--campaign", ""), "--campaign"),
        (("--buyers", "0", "--bots", "0", "--channels", "0"), "--buyers"),
        (("--pay", "0.8", "--cancel", "0.3"), "--pay"),
        (("--batch-lines", "1001"), "--batch-lines"),
        (("--shape", "soak"), "--run-time"),
        (("--operations-max", "0"), "--operations-max"),
    ):
        with pytest.raises(ValueError, match=says):
            check(options(*flags))


def test_secrets_come_from_the_environment_and_are_looked_at() -> None:
    found = Secrets.from_env({"RUSHGATE_CHANNEL_KEY": "k", "RUSHGATE_PAYMENT_SECRETS": ""})
    assert (found.channel_key, found.admin_token, found.payment_secret) == ("k", "", "")
    with pytest.raises(ValueError, match="RUSHGATE_CHANNEL_KEY"):
        Secrets.from_env({})
    with pytest.raises(ValueError, match="whsec_"):
        Secrets.from_env({"RUSHGATE_CHANNEL_KEY": "k", "RUSHGATE_PAYMENT_SECRETS": "short"})
