"""`rushgate doctor`: looks at everything that a promise rests on, and says in plain words what is wrong."""

import asyncio
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from core.errors import ConfigInvalid
from core.settings import Settings
from ops.desk import Place, command_place
from ops.doctor_check import Check
from ops.doctor_ledger import ledger_checks
from ops.doctor_store import SLOW_FSYNC_MS, store_checks
from ops.stack import readyz

PROBES = 200  # fsyncs
NO_ADMIN = "RUSHGATE_ADMIN_TOKEN is empty: all admin calls are refused"
PACKAGES = ("asyncpg", "hiredis", "httptools", "msgspec", "redis", "starlette", "uvicorn", "uvloop")


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
        checks += await store_checks(place)
        checks += await ledger_checks(place)
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


def _settings(settings: Settings) -> list[Check]:
    checks = [] if settings.admin_token else [Check("settings", "warning", NO_ADMIN)]
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
