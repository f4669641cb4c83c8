"""What `rushgate doctor` asks the ledger: how it is set, what was found and mended, what waits, who works."""

from collections import Counter
from datetime import UTC, datetime

import asyncpg

from core.errors import ConfigInvalid, SchemaMismatch
from core.ledger.migrate import require_current
from core.ledger.queries import query
from core.settings import Settings
from ops.campaign_commands import remedy
from ops.desk import Place, connect_ledger
from ops.doctor_check import Check, workers_check
from ops.outbox_watch import look
from workers.alerts import LOST
from workers.ledger import GROUP
from workers.process import KINDS

ALERTS = 20  # told at most
REBUILDS = 10  # likewise
LATELY_S = 86_400.0


async def ledger_checks(place: Place) -> list[Check]:
    """All that the ledger knows; one that it cannot be asked, if so."""
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
        return checks + [workers_check(place, kind, found[kind]) for kind in KINDS if kind != GROUP]
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
