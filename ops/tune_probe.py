"""`rushgate tune --probe`: what one process more of a kind really brings. It is added, measured, and removed again.

Only a process that always has work shows what it can do, so there must be a backlog, or load, until the end. Of a local
stack `--probe-load` makes a bounded one on a scratch campaign of its own; orders of no other campaign are touched.
"""

import asyncio
import contextlib
import secrets
import statistics
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import Fault, Invalid, StoreUnavailable
from core.ids import IdSource
from core.model import CampaignSpec, Item, OrderRequest, SkuSpec
from core.settings import Settings
from gateway.catalogue import Sale
from gateway.prepare import prepare
from gateway.pressure import memory_share
from lua.connection import StoreConnection
from lua.durability import Level
from lua.registry import Sign, read_signs
from lua.reserve import pack
from lua.scripts import Scripts
from lua.source import LuaSource
from ops.control import MOST, Request, call
from ops.desk import Desk, open_desk
from ops.workers_command import at_work, pids

LOOK_S = 0.5
WINDOW_S = 2.0  # two of them that agree are a steady rate
AGREE = 0.1  # by so much they may differ
LONGEST_S = 20.0  # of one measurement
SATURATED = {"gateway": 0.5, "ledger": 0.7, "relay": 0.7, "expiry": 0.7}  # busy at least, or the rate tells nothing
WITH_MORE = 0.7  # of that, with one more: if it is enough for what comes, that is its gain
LOAD_ORDERS = 600_000  # of a scratch campaign, at most; some 250 bytes of the store each until they expire
LOAD_MEMORY = 0.5  # of the store's maxmemory: no more orders beyond it
LOAD_AHEAD = 100_000  # of them in the intake at a time
LOAD_FIRST = 0.25  # of them at most are made before the measurement begins, where the drain is as fast as we
LOAD_CALL = 64  # orders in one call of reserve, as a busy gateway makes them
LOAD_CALLS = 8  # in one exchange
PAY_WITHIN_S = 60  # then the expiry worker ends them


class NotMeasured(Fault):
    """The probe could not measure, and why."""

    code = "not_measured"


class Steady(NamedTuple):
    """Processes of one kind at work."""

    rate: float  # of all together
    busy: float  # of each, in the mean
    machine_busy: float
    agreed: bool  # two windows gave the same rate


class Gain(NamedTuple):
    """What one more brought."""

    kind: str
    n: int  # before
    before: Steady
    after: Steady

    @property
    def share(self) -> float:
        """Of what there was."""
        return (self.after.rate - self.before.rate) / self.before.rate

    @property
    def efficiency(self) -> float:
        """What it added, as a share of what one of n did: 0 to 1."""
        return min(1.0, max(0.0, self.share * self.n))


async def probe(store: StoreConnection, folder: Path, settings: Settings, kind: str) -> Gain:
    """What one process of `kind` more brings now. Afterwards as many run as before.

    Raises: NotMeasured; ConfigInvalid, no stack runs in `folder`; NotScaled; StoreUnavailable.
    """
    running = pids(await call(folder, Request("children")), kind)
    n = len(running)
    if not n or n >= MOST:
        raise NotMeasured(f"{n} {kind} processes run: there must be 1 to {MOST - 1}")
    before = await steady(store, kind, running, SATURATED[kind])
    try:
        children = await call(folder, Request("scale", {kind: n + 1}), settings.grace_s)
        more = pids(children, kind)
        await at_work(store, kind, more)
        after = await steady(store, kind, more, SATURATED[kind] * WITH_MORE)
    finally:
        await asyncio.shield(call(folder, Request("scale", {kind: n}), settings.grace_s))
    return Gain(kind, n, before, after)


async def steady(store: StoreConnection, kind: str, wanted: Sequence[int], least: float) -> Steady:
    """The rate of these processes, once two windows agree, or after LONGEST_S.

    Raises: NotMeasured, they are less busy than `least`; StoreUnavailable.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    looks: list[tuple[float, dict[str, Sign]]] = []
    rates: list[float] = []
    window = int(WINDOW_S / LOOK_S)
    while True:
        signs, now_ms = await read_signs(store.exchange)
        mine = {s.id: s for s in signs if s.kind == kind and s.pid in wanted}
        looks.append((now_ms / 1000, mine))
        if len(looks) > window:
            rates.append(_rate(looks[-1 - window][1], mine))
            _must_be_saturated(kind, mine, least)
        agreed = len(rates) > window and _alike(rates[-1], rates[-1 - window])
        late = loop.time() - began_s > LONGEST_S
        if agreed or late:
            busy = statistics.fmean(s.busy for s in mine.values()) if mine else 0.0
            machine = max((s.more.get("machine_busy", 0.0) for s in mine.values()), default=0.0)
            return Steady(_rate(looks[-1 - 2 * window][1], mine) if len(looks) > 2 * window else rates[-1], busy,
                          machine, agreed)  # fmt: skip
        await asyncio.sleep(LOOK_S)


def _rate(first: dict[str, Sign], last: dict[str, Sign]) -> float:
    """Of the processes that are in both, between the times that they tell."""
    total = 0.0
    for i, sign in last.items():
        took_s = (sign.seen_at - first[i].seen_at) / 1000 if i in first else 0.0
        if took_s > 0:
            total += (sign.more.get("done", 0.0) - first[i].more.get("done", 0.0)) / took_s
    return total


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= AGREE * max(a, b, 1.0)


def _must_be_saturated(kind: str, signs: dict[str, Sign], least: float) -> None:
    busy = statistics.fmean(s.busy for s in signs.values()) if signs else 0.0
    if busy < least:
        raise NotMeasured(
            f"the {kind} processes are {busy:.0%} busy: without a backlog, or more load, one more shows nothing. Probe "
            "during a rush, or with --probe-load"
        )


@contextlib.asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[None]:
    """While inside, the intake has a backlog of a scratch campaign, LOAD_ORDERS at most; then it is closed.

    Raises: Invalid, partners would hear of its orders; Fault.
    """
    if settings.partners_url:
        raise Invalid("the partners of this stack would be asked to be paid for its orders", "--probe-load")
    async with open_desk(settings) as desk:
        name = f"tune-probe-{secrets.token_hex(4)}"
        sale = await _open(desk, name, settings.shards)
        store = StoreConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, "tune-load")
        begun = asyncio.Event()
        task = asyncio.create_task(_feed(store, Scripts(desk.store), sale, begun, settings.intake_high_orders // 4))
        try:
            await begun.wait()
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Fault):
                await task
            await store.close()
            await desk.campaigns.close(name)


async def _open(desk: Desk, name: str, shards: int) -> Sale:
    now = datetime.now(UTC)
    spec = CampaignSpec(
        opens_at=now - timedelta(minutes=1), closes_at=now + timedelta(minutes=10),
        currency="XXX",  # ISO 4217: no currency
        pay_within_s=PAY_WITHIN_S, skus=[SkuSpec("probe", "Scratch units of rushgate tune", LOAD_ORDERS, 1)],
    )  # fmt: skip
    await desk.campaigns.put(name, spec)
    campaign = await desk.campaigns.open(name)
    return Sale(name, await desk.campaigns.epoch(name), campaign.version, spec, shards)


async def _feed(store: StoreConnection, scripts: Scripts, sale: Sale, begun: asyncio.Event, most: int) -> None:
    """Orders go in until LOAD_ORDERS have, with some LOAD_AHEAD of them waiting. Sets `begun` when they do."""
    ids = IdSource()
    made = 0
    size = LOAD_CALL * LOAD_CALLS
    try:
        while made + size <= LOAD_ORDERS:
            [waits] = (await scripts.backlog(sale.shards)).values()
            if made % LOAD_AHEAD < size:
                [info] = await store.exchange([("INFO", "memory")])
                if not isinstance(info, RedisError) and memory_share(info) > LOAD_MEMORY:
                    return
            if waits.orders > min(LOAD_AHEAD, most):
                begun.set()
                await asyncio.sleep(0.01)
                continue
            if made > LOAD_FIRST * LOAD_ORDERS:
                begun.set()
            calls = []
            for first in range(made, made + size, LOAD_CALL):
                asks = [prepare(ids, sale, "tune", f"{sale.campaign}-{n}", _order(sale, n))[1]
                        for n in range(first, first + LOAD_CALL)]  # fmt: skip
                calls.append(pack(sale.keys[0], sale.campaign, sale.epoch, asks))
            for reply in await store.run(LuaSource.read("reserve"), calls):
                if isinstance(reply, RedisError):
                    raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
            made += size
            await asyncio.sleep(0)
    finally:
        begun.set()


def _order(sale: Sale, n: int) -> OrderRequest:
    return OrderRequest(buyer_id=f"{sale.campaign}-{n}", items=[Item("probe", 1)])
