"""The command line and what is printed."""

import argparse
import asyncio
import io
import json
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from loadtest.command import CHANNEL_KEY_ENV, add_arguments, run_from_args
from loadtest.display import RushDisplay, print_report
from loadtest.report import Percentiles, RushReport
from loadtest.rush import Progress
from tests.unit.test_rush_server import Asked, Reply, Shop, problem


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--campaign", "sale", "--buyers", "50", "--spread-s", "0", *flags])


@contextmanager
def served(shop: Shop) -> Iterator[str]:
    """Run the shop in a thread: the command makes an event loop of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with shop:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(5)
        yield shop.url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


def test_command_takes_the_key_from_the_environment_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CHANNEL_KEY_ENV, "from-env")
    shop = Shop()
    with served(shop) as url:
        assert run_from_args(parse("--url", url, "--json", str(tmp_path / "r.json"))) == 0
    assert {a.headers["authorization"] for a in shop.asked} == {"Bearer from-env"}
    assert json.loads((tmp_path / "r.json").read_text())["orders"] == len(shop.orders)
    assert "accepted/s" in capsys.readouterr().out


def test_command_exits_1_on_unexpected_answers() -> None:
    class Crashing(Shop):
        async def order(self, asked: Asked) -> Reply:
            return Reply(500, b"")

    with served(Crashing()) as url:
        assert run_from_args(parse("--url", url, "--channel-key", "k")) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--channel-key", "k", "--buyers", "0"), "buyers: 0 is not between"),
        (("--channel-key", "k", "--connections", "5000"), "connections: 5,000 is not between"),
        (("--channel-key", "k", "--url", "http://127.0.0.1:1"), "no answer"),
        ((), CHANNEL_KEY_ENV),
    ],
)
def test_command_exits_2_when_it_cannot_run(
    flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(CHANNEL_KEY_ENV, raising=False)
    assert run_from_args(parse(*flags)) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (problem(404, "unknown_campaign"), "answered 404 unknown_campaign: unknown_campaign\n"),
        (Reply(401, {"code": "unauthorized", "title": "t", "detail": "no key"}), "401 unauthorized: no key\n"),
        (Reply(502, b"<html>bad gateway"), "answered 502 <html>bad gateway\n"),
        (Reply(503, b""), "answered 503\n"),
    ],
)  # fmt: skip
def test_command_tells_a_refusal_in_its_code_and_words(
    answer: Reply, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(Shop):
        async def campaign(self, asked: Asked) -> Reply:
            return answer

    with served(Refusing()) as url:
        assert run_from_args(parse("--url", url, "--channel-key", "k")) == 2
    said = capsys.readouterr().err
    assert said.endswith(says)
    assert "{" not in said


def report_of(**changes: object) -> RushReport:
    slow = Percentiles(27_102, 12.3, 456.7, 1_890.2, 12_345.6)
    report = RushReport(
        campaign="demo",
        url="http://x",
        run_id="r",
        seed=1,
        buyers=20_000,
        spread_s=2.0,
        connections=256,
        started_at="2026-11-21T12:00:00.000+00:00",
        elapsed_s=2.3,
        requests=27_102,
        sent=27_102,
        retried=0,
        fault_answers={},
        outcomes={"accepted": 3_000, "replayed": 400, "sold_out": 23_702},
        orders=3_000,
        accepted_per_s=18_022.0,
        requests_per_s=11_003.0,
        late_ms=1.0,
        latency=slow,
        latency_accepted=slow,
        service=slow,
        inconsistent={},
        examples=[],
        accepted_orders=[],
    )
    return msgspec.structs.replace(report, **changes)


def printed(report: RushReport, extra_rows: tuple[tuple[str, str], ...] = ()) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=80), extra_rows)
    return out.getvalue()


def test_report_fits_80_columns_with_the_rows_of_the_caller() -> None:
    text = printed(
        report_of(outcomes={"accepted": 3_000, "unexpected": 1, "unknown": 2, "too_large": 2}),
        (("ledger lag at the end of the spike", "1,234 orders"), ("time to drain it", "0.8 s")),
    )
    assert max(len(line) for line in text.splitlines()) == 80
    assert "…" not in text
    for words in ("ledger lag at the end of the spike", "1,234 orders", "27,102", "18,022", "12,346"):
        assert words in text


def test_report_shows_what_is_wrong_only_when_it_is() -> None:
    good = printed(report_of())
    assert "unexpected" not in good
    assert "inconsistent" not in good
    assert "retried" not in good
    bad = printed(report_of(inconsistent={"two_order_ids": 3}, retried=4, orders=3_001))
    assert "inconsistent: two order ids  3" in bad
    assert "retried after a fault" in bad
    assert "3,001" in bad
    assert "not as it should be" in bad


def progress(elapsed_s: float, answered: int) -> Progress:
    return Progress(elapsed_s, 1_000, 1_000, answered, 8, 100, 2, {"accepted": answered})


def test_display_prints_a_line_a_second_without_a_terminal() -> None:
    out = io.StringIO()
    with RushDisplay(Console(file=out, width=80), "Rush on demo") as display:
        for tenth in range(21):
            display.update(progress(tenth / 10, tenth * 40))
        display.update(progress(2.05, 1_000))
    lines = out.getvalue().splitlines()
    assert lines[0] == "Rush on demo"
    assert len(lines) == 1 + 3 + 1
    assert "answered 1,000 of 1,000" in lines[-1]
    assert "\x1b" not in out.getvalue()


def test_display_is_live_in_a_terminal() -> None:
    out = io.StringIO()
    with RushDisplay(Console(file=out, width=80, force_terminal=True), "Rush on demo") as display:
        display.update(progress(0.5, 500))
    assert "500 / 1,000" in out.getvalue()
    assert "1,000" in out.getvalue()


def test_percentiles_are_latencies_that_were() -> None:
    found = Percentiles.of(array("d", [n / 1000 for n in range(100, 0, -1)]))
    assert (found.n, found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms) == (100, 50.0, 95.0, 99.0, 100.0)
    assert Percentiles.of(array("d")).n == 0
    assert Percentiles.of(array("d", [0.007])).p50_ms == 7.0
