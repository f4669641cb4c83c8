"""The typed side of room.lua and room_put.lua: the waiting room of a campaign. The contract is their headers."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from lua.connection import Command, StoreConnection
from lua.keys import RoomKeys
from lua.source import LuaSource

ROOM = LuaSource.read("room")
PUT = LuaSource.read("room_put")
MAX_JOINS = 500  # of one call

Mode = Literal["auto", "fixed"]


class RoomCode(IntEnum):
    READY = 0
    STALE = 1
    LOST = 2


class PutCode(IntEnum):
    DONE = 0


class Phase(IntEnum):
    BEFORE = 0
    OPEN = 1
    PAUSED = 2
    CLOSED = 3


class Standing(NamedTuple):
    """A room as the store had it at `now_ms`, its clock. Counted in places; `rate` is places a second."""

    now_ms: int
    version: int  # of the campaign's definition
    phase: Phase
    opens_ms: int
    joined: int  # numbers that were given
    admitted: int  # places up to this one are admitted
    lapsed: int  # and of these the time is over up to this one
    early: int  # were drawn by lot; -1 = not drawn yet
    seed: str  # of the draw
    mode: Mode
    rate: float
    turn: bool  # this reply gives its reader the turn to write the room into the ledger
    marks: tuple[int, ...]  # ms, admitted, ms, admitted: until when, by the store's clock, who was admitted may order
    holes: tuple[int, ...] = ()  # from, to: numbers above from up to to that were skipped; a line passes them at once

    def buyers(self, first: int, last: int) -> int:
        """How many of the places from `first` to `last` are somebody's."""
        skipped = sum(
            max(0, min(last, to) - max(first - 1, after))
            for after, to in zip(self.holes[::2], self.holes[1::2], strict=True)
        )
        return max(0, last - first + 1 - skipped)

    def until_ms(self, place: int) -> int:
        """Until when the buyer at an admitted place may order; 0 if not, or not any more."""
        if self.lapsed < place <= self.admitted:
            for n in range(1, len(self.marks), 2):
                if place <= self.marks[n]:
                    return self.marks[n - 1]
        return 0


class Kept(NamedTuple):
    """A room as the ledger keeps it: its counters are those of a moment to come."""

    room_id: str
    mode: Mode
    rate: float
    setting: int  # the how-manieth setting of the rate it is
    joined: int
    admitted: int
    lapsed: int
    seed: str
    early: int


class Joining(NamedTuple):
    """A buyer who joins; `old`: the number that may be replaced by a new one, 0 = none."""

    digest: bytes  # 12 bytes
    old: int = 0


class Rooms:
    """The scripts on a connection that the caller owns. Every method raises StoreUnavailable."""

    def __init__(self, connection: StoreConnection) -> None:
        self.connection = connection

    async def room(
        self, keys: RoomKeys, room_id: str, life: str, ttl_ms: int, sells: bool | None, pressed: bool, seed: str,
        joins: Sequence[Joining] = (),
    ) -> tuple[RoomCode, Standing | None, list[int]]:  # fmt: skip
        """The room has gone on, and the buyers, at most MAX_JOINS, have their numbers (0 = the line is full).

        `sells`: whether units are on sale; None = the room shall not go on, this is a look at it.

        Returns: the code; if it is READY how the room stands, and the numbers.
        """
        flat = [part for join in joins for part in join]
        call: Command = (3, *keys, room_id, life, ttl_ms, 2 if sells is None else int(sells), int(pressed), seed, *flat)
        # Numbers are promises, and are confirmed by replicas; the room's going on by itself is not.
        [reply] = await self.connection.run(ROOM, [call], confirm=bool(joins))
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"room: the store answers {type(reply).__name__}: {reply}") from reply
        code = RoomCode(reply[0])
        if code is not RoomCode.READY:
            return code, None, []
        _, now_ms, version, phase, opens_ms, joined, admitted, lapsed, early, seed_, mode, rate = reply[:12]
        turn, marks, holes, told = reply[12:]
        standing = Standing(
            now_ms, version, Phase(phase), opens_ms, joined, admitted, lapsed, early, seed_.decode(), mode.decode(),
            float(rate), bool(turn), tuple(marks), tuple(holes),
        )  # fmt: skip
        return code, standing, told

    async def put(self, keys: RoomKeys, kept: Kept, life: str, ttl_ms: int) -> PutCode:
        """The room is here as the ledger has it."""
        call: Command = (
            2, keys.room, keys.line, kept.room_id, life, kept.mode, f"{kept.rate:.6g}", kept.setting, kept.joined,
            kept.admitted, kept.lapsed, kept.seed, kept.early, ttl_ms,
        )  # fmt: skip
        [reply] = await self.connection.run(PUT, [call])
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"room_put: the store answers {type(reply).__name__}: {reply}") from reply
        return PutCode(reply[0])
