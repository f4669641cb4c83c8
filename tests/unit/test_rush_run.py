"""Whole rushes against a real server that is right, slow, faulty, or wrong in a way the client can know."""

import asyncio
import gc
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from loadtest.campaign import RushError
from loadtest.options import RushOptions
from loadtest.outcomes import Outcome
from loadtest.plan import Mix
from loadtest.rush import Progress, rush
from tests.unit.test_rush_server import Asked, Reply, Shop, problem, refusing_port

CLICKERS = Mix(repeat=0.5, greedy=0, malformed=0, unknown_sku=0)
HONEST = Mix(repeat=0, greedy=0, malformed=0, unknown_sku=0)


def options(shop: Shop, **settings: Any) -> RushOptions:
    defaults: dict[str, Any] = {"buyers": 200, "spread_s": 0.1, "connections": 8, "timeout_s": 5.0}
    return RushOptions(url=shop.url, campaign="sale", channel_key="secret", **{**defaults, **settings})


async def test_rush_counts_every_request_once_and_agrees_with_the_shop() -> None:
    seen: list[Progress] = []
    async with Shop(stock=150) as shop:
        report = await rush(options(shop, buyers=400, mix=Mix(0.2, 0.1, 0.1, 0.1)), seen.append)
        assert sum(report.outcomes.values()) == report.requests == report.sent == shop.attempts.total()
        assert {o.key: o.order_id for o in report.accepted_orders} == shop.orders
        assert report.count(Outcome.ACCEPTED) == report.orders == len(shop.orders)
        for outcome in (
            Outcome.REPLAYED,
            Outcome.SOLD_OUT,
            Outcome.OVER_LIMIT,
            Outcome.INVALID,
            Outcome.UNKNOWN_SKU,
        ):
            assert report.count(outcome) > 0, outcome
        assert report.ok
        assert report.examples == []
        assert report.faults == 0
        assert 0 < shop.connections_most <= 8
        assert all(a.headers["authorization"] == "Bearer secret" for a in shop.asked)
        assert seen[-1].answered == seen[-1].offered == report.requests
        assert report.accepted_per_s > 0
        assert report.latency.n == report.requests
        assert report.latency_accepted.n == report.orders


async def test_rush_shows_a_stall_in_the_latency_of_those_who_waited() -> None:
    """No coordinated omission: two requests see the stall while being served, all others while waiting."""

    class Stalling(Shop):
        gate: asyncio.Lock | None = None

        async def order(self, asked: Asked) -> Reply:
            self.gate = self.gate or asyncio.Lock()
            async with self.gate:
                if asked.number == 10:
                    await asyncio.sleep(0.5)  # the behaviour under test, not a synchronisation
                return await super().order(asked)

    async with Stalling() as shop:
        report = await rush(options(shop, buyers=300, spread_s=0.3, connections=2, mix=HONEST))
        assert report.count(Outcome.ACCEPTED) == 300
        assert report.service.max_ms > 450
        assert report.service.p95_ms < 100
        assert report.latency.p50_ms > 250
        assert report.latency.max_ms > 450


async def test_rush_repeats_after_a_503_and_the_order_is_one() -> None:
    class Faulty(Shop):
        async def order(self, asked: Asked) -> Reply:
            if self.attempts[asked.key] == 1:
                return problem(503, "unavailable", **{"Retry-After": "0"})
            return await super().order(asked)

    async with Faulty() as shop:
        report = await rush(options(shop, buyers=100, mix=HONEST))
        assert report.outcomes == {"accepted": 100}
        assert report.fault_answers == {"unavailable": 100}
        assert report.retried == 100
        assert report.sent == 200
        assert report.ok


async def test_rush_waits_as_retry_after_says_but_at_most_a_second() -> None:
    class Faulty(Shop):
        async def order(self, asked: Asked) -> Reply:
            if self.attempts[asked.key] == 1:
                return problem(503, "unavailable", **{"Retry-After": "3600"})
            return await super().order(asked)

    async with Faulty() as shop:
        report = await rush(options(shop, buyers=3, spread_s=0.0, mix=HONEST))
        assert report.outcomes == {"accepted": 3}
        assert 1_000 <= report.latency.p50_ms < 2_500


async def test_rush_learns_the_order_whose_202_was_lost() -> None:
    class Forgetting(Shop):
        async def order(self, asked: Asked) -> Reply:
            reply = await super().order(asked)
            if asked.number % 5 == 0:
                reply.drop = True
            return reply

    async with Forgetting() as shop:
        report = await rush(options(shop, buyers=100, mix=HONEST))
        assert report.orders == 100
        assert {o.key: o.order_id for o in report.accepted_orders} == shop.orders
        assert report.count(Outcome.REPLAYED) > 0
        assert report.fault_answers["unknown"] == report.retried > 0
        assert report.ok


async def test_rush_gives_up_after_its_retries_and_says_so() -> None:
    class Broken(Shop):
        async def order(self, asked: Asked) -> Reply:
            return problem(503, "unavailable", **{"Retry-After": "0"})

    async with Broken() as shop:
        report = await rush(options(shop, buyers=20, retries=2, mix=HONEST))
        assert report.outcomes == {"unavailable": 20}
        assert report.faults == 20
        assert report.sent == 60
        assert report.accepted_per_s == 0
        assert report.latency_accepted.n == 0


async def test_rush_ends_in_time_when_the_server_falls_silent() -> None:
    class Silent(Shop):
        async def order(self, asked: Asked) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

    async with Silent() as shop:
        report = await rush(options(shop, buyers=50, connections=4, finish_s=0.2, mix=HONEST))
        assert report.outcomes == {"unknown": 4, "unsent": 46}
        assert report.faults == 50
        assert report.latency.n == 50
        assert report.ok  # a fault that is called a fault


async def test_rush_survives_a_server_that_dies_under_way() -> None:
    class Mortal(Shop):
        async def order(self, asked: Asked) -> Reply:
            if asked.number == 30:
                assert self._server is not None
                self._server.close()  # no new connections; every later answer is dropped with the old ones
            return Reply(0, b"", drop=True) if asked.number >= 30 else await super().order(asked)

    async with Mortal() as shop:
        report = await rush(options(shop, buyers=100, retries=1, mix=HONEST))
        assert report.count(Outcome.ACCEPTED) == 29
        assert report.count(Outcome.UNKNOWN) == 71


class WrongShop(Shop):
    """Breaks one promise, chosen by name."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.numbers: Iterator[int] = count()

    async def order(self, asked: Asked) -> Reply:
        known = asked.key in self.orders
        reply = await super().order(asked)
        if self.wrong == "two_order_ids" and known:
            return self.accepted(f"other-{next(self.numbers)}", replayed=True)
        if self.wrong == "shared_order_id" and reply.status == 202:
            return self.accepted("the-only-one", replayed=known)
        if self.wrong == "accepted_twice" and known:
            return self.accepted(self.orders[asked.key])
        if self.wrong == "refused_after_accepted" and known:
            return problem(409, "sold_out")
        if self.wrong == "key_reused_same_body" and known:
            return problem(422, "key_reused")
        if self.wrong == "wrong_body_accepted" and reply.status in (400, 422):
            return self.accepted(f"odd-{next(self.numbers)}")
        return reply


@pytest.mark.parametrize(
    "wrong",
    [
        "two_order_ids",
        "shared_order_id",
        "accepted_twice",
        "refused_after_accepted",
        "key_reused_same_body",
        "wrong_body_accepted",
    ],
)
async def test_rush_names_the_promise_a_server_breaks(wrong: str) -> None:
    mix = Mix(repeat=0.5, greedy=0, malformed=0.2, unknown_sku=0.1)
    async with WrongShop("none") as shop:
        control = await rush(options(shop, buyers=100, mix=mix))
    async with WrongShop(wrong) as shop:
        report = await rush(options(shop, buyers=100, mix=mix))
    assert control.ok
    assert control.inconsistent == {}
    assert set(report.inconsistent) == {wrong}
    assert not report.ok
    assert report.examples[0].startswith(wrong)


async def test_rush_shows_unexpected_answers_with_an_example() -> None:
    class Crashing(Shop):
        async def order(self, asked: Asked) -> Reply:
            return Reply(500, b"Traceback") if asked.number == 7 else await super().order(asked)

    async with Crashing() as shop:
        report = await rush(options(shop, buyers=50, mix=HONEST))
        assert report.count(Outcome.UNEXPECTED) == 1
        assert report.examples == ["unexpected: ordinary got 500 Traceback"]
        assert not report.ok


async def test_rush_is_open_loop_while_nothing_is_answered() -> None:
    """All requests of the window are offered although none of the earlier ones has been answered."""

    class Withholding(Shop):
        open_gate = asyncio.Event()

        async def order(self, asked: Asked) -> Reply:
            await self.open_gate.wait()
            return await super().order(asked)

    answered_when_all_were_offered: list[int] = []

    def on_progress(progress: Progress) -> None:
        if progress.offered == progress.requests:
            answered_when_all_were_offered.append(progress.answered)
            Withholding.open_gate.set()

    async with Withholding() as shop:
        report = await rush(options(shop, buyers=60, spread_s=0.3, connections=4, mix=HONEST), on_progress)
        assert report.count(Outcome.ACCEPTED) == 60
        assert answered_when_all_were_offered[0] == 0


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (problem(404, "unknown_campaign"), "answered 404"),
        (Reply(200, b"<html>"), "not the answer of a campaign"),
        (Reply(200, {"campaign": "sale", "skus": []}), "no SKUs"),
        (Reply(0, b"", drop=True), "no answer"),
    ],
)
async def test_rush_refuses_a_campaign_it_cannot_read(reply: Reply, says: str) -> None:
    class Odd(Shop):
        async def campaign(self, asked: Asked) -> Reply:
            return reply

    async with Odd() as shop:
        with pytest.raises(RushError, match=says):
            await rush(options(shop))
        assert not shop.attempts


async def test_rush_refuses_a_server_that_is_not_there() -> None:
    with refusing_port() as port:
        target = RushOptions(url=f"http://127.0.0.1:{port}", campaign="sale", channel_key="k")
        with pytest.raises(RushError, match="connect"):
            await rush(target)


async def test_rush_leaves_the_collector_on_and_writes_no_key_into_its_report(tmp_path: Path) -> None:
    async with Shop() as shop:
        report = await rush(options(shop, buyers=20, run_id="fixed"))
    assert gc.isenabled()
    report.write_json(tmp_path / "rush.json")
    text = (tmp_path / "rush.json").read_text()
    assert "secret" not in text
    found = json.loads(text)
    assert found["run_id"] == "fixed"
    assert len(found["accepted_orders"]) == found["orders"] == report.orders
    assert set(found["latency"]) == {"n", "p50_ms", "p95_ms", "p99_ms", "max_ms"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"buyers": 0}, "buyers: 0 is not between 1 and 1,000,000"),
        ({"buyers": 1_000_001}, "buyers"),
        ({"connections": 4_097}, "connections"),
        ({"spread_s": float("nan")}, "spread-s"),
        ({"timeout_s": 0.0}, "timeout-s"),
        ({"retries": 21}, "retries"),
        ({"run_id": "a b"}, "run-id"),
        ({"campaign": ""}, "campaign"),
        ({"channel_key": ""}, "channel-key"),
        ({"channel_key": "a\r\nx: y"}, "channel key"),
        ({"url": "file:///etc"}, "url"),
    ],
)
def test_options_refuse_what_is_out_of_bounds(wrong: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"url": "http://x", "campaign": "c", "channel_key": "k"}
    RushOptions(**good)
    with pytest.raises(ValueError, match=says):
        RushOptions(**{**good, **wrong})
