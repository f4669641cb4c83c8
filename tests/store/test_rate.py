"""rate: a batch against its limits, exact at one instant, however many connections it comes over."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import StoreUnavailable
from core.rates import Rate, parse_rate
from lua.connection import SharedConnection, StoreConnection
from lua.keys import rate_keys
from lua.rate import MAX_REQUESTS, Column, Verdict, pack, read
from lua.source import LuaSource
from tests.conftest import Services
from tests.support import contents, eventually, fresh, tell

SLOW = Rate(1, 3_600, 1)  # nothing comes back while a test runs


def rate(text: str) -> Rate:
    found = parse_rate(text)
    assert found is not None
    return found


async def decide(
    store: StoreConnection, campaign: str, requests: int, own: Sequence[Column], channels: Sequence[Column] = ()
) -> list[Verdict]:
    [reply] = await store.run(LuaSource.read("rate"), [pack(rate_keys(campaign), requests, own, channels)])
    return read(reply)


def passed(verdicts: Sequence[Verdict]) -> int:
    return sum(not verdict.refused for verdict in verdicts)


async def one_after_another(store: StoreConnection, field: str, burst: int) -> bool:
    """A limiter as it is often written: looked at, then counted. It has no more guard than that."""
    seen = int(await tell(store, "HGET", "control", field) or 0)
    if seen >= burst:
        return False
    await tell(store, "HSET", "control", field, seen + 1)
    return True


async def two(services: Services) -> list[StoreConnection]:
    return [StoreConnection(services.store_url, "fsync", 10.0, "test") for _ in range(2)]


async def test_control_of_500_at_once_a_limiter_that_looks_and_then_counts_lets_more_in(
    store: SharedConnection, services: Services
) -> None:
    """Control: shows that the requests below do come at once. If it fails, the next test proves nothing."""
    pool = [SharedConnection(services.store_url, "fsync", 10.0, "test") for _ in range(20)]
    found = await asyncio.gather(*(one_after_another(pool[n % 20], "b:bot", 10) for n in range(500)))
    assert sum(found) > 10
    for one in pool:
        await one.close()


async def test_of_500_at_once_on_two_connections_the_burst_is_let_through(
    store: SharedConnection, services: Services
) -> None:
    campaign, connections = fresh("c"), await two(services)
    limit = Rate(1, 60, 10)

    async def batches(connection: StoreConnection) -> list[Verdict]:
        call = pack(rate_keys(campaign), 25, [Column(limit, ["b:bot"] * 25)], [])
        replies = await connection.run(LuaSource.read("rate"), [call] * 10)
        return [verdict for reply in replies for verdict in read(reply)]

    found = await asyncio.gather(*(batches(c) for c in connections))
    assert [len(part) for part in found] == [250, 250]
    assert sum(passed(part) for part in found) == 10
    for connection in connections:
        await connection.close()


@pytest.mark.parametrize(("text", "burst"), [("5/s:10", 10), ("3/s", 3), ("7/m:3", 3), ("70000/s:400", 400)])
async def test_at_one_instant_exactly_the_burst_is_let_through(store: SharedConnection, text: str, burst: int) -> None:
    found = await decide(store, fresh("c"), 500, [Column(rate(text), ["b:a"] * 500)])
    assert [v.refused for v in found] == [0] * burst + [1] * (500 - burst)
    assert [v.more for v in found[:burst]] == list(range(burst - 1, -1, -1))
    limit = rate(text)
    whole_ms = [math.ceil(Fraction(n * limit.per_s * 1_000, limit.requests)) for n in range(1, burst + 1)]
    assert all(v.ms == whole_ms[0] for v in found[burst:])
    assert [v.ms for v in found[:burst]] == whole_ms


async def test_what_is_let_through_in_a_time_is_no_more_than_burst_and_rate(store: SharedConnection) -> None:
    """A caller that never rests gets its burst and its rate and no more, measured by the store's own clock."""
    campaign, limit, begun = fresh("c"), rate("500/s:5"), await clock(store)
    let_through = 0
    while await clock(store) < begun + 200_000:
        let_through += passed(await decide(store, campaign, 3, [Column(limit, ["b:a"] * 3)]))
    took_us = await clock(store) - begun
    assert let_through <= 5 + took_us / 2_000
    assert let_through > 5  # and what comes back in the time it gets too


async def clock(store: StoreConnection) -> int:
    seconds, micros = await tell(store, "TIME")
    return int(seconds) * 1_000_000 + int(micros)


async def test_name_that_waited_as_told_is_let_through(store: SharedConnection) -> None:
    campaign, limit = fresh("c"), rate("20/s:1")
    [first, second] = await decide(store, campaign, 2, [Column(limit, ["b:a"] * 2)])
    assert (first.refused, second.refused, second.ms) == (0, 1, 50)
    told = await clock(store) + second.ms * 1_000

    async def its_time() -> bool:
        return await clock(store) >= told

    await eventually(its_time)
    [third] = await decide(store, campaign, 1, [Column(limit, ["b:a"])])
    assert not third.refused


async def test_request_that_one_limit_refuses_counts_for_none(store: SharedConnection) -> None:
    campaign = fresh("c")
    narrow, wide = Rate(1, 3_600, 1), Rate(3, 3_600, 3)
    columns = [Column(narrow, ["b:a", "b:a", "b:a", "b:b"]), Column(wide, ["i:1"] * 4)]
    channels = [Column(Rate(2, 3_600, 2), ["c:app"] * 4)]
    found = await decide(store, campaign, 4, columns, channels)
    # Without the guard the two refused ones had used up address and channel, and `b` were refused.
    assert [v.refused for v in found] == [0, 1, 1, 0]
    assert [v.limit for v in found] == [1, 1, 1, 1]
    [more] = await decide(store, campaign, 1, [Column(narrow, ["b:c"]), Column(wide, ["i:1"])], [])
    assert not more.refused  # the address had one left
    [last] = await decide(store, campaign, 1, [], [Column(Rate(2, 3_600, 2), ["c:app"])])
    assert (last.refused, last.limit) == (1, 1)


async def test_refusal_is_told_by_the_limit_that_lasts_longest(store: SharedConnection) -> None:
    columns = [Column(Rate(1, 10, 1), ["b:a"] * 2), Column(Rate(1, 60, 1), ["i:1"] * 2)]
    _, refused = await decide(store, fresh("c"), 2, columns)
    assert refused == Verdict(1, 2, 0, 60_000)


async def test_names_without_a_value_count_for_nothing(store: SharedConnection) -> None:
    campaign = fresh("c")
    before = await contents(store)
    found = await decide(store, campaign, 2, [Column(SLOW, ["", ""])])
    assert found == [Verdict(0, 0, 0, 0)] * 2
    assert await contents(store) == before


async def test_limits_of_campaigns_are_their_own_and_those_of_channels_are_shared(store: SharedConnection) -> None:
    one, other = fresh("c"), fresh("c")
    for campaign in (one, other):
        [verdict] = await decide(store, campaign, 1, [Column(SLOW, ["b:a"])])
        assert not verdict.refused
    found = [await decide(store, c, 1, [], [Column(SLOW, ["c:app"])]) for c in (one, other)]
    assert [v.refused for [v] in found] == [0, 1]


async def test_refused_requests_write_nothing(store: SharedConnection) -> None:
    campaign = fresh("c")
    await decide(store, campaign, 1, [Column(SLOW, ["b:a"])], [Column(SLOW, ["c:app"])])
    before = await contents(store)
    columns = [Column(SLOW, ["b:a"] * 5)], [Column(SLOW, ["c:app"] * 5)]
    assert passed(await decide(store, campaign, 5, *columns)) == 0
    assert await contents(store) == before


async def test_names_whose_time_has_passed_do_not_pile_up(store: SharedConnection) -> None:
    """20,000 names one after another, each forgotten a millisecond later: few are there at any time."""
    campaign, keys, limit, most = fresh("c"), rate_keys(fresh("x")), Rate(1_000, 1, 1), 0
    keys = rate_keys(campaign)
    for n in range(40):
        names = [f"b:{n}-{m}" for m in range(500)]
        await decide(store, campaign, 500, [Column(limit, names)])
        most = max(most, await tell(store, "HLEN", keys.young) + await tell(store, "HLEN", keys.old))
    assert most <= 2 * 501 + 1_000  # of 20,000: two hashes, and a call that came within the millisecond
    assert 0 < await tell(store, "PTTL", keys.young) <= 60_002  # and nothing at all once nobody comes any more


async def test_name_is_remembered_when_the_hashes_change_places(store: SharedConnection) -> None:
    """A long burst and a short one in one campaign: what is not over is never dropped with what is."""
    campaign, short, long = fresh("c"), Rate(1_000, 1, 1), SLOW
    keys = rate_keys(campaign)
    assert passed(await decide(store, campaign, 1, [Column(short, ["b:0"]), Column(long, ["d:bot"])])) == 1
    turns = 0
    for n in range(1, 30):
        young = await tell(store, "HGETALL", keys.young)
        assert passed(await decide(store, campaign, 1, [Column(short, [f"b:{n}"])])) == 1
        turns += await tell(store, "HGETALL", keys.old) == young
        assert passed(await decide(store, campaign, 1, [Column(long, ["d:bot"])])) == 0
    assert turns == 1  # `d:bot` keeps the old one for an hour


async def test_clock_that_was_set_back_shuts_nobody_out_for_long(store: SharedConnection) -> None:
    campaign, keys, limit = fresh("c"), None, Rate(10, 1, 2)
    keys = rate_keys(campaign)
    ahead = await clock(store) + 7_200_000_000
    await tell(store, "HSET", keys.old, "#", ahead, "b:a", ahead)
    await tell(store, "HSET", keys.channels, "c:app", ahead)
    [verdict] = await decide(store, campaign, 1, [Column(limit, ["b:a"])], [Column(limit, ["c:app"])])
    assert verdict.refused
    assert verdict.ms <= 100  # one interval, and not two hours


async def test_key_of_the_wrong_type_is_a_fault_and_writes_nothing(store: SharedConnection) -> None:
    campaign = fresh("c")
    await tell(store, "SET", rate_keys(campaign).old, "x")
    before = await contents(store)
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await decide(store, campaign, 1, [Column(SLOW, ["b:a"])], [Column(SLOW, ["c:app"])])
    assert await contents(store) == before


async def test_script_takes_the_most_requests_with_the_most_limits(store: SharedConnection) -> None:
    own = [Column(SLOW, [f"{kind}:{n}" for n in range(MAX_REQUESTS)]) for kind in "bid"]
    found = await decide(store, fresh("c"), MAX_REQUESTS, own, [Column(rate("512/h:512"), ["c:app"] * MAX_REQUESTS)])
    assert passed(found) == MAX_REQUESTS


class Model:
    """One request after another, at one instant at a time: how many are let through, by name."""

    def __init__(self, limits: dict[str, Rate]) -> None:
        self.limits = limits
        self.counts: Counter[str] = Counter()

    def take(self, names: Sequence[str]) -> bool:
        fits = all(self.counts[name] < self.limits[name[0]].burst for name in names if name)
        if fits:
            self.counts.update(name for name in names if name)
        return fits


one_request = st.tuples(
    st.sampled_from(["b:1", "b:2", "b:3"]), st.sampled_from(["", "i:1", "i:2"]), st.sampled_from(["", "d:1"]),
    st.sampled_from(["c:app", "c:web"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    bursts=st.tuples(*[st.integers(1, 6)] * 4),
    batches=st.lists(st.lists(one_request, min_size=1, max_size=12), min_size=1, max_size=4),
)
async def test_batches_are_decided_as_one_request_after_another(
    store: SharedConnection, bursts: tuple[int, ...], batches: list[list[tuple[str, str, str, str]]]
) -> None:
    await tell(store, "FLUSHALL")
    limits = {kind: Rate(burst, 3_600, burst) for kind, burst in zip("bidc", bursts, strict=True)}
    model, campaign = Model(limits), fresh("c")
    for batch in batches:
        *own, channels = (
            Column(limits[kind], names) for kind, names in zip("bidc", zip(*batch, strict=True), strict=True)
        )
        found = await decide(store, campaign, len(batch), own, [channels])
        assert [not v.refused for v in found] == [model.take(names) for names in batch]
