"""The signs of life: who lives is seen, whatever the store goes through, and nobody's work depends on it."""

import asyncio
import time

import msgspec
import pytest

from core.errors import StoreUnavailable
from lua import registry
from lua.connection import SharedConnection, StoreConnection
from lua.keys import processes_key
from lua.life import doubt
from lua.registry import ALIVE_MS, FORGET_MS, Lag, Sign, SignOfLife, Work, read_signs
from tests.conftest import Services
from tests.support import eventually, tell


def sign_of_life(services: Services, work: Work = Work(0.0), kind: str = "ledger") -> SignOfLife:  # noqa: B008
    return SignOfLife(services.store_url, kind, f"{kind}-test", lambda: work, reads="nothing")


async def living(store: SharedConnection) -> list[Sign]:
    return (await read_signs(store.exchange))[0]


async def test_sign_is_seen_while_its_process_lives_and_gone_after_its_farewell(
    services: Services, store: SharedConnection
) -> None:
    sign = sign_of_life(services)
    sign.start()
    [seen] = await eventually(lambda: living(store))
    assert (seen.id, seen.kind, seen.reads) == (sign.id, "ledger", "nothing")
    assert abs(seen.seen_at - time.time_ns() // 1_000_000) < 5_000
    assert seen.more["cores"] >= 1
    assert seen.more["memory_bytes"] > 1_000_000
    await sign.stop()
    assert await living(store) == []


async def test_rate_and_share_of_work_are_those_of_the_last_seconds(
    services: Services, store: SharedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = idle_s = 0.0
    sign = SignOfLife(services.store_url, "relay", "relay-test", lambda: Work(done, idle_s, {"eggs": done}))
    now_s = time.monotonic()
    monkeypatch.setattr(registry.time, "monotonic", lambda: now_s)  # type: ignore[attr-defined]
    await sign.say()
    for _ in range(6):  # the first ones are idle; they must be forgotten
        now_s, idle_s = now_s + 1, idle_s + 1
        await sign.say()
    for _ in range(4):
        now_s, idle_s, done = now_s + 1, idle_s + 0.25, done + 200
        said = await sign.say()
    assert said.rate == pytest.approx(200)
    assert said.busy == pytest.approx(0.75)
    assert said.more["eggs_per_s"] == pytest.approx(200)
    assert said.more["done"] == 800
    await sign.stop()


async def test_what_is_silent_for_5_s_lives_no_more_and_is_forgotten_after_a_minute(store: SharedConnection) -> None:
    now = await tell(store, "TIME")
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    for name, age_ms in (("young", ALIVE_MS - 2_000), ("silent", ALIVE_MS + 1), ("dead", FORGET_MS + 1)):
        text = msgspec.json.encode(Sign(id=name, kind="ledger", seen_at=now_ms - age_ms))
        await tell(store, "HSET", processes_key(), name, text)
    await tell(store, "HSET", processes_key(), "odd", b"\xff{no sign")
    assert [sign.id for sign in await living(store)] == ["young"]
    assert sorted(await tell(store, "HKEYS", processes_key())) == [b"silent", b"young"]


async def test_sign_of_a_time_to_come_is_of_a_store_that_is_no_more(store: SharedConnection) -> None:
    now = await tell(store, "TIME")
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    for name, ahead_ms in (("just ahead", 1_000), ("ahead", ALIVE_MS + 5_000), ("far ahead", FORGET_MS + 5_000)):
        text = msgspec.json.encode(Sign(id=name, kind="ledger", seen_at=now_ms + ahead_ms))
        await tell(store, "HSET", processes_key(), name, text)
    assert [sign.id for sign in await living(store)] == ["just ahead"]
    assert sorted(await tell(store, "HKEYS", processes_key())) == [b"ahead", b"just ahead"]


async def test_process_that_starts_sweeps_what_nobody_reads(services: Services, store: SharedConnection) -> None:
    for n in range(50):
        await tell(
            store, "HSET", processes_key(), f"dead-{n}", msgspec.json.encode(Sign(id=f"dead-{n}", kind="ledger"))
        )
    sign = sign_of_life(services)
    sign.start()

    async def alone() -> bool:
        return bool(await tell(store, "HKEYS", processes_key()) == [sign.id.encode()])

    await eventually(alone)
    await sign.stop()


async def test_clock_of_the_process_does_not_matter(
    services: Services, store: SharedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.time, "time", lambda: 0.0)  # type: ignore[attr-defined]
    sign = sign_of_life(services)
    await sign.say()
    assert [s.id for s in await living(store)] == [sign.id]
    await sign.stop()


async def test_store_that_is_full_or_not_admitted_shows_who_lives(services: Services, store: SharedConnection) -> None:
    await doubt(store.exchange)
    sign = sign_of_life(services)
    await tell(store, "CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(Exception, match="maxmemory"):  # control: the store is full
            await tell(store, "SET", "{s0}:control", "x")
        await sign.say()
        assert [s.id for s in await living(store)] == [sign.id]
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", 0)
    await sign.stop()


async def test_sign_that_grows_too_long_is_cut_to_what_matters(services: Services, store: SharedConnection) -> None:
    sign = sign_of_life(services, Work(7.0, facts={"words": "x" * 100_000}))
    await sign.say()
    [seen] = await living(store)
    assert seen.more == {}
    assert await tell(store, "HSTRLEN", processes_key(), sign.id) < 1_000
    await sign.stop()


async def test_broken_look_costs_the_sign_and_nothing_else(
    services: Services, store: SharedConnection, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def work() -> Work:
        if broken:
            raise ZeroDivisionError("a fault of ours")
        return Work(1.0)

    async def lag(_: StoreConnection) -> Lag:
        raise StoreUnavailable("the ledger's part is away")

    sign = SignOfLife(services.store_url, "ledger", "ledger-test", work, lag)
    sign.start()
    await eventually(lambda: asyncio.sleep(0, "a fault of ours" in caplog.text))
    assert await living(store) == []
    broken = False
    [seen] = await eventually(lambda: living(store))
    assert seen.lag_orders == 0
    await sign.stop()


async def test_store_that_is_away_hinders_neither_start_nor_stop() -> None:
    sign = SignOfLife("redis://127.0.0.1:1/0", "ledger", "ledger-test", lambda: Work(0.0))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    sign.start()
    with pytest.raises(StoreUnavailable):  # control: nobody is there
        await sign.say()
    await sign.stop()
    assert loop.time() - began_s < 3
