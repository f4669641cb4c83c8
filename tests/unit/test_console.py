"""The console's parts that need no browser: sessions, guesses, rates, the drawing of a flow, alerts in words."""

import asyncio
import time
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from core.desk.orders import TraceStep
from core.errors import Refused, StoreUnavailable
from core.flows import FLOWS
from core.seals import Seals
from core.settings import Settings
from lua.registry import Sign
from ops.console.alerts import MISSING, Alert, alerts
from ops.console.books import Ledger, Stock
from ops.console.drawing import drawing, layout
from ops.console.live import Live
from ops.console.rates import Meter, NoMetrics, group_of, quantile_ms
from ops.console.sessions import KIND, WRONG_MAX, Guesses, Sessions
from ops.console.source import Source

TOKEN = "admin-token-0000000"
THERE = {name: {"ok": True, "why": "", "at": 1} for name in ("store", "ledger", "metrics", "signs")}


def test_session_is_read_back_until_it_ends() -> None:
    sessions = Sessions(TOKEN, 60)
    session, cookie = sessions.open()
    assert sessions.read(cookie) == session
    assert TOKEN not in cookie
    sessions.end(session)
    assert sessions.read(cookie) is None
    over = Sessions(TOKEN, 0)
    assert over.read(over.open()[1]) is None


def test_session_survives_a_restart_and_no_other_token() -> None:
    _, cookie = Sessions(TOKEN, 60).open()
    assert Sessions(TOKEN, 60).read(cookie) is not None
    assert Sessions(TOKEN + "x", 60).read(cookie) is None
    assert Sessions("", 60).read(cookie) is None
    assert Sessions(TOKEN, 60).cookie != Sessions(TOKEN + "x", 60).cookie


@pytest.mark.parametrize("payload", [b"", b"{}", b'["a"]', b'["a","b"]', b"\xff", b'["a",99999999999]x'])
def test_session_of_a_strange_payload_is_none(payload: bytes) -> None:
    """Sealed by us, as an older or a newer version of ours may have done."""
    assert Sessions(TOKEN, 60).read(Seals(KIND, [TOKEN]).seal(payload)) is None


@pytest.mark.parametrize("cookie", ["", "x", "rgc1..", "rgc1.a.b", "ü", "rgc1." + "A" * 2_000])
def test_session_of_a_strange_cookie_is_none(cookie: str) -> None:
    assert Sessions(TOKEN, 60).read(cookie) is None


def test_csrf_is_the_sessions_own() -> None:
    sessions = Sessions(TOKEN, 60)
    one, other = sessions.open()[0], sessions.open()[0]
    assert sessions.is_csrf(one, sessions.csrf(one))
    assert not sessions.is_csrf(one, sessions.csrf(other))
    assert not sessions.is_csrf(one, "")
    assert not sessions.is_csrf(one, "ü")


def test_guesses_of_one_address_do_not_lock_out_another() -> None:
    guesses = Guesses()
    for _ in range(WRONG_MAX):
        assert guesses.wait_s("192.0.2.1") == 0
        guesses.wrong("192.0.2.1")
    assert 0 < guesses.wait_s("192.0.2.1") <= 60
    assert guesses.wait_s("192.0.2.2") == 0
    for n in range(200):
        guesses.wrong(f"198.51.100.{n}")
    assert guesses.wait_s("192.0.2.3") > 0  # from everywhere at once


def exposition(process: str, accepted: float, sold_out: float, slow: float, quick: float = 0) -> str:
    return f"""
# TYPE rushgate_orders_total counter
rushgate_orders_total{{process="{process}",kind="gateway",channel="app",outcome="accepted",way="short"}} {accepted}
rushgate_orders_total{{process="{process}",kind="gateway",channel="app",outcome="sold_out",way="short"}} {sold_out}
rushgate_order_seconds_bucket{{process="{process}",kind="gateway",le="0.001"}} {quick}
rushgate_order_seconds_bucket{{process="{process}",kind="gateway",le="0.1"}} {quick + slow}
rushgate_order_seconds_bucket{{process="{process}",kind="gateway",le="+Inf"}} {quick + slow}
"""


def test_rates_are_of_what_grew_even_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    meter = Meter()
    first = meter.read(exposition("a", 1_000, 50, 10))
    assert (first.by_outcome, first.p99_ms) == ({}, None)
    now_s[0] += 2
    rates = meter.read(exposition("a", 1_100, 50, 20))
    assert rates.by_outcome == {"accepted": 50.0, "sold_out": 0.0}
    assert rates.shown()["accepted"] == 50.0
    assert rates.p50_ms == pytest.approx(50.5)  # between 1 and 100 ms
    now_s[0] += 1
    assert meter.read(exposition("b", 7, 0, 0)).by_outcome["accepted"] == 7.0  # a new process counts from 0
    now_s[0] += 1
    assert meter.read(exposition("b", 3, 0, 0)).by_outcome["accepted"] == 3.0  # the same name, begun anew
    with pytest.raises(NoMetrics):
        meter.read("# TYPE rushgate_build_info gauge\n")


def test_process_that_missed_a_scrape_does_not_count_all_its_orders_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "time", lambda: 1_000_000 + now_s[0])

    def started(process: str, at_s: float) -> str:
        return f'process_start_time_seconds{{process="{process}",kind="gateway"}} {at_s}\n'

    meter = Meter()
    both = exposition("a", 1_000, 0, 10) + exposition("b", 5_000_000, 0, 10_000)
    meter.read(both + started("a", 999_000) + started("b", 999_000))
    now_s[0] += 1
    assert meter.read(exposition("a", 1_001, 0, 10) + started("a", 999_000)).by_outcome["accepted"] == 1.0
    now_s[0] += 1
    back = exposition("a", 1_002, 0, 10) + exposition("b", 5_000_020, 0, 10_000)
    rates = meter.read(back + started("a", 999_000) + started("b", 999_000))
    assert rates.by_outcome["accepted"] == 21.0
    assert rates.p99_ms is None  # nor all its answers
    now_s[0] += 1
    # One that is seen for the first time: what it counted before is not of this second, unless it began in it.
    more = back + exposition("c", 70_000, 0, 10) + exposition("d", 7, 0, 0)
    rates = meter.read(more + started("c", 999_000) + started("d", 1_000_102.5))
    assert rates.by_outcome["accepted"] == 7.0
    now_s[0] += 100
    meter.read(exposition("a", 1_002, 0, 10))
    assert set(meter._seen_s) == {"a"}  # and nothing is remembered for ever


async def test_page_is_fed_on_after_a_picture_that_could_not_be_made() -> None:
    said = [Sign(id="odd", kind="relay", more={"x": object()})]

    async def signs() -> list[Sign]:
        return list(said)

    async def away(*_: object) -> Any:
        raise StoreUnavailable("away")

    live = Live(Settings(), SimpleNamespace(ledger=away, stock=away), away, signs)  # type: ignore[arg-type]
    live.start()
    events = live.feed(asyncio.get_running_loop().time() + 30)

    async def until_sound() -> None:
        while b'"sound"' not in await anext(events):
            pass

    reader = asyncio.create_task(until_sound())
    try:
        await live.signs.ask()
        for _ in range(3):
            await live.refresh()
            await asyncio.sleep(0)
        said[0] = Sign(id="sound", kind="relay")
        await live.signs.ask()
        async with asyncio.timeout(10):
            await reader
    finally:
        reader.cancel()
        await live.stop()


def test_outcomes_are_grouped_by_what_they_are() -> None:
    wanted = {
        "accepted": "accepted", "sold_out": "sold_out", "replayed": "replayed", "over_limit": "refused",
        "unknown_campaign": "refused", "unauthorized": "refused", "overloaded": "fault", "store_unavailable": "fault",
        "recovering": "fault", "internal": "fault",
    }  # fmt: skip
    assert {outcome: group_of(outcome) for outcome in wanted} == wanted


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert quantile_ms({0.1: 1, float("inf"): 10}, 0.99) == 100.0
    assert quantile_ms({0.1: 0, float("inf"): 0}, 0.5) is None
    assert quantile_ms({}, 0.5) is None


@pytest.mark.parametrize("order_type", list(FLOWS))
def test_flow_is_laid_out_with_a_place_for_each_state(order_type: str) -> None:
    flow, places = FLOWS[order_type], layout(order_type)
    assert {p.state for p in places} == set(flow.states)
    assert len({(p.column, p.row) for p in places}) == len(places)
    line = sorted((p.column, p.state) for p in places if p.row == 0)
    assert (line[0][1], line[-1][1]) == (flow.first, flow.ends[0])
    for (_, one), (_, other) in pairwise(line):
        assert any((s.state, s.to) == (one, other) for s in flow.steps)
    assert max(p.row for p in places) <= 5  # it is to be seen at once


def test_drawing_numbers_the_moves_that_were_made() -> None:
    now = datetime.now(UTC)

    def moved(n: int, what: str, before: str | None, after: str, kind: str = "move") -> TraceStep:
        return TraceStep(now, kind, what, "x", "", 10 * n, n, before, after)

    steps = [
        moved(1, "accept", None, "accepted"), moved(2, "pay", "accepted", "paid"), moved(3, "urge", "paid", "paid"),
        moved(3, "notify", None, "paid", "delivery"), moved(4, "suspend", "paid", "suspended"),
        moved(5, "resume", "suspended", "paid"), moved(6, "suspend", "paid", "suspended"),
    ]  # fmt: skip
    found = drawing("goods", "suspended", steps)
    made = {(m["from"], m["to"]): [one["n"] for one in m["made"]] for m in found["moves"] if m["made"]}
    assert made == {("accepted", "paid"): [1], ("paid", "suspended"): [2, 4], ("suspended", "paid"): [3]}
    assert (found["visited"], found["now"]) == (["accepted", "paid", "suspended"], "suspended")


def told(ledger: Ledger | None = None, stock: Stock | None = None, kinds: tuple[str, ...] = tuple(MISSING),
         **settings: object) -> list[Alert]:  # fmt: skip
    signs = [Sign(id=kind, kind=kind) for kind in kinds]
    return alerts(Settings(**settings), THERE, ledger or Ledger(), stock or Stock(), signs, {})  # type: ignore[arg-type]


def test_alerts_are_none_when_all_is_well() -> None:
    assert told() == []


def test_alerts_say_what_is_missing_and_what_it_means() -> None:
    [one] = told(kinds=("gateway", "ledger", "expiry", "reconcile"))
    assert (one.level, one.link) == ("wrong", "#/workers")
    assert one.words == f"No relay worker is at work: {MISSING['relay']}"
    [meant] = told(kinds=("gateway", "ledger", "expiry", "relay"), reconcile_workers=0)
    assert meant.level == "warning"


def test_alerts_tell_the_worst_first() -> None:
    waiting = [{"topic": "payment", "messages": 3, "failing": 0, "oldest_s": 400.0}]
    drift = {"kind": "oversold", "campaign": "c", "detail": "2 units"}
    found = told(Ledger([], waiting, 1, 0, [drift]), Stock({}, 400_000, 12.0))
    assert [a.level for a in found] == ["wrong", "wrong", "warning", "note"]
    assert "oversold in c: 2 units" in found[0].words
    assert "add ledger workers" in found[1].words
    assert "1 message that nobody could deliver" in found[2].words
    assert "RUSHGATE_PARTNERS_URL is empty" in found[3].words


def test_missing_workers_are_not_told_while_nobody_can_know() -> None:
    parts = THERE | {"signs": {"ok": False, "why": "away", "at": 0}}
    assert alerts(Settings(), parts, Ledger(), Stock(), [], {}) == []


async def test_source_keeps_its_last_value_while_it_is_away() -> None:
    answers: list[object] = [1, Refused("no"), TimeoutError(), ValueError("bad"), 2]

    async def read() -> int:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, int)
        return answer

    source: Source[int] = Source("x", read, 0, 1.0, 1.0)
    assert (source.value, source.told()["ok"]) == (0, False)
    whys = []
    for _ in range(5):
        await source.ask()
        whys.append((source.value, source.why))
    assert whys == [(1, ""), (1, "no"), (1, "no answer within 1 s"), (1, "ValueError: bad"), (2, "")]


async def test_source_that_hangs_is_given_up_in_time() -> None:
    source: Source[int] = Source("x", asyncio.Event().wait, 0, 1.0, 0.01)
    await source.ask()
    assert source.why == "no answer within 0.01 s"
