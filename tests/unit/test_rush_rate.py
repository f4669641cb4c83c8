"""A rush at a rate: its plan, its correction for coordinated omission, its report and its histogram files."""

import argparse
import asyncio
import builtins
import itertools
import re
from array import array
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest import hdr, merge_command
from loadtest.campaign import Campaign, Sku
from loadtest.command import CHANNEL_KEY_ENV, add_arguments, run_from_args
from loadtest.outcomes import Outcome
from loadtest.plan import Kind, Mix, build_plan, paced
from loadtest.report import late
from loadtest.rush import measured_rush
from loadtest.rush_html import page
from loadtest.samples import Samples
from tests.unit.test_rush_command import served
from tests.unit.test_rush_run import HONEST, options
from tests.unit.test_rush_server import Asked, Reply, Shop

SALE = Campaign("sale", (Sku("red"), Sku("blue")))
STALL_S = 0.4


def plan_of(poisson: bool, count: int = 4_000, rate: float = 500.0) -> list[float]:
    plan = build_plan(SALE, count, 1.0, 1, "r1", Mix())
    return [planned.due_s for planned in paced(plan[:count], rate, poisson, 1)]


def test_constant_arrivals_are_one_every_nth_of_a_second() -> None:
    due = plan_of(poisson=False)
    assert due == pytest.approx([n / 500 for n in range(4_000)])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_people() -> None:
    due = plan_of(poisson=True)
    gaps = [b - a for a, b in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 500, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.1)  # of an exponential they are equal
    assert due == plan_of(poisson=True)


def test_repeats_stay_behind_what_they_repeat() -> None:
    plan = paced(build_plan(SALE, 2_000, 1.0, 1, "r1", Mix(repeat=0.5)), 100.0, True, 1)
    first = {p.key: p.due_s for p in reversed(plan) if p.kind is Kind.ORDINARY}
    repeats = [p for p in plan if p.kind is Kind.REPEAT]
    assert repeats
    assert all(first[p.key] <= p.due_s for p in repeats)


@pytest.mark.parametrize("wrong", [{"rate": -1.0}, {"rate": 2e5, "for_s": 100.0}, {"rate": 1.0, "for_s": 0.0}])
async def test_rate_is_bounded(wrong: dict[str, Any]) -> None:
    async with Shop() as shop:
        with pytest.raises(ValueError, match=r"rate|for-s"):
            options(shop, **wrong)


class Stalling(Shop):
    """Stands still for STALL_S at its hundredth order, and serves four at a time otherwise."""

    gate: asyncio.Lock | None = None

    async def order(self, asked: Asked) -> Reply:
        self.gate = self.gate or asyncio.Lock()
        async with self.gate:
            if asked.number == 100:
                await asyncio.sleep(STALL_S)  # the behaviour under test, not a synchronisation
            return await super().order(asked)


async def test_stall_is_in_the_latencies_and_without_the_correction_it_is_not() -> None:
    """The control: `service` is what a generator reports that waits for its answers before it goes on."""
    async with Stalling() as shop:
        report, samples = await measured_rush(options(shop, rate=500.0, for_s=1.2, connections=4, mix=HONEST))
    assert report.count(Outcome.ACCEPTED) == report.requests == 600
    # Two hundred requests were due while it stood still, a hundred of them in the first half of that time.
    assert report.latency.p95_ms > STALL_S * 1000 / 2
    assert sum(latency > STALL_S / 2 for latency in samples.latency_s) > 80
    # Four of them were on a connection by then: the lie.
    assert report.service.p95_ms < report.latency.p95_ms / 2
    assert sum(service > STALL_S / 2 for service in samples.service_s) <= 8


async def test_report_counts_every_request_once_in_time_and_names_the_generators_lag() -> None:
    async with Shop(stock=150) as shop:
        report, samples = await measured_rush(options(shop, rate=600.0, for_s=0.5, poisson=True))
    assert report.requests == 300
    assert sum(moment.due for moment in report.timeline) == 300
    assert sum(sum(moment.answers.values()) for moment in report.timeline) == 300
    assert sum(moment.latency.n for moment in report.timeline) == 300
    assert report.lag.n == len(samples.lag_s) == 300
    assert report.late_ms == pytest.approx(report.lag.max_ms)


async def test_generator_that_is_late_says_so() -> None:
    def hold_up(_: object) -> None:
        end_s = loop.time() + 0.1
        while loop.time() < end_s:  # what a busy machine does to the generator
            pass

    loop = asyncio.get_running_loop()
    async with Shop() as shop:
        report, _ = await measured_rush(options(shop, rate=200.0, for_s=0.3, mix=HONEST), hold_up)
    assert "The generator itself was late" in late(report)
    assert report.late_ms > 50


class Tags(HTMLParser):
    """Whether every element is closed where it must be, and what is asked for from outside."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href") or (value or "").startswith("#"), (tag, value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


async def test_html_report_is_whole_and_asks_nobody_for_anything() -> None:
    async with Shop(stock=50) as shop:
        report, samples = await measured_rush(options(shop, rate=400.0, for_s=0.5, mix=Mix(0.1, 0.1, 0.1, 0.1)))
    text = page(report, samples)
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert tags.seen.count("svg") == 4
    assert "script" not in tags.seen
    assert not re.search(r"@import|url\(", text)
    for words in ("Latency by percentile", "Answers over time", "generator", "sold out", "accepted"):
        assert words in text


async def test_html_report_escapes_what_a_server_says() -> None:
    class Odd(Shop):
        async def order(self, asked: Asked) -> Reply:
            return Reply(500, b"<script>alert(1)</script>")

    async with Odd() as shop:
        report, samples = await measured_rush(options(shop, rate=50.0, for_s=0.2, retries=0))
    text = page(report, samples)
    assert "<script" not in text
    assert "&lt;script" in text
    assert "not as it should be" in text


def some_samples(latencies_s: list[float], width_s: float = 0.01) -> Samples:
    samples = Samples()
    for number, latency_s in enumerate(latencies_s):
        samples.note(number * width_s, latency_s, Outcome.ACCEPTED)
    return samples


def test_histogram_log_is_read_back_with_the_same_percentiles(tmp_path: Path) -> None:
    latencies_s = [0.001 * (n % 100 + 1) for n in range(1_000)]
    intervals = hdr.intervals_of(some_samples(latencies_s), 1_795_000_000.25)
    hdr.write_log(tmp_path / "a.hlog", intervals, "test")
    again = hdr.read_log(tmp_path / "a.hlog")
    assert [i.start_s for i in again] == pytest.approx([i.start_s for i in intervals])
    whole = hdr.added(again)
    assert whole.get_total_count() == 1_000
    for percentile in (50, 90, 99, 100):
        assert hdr.at_percentile(whole, percentile) == pytest.approx(percentile, rel=0.002)
    hdr.write_distribution(tmp_path / "a.hgrm", whole)
    text = (tmp_path / "a.hgrm").read_text()
    assert "Value" in text
    assert re.search(r"Max +=[ ]+100\.", text)
    assert re.search(r"StdDeviation +=[ ]+28\.", text)


def test_logs_of_two_generators_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, latency_s in (("a", 0.010), ("b", 0.090)):
        intervals = hdr.intervals_of(some_samples([latency_s] * 500), 1_795_000_000.0)
        hdr.write_log(tmp_path / f"{name}.hlog", intervals, name)
    assert merge(str(tmp_path / "a.hlog"), str(tmp_path / "b.hlog"), "--hlog", str(tmp_path / "all.hlog")) == 0
    assert "1,000" in capsys.readouterr().out
    whole = hdr.added(hdr.read_log(tmp_path / "all.hlog"))
    assert whole.get_total_count() == 1_000
    assert hdr.at_percentile(whole, 50) == pytest.approx(10, rel=0.01)
    assert hdr.at_percentile(whole, 51) == pytest.approx(90, rel=0.01)


@pytest.mark.parametrize("content", [b"", b"no log\n", b"#[StartTime: 1]\n", b"\xff\xfe\x00"])
def test_what_is_no_log_is_told(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.hlog").write_bytes(content)
    assert merge(str(tmp_path / "x.hlog")) == 2
    assert "x.hlog" in capsys.readouterr().err


def merge(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    merge_command.add_arguments(parser)
    return merge_command.run_from_args(parser.parse_args(flags))


def rush_command(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run_from_args(parser.parse_args(["--campaign", "sale", *flags]))


def test_command_writes_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHANNEL_KEY_ENV, "k")
    files = [tmp_path / name for name in ("r.html", "r.hlog", "r.hgrm", "r.json")]
    with served(Shop()) as url:
        flags = ("--report", str(files[0]), "--hdr", str(files[1]), "--hdr", str(files[2]), "--json", str(files[3]))
        assert rush_command("--url", url, "--rate", "200", "--for-s", "0.3", "--plain", *flags) == 0
    assert all(file.stat().st_size for file in files)
    assert hdr.added(hdr.read_log(files[1])).get_total_count() == 60


def test_command_needs_the_packages_only_for_what_they_are_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] in ("hdrh", "pygal"):
            raise ImportError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv(CHANNEL_KEY_ENV, "k")
    shop = Shop()
    with served(shop) as url:
        at = ("--url", url, "--rate", "100", "--for-s", "0.1")
        for flags in (("--hdr", str(tmp_path / "x.hlog")), ("--report", str(tmp_path / "x.html"))):
            assert rush_command(*at, *flags) == 2
            assert "pip install '.[loadtest]'" in capsys.readouterr().err
        assert shop.attempts.total() == 0  # told before anything was bought
        assert rush_command(*at) == 0


def test_histogram_takes_what_is_faster_and_slower_than_it_can_hold() -> None:
    intervals = hdr.intervals_of(some_samples([1e-9, 5_000.0]), 0.0)
    assert hdr.added(intervals).get_total_count() == 2


def test_timeline_of_nothing_is_empty() -> None:
    assert Samples().timeline([]) == []
    assert array("d") == Samples().latency_s
