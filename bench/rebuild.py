"""The rebuild: a store that lost everything, with one campaign of very many orders, and with many campaigns at once."""

import asyncio
import os
import sys
import time
from typing import Any

from bench.environment import cpu_s, shown, spread
from bench.services import CHANNEL_KEY, Services
from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.recovery import Recovery
from core.ledger.pool import Pool, open_pool
from gateway.catalogue import Sale
from lua.connection import SharedConnection
from lua.durability import Level

ORDERS = 1_000_000
HELD, SOLD = 200_000, 100_000  # of them; the others have expired, and only their keys are kept
CAMPAIGNS, EACH = 20, 1_000
ROUNDS = 3
SLOW_US = 500  # calls of the store from here on are told one by one

_FILL = """
WITH made AS (
    INSERT INTO orders (shard, order_id, campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id,
                        state, version, amount, currency, accepted_at, pay_by)
    SELECT $1::smallint, gen_random_uuid(), $2, 1, n, 'app', 'key-' || n, 'buyer-' || n, '10.0.' || n % 250 || '.1', '',
           CASE WHEN n <= $5 THEN 'accepted' WHEN n <= $6 THEN 'paid' ELSE 'expired' END,
           CASE WHEN n <= $5 THEN 1 ELSE 2 END, 129900, 'CNY', now(), now() + interval '1 day'
    FROM generate_series($3::bigint, $4::bigint) AS n RETURNING shard, order_id, state
), lines AS (
    INSERT INTO order_items (shard, order_id, line, sku, quantity, price)
    SELECT shard, order_id, 1, 'phone-red', 1, 129900 FROM made
), delivered AS (
    INSERT INTO deliveries (shard, order_id, version, topic, waited_ms, worked_ms, attempts, outcome)
    SELECT shard, order_id, 2, CASE state WHEN 'paid' THEN 'settle' ELSE 'release' END, 0, 0, 1,
           CASE state WHEN 'paid' THEN 'settled' ELSE 'released' END
    FROM made WHERE state <> 'accepted'
), begun AS (
    INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor)
    SELECT shard, order_id, 1, now(), 'accept', NULL, 'accepted', 'channel:app' FROM made
)
INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor)
SELECT shard, order_id, 2, now(), CASE state WHEN 'paid' THEN 'pay' ELSE 'expire' END, 'accepted', state, 'system'
FROM made WHERE state <> 'accepted'
"""


async def measure(services: Services, orders: int = ORDERS) -> dict[str, Any]:
    """Seconds, memory, and the longest call of the store. Raises SystemExit if a rebuild does not come to its end."""
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 600.0, 4)
    try:
        many = await _many(services, ledger)
        large = await _large(services, ledger, orders)
    finally:
        ledger.terminate()
    return {"rebuild": {"large": large, "many": many}}


async def _many(services: Services, ledger: Pool) -> dict[str, Any]:
    """From the moment at which the emptied store answers."""
    admitted_s, first_s, last_s = [], [], []
    names = [f"many-{n}" for n in range(CAMPAIGNS)]
    for name in names:
        sale = await services.open_sale(name)
        await _fill(services, ledger, sale, EACH)
    for n in range(ROUNDS):
        await _emptied(services)
        store = SharedConnection(services.settings.store_url, Level("fsync"), 10.0, "recovery")
        settings = services.settings
        desk = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
        auditor = Auditor(desk, store, ledger, settings.shards)
        recovery = Recovery(desk, auditor, store, ledger, "bench")
        began_s = time.monotonic()
        assert await recovery.step()
        admitted_s.append(time.monotonic() - began_s)
        mending = asyncio.create_task(recovery.mend())
        epoch, back = n + 2, 0
        while back < CAMPAIGNS:
            query = "SELECT count(*) FROM campaigns WHERE state = 'open' AND epoch = $1 AND campaign = ANY ($2)"
            found = await ledger.fetchval(query, epoch, names)
            if not back and found:
                first_s.append(time.monotonic() - began_s)
            back = found
            if mending.done() and back < CAMPAIGNS:
                raise SystemExit(f"rebuild: {CAMPAIGNS - back} campaigns are not back")
            await asyncio.sleep(0.01)
        last_s.append(time.monotonic() - began_s)
        await mending
        await store.close()
    for name in names:  # the next loss is not theirs
        await services.desk.close(name)
    print(f"\nrebuild: {CAMPAIGNS} campaigns of {EACH:,} orders lost at once")
    print(f"  the store is admitted after {shown(admitted_s, 's', 2)}: what was not lost is sold again")
    print(f"  the first is back after     {shown(first_s, 's', 2)}")
    print(f"  all are back after          {shown(last_s, 's', 2)}")
    return {"campaigns": CAMPAIGNS, "orders_each": EACH, "admitted_s": spread(admitted_s), "first_s": spread(first_s),
            "all_s": spread(last_s)}  # fmt: skip


async def _large(services: Services, ledger: Pool, orders: int) -> dict[str, Any]:
    """By the command, in a process of its own. The slowest calls are read from the store's own log."""
    sale = await services.open_sale("large")
    await _fill(services, ledger, sale, orders)
    for setting, value in (("slowlog-log-slower-than", SLOW_US), ("slowlog-max-len", 100_000)):
        await services.store.exchange([("CONFIG", "SET", setting, value)])
    await _emptied(services)
    await services.store.exchange([("SLOWLOG", "RESET")])
    began_s, mib, used_s = time.monotonic(), 0.0, 0.0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "rebuild", sale.campaign,
        env={**os.environ, **services.settings.to_env(), "RUSHGATE_CHANNEL_KEYS": f"app={CHANNEL_KEY}"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        used_s, mib = cpu_s(process.pid), max(mib, _peak_mib(process.pid))
        await asyncio.wait([ended], timeout=0.1)
    seconds = time.monotonic() - began_s
    out, err = await ended
    if process.returncode != 0:
        raise SystemExit(f"rebuild: {out.decode()}{err.decode()}")
    [slow] = await services.store.exchange([("SLOWLOG", "GET", 100_000)])
    longest = max(slow, key=lambda entry: entry[2], default=None)
    longest_ms = longest[2] / 1000 if longest else SLOW_US / 1000
    which = longest[3][0].decode() if longest else "none"
    held, sold = _parts(orders)
    print(f"\nrebuild: one campaign, {orders:,} orders: {held:,} holds, {sold:,} sold, {held + sold:,} buyers' limits")
    print(f"  back after {seconds:.1f} s by `rushgate rebuild`, {orders / seconds:,.0f} orders/s, CPU {used_s:.1f} s")
    print(f"  memory of the process at most {mib:,.0f} MiB")
    print(f"  longest call of the store {longest_ms:.1f} ms ({which}); {len(slow):,} calls took {SLOW_US} us or longer")
    return {"orders": orders, "held": held, "sold": sold, "seconds": round(seconds, 1), "cpu_s": round(used_s, 1),
            "peak_mib": round(mib), "longest_call_ms": round(longest_ms, 2), "slow_calls": len(slow)}  # fmt: skip


def _parts(orders: int) -> tuple[int, int]:
    return orders * HELD // ORDERS, orders * SOLD // ORDERS


async def _fill(services: Services, ledger: Pool, sale: Sale, orders: int) -> None:
    """So many orders are on the ledger."""
    held, sold = _parts(orders)
    for first in range(1, orders + 1, 100_000):
        last = min(orders, first + 99_999)
        await ledger.execute(_FILL, sale.shards[0], sale.campaign, first, last, held, held + sold)
    await ledger.execute("ANALYZE orders, order_items, order_events")  # as workers/statistics.py does


async def _emptied(services: Services) -> None:
    await services.store.exchange([("FLUSHALL",)])


def _peak_mib(pid: int) -> float:
    """Greatest resident memory of a process so far."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as lines:
            return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
