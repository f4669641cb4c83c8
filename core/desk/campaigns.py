"""What operators do with a campaign: define, open, pause, resume, restock, close. The ledger is written first.

Every step can be repeated: a call that broke off in the middle is finished by the same call again.
"""

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg
import msgspec
from msgspec import Struct
from redis.exceptions import RedisError

from core.errors import CampaignLost, CampaignUnknown, Fault, Invalid, Recovering, Refused, StoreUnavailable
from core.ledger.deployment import claim_deployment
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import CampaignSpec, Limits, Loosest, Restock
from lua.connection import SharedConnection
from lua.keys import SaleKeys, home_shards, portion, sale_keys
from lua.life import admit, look
from lua.scripts import ChangeCode, OpenCode, RestockCode, Scripts

# Of a definition, once the campaign was opened; stock changes by restock.
FROZEN = (
    "order_type", "currency", "delivery_within_s", "after_sales_s", "spread", "discounts", "channels", "skus",
)  # fmt: skip
CLOSE_TRIES = 5  # withdrawals of what is left, if units are taken meanwhile


class Campaign(Struct, frozen=True):
    """A campaign as the ledger has it."""

    campaign: str
    state: str
    version: int
    epoch: int
    spec: CampaignSpec
    loosest: Loosest

    @property
    def at_payment(self) -> bool:
        """Its orders take their units when they are paid: lua/reserve.lua, lua/allocate.lua."""
        return self.spec.order_type == "reserve_at_payment"


class Restocked(Struct, frozen=True):
    """What a restock did: units really added (negative: withdrawn), and whether this id had done it before."""

    id: str
    sku: str
    units: int
    repeated: bool


class Move(NamedTuple):
    """A change of stock on one shard, under an id that makes it happen once; negative units are withdrawn."""

    shard: int
    move_id: str
    sku: str
    units: int


class CampaignDesk:
    """One per process; the store connection and the pool are the caller's."""

    def __init__(self, store: SharedConnection, ledger: Pool, shards: int, lease_ms: int) -> None:
        self._store = store
        self._scripts = Scripts(store)
        self._ledger = ledger
        self.shards = shards
        self.lease_ms = lease_ms
        self._deployment_id: str | None = None

    async def show(self, campaign: str) -> Campaign:
        """Raises CampaignUnknown."""
        await self.deployment()
        row = await ask(lambda: self._ledger.fetchrow(query("get_campaign"), self._first(campaign), campaign))
        if row is None:
            raise CampaignUnknown(f"no campaign is called {campaign}")
        spec = msgspec.json.decode(row["spec"], type=CampaignSpec)
        loosest = msgspec.json.decode(row["loosest"], type=Loosest)
        return Campaign(campaign, row["state"], row["version"], row["epoch"], spec, loosest)

    async def epoch(self, campaign: str) -> int:
        """Its epoch, also if its definition cannot be read. Raises CampaignUnknown."""
        row = await ask(lambda: self._ledger.fetchrow(query("get_campaign"), self._first(campaign), campaign))
        if row is None:
            raise CampaignUnknown(f"no campaign is called {campaign}")
        return int(row["epoch"])

    async def put(self, campaign: str, spec: CampaignSpec, version: int | None = None) -> Campaign:
        """Defined as a draft, or changed: of a campaign that was opened only window, limits, rates, channel shares and
        pay_within_s change.

        `version`: the one that the change was made from, None = whichever is there.

        Raises: Invalid; Refused if a change is not allowed any more, or was made from another version.
        """
        await self.deployment()
        if spec.spread > self.shards:
            raise Invalid(f"at most {self.shards}, the number of shards of this deployment", "spread")
        text = msgspec.json.encode(spec).decode()
        first = self._first(campaign)
        limits = msgspec.json.encode(loosest_of(spec)).decode()
        row = await ask(lambda: self._ledger.fetchrow(query("put_campaign"), first, campaign, text, limits, version))
        if row is not None:
            return await self.show(campaign)
        known = await self.show(campaign)
        if version is not None and known.version != version:
            raise _changed(campaign)
        if known.state in ("closed", "recovering"):
            raise _refusal(known)
        old, new = msgspec.structs.asdict(known.spec), msgspec.structs.asdict(spec)
        for field in FROZEN:
            if old[field] != new[field]:
                hint = "; stock changes by restock" if field == "skus" else ""
                raise Refused(f"{field} cannot change once a campaign was opened{hint}")
        if spec.channel_shares and known.loosest.channel_shares is None:
            raise Refused("channel_shares cannot begin once a campaign was opened: what was sold until then is unknown")
        return await self._turn(known, known.state, spec)

    async def open(self, campaign: str) -> Campaign:
        """On sale within its window. Of a draft, the stock is installed on its shards; a paused one resumes.

        Raises: Refused if it is closed; CampaignLost if the store has lost it since it was opened.
        """
        known = await self.show(campaign)
        if known.state in ("closed", "recovering"):
            raise _refusal(known)
        if known.state in ("draft", "opening"):
            if known.state == "draft":
                known = await self._record(known, "opening", known.spec)
            known = await self._install(known)
        return await self._turn(known, "open", known.spec)

    async def pause(self, campaign: str) -> Campaign:
        """No order is taken until it is opened again. Raises: Refused if it is neither open nor paused."""
        known = await self.show(campaign)
        if known.state not in ("open", "paused"):
            raise _refusal(known)
        return await self._turn(known, "paused", known.spec)

    async def close(self, campaign: str) -> Campaign:
        """Over for good; what is left on the shards is withdrawn. Raises: Refused if it was never opened."""
        known = await self.show(campaign)
        if known.state in ("draft", "opening", "recovering"):
            raise _refusal(known)
        if known.state != "closed":
            known = await self._turn(known, "closed", known.spec)
        else:
            await self.tell_store(known)
        await self.finish_moves(known)
        # No order is accepted any more, so once is enough, unless a paid order took units just then and a withdrawal
        # was refused for it. Units that come back later stay where they are counted.
        for _ in range(CLOSE_TRIES):
            readings = await self._scripts.audit(self.keys(known))
            plan = [
                Move(shard, f"close.{reading.now_ms}.{sku}", sku, -left)
                for shard, reading in zip(self.home(known), readings, strict=True)
                for sku, left in reading.left.items()
                if left > 0  # below 0 it is oversold, which adding units would hide from the audit
            ]
            if not plan:
                break
            await self._journal(known, plan, "close")
            # Another closer of this very moment may have journalled other units under the same id: these count.
            planned = {(move.shard, move.move_id) for move in plan}
            journal = [m for m in await self._moves(known) if (m["shard"], m["move_id"]) in planned]
            await self._make(known, [_as_move(m) for m in journal if m["state"] == "pending"])
        return known

    async def restock(self, campaign: str, change: Restock) -> Restocked:
        """Units are added to the shards in equal parts, or withdrawn from where they are left; once per id.

        Raises: Recovering: to be repeated, as the id may be journalled already; Refused if the campaign is not open or
        paused, if fewer units are left than to be withdrawn, or if the id was used for another change.
        """
        known = await self.show(campaign)
        if change.sku not in {s.sku for s in known.spec.skus}:
            raise Invalid(f"campaign {campaign} does not sell {change.sku}", "sku")
        if known.state not in ("open", "paused"):
            raise _refusal(known)
        if change.units == 0:
            raise Invalid("must not be 0", "units")
        move_id = f"restock.{change.id}"
        journal = [m for m in await self._moves(known) if m["move_id"] == move_id]
        repeated = bool(journal) and all(m["state"] != "pending" for m in journal)
        if not journal:
            await self._journal(known, await self._plan(known, move_id, change), "restock")
            # The same call may have been made twice at once: the plan that is in the journal counts.
            journal = [m for m in await self._moves(known) if m["move_id"] == move_id]
        sku, units = journal[0]["sku"], sum(m["units"] for m in journal)
        if (sku, units) != (change.sku, change.units):
            raise Refused(f"restock {change.id} was of {units} units of {sku}: send a new id for another change")
        done = await self._make(known, [_as_move(m) for m in journal if m["state"] != "refused"])
        if done == 0:
            if repeated:
                raise Refused(f"restock {change.id} was refused: send a new id to try again")
            raise Refused(f"fewer than {-change.units} units of {change.sku} are left")
        return Restocked(change.id, change.sku, done, repeated)

    async def _plan(self, known: Campaign, move_id: str, change: Restock) -> list[Move]:
        """A part for every shard, even of 0 units: two plans with one id are journalled whole, or not at all."""
        home = self.home(known)
        if change.units > 0:
            parts = [portion(change.units, slot, len(home)) for slot in range(len(home))]
        else:
            readings = await self._scripts.audit(self.keys(known))
            left = [r.left.get(change.sku, 0) for r in readings]
            if sum(left) < -change.units:
                raise Refused(f"fewer than {-change.units} units of {change.sku} are left")
            parts, wanted = [], -change.units
            for count in left:
                parts.append(-min(count, wanted))
                wanted += parts[-1]
        return [Move(s, move_id, change.sku, p) for s, p in zip(home, parts, strict=True)]

    async def _journal(self, known: Campaign, plan: list[Move], kind: str) -> None:
        """The changes are in the ledger as pending, if they were not there before."""
        shards, ids, skus, units = (list(column) for column in zip(*plan, strict=True))
        await ask(lambda: self._ledger.execute(query("put_move"), shards, known.campaign, ids, skus, kind, units))

    async def _make(self, known: Campaign, plan: list[Move]) -> int:
        """Journalled changes are made, then marked as made. Returns the units really moved."""
        total = 0
        for shard, move_id, sku, count in plan:
            made = count == 0 or await self._change_stock(known, shard, move_id, sku, count, None)
            total += count if made else 0
            await self._end_move(known, shard, move_id, "applied" if made else "refused")
        return total

    async def _change_stock(
        self, known: Campaign, shard: int, move_id: str, sku: str, units: int, to: int | None
    ) -> bool:
        """False if there are too few units. Raises CampaignLost."""
        keys = sale_keys(shard, known.campaign)
        code, _ = await self._scripts.restock(keys, known.epoch, move_id, sku, units, to)
        if code in (RestockCode.FENCED, RestockCode.UNKNOWN):
            raise CampaignLost(f"the store does not hold campaign {known.campaign} as it should")
        return code is not RestockCode.TOO_FEW

    async def finish_moves(self, known: Campaign) -> None:
        """What others began and did not end is ended: changes in the journal, transfers between the shards."""
        # The returns are the relay's: its script makes them once per order.
        mine = ("restock", "close")
        begun = [m for m in await self._moves(known) if m["state"] == "pending" and m["kind"] in mine]
        await self._make(known, [_as_move(m) for m in begun])
        readings = await self._scripts.audit(self.keys(known))
        for shard, reading in zip(self.home(known), readings, strict=True):
            for move_id, (to, sku, units) in reading.moves.items():
                await self._change_stock(known, to, move_id, sku, units, shard)
                notes = sale_keys(shard, known.campaign).moves
                [reply] = await self._scripts.connection.exchange([("HDEL", notes, move_id)])
                if isinstance(reply, RedisError):
                    raise StoreUnavailable(f"the store answers {reply}")

    async def _end_move(self, known: Campaign, shard: int, move_id: str, state: str) -> None:
        await ask(lambda: self._ledger.execute(query("end_move"), shard, known.campaign, move_id, state, known.epoch))

    async def _moves(self, known: Campaign) -> list[asyncpg.Record]:
        rows = await ask(lambda: self._ledger.fetch(query("get_moves"), self.home(known), known.campaign))
        return list(rows)

    async def _install(self, known: Campaign) -> Campaign:
        """The stock is journalled and on the shards, the campaign there is paused until all have it."""
        home, spec = self.home(known), known.spec
        plan = [
            Move(shard, f"open.{s.sku}", s.sku, portion(s.stock, slot, len(home)))
            for slot, shard in enumerate(home)
            for s in spec.skus
        ]
        await self._journal(known, plan, "open")
        for slot, keys in enumerate(self.keys(known)):
            stock = {s.sku: portion(s.stock, slot, len(home)) for s in spec.skus}
            meta = {**meta_of(spec, "paused", slot), "version": known.version, "lease_ms": self.lease_ms}
            code = await self._scripts.open(keys, known.epoch, meta, stock, await self.deployment())
            if code in (OpenCode.FENCED, OpenCode.DIRTY):
                raise CampaignLost(f"the store holds other data of campaign {known.campaign}: {code.name}")
        for shard, move_id, _, _ in plan:
            await self._end_move(known, shard, move_id, "applied")
        await self.admit_fresh()
        return known

    async def _turn(self, known: Campaign, state: str, spec: CampaignSpec) -> Campaign:
        """Ledger and store have the new state and definition."""
        if (state, spec) != (known.state, known.spec):
            known = await self._record(known, state, spec)
        if known.state != "opening":  # the store may not have it yet, and `open` goes on to tell
            await self.tell_store(known)
        return known

    async def _record(self, known: Campaign, state: str, spec: CampaignSpec) -> Campaign:
        first, text = self._first(known.campaign), msgspec.json.encode(spec).decode()
        loosest = looser(known.loosest, spec)
        values = (first, known.campaign, known.version, state, text, msgspec.json.encode(loosest).decode())
        version = await ask(lambda: self._ledger.fetchval(query("change_campaign"), *values))
        if version is None:
            raise _changed(known.campaign)
        return Campaign(known.campaign, state, version, known.epoch, spec, loosest)

    async def tell_store(self, known: Campaign) -> None:
        """The store has state and definition as the ledger. Raises CampaignLost."""
        for slot, keys in enumerate(self.keys(known)):
            code = await self._scripts.change(keys, known.epoch, known.version, meta_of(known.spec, known.state, slot))
            if code is ChangeCode.FENCED:
                raise CampaignLost(f"the store does not hold campaign {known.campaign} as it should")

    async def admit_fresh(self) -> bool:
        """A store that nobody judged is admitted if no campaign ever was in it: then it cannot have lost one.

        Returns whether it is admitted now. Raises: StoreUnavailable, LedgerUnavailable.
        """
        seen = await look(self._store)
        if not seen.admitted:
            rows = await ask(lambda: self._ledger.fetch(query("list_campaigns")))
            if any(row["state"] not in ("draft", "opening") for row in rows):
                return False
            await admit(self._store, await self.deployment(), seen.run_id)
        return True

    async def deployment(self) -> str:
        """The id of this ledger's deployment. Raises ConfigInvalid if it has another number of shards than we."""
        if self._deployment_id is None:
            self._deployment_id = await claim_deployment(self._ledger, self.shards)
        return self._deployment_id

    def _first(self, campaign: str) -> int:
        return home_shards(campaign, 1, self.shards)[0]

    def home(self, known: Campaign) -> list[int]:
        """The campaign's shards, by slot."""
        return home_shards(known.campaign, known.spec.spread, self.shards)

    def keys(self, known: Campaign) -> list[SaleKeys]:
        """Its keys, by slot."""
        return [sale_keys(shard, known.campaign) for shard in self.home(known)]


def loosest_of(spec: CampaignSpec) -> Loosest:
    """The limits of a campaign that had no others yet."""
    return Loosest(**msgspec.structs.asdict(spec.limits), channel_shares=spec.channel_shares or None)


def looser(one: Loosest, spec: CampaignSpec) -> Loosest:
    """Each limit as the looser of the two has it."""
    found = {}
    for name in Limits.__struct_fields__:
        pair = getattr(one, name), getattr(spec.limits, name)
        found[name] = None if None in pair else max(pair)
    shares, now = one.channel_shares, spec.channel_shares
    if shares is not None:
        shares = {channel: max(units, now[channel]) for channel, units in shares.items() if channel in now}
    return Loosest(**found, channel_shares=shares)


def shares_here(shares: Mapping[str, int], slot: int, spread: int) -> dict[str, int]:
    """The parts of channels' shares that the shard of slot 0 to spread - 1 has: all parts add up to the share."""
    return {channel: portion(units, slot, spread) for channel, units in shares.items()}


def _changed(campaign: str) -> Refused:
    return Refused(f"campaign {campaign} was changed by somebody else meanwhile: look, and try again")


def _refusal(known: Campaign) -> Fault:
    """Why its state allows no such change. While it is rebuilt that is no answer for good: an earlier call under the
    same id may be under way, and is to be repeated until it has its outcome."""
    words = f"campaign {known.campaign} is {known.state}"
    return Recovering(words) if known.state == "recovering" else Refused(words)


def _as_move(row: asyncpg.Record) -> Move:
    return Move(row["shard"], row["move_id"], row["sku"], row["units"])


def meta_of(spec: CampaignSpec, state: str, slot: int) -> dict[str, str | int]:
    """The fields of the store's meta that a definition and a state make on the shard of a slot. Times in ms."""
    limits = spec.limits
    # Once set, never unset: what is counted stays counted, so a limit that comes back finds its counters complete.
    counted = {f"count_{kind}": 1 for kind in ("buyer_sku", "ip", "device") if getattr(limits, kind) is not None}
    if spec.channel_shares:
        counted["count_channel"] = 1
    # Left out, it costs the other order types nothing.
    at_payment = {"at_payment": 1} if spec.order_type == "reserve_at_payment" else {}
    return {
        **counted,
        **at_payment,
        "state": state,
        "opens_ms": int(spec.opens_at.timestamp() * 1000),
        "closes_ms": int(spec.closes_at.timestamp() * 1000),
        "pay_within_ms": spec.pay_within_s * 1000,
        "limit_buyer": limits.buyer or "",
        "limit_buyer_sku": limits.buyer_sku or "",
        "limit_ip": limits.ip or "",
        "limit_device": limits.device or "",
        "shares": msgspec.json.encode(shares_here(spec.channel_shares, slot, spec.spread)).decode(),
        "config": msgspec.json.encode(spec).decode(),
    }
