"""What `rushgate tune` finds out about a running deployment: signs of life, the store's figures, and the machine."""

import asyncio
import contextlib
import os
import socket
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec
from redis.exceptions import RedisError

from core.settings import Settings
from lua.connection import StoreConnection
from lua.registry import EVERY_S, Sign, machine_s, read_signs
from ops.tune_model import KINDS, Assumptions

OVER_S = 6.0  # so long it looks, if nobody says otherwise
LEAST_RATE = 20.0  # orders or messages a second; what is measured at less tells nothing
LEAST_BUSY = 0.02  # likewise
LITTLE_BUSY = 0.3  # measured below it, a rate is a lower bound: batches grow under load


class Snapshot(NamedTuple):
    """One look."""

    at_ms: int  # store's clock
    signs: dict[str, Sign]
    store_cpu_s: float
    ledger_cpu_s: float  # 0 = its server is not on this machine
    machine: tuple[float, float]


class Live(NamedTuple):
    """The rates of one kind of process, between the first look and the last."""

    n: int
    rate: float  # of all together
    busy: float  # of each, in the mean
    cpu: float  # cores that all of them use


class Measured(NamedTuple):
    """What was found. `notes`: what could not be measured, or only badly, as sentences."""

    assumptions: Assumptions
    origins: dict[str, str]
    live: dict[str, Live]
    notes: list[str]
    arrivals: float  # orders accepted a second
    lag_orders: int  # of the intake
    lag_s: float


async def watch(store: StoreConnection, settings: Settings, over_s: float = OVER_S) -> list[Snapshot]:
    """Looks, one a second, two at least. Raises StoreUnavailable."""
    looks: list[Snapshot] = []
    postmaster = await _postmaster(settings)
    until_s = asyncio.get_running_loop().time() + over_s
    while True:
        looks.append(await _look(store, postmaster))
        if asyncio.get_running_loop().time() >= until_s and len(looks) > 1:
            return looks
        await asyncio.sleep(EVERY_S)


async def _look(store: StoreConnection, postmaster: int) -> Snapshot:
    signs, now_ms = await read_signs(store.exchange)
    [info] = await store.exchange([("INFO", "cpu")])
    cpu_s = 0.0
    if not isinstance(info, RedisError):
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        names = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
        cpu_s = sum(float(facts.get(name, 0)) for name in names)
    return Snapshot(now_ms, {s.id: s for s in signs}, cpu_s, family_cpu_s(postmaster), machine_s())


def live(looks: Sequence[Snapshot], kind: str) -> Live:
    """The processes of this kind that were there all the time."""
    first, last = looks[0].signs, looks[-1].signs
    ids = [i for i, sign in last.items() if sign.kind == kind and i in first]
    rate = busy = cpu = 0.0
    for i in ids:
        took_s = (last[i].seen_at - first[i].seen_at) / 1000
        if took_s > 0:
            rate += (last[i].more.get("done", 0.0) - first[i].more.get("done", 0.0)) / took_s
        seen = [look.signs[i] for look in looks if i in look.signs]
        busy += statistics.fmean(s.busy for s in seen)
        cpu += statistics.fmean(s.more.get("cpu", 0.0) for s in seen)
    n = sum(sign.kind == kind for sign in last.values())
    return Live(n, max(0.0, rate), busy / len(ids) if ids else 0.0, cpu)


def assumptions_of(looks: Sequence[Snapshot], settings: Settings) -> Measured:
    """What the looks tell; what they do not tell keeps its default."""
    found = Assumptions()
    origins: dict[str, str] = {}
    notes: list[str] = []
    each = {kind: live(looks, kind) for kind in KINDS}

    def note(table: str, **values: float) -> None:
        struct = getattr(found, table)
        setattr(found, table, msgspec.structs.replace(struct, **values))
        origins.update({f"{table}.{name}": "measured" for name in values})

    last = looks[-1].signs.values()
    accepted = _mean_fact(looks, "gateway", "accepted_per_s")
    asked = each["gateway"].rate
    for kind, one in each.items():
        note(kind, now=one.n)
        if one.rate < LEAST_RATE or one.busy < LEAST_BUSY:
            why = "none lives" if not one.n else f"it does {one.rate:,.0f} a second"
            notes.append(f"{kind}: too little to measure ({why}): assumed")
            continue
        stage = found.stage(kind)
        together = one.rate / one.busy
        note(kind, per_second=round(together / (1 + (one.n - 1) * stage.efficiency), 1))
        if one.cpu:
            note(kind, cpu_us=round(one.cpu / one.rate * 1e6, 2))
        if one.busy < LITTLE_BUSY:
            notes.append(f"{kind}: measured while {one.busy:.0%} busy: a lower bound, as batches grow under load")
    if accepted >= LEAST_RATE:
        note("orders", requests_per_order=round(max(1.0, asked / accepted), 2))
    drained = each["ledger"].rate
    took_s = (looks[-1].at_ms - looks[0].at_ms) / 1000
    orders = max(accepted, drained)
    if orders >= LEAST_RATE and looks[-1].store_cpu_s:
        note("store", cpu_us=round((looks[-1].store_cpu_s - looks[0].store_cpu_s) / took_s / orders * 1e6, 2))
    if drained >= LEAST_RATE and looks[-1].ledger_cpu_s:
        note("database", cpu_us=round((looks[-1].ledger_cpu_s - looks[0].ledger_cpu_s) / took_s / drained * 1e6, 2))
    if not settings.partners_url:
        note("orders", messages_per_order=1.0)  # of a held order: it ends settled or released
    _note_partners(found, origins, looks[-1].signs.values())
    cores = _shared_cores(settings, list(last), bool(looks[-1].ledger_cpu_s))
    if cores:
        note("machine", cores=cores, others=_others(looks, each, took_s))
    else:
        notes.append("processes, store and ledger are not all on this machine: cores are no bound here")
    lag = max(last, key=lambda s: s.seen_at if s.kind == "ledger" else -1, default=None)
    at_intake = lag is not None and lag.kind == "ledger"
    return Measured(found, origins, each, notes, accepted, lag.lag_orders if lag and at_intake else 0,
                    lag.lag_s if lag and at_intake else 0.0)  # fmt: skip


def _mean_fact(looks: Sequence[Snapshot], kind: str, name: str) -> float:
    """Of all processes of the kind together, in the mean of the looks."""
    return statistics.fmean(sum(s.more.get(name, 0.0) for s in k.signs.values() if s.kind == kind) for k in looks)


def _note_partners(found: Assumptions, origins: dict[str, str], signs: Iterable[Sign]) -> None:
    """How long the busiest partner takes, and its share, from what the relays tell."""
    sent: dict[str, float] = {}
    sending: dict[str, float] = {}
    for sign in signs:
        if sign.kind != "relay":
            continue
        for name, value in sign.more.items():
            if name.endswith("_sent_per_s"):
                partner = name.removesuffix("_sent_per_s")
                sent[partner] = sent.get(partner, 0.0) + value
                sending[partner] = sending.get(partner, 0.0) + sign.more.get(f"{partner}_sending_s_per_s", 0.0)
    total = sum(sent.values())
    if total < LEAST_RATE:
        return
    busiest = max(sending, key=lambda p: sending[p])
    found.partners.answer_ms = round(sending[busiest] / sent[busiest] * 1000, 2) if sent[busiest] else 0.0
    found.partners.busiest_share = round(max(0.01, sent[busiest] / total), 3)
    origins |= {"partners.answer_ms": "measured", "partners.busiest_share": "measured"}


def _shared_cores(settings: Settings, signs: Sequence[Sign], ledger_here: bool) -> int:
    """The cores of this machine, if all processes, the store and the ledger are on it; else 0."""
    here = all(sign.host == socket.gethostname()[:64] for sign in signs)
    host = urlsplit(settings.store_url).hostname or ""
    return (os.cpu_count() or 0) if here and ledger_here and host in ("", "localhost", "127.0.0.1", "::1") else 0


def _others(looks: Sequence[Snapshot], each: dict[str, Live], took_s: float) -> float:
    """Cores that are busy with what is none of ours."""
    used = looks[-1].machine[0] - looks[0].machine[0]
    ours = sum(one.cpu for one in each.values()) * took_s
    ours += looks[-1].store_cpu_s - looks[0].store_cpu_s + looks[-1].ledger_cpu_s - looks[0].ledger_cpu_s
    return round(max(0.0, used - ours) / took_s, 2)


async def _postmaster(settings: Settings) -> int:
    """Process id of the ledger's server if it is on this machine, else 0."""
    parts = urlsplit(settings.ledger_dsn)
    host = parts.hostname or next(iter(parse_qs(parts.query).get("host", [""])), "")
    if not (host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1")):
        return 0
    with contextlib.suppress(OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection = await asyncpg.connect(settings.ledger_dsn, timeout=settings.ledger_timeout_s)
        try:
            return _parent_of(await connection.fetchval("SELECT pg_backend_pid()"))
        finally:
            await connection.close()
    return 0


def _parent_of(backend: int) -> int:
    """The postmaster of a backend that runs here, else 0. Raises OSError if no such process does."""
    process = Path(f"/proc/{backend}")
    if not (process / "comm").read_text().startswith("postgres"):
        return 0
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def family_cpu_s(pid: int) -> float:
    """CPU seconds so far of a process and of its children, the ended ones included; 0.0 if there is none."""
    if not pid:
        return 0.0
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    used = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if stat.parent.name == str(pid):
                used += sum(int(fields[n]) for n in (11, 12, 13, 14)) * tick_s
            elif int(fields[1]) == pid:
                used += (int(fields[11]) + int(fields[12])) * tick_s
    return used
