"""The waiting room of a campaign between ledger and store: installed, restored, its rate set.

The store has the room, and the ledger what must outlive the store: whose places are whose is signed into them, so the
counters, the seed of the draw and the rate are enough. The ledger's counters run ahead, by what may be given out before
they are noted again: a store that lost a part goes on behind all that it has promised.
"""

import secrets
from functools import partial
from typing import Literal, NamedTuple

from msgspec import Struct

from core.desk.campaigns import CampaignDesk
from core.errors import CampaignLost, Refused
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import CampaignSpec
from lua.connection import SharedConnection
from lua.keys import RoomKeys, home_shards, room_keys
from lua.life import look
from lua.room import Kept, Mode, Phase, RoomCode, Rooms, Standing

AUTO_START = 200.0  # admitted a second by a room that finds its rate by itself, at first
AHEAD_S = 3.0  # of joining and admission, that the ledger's counters are ahead of the store's: a turn is a second
AHEAD = 500  # places, at least
LEDGER_WAIT_S = 2.0


class RoomView(Struct, frozen=True, kw_only=True):
    """A waiting room as operators see it. Places are counted from 1; `rate` is admitted a second."""

    campaign: str
    phase: Literal["before", "open", "paused", "closed"]
    mode: Mode
    rate: float
    joined: int
    admitted: int
    waiting: int
    lapsed: int  # of those admitted their time is over
    drawn: int | None  # how many were drawn by lot at the opening; null = not drawn yet
    seed: str  # of the draw, which anybody can check with it; "" = not drawn yet


class Reach(NamedTuple):
    """How far a room had come at a turn."""

    joined: int
    admitted: int


class RoomDesk:
    """One per process; connections are the caller's."""

    def __init__(self, desk: CampaignDesk, store: SharedConnection, ledger: Pool, shards: int, ttl_s: int) -> None:
        self._desk = desk
        self._store = store
        self._rooms = Rooms(store)
        self._ledger = ledger
        self._shards = shards
        self._ttl_ms = ttl_s * 1000

    def keys(self, campaign: str) -> RoomKeys:
        """Of a campaign's room."""
        return room_keys(campaign, self._shards)

    async def install(self, campaign: str, spec: CampaignSpec, life: str) -> Kept:
        """The room is in the store as the ledger has it; a campaign that has none in the ledger gets one.

        `life`: of the server that the store is. Raises: StoreUnavailable, LedgerUnavailable.
        """
        kept = await self._kept(campaign)
        if kept is None:
            mode, rate = ("auto", AUTO_START) if spec.room.rate is None else ("fixed", float(spec.room.rate))
            values = (self._first(campaign), campaign, secrets.token_hex(8), mode, rate)
            await ask(partial(self._ledger.execute, query("put_room"), *values), timeout_s=LEDGER_WAIT_S)
            kept = await self._kept(campaign)
        assert kept is not None  # noqa: S101 - nobody takes rooms away
        await self._rooms.put(self.keys(campaign), kept, life, self._ttl_ms)
        return kept

    async def note(self, campaign: str, room_id: str, setting: int, now: Standing, before: Reach) -> int:
        """The ledger has the counters of `now`, and what a room that goes on so may give out before the next turn.

        Returns: the newest setting of the rate; greater than `setting` if an operator set it meanwhile.
        Raises: LedgerUnavailable.
        """
        joined = now.joined + AHEAD + int(AHEAD_S * max(0, now.joined - before.joined))
        admitted = now.admitted
        if now.joined > now.admitted:
            admitted = min(now.joined, now.admitted + int(AHEAD_S * now.rate))
        counters = joined, admitted, now.lapsed
        values = (self._first(campaign), campaign, room_id, *counters, now.seed, now.early, now.rate, setting)
        found = await ask(partial(self._ledger.fetchval, query("note_room"), *values), timeout_s=LEDGER_WAIT_S)
        return int(found or 0)

    async def set_rate(self, campaign: str, mode: Mode, rate: float | None) -> RoomView:
        """Buyers are admitted so: `fixed`, `rate` a second (0 = nobody), or `auto`. The ledger is told first.

        Raises: Refused if the campaign has no waiting room, or is not in the store yet.
        """
        spec = await self._spec(campaign)
        life = (await look(self._store)).run_id
        await self.install(campaign, spec, life)
        values = (self._first(campaign), campaign, mode, rate)
        await ask(partial(self._ledger.fetchval, query("set_room_rate"), *values))
        kept = await self.install(campaign, spec, life)
        return await self._view(campaign, kept, life)

    async def show(self, campaign: str) -> RoomView:
        """Raises: as `set_rate`."""
        spec = await self._spec(campaign)
        life = (await look(self._store)).run_id
        return await self._view(campaign, await self.install(campaign, spec, life), life)

    async def _spec(self, campaign: str) -> CampaignSpec:
        known = await self._desk.show(campaign)
        if known.spec.admission != "room":
            raise Refused(f'campaign {campaign} has no waiting room: its admission is "{known.spec.admission}"')
        if known.state in ("draft", "opening"):
            raise Refused(f"campaign {campaign} is not open: open it first, buyers may join before its window begins")
        return known.spec

    async def _view(self, campaign: str, kept: Kept, life: str) -> RoomView:
        keys = self.keys(campaign)
        code, now, _ = await self._rooms.room(keys, kept.room_id, life, self._ttl_ms, None, False, "")
        if code is not RoomCode.READY or now is None:
            raise CampaignLost(f"the store does not hold campaign {campaign} as it should")
        return view(campaign, now)

    async def _kept(self, campaign: str) -> Kept | None:
        values = (self._first(campaign), campaign)
        row = await ask(partial(self._ledger.fetchrow, query("get_room"), *values), timeout_s=LEDGER_WAIT_S)
        return None if row is None else Kept(**dict(row))

    def _first(self, campaign: str) -> int:
        return home_shards(campaign, 1, self._shards)[0]


PHASES: dict[Phase, Literal["before", "open", "paused", "closed"]] = {
    Phase.BEFORE: "before", Phase.OPEN: "open", Phase.PAUSED: "paused", Phase.CLOSED: "closed",
}  # fmt: skip


def view(campaign: str, now: Standing) -> RoomView:
    """A room as operators see it."""
    return RoomView(
        campaign=campaign,
        phase=PHASES[now.phase],
        mode=now.mode,
        rate=now.rate,
        joined=now.joined,
        admitted=now.admitted,
        waiting=now.buyers(now.admitted + 1, now.joined),
        lapsed=now.lapsed,
        drawn=None if now.early < 0 else now.early,
        seed=now.seed,
    )
