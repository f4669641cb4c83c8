"""Waiting rooms in a real store: places are exact, admission keeps to the rate, nothing that was promised is lost."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from core.errors import StoreUnavailable
from lua.connection import SharedConnection
from lua.keys import RoomKeys, room_keys
from lua.room import MAX_JOINS, Joining, Kept, Phase, RoomCode, Rooms, Standing
from tests.conftest import Services
from tests.support import SHARDS, fresh, tell

TTL_MS = 60_000
LIFE = "run-1"
DAY_MS = 86_400_000


def buyer(n: int) -> bytes:
    return hashlib.blake2b(str(n).encode(), digest_size=12).digest()


class Room:
    """A room of a campaign that is nothing but its window."""

    def __init__(self, store: SharedConnection) -> None:
        self.store = store
        self.rooms = Rooms(store)
        self.keys: RoomKeys = room_keys(fresh("c"), SHARDS)
        self.kept = Kept("room-1", "fixed", 0.0, 1, 0, 0, 0, "", -1)

    async def now_ms(self) -> int:
        seconds, us = await tell(self.store, "TIME")
        return int(seconds) * 1000 + int(us) // 1000

    async def window(self, opens_in_ms: int = -1_000, state: str = "open", closes_in_ms: int = DAY_MS) -> None:
        now_ms = await self.now_ms()
        fields = ("opens_ms", now_ms + opens_in_ms, "closes_ms", now_ms + closes_in_ms)
        await tell(self.store, "HSET", self.keys.meta, "epoch", 1, "version", 3, "state", state, *fields)

    async def put(self, life: str = LIFE, **changes: Any) -> None:
        self.kept = self.kept._replace(**changes)
        await self.rooms.put(self.keys, self.kept, life, TTL_MS)

    async def call(
        self, joins: Sequence[Joining] = (), sells: bool | None = True, pressed: bool = False,
        rooms: Rooms | None = None, seed: str = "seed",
    ) -> tuple[Standing, list[int]]:  # fmt: skip
        code, standing, numbers = await (rooms or self.rooms).room(
            self.keys, self.kept.room_id, LIFE, TTL_MS, sells, pressed, seed, joins
        )
        assert code is RoomCode.READY
        assert standing is not None
        return standing, numbers

    async def join(self, *buyers: int) -> list[int]:
        return (await self.call([Joining(buyer(n)) for n in buyers]))[1]

    async def set(self, *pairs: str | int) -> None:
        await tell(self.store, "HSET", self.keys.room, *pairs)

    async def passes(self, ms: int) -> None:
        """So much time since the last step, as far as the room knows."""
        ticked, turn = await tell(self.store, "HMGET", self.keys.room, "ticked_us", "turn_ms")
        await self.set("ticked_us", int(ticked) - ms * 1000, "turn_ms", int(turn) - ms)


@pytest.fixture
async def room(store: SharedConnection) -> Room:
    found = Room(store)
    await found.window()
    await found.put()
    return found


async def test_places_are_exact_under_concurrent_joins_from_many_connections(room: Room, services: Services) -> None:
    connections = [SharedConnection(services.store_url, "fsync", 10.0, f"t{n}") for n in range(4)]
    # Each buyer joins twice, from two connections, in batches of unlike sizes.
    batches = [range(n, min(n + 30 + n % 7, 600)) for n in range(0, 600, 20)]

    async def go(connection: SharedConnection, shift: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for batch in batches[shift:] + batches[:shift]:
            _, numbers = await room.call([Joining(buyer(n)) for n in batch], rooms=Rooms(connection))
            found |= dict(zip(batch, numbers, strict=True))
        return found

    told = await asyncio.gather(*(go(c, 7 * n) for n, c in enumerate(connections)))
    for connection in connections:
        await connection.close()
    assert told[0] == told[1] == told[2] == told[3]  # a buyer has one number, whoever asks
    assert sorted(told[0].values()) == list(range(1, 601))


async def test_control_numbers_by_read_and_write_collide(room: Room, services: Services) -> None:
    """Control: shows that this many connections see a race. If it fails, the test above proves nothing."""
    connections = [SharedConnection(services.store_url, "fsync", 10.0, f"t{n}") for n in range(4)]

    async def go(connection: SharedConnection) -> list[int]:
        given = []
        for _ in range(50):
            joined = int(await tell(connection, "HGET", room.keys.room, "joined"))
            given.append(joined + 1)
            await tell(connection, "HSET", room.keys.room, "joined", joined + 1)
        return given

    given = [n for numbers in await asyncio.gather(*(go(c) for c in connections)) for n in numbers]
    for connection in connections:
        await connection.close()
    assert len(set(given)) < len(given)


async def test_the_same_buyer_twice_in_a_batch_has_one_number(room: Room) -> None:
    assert await room.join(1, 2, 1) == [1, 2, 1]
    assert (await room.call())[0].joined == 2


async def test_largest_batch_fits(room: Room) -> None:
    assert await room.join(*range(MAX_JOINS)) == list(range(1, MAX_JOINS + 1))


async def test_number_is_given_anew_once_and_only_for_the_one_that_was_named(room: Room) -> None:
    assert await room.join(1, 2) == [1, 2]
    assert (await room.call([Joining(buyer(1), 7)]))[1] == [1]
    assert (await room.call([Joining(buyer(1), 1)]))[1] == [3]
    assert (await room.call([Joining(buyer(1), 1)]))[1] == [3]  # the same call again, after a broken connection
    assert (await room.call([Joining(buyer(1), 3), Joining(buyer(1), 3)]))[1] == [4, 4]


async def test_rate_of_zero_admits_nobody_not_even_for_what_was_saved_up(room: Room) -> None:
    await room.put(rate=5.0, setting=2)
    await room.call()
    await room.passes(1_000)
    assert (await room.call())[0].admitted == 0  # nobody is there, and one place is saved up
    await room.put(rate=0.0, setting=3)
    await room.join(1, 2)
    await room.passes(1_000)
    assert (await room.call())[0].admitted == 0
    await room.put(rate=1.0, setting=4)
    await room.passes(1_000)
    assert (await room.call())[0].admitted == 2  # control: the saved one and one of the second


async def test_draw_is_fixed_at_the_opening_and_not_before(room: Room) -> None:
    await room.window(opens_in_ms=60_000)
    assert await room.join(1, 2, 3) == [1, 2, 3]
    before, _ = await room.call(seed="too early")
    assert (before.phase, before.early, before.seed) == (Phase.BEFORE, -1, "")
    await room.window()
    looked, _ = await room.call(sells=None, seed="of one who looks")
    assert (looked.phase, looked.early, looked.seed) == (Phase.OPEN, -1, "")
    opened, numbers = await room.call([Joining(buyer(4))], seed="the first")
    assert (opened.early, opened.seed, numbers) == (3, "the first", [4])
    again, _ = await room.call(seed="the second")
    assert (again.early, again.seed) == (3, "the first")


async def test_rate_is_kept_by_the_store_s_clock_whoever_calls_how_often(room: Room) -> None:
    await room.join(*range(400))
    await room.put(mode="fixed", rate=200.0, setting=2)
    begin_ms, start = await room.now_ms(), (await room.call())[0].admitted
    for _ in range(120):
        now, _ = await room.call()
        passed_s = (now.now_ms - begin_ms) / 1000
        assert now.admitted - start <= 200 * passed_s + 1 + 200 * 0.1
        await asyncio.sleep(0.005)  # no synchronisation: the time in which the rate is looked at
    assert now.admitted - start >= 200 * (passed_s - 0.3)


async def test_rest_of_a_quiet_time_is_worth_a_second_at_most(room: Room) -> None:
    await room.join(*range(400))
    await room.put(mode="fixed", rate=50.0, setting=2)
    await room.call()
    await room.passes(3_600_000)
    assert 45 <= (await room.call())[0].admitted <= 56  # and not 180,000


async def test_empty_line_saves_nothing_up(room: Room) -> None:
    await room.put(mode="fixed", rate=100.0, setting=2)
    for _ in range(20):
        await room.passes(1_000)
        assert (await room.call())[0].admitted == 0
    await room.join(*range(400))
    await room.passes(500)
    assert (await room.call())[0].admitted <= 60  # and not 2,000


async def test_nobody_is_admitted_before_the_opening_to_an_empty_shop_or_while_paused_or_closed(room: Room) -> None:
    await room.join(1, 2, 3)
    await room.put(mode="fixed", rate=100.0, setting=2)
    for phase, sells, window in (
        (Phase.BEFORE, True, {"opens_in_ms": 60_000}),
        (Phase.PAUSED, True, {"state": "paused"}),
        (Phase.CLOSED, True, {"state": "closed"}),
        (Phase.CLOSED, True, {"closes_in_ms": -1}),
        (Phase.OPEN, False, {}),
    ):
        await room.window(**window)
        await room.passes(1_000)
        now, _ = await room.call(sells=sells)
        assert (now.phase, now.admitted) == (phase, 0)
    await room.passes(1_000)
    assert (await room.call())[0].admitted == 3


async def test_who_is_admitted_has_its_time_and_then_is_lapsed(room: Room) -> None:
    await room.join(*range(10))
    await room.put(mode="fixed", rate=5.0, setting=2)
    await room.call()
    await room.passes(1_000)
    now, _ = await room.call()
    assert 5 <= now.admitted <= 7
    ends_ms = now.until_ms(1)
    assert now.now_ms + TTL_MS <= ends_ms <= now.now_ms + TTL_MS * 34 // 32
    assert now.until_ms(now.admitted + 1) == 0
    # Their time passes: as if it had ended just now.
    await tell(room.store, "EVAL", "redis.call('HSET', KEYS[1], 'marks', cmsgpack.pack({1, tonumber(ARGV[1])}))", 1,
               room.keys.room, now.admitted)  # fmt: skip
    await room.passes(1_000)
    over, _ = await room.call()
    assert over.lapsed == now.admitted
    assert over.until_ms(1) == 0
    assert over.admitted > over.lapsed  # the next ones have come in


async def test_rate_that_finds_itself_grows_while_buyers_wait_and_halves_under_pressure_once_a_second(
    room: Room,
) -> None:
    await room.put(mode="auto", rate=200.0, setting=2)
    await room.call()
    await room.passes(1_000)
    assert (await room.call())[0].rate == 200.0  # nobody waits
    await room.join(*range(450))
    for n in range(1, 4):
        await room.join(*range(450 * n, 450 * n + 450))
        await room.passes(1_000)
        now, _ = await room.call()
        assert (now.rate, now.turn) == (200.0 + 200 * n, True)
        assert not (await room.call())[0].turn  # one turn a second
    await room.passes(1_000)
    assert (await room.call(pressed=True))[0].rate == 400.0
    assert (await room.call(pressed=True))[0].rate == 400.0
    for _ in range(10):
        await room.passes(1_000)
        now, _ = await room.call(pressed=True)
    assert now.rate == 10.0


async def test_room_of_another_life_or_id_is_stale_and_goes_on_where_the_ledger_is(room: Room) -> None:
    assert await room.join(1, 2) == [1, 2]
    for room_id, life in (("room-1", "run-2"), ("room-2", LIFE)):
        joins = [Joining(buyer(3))]
        code, standing, _ = await room.rooms.room(room.keys, room_id, life, TTL_MS, True, False, "s", joins)
        assert (code, standing) == (RoomCode.STALE, None)
    assert (await room.call(sells=None))[0].joined == 2
    # The server came back with less than it had promised: the ledger knows more.
    await room.put("run-2", joined=1_000, admitted=30, lapsed=10, seed="drawn", early=7)
    code, standing, numbers = await room.rooms.room(
        room.keys, "room-1", "run-2", TTL_MS, True, False, "s", [Joining(buyer(1)), Joining(buyer(9))]
    )
    assert code is RoomCode.READY
    assert standing is not None
    assert numbers == [1, 1_001]  # what is known of buyers stays; nobody gets a number that may be somebody's
    assert (standing.admitted, standing.lapsed, standing.early, standing.seed) == (30, 10, 7, "drawn")
    assert standing.until_ms(30) > standing.now_ms
    assert standing.until_ms(10) == 0


async def restarted(room: Room, joined: int) -> None:
    """The server is another one, and the ledger was ahead of it."""
    await room.set("life", "run-0")
    await room.put(joined=joined)


@pytest.mark.parametrize("known", [True, False])
async def test_line_does_not_wait_for_numbers_that_were_skipped(room: Room, known: bool) -> None:
    """Control: as numbers like others they cost the line their time, a minute here."""
    await room.put(rate=10.0, setting=2)
    assert await room.join(1, 2, 3, 4) == [1, 2, 3, 4]
    await restarted(room, 600)
    assert await room.join(5, 6) == [601, 602]
    now, _ = await room.call(sells=None)
    assert (now.holes, now.buyers(1, 602), now.buyers(1, 600), now.buyers(3, 700)) == ((4, 600), 6, 4, 102)
    if not known:
        await tell(room.store, "HDEL", room.keys.room, "holes")
    admitted, before_ms = now.admitted, now.now_ms
    await room.passes(500 - 100 * admitted)  # 5 places in all
    now, _ = await room.call()
    assert now.now_ms - before_ms < 100
    assert (now.admitted, now.holes) == ((601, ()) if known else (5, ()))


async def test_skipped_numbers_at_the_end_of_the_line_are_passed_and_several_restarts_add_up(room: Room) -> None:
    await room.put(rate=10.0, setting=2)
    assert await room.join(1) == [1]
    await restarted(room, 500)
    assert await room.join(2) == [501]
    await restarted(room, 1_000)
    assert (await room.call(sells=None))[0].holes == (1, 500, 501, 1_000)
    await room.passes(1_000)
    now, _ = await room.call()
    assert (now.admitted, now.holes, now.joined) == (1_000, (), 1_000)
    assert await room.join(3) == [1_001]


async def test_numbers_skipped_before_the_draw_take_part_in_it(room: Room) -> None:
    await room.window(60_000)
    assert await room.join(1, 2) == [1, 2]
    await restarted(room, 500)
    assert (await room.call())[0].holes == ()
    await room.window()
    now, _ = await room.call()
    assert (now.early, now.holes) == (500, ())


async def test_room_that_is_wholly_lost_is_installed_from_the_ledger(room: Room) -> None:
    await room.join(1, 2)
    await tell(room.store, "DEL", room.keys.room, room.keys.line)
    await room.put(joined=500, admitted=2, lapsed=0, seed="drawn", early=2)
    standing, numbers = await room.call([Joining(buyer(1))])
    assert (numbers, standing.seed, standing.early, standing.admitted) == ([501], "drawn", 2, 2)


async def test_put_again_changes_neither_places_nor_an_older_setting(room: Room) -> None:
    await room.join(1, 2)
    await room.put(mode="fixed", rate=7.0, setting=3)
    await room.put(mode="auto", rate=9.0, setting=2, joined=100)
    standing, _ = await room.call()
    assert (standing.mode, standing.rate, standing.joined) == ("fixed", 7.0, 2)


async def test_campaign_that_the_store_does_not_hold_has_no_room(room: Room) -> None:
    await tell(room.store, "DEL", room.keys.meta)
    code, _, _ = await room.rooms.room(room.keys, "room-1", LIFE, TTL_MS, True, False, "s", [Joining(buyer(1))])
    assert code is RoomCode.LOST


async def test_room_survives_a_flush_of_the_scripts_and_tells_an_error_of_the_store(room: Room) -> None:
    await tell(room.store, "SCRIPT", "FLUSH")
    assert await room.join(1) == [1]
    await tell(room.store, "DEL", room.keys.line)
    await tell(room.store, "SET", room.keys.line, "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await room.join(2)
    assert (await room.call())[0].joined == 1


async def test_keys_of_a_room_end_a_week_after_the_campaign(room: Room) -> None:
    await room.join(1)
    await room.call()
    for key in (room.keys.room, room.keys.line):
        left_ms = await tell(room.store, "PTTL", key)
        assert 7 * DAY_MS < left_ms <= 8 * DAY_MS
