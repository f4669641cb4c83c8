"""`rushgate doctor`: looks at everything that a promise rests on, and says in plain words what is wrong."""

import asyncio
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import asyncpg
import msgspec
from redis.exceptions import RedisError

from core.errors import ConfigInvalid, Fault, SchemaMismatch
from core.ledger.migrate import require_current
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from ops.desk import command_settings, connect_ledger

Verdict = Literal["ok", "warning", "wrong"]

PROBES = 200  # fsyncs, and round trips
SLOW_FSYNC_MS = 5.0
PACKAGES = ("asyncpg", "hiredis", "httptools", "msgspec", "redis", "starlette", "uvicorn", "uvloop")


class Check(msgspec.Struct, frozen=True):
    """One thing looked at: what, how it is, and in words."""

    name: str
    verdict: Verdict
    words: str


async def doctor(environ: Mapping[str, str], as_json: bool) -> int:
    """Exit status 0 if nothing is wrong; warnings do not count."""
    checks = [_versions()]
    try:
        settings = command_settings(environ)
    except ConfigInvalid as exc:
        checks.append(Check("settings", "wrong", exc.detail))
    else:
        checks += _settings(settings)
        checks += await _store(settings)
        checks.append(await _ledger(settings))
        checks.append(await asyncio.to_thread(_disk, settings))
    if as_json:
        print(msgspec.json.encode(checks).decode())
    else:
        for check in checks:
            print(f"{check.verdict:8} {check.name:12} {check.words}")
        wrong = sum(c.verdict == "wrong" for c in checks)
        print(f"{wrong} wrong, {sum(c.verdict == 'warning' for c in checks)} to look at, {len(checks)} checked")
    return 1 if any(c.verdict == "wrong" for c in checks) else 0


def _versions() -> Check:
    found = " ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return Check("versions", "ok", f"Python {sys.version.split()[0]}, {found}, {os.cpu_count()} cores")


def _settings(settings: Settings) -> list[Check]:
    checks = []
    if not settings.admin_token:
        checks.append(Check("settings", "warning", "RUSHGATE_ADMIN_TOKEN is empty: all admin calls are refused"))
    if not settings.channel_keys:
        checks.append(Check("settings", "warning", "RUSHGATE_CHANNEL_KEYS is empty: no channel can send orders"))
    if settings.durability == "memory":
        words = "RUSHGATE_DURABILITY is memory: a crash of the store loses orders that were answered 202"
        checks.append(Check("settings", "warning", words))
    return checks or [Check("settings", "ok", f"{settings.shards} shards, durability {settings.durability}")]


async def _store(settings: Settings) -> list[Check]:
    store = SharedConnection(settings.store_url, settings.durability, settings.store_timeout_s, "doctor")
    try:
        return await _ask_store(settings, store)
    except Fault as exc:
        return [Check("store", "wrong", exc.detail)]
    finally:
        await store.close()


async def _ask_store(settings: Settings, store: StoreConnection) -> list[Check]:
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
    if settings.durability == "fsync" and median_ms > SLOW_FSYNC_MS:
        words = (
            f"slow disk: {median_ms:.0f} ms per fsync; expect some {128_000 / median_ms:,.0f} orders/s at 128 in flight"
        )
        checks.append(Check("store fsync", "warning", words))
    most, used = int(facts.get("maxmemory", "0")), int(facts["used_memory"])
    if most and used > 0.8 * most:
        checks.append(Check("store memory", "warning", f"{used:,} of {most:,} bytes are used"))
    if facts.get("aof_last_write_status", "ok") != "ok":
        checks.append(Check("store disk", "wrong", "its last write to the append-only file failed: is the disk full?"))
    return checks


async def _ledger(settings: Settings) -> Check:
    try:
        connection = await connect_ledger(settings)
    except ConfigInvalid as exc:
        return Check("ledger", "wrong", exc.detail)
    try:
        version = await connection.fetchval("SHOW server_version")
        fsync = await connection.fetchval("SHOW fsync")
        commit = await connection.fetchval("SHOW synchronous_commit")
        await require_current(connection)
    except SchemaMismatch as exc:
        return Check("ledger", "wrong", exc.detail)
    except (asyncpg.PostgresError, OSError, TimeoutError) as exc:
        return Check("ledger", "wrong", f"it answers {exc}")
    finally:
        connection.terminate()
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
