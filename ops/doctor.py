"""`rushgate doctor`: looks at everything that a promise rests on, and says in plain words what is wrong."""

import asyncio
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import asyncpg
import msgspec
from redis.exceptions import RedisError

from core.errors import ConfigInvalid, Fault, SchemaMismatch
from core.ledger.migrate import require_current
from core.ledger.queries import query
from core.settings import Settings
from gateway.pressure import Load, Marks, memory_share
from lua.connection import Command, SharedConnection, StoreConnection
from lua.durability import Level
from lua.keys import intake_key
from lua.life import look as look_at_life
from lua.scripts import Scripts
from ops.campaign_commands import remedy
from ops.desk import Place, command_place, connect_ledger
from ops.outbox_watch import look
from ops.stack import readyz
from workers.alerts import LOST
from workers.ledger import GROUP
from workers.process import KINDS

Verdict = Literal["ok", "warning", "wrong"]

PROBES = 200  # fsyncs, and round trips
SLOW_FSYNC_MS = 5.0
ALERTS = 20  # told at most
REBUILDS = 10  # likewise
LATELY_S = 86_400.0
SILENT_MS = 2_000  # longer than a living worker's wait for entries takes; it claims twice in claim_idle_ms besides
SHUT_S = 10  # the recovery admits a store long before
PACKAGES = ("asyncpg", "hiredis", "httptools", "msgspec", "redis", "starlette", "uvicorn", "uvloop")


class Check(msgspec.Struct, frozen=True):
    """One thing looked at: what, how it is, and in words."""

    name: str
    verdict: Verdict
    words: str


async def doctor(environ: Mapping[str, str], data_dir: str | None, as_json: bool) -> int:
    """Exit status 0 if nothing is wrong; warnings do not count."""
    checks = [_versions()]
    try:
        place = command_place(environ, data_dir)
    except ConfigInvalid as exc:
        checks.append(Check("settings", "wrong", exc.detail))
    else:
        settings = place.settings
        checks += _settings(settings)
        checks += await _gateway(place)
        checks += await _store(place)
        checks += await _ledger(place)
        checks.append(await asyncio.to_thread(_disk, settings))
    if as_json:
        print(msgspec.json.encode(checks).decode())
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.verdict:8} {check.name:{width}} {check.words}")
        wrong = sum(c.verdict == "wrong" for c in checks)
        print(f"{wrong} wrong, {sum(c.verdict == 'warning' for c in checks)} to look at, {len(checks)} checked")
    return 1 if any(c.verdict == "wrong" for c in checks) else 0


def _versions() -> Check:
    found = " ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return Check("versions", "ok", f"Python {sys.version.split()[0]}, {found}, {os.cpu_count()} cores")


def missing_keys(settings: Settings) -> list[str]:
    """What cannot be called for want of a secret, as sentences."""
    found = []
    if not settings.admin_token:
        found.append("RUSHGATE_ADMIN_TOKEN is empty: all admin calls are refused")
    if not settings.channel_keys:
        found.append("RUSHGATE_CHANNEL_KEYS is empty: no channel can send orders")
    return found


def _settings(settings: Settings) -> list[Check]:
    checks = [Check("settings", "warning", words) for words in missing_keys(settings)]
    if settings.durability == "memory":
        words = "RUSHGATE_DURABILITY is memory: a crash of the store loses orders that were answered 202"
        checks.append(Check("settings", "warning", words))
    return checks or [Check("settings", "ok", f"{settings.shards} shards, durability {settings.durability}")]


async def _gateway(place: Place) -> list[Check]:
    """Whether the stack that the settings are of is alive; a gateway elsewhere is not known here."""
    if place.folder is None:
        return []
    if place.is_dead:
        return [Check("stack", "wrong", place.obituary())]
    status, said = await asyncio.to_thread(readyz, place.gateway)
    if status != 200:
        return [Check("gateway", "wrong", f"{place.gateway}/readyz answers {status or 'nothing'}: {said}")]
    return [Check("gateway", "ok", f"{place.gateway} takes orders")]


def _workers(place: Place, kind: str, count: int) -> Check:
    name = f"{kind} worker"
    if count:
        return Check(name, "ok", f"{count} at work")
    if kind == "reconcile" and place.settings.reconcile_workers == 0:
        return Check(name, "warning", "RUSHGATE_RECONCILE_WORKERS is 0: nothing is audited or mended by itself")
    # A stack has workers of every kind; elsewhere they may not have been started yet.
    return Check(name, "warning" if place.folder is None else "wrong", f"none is at work: `rushgate worker {kind}`")


async def _store(place: Place) -> list[Check]:
    settings = place.settings
    store = SharedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, "doctor")
    try:
        return [
            *await _ask_store(settings, store),
            await _backlog(settings, store),
            _workers(place, GROUP, await _consumers(settings, store)),
        ]
    except Fault as exc:
        return [Check("store", "wrong", exc.detail)]
    finally:
        await store.close()


async def _backlog(settings: Settings, store: SharedConnection) -> Check:
    """What waits for the ledger, against the marks beyond which gateways refuse orders. All shards: a gateway looks at
    those that it sells on."""
    [info] = await store.exchange([("INFO", "memory")])
    memory = 0.0 if isinstance(info, RedisError) else memory_share(info)
    load = Load(time.monotonic(), await Scripts(store).backlog(range(settings.shards)), memory)
    marks = Marks.of(settings)
    if passed := marks.passed(load, refusing=False):
        words = f"new orders are refused with 503 `overloaded`: {'; '.join(passed)}; do enough ledger workers work?"
        return Check("intake", "wrong", words)
    if passed := marks.passed(load, refusing=True):
        words = f"gateways that have begun to refuse orders go on until it is less: {'; '.join(passed)}"
        return Check("intake", "warning", words)
    waits = f"{load.orders:,} orders wait for the ledger, the oldest since {load.age_s:.0f} s"
    return Check("intake", "ok", f"{waits if load.orders else 'no order waits for the ledger'}; no mark is near")


async def _consumers(settings: Settings, store: StoreConnection) -> int:
    """Ledger workers that asked the intake for work just now."""
    asks: list[Command] = [("XINFO", "CONSUMERS", intake_key(shard), GROUP) for shard in range(settings.shards)]
    living = set()
    for reply in await store.exchange(asks):
        for consumer in [] if isinstance(reply, RedisError) else reply:  # an error: no worker has ever been there
            facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
            if facts[b"idle"] < settings.claim_idle_ms + SILENT_MS:
                living.add(facts[b"name"])
    return len(living)


async def _ask_store(settings: Settings, store: SharedConnection) -> list[Check]:
    [info] = await store.exchange([("INFO",)])
    if isinstance(info, RedisError):
        return [Check("store", "wrong", f"INFO is refused: {info}")]
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    product = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts["redis_version"]
    checks = []
    if product == "Redis" and int(version.split(".")[0]) < 7:
        checks.append(Check("store", "wrong", f"Redis {version} is too old: 7.0 or newer, or Valkey, is needed"))
    took_ms = []
    for n in range(PROBES):
        began_s = time.perf_counter()
        [reply] = await store.exchange([("SET", "{doctor}:probe", n, "PX", 60_000)])
        took_ms.append((time.perf_counter() - began_s) * 1000)
        if isinstance(reply, RedisError):
            return [*checks, Check("store", "wrong", f"a write is refused: {reply}")]
    await store.exchange([("DEL", "{doctor}:probe")])
    median_ms = statistics.median(took_ms)
    where = "in memory" if settings.durability == "memory" else "on its disk"
    words = (
        f"{product} {version}, set as durability {settings.durability} needs; a write is {where} in {median_ms:.2f} ms"
    )
    checks.append(Check("store", "ok", words))
    if settings.durability != "memory" and median_ms > SLOW_FSYNC_MS:
        words = (
            f"slow disk: {median_ms:.0f} ms per fsync; expect some {128_000 / median_ms:,.0f} orders/s at 128 in flight"
        )
        checks.append(Check("store fsync", "warning", words))
    most, used = int(facts.get("maxmemory", "0")), int(facts["used_memory"])
    if most and used > 0.8 * most:
        checks.append(Check("store memory", "warning", f"{used:,} of {most:,} bytes are used"))
    life = await look_at_life(store)
    if life.deployment and not life.admitted and int(facts["uptime_in_seconds"]) > SHUT_S:
        words = "started anew and not admitted: no order is taken; a reconcile worker must run, and the alerts say more"
        checks.append(Check("store life", "wrong", words))
    if facts.get("aof_last_write_status", "ok") != "ok":
        checks.append(Check("store disk", "wrong", "its last write to the append-only file failed: is the disk full?"))
    return checks


async def _ledger(place: Place) -> list[Check]:
    try:
        connection = await connect_ledger(place.settings)
    except ConfigInvalid as exc:
        return [Check("ledger", "wrong", exc.detail)]
    try:
        checks = [await _ask_ledger(connection)]
        if checks[0].verdict == "ok":
            checks += await _reconciled(connection, place.settings)
            checks += await _rebuilds(connection)
            checks += await _outbox(connection, place.settings.partners_url)
        # These have no group in the intake; the ledger knows its connections by name.
        rows = await connection.fetch(query("list_processes"))
        found = Counter(str(row[0]).removeprefix("rushgate-").partition("-")[0] for row in rows)
        return checks + [_workers(place, kind, found[kind]) for kind in KINDS if kind != GROUP]
    except (asyncpg.PostgresError, OSError, TimeoutError) as exc:
        return [Check("ledger", "wrong", f"it answers {exc}")]
    finally:
        connection.terminate()


async def _reconciled(connection: asyncpg.Connection, settings: Settings) -> list[Check]:
    """What the reconcile workers have found, and what they have mended lately."""
    checks = []
    for row in await connection.fetch(query("open_alerts"), ALERTS):
        since = _moment(row["first_at"])
        words = f"{row['kind']} in campaign {row['campaign']} since {since}, seen {row['seen']} times: {row['detail']}"
        if row["kind"] == LOST:
            words += f"; {remedy(row['campaign'], settings)}"
        checks.append(Check("alert", "wrong", words))
    rows = await connection.fetch(query("count_repairs"), LATELY_S)
    if rows:
        each = ", ".join(f"{row['repairs']} {row['what']}" for row in rows)
        words = f"orders mended in the last 24 h: {each}; the table `repairs` says why"
        checks.append(Check("repairs", "warning", words))
    return checks or [Check("alerts", "ok", "none stands; no order was mended in the last 24 h")]


async def _rebuilds(connection: asyncpg.Connection) -> list[Check]:
    """What was rebuilt lately, by whomever, and which orders the store had lost by then."""
    checks = []
    for row in await connection.fetch(query("recent_rebuilds"), LATELY_S, REBUILDS):
        began = f"campaign {row['campaign']}, {_moment(row['at'])}, epoch {row['epoch']}: "
        words = "not done: it was set aside or broken off, or is under way"
        if row["done"]:
            gap = f"gap of {row['gap']:,} orders that the store lost, the numbers of {row['missing']}"
            words = f"{row['orders']:,} orders, {gap if row['gap'] else 'no gap'}"
        sound = row["done"] and not row["gap"]
        checks.append(Check("rebuild", "ok" if sound else "warning", f"{began}{words}; why: {row['why']}"))
    return checks or [Check("rebuilds", "ok", "none in the last 24 h")]


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


async def _outbox(connection: asyncpg.Connection, partners_url: str) -> list[Check]:
    """Whether messages come to where they should."""
    found = await look(connection, partners_url)
    checks = [Check(name, "wrong" if wrong else "warning", words) for name, wrong, words in found]
    return checks or [Check("outbox", "ok", "no message is late, none is dead, no order is set aside")]


async def _ask_ledger(connection: asyncpg.Connection) -> Check:
    try:
        version = await connection.fetchval("SHOW server_version")
        fsync = await connection.fetchval("SHOW fsync")
        commit = await connection.fetchval("SHOW synchronous_commit")
        await require_current(connection)
    except SchemaMismatch as exc:
        return Check("ledger", "wrong", exc.detail)
    if fsync != "on" or commit == "off":
        words = f"fsync is {fsync}, synchronous_commit is {commit}: a crash loses orders that have left the store"
        return Check("ledger", "wrong", words)
    return Check("ledger", "ok", f"Postgres {version}, schema current, commits are on its disk")


def _disk(settings: Settings) -> Check:
    """The disk under the data directory: it is the store's and the ledger's when they are embedded."""
    folder = Path(settings.data_dir)
    if not folder.is_dir():
        return Check("disk", "ok", f"no {folder} here: the services keep their data elsewhere")
    took_ms = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(PROBES):
            file.write(b"x" * 512)
            file.flush()
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began_s) * 1000)
    took_ms.sort()
    words = f"{folder}: an fdatasync takes {took_ms[PROBES // 2]:.2f} ms, p99 {took_ms[PROBES * 99 // 100]:.2f} ms"
    return Check("disk", "ok" if took_ms[PROBES // 2] < SLOW_FSYNC_MS else "warning", words)
