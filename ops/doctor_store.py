"""What `rushgate doctor` asks the store: how it is set, how fast it writes, what waits, who works and who may call."""

import statistics
import time

from redis.exceptions import RedisError

from core.errors import Fault
from core.settings import Settings
from gateway.pressure import Load, Marks, memory_share
from lua.access import published
from lua.connection import Command, SharedConnection, StoreConnection
from lua.durability import Level
from lua.keys import intake_key
from lua.life import look as look_at_life
from lua.registry import read_signs
from lua.scripts import Scripts
from ops.desk import Place
from ops.doctor_check import Check, workers_check
from workers.ledger import GROUP

PROBES = 200  # round trips
SLOW_FSYNC_MS = 5.0
SILENT_MS = 2_000  # longer than a living worker's wait for entries takes; it claims twice in claim_idle_ms besides
SHUT_S = 10  # the recovery admits a store long before
NAMED = 8  # channels


async def store_checks(place: Place) -> list[Check]:
    """All that the store knows; one that it cannot be asked, if so."""
    settings = place.settings
    store = SharedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, "doctor")
    try:
        return [
            *await _ask_store(settings, store),
            await _backlog(settings, store),
            await _callers(settings, store),
            *await _gateways(place, store),
            workers_check(place, GROUP, await _consumers(settings, store)),
        ]
    except Fault as exc:
        return [Check("store", "wrong", exc.detail)]
    finally:
        await store.close()


async def _callers(settings: Settings, store: SharedConnection) -> Check:
    """Whether anybody has a key to send orders with."""
    copy = await published(store)
    [now] = await store.exchange([("TIME",)])
    now_ms = 0 if isinstance(now, RedisError) else int(now[0]) * 1000
    active = {channel.channel for channel in copy.channels if channel.active} if copy else set()
    keys = copy.keys if copy else []
    known = {key.channel for key in keys if key.channel in active and not 0 < key.expires_ms <= now_ms}
    known |= {name.partition(".")[0] for name in settings.channel_keys}
    if not known:
        return Check("channels", "warning", "none has a key, so nobody can send orders: `rushgate channel add NAME`")
    return Check("channels", "ok", f"{len(known)} with a key: {', '.join(sorted(known)[:NAMED])}")


async def _gateways(place: Place, store: SharedConnection) -> list[Check]:
    """Whether gateways give signs of life. A stack's own is asked itself."""
    if place.folder is not None:
        return []
    signs, _ = await read_signs(store.exchange)
    found = sum(sign.kind == "gateway" for sign in signs)
    if found:
        return [Check("gateway", "ok", f"{found} at work")]
    return [Check("gateway", "warning", "none is at work: `rushgate gateway`")]


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
    """Ledger workers that asked the intake for work just now, or gave a sign of life: to Redis before 7.2 a worker that
    asks in vain is idle."""
    asks: list[Command] = [("XINFO", "CONSUMERS", intake_key(shard), GROUP) for shard in range(settings.shards)]
    living = set()
    for reply in await store.exchange(asks):
        for consumer in [] if isinstance(reply, RedisError) else reply:  # an error: no worker has ever been there
            facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
            if facts[b"idle"] < settings.claim_idle_ms + SILENT_MS:
                living.add(facts[b"name"])
    signs, _ = await read_signs(store.exchange)
    return max(len(living), sum(sign.kind == GROUP for sign in signs))


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
