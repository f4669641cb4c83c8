"""The life of orders: a rush, partners that fail one time in five, one of them away in the middle, until all ended."""

import asyncio
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from asyncpg.pgproto.pgproto import UUID

from bench.services import CHANNEL_KEY, Services
from core.flows import FLOWS
from core.flows.table import FIRST_TOPIC
from core.ledger.pool import Pool
from core.model import CampaignSpec, SkuSpec
from core.settings import Settings
from loadtest.client import fetch
from loadtest.exchange import Target
from loadtest.options import RushOptions
from loadtest.plan import Mix
from loadtest.rush import rush
from ops.course import Course, Standing
from ops.desk import open_desk
from ops.stack import running

ORDERS = 20_000
PAY_WITHIN_S = 20
AWAY = "warehouse"
AWAY_S = 60.0
END_WITHIN_S = 900.0
POLL_S = 0.25
ASKED_AT_ONCE = 32  # effects of orders, of the partners
# 20 % of the deliveries get no answer, or a bad one.
CONDUCT = {"failure": 0.15, "lost_answer": 0.05, "duplicate": 0.05, "latency_ms": 5, "jitter_ms": 3}
PARTNERS = ("payment", "warehouse", "provisioning", "billing", "notification", "channel")
STORE_TOPICS = ("settle", "release", "restock", "allocate")
SECRETS = {
    "admin_token": "bench-admin-token-0",
    "channel_keys": {"app": CHANNEL_KEY},
    "payment_secrets": ("whsec_YmVuY2gtcGF5bWVudC1zZWNyZXQtMDAw",),
    "partner_secrets": ("whsec_YmVuY2gtcGFydG5lci1zZWNyZXQtMDAw",),
}

_SETTLED = """
SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM d.at - p.at)::float8)
FROM deliveries d
JOIN (SELECT shard, order_id, min(at) AS at FROM payments WHERE status = 'paid' GROUP BY shard, order_id) p
USING (shard, order_id) WHERE d.topic = 'settle'
"""
_RELAYED = """
SELECT sum(n)::bigint AS messages, max(n) AS busiest_s, percentile_cont(0.5) WITHIN GROUP (ORDER BY n) AS median_s,
       sum(attempts)::bigint AS attempts
FROM (SELECT count(*) AS n, sum(attempts) AS attempts FROM deliveries GROUP BY date_trunc('second', at)) AS seconds
"""


class Life(msgspec.Struct):
    """What became of the orders; durations in seconds, from the beginning of the rush."""

    accepted: int
    seconds: float
    states: dict[str, int]
    expired_late_s: list[float] | None  # p50, p99 behind pay_by
    callback_to_settled_s: list[float] | None  # p50, p99, max
    relayed: dict[str, float]  # messages, attempts; messages/s: busiest and median second
    failed: dict[str, int]  # deliveries by what went wrong at the partners: failed, lost, away
    after_s: dict[str, list[float]]  # state -> p50, p99 from the 202
    faults: list[str]  # what must not be; empty = all is well


async def measure(services: Services, orders: int = ORDERS, away_s: float = AWAY_S) -> dict[str, Any]:
    """One life of `orders` orders. Raises SystemExit if anything is not as it must be at its end."""
    print(f"\nlife: {orders:,} orders to their ends, partners failing 20 %, the {AWAY} away for {away_s:g} s")
    life = await live(services.settings, orders, away_s)
    show(life)
    if life.faults:
        raise SystemExit("life: " + "; ".join(life.faults))
    return {"life": {"orders": orders, "away_s": away_s, "conduct": CONDUCT, **msgspec.structs.asdict(life)}}


async def live(
    settings: Settings, orders: int, away_s: float, pay_within_s: int = PAY_WITHIN_S, within_s: float = END_WITHIN_S
) -> Life:
    """The whole stack on the store and ledger of `settings`, partners played: a rush for a quarter more units than
    `orders`, everything sold, and all orders to their ends. Nothing is sold again.
    """
    now = datetime.now(UTC)
    units = orders * 5 // 4  # one ordinary buyer in four wants two
    spec = CampaignSpec(
        opens_at=now - timedelta(hours=1), closes_at=now + timedelta(days=1), currency="CNY",
        pay_within_s=pay_within_s, after_sales_s=1, skus=[SkuSpec("phone-red", "Phone, red", units, 129_900)],
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="rushgate-life-") as folder:
        own = settings.with_values(**SECRETS, data_dir=folder, port=0, console="off")
        async with running(own, play=True) as stack, open_desk(stack.settings) as desk:
            partners = Target.from_url(stack.played)
            for name in PARTNERS:
                await _tell(partners, name, CONDUCT)
            campaign = f"life-{time.time_ns():x}"
            await desk.campaigns.put(campaign, spec)
            await desk.campaigns.open(campaign)
            options = RushOptions(
                url=stack.gateway, campaign=campaign, channel_key=CHANNEL_KEY, buyers=orders * 11 // 10,
                mix=Mix(repeat=0, greedy=0, malformed=0, unknown_sku=0),
            )  # fmt: skip
            course = Course(desk, spec, stack.settings.shards, options, stack.played)
            began_s = time.monotonic()
            report = await rush(options)
            away = asyncio.create_task(_away(partners, away_s))
            standing, ended = await _to_the_end(course, partners, away, began_s + within_s)
            seconds = time.monotonic() - began_s
            away.cancel()
            found = [] if ended else [f"not at the end after {within_s:g} s"]
            if len(report.accepted_orders) != standing.accepted or not report.ok:
                found.append(f"{len(report.accepted_orders)} orders were answered 202, {standing.accepted} accepted")
            units_by_state = await course.units()
            audit = await desk.auditor.audit(campaign)
            found += [] if audit.ok else [f"audit: {finding}" for finding in audit.findings]
            # Of whatever was paid in time and never came back the units are gone, of nothing else.
            gone = units_by_state.get("completed", 0)
            if (standing.left, standing.held) != (units - gone, 0):
                found.append(f"{standing.left} left and {standing.held} held of {units}, with {gone} sold")
            unsent = await course.unsent()
            found += [f"{n} messages {what}" for what, n in unsent._asdict().items() if n]
            found += await _effects(desk.ledger, partners)
            moves, _ = await course.times()
            [relayed] = await desk.ledger.fetch(_RELAYED)
            return Life(
                accepted=standing.accepted,
                seconds=round(seconds, 1),
                states=standing.states,
                expired_late_s=next((list(row["late_s"]) for row in moves if row["state"] == "expired"), None),
                callback_to_settled_s=await desk.ledger.fetchval(_SETTLED),
                relayed={k: float(v or 0) for k, v in relayed.items()},
                failed=await _failed(partners),
                after_s={row["state"]: list(row["after_s"]) for row in moves},
                faults=found,
            )


def show(life: Life) -> None:
    """The life as lines."""
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(life.states.items()))
    print(f"  {life.accepted:,} orders, all ended after {life.seconds:g} s: {states}")
    if life.expired_late_s:
        print("  expired after pay_by: p50 {:.2f} s, p99 {:.2f} s".format(*life.expired_late_s))
    if life.callback_to_settled_s:
        print("  payment callback to settled: p50 {:.2f} s, p99 {:.2f} s, max {:.2f} s".format(
            *life.callback_to_settled_s))  # fmt: skip
    told = life.relayed
    print(f"  relay: {told['messages']:,.0f} messages in {told['attempts']:,.0f} attempts; {told['busiest_s']:,.0f} "
          f"in the busiest second, {told['median_s']:,.0f} in the median one")  # fmt: skip
    print(
        "  of the attempts {failed:,} failed, {lost:,} lost their answer, {away:,} found nobody".format(**life.failed)
    )
    for fault in life.faults:
        print(f"  NOT WELL: {fault}")


async def _to_the_end(
    course: Course, partners: Target, away: "asyncio.Task[None]", until_s: float
) -> tuple[Standing, bool]:
    """The last standing, and whether everything had ended: seen twice with no move between."""
    flow, before = FLOWS["goods"], -1
    while True:
        standing = await course.look()
        calm = away.done() and not (standing.open(flow) or standing.held)
        calm = calm and not (await course.unsent()).waiting and not (await _ask(partners))["pending_callbacks"]
        if calm and standing.moves == before:
            return standing, True
        if time.monotonic() > until_s:
            return standing, False
        before = standing.moves if calm else -1
        await asyncio.sleep(POLL_S)


async def _away(partners: Target, away_s: float) -> None:
    await _tell(partners, AWAY, {"away": True})
    await asyncio.sleep(away_s)
    await _tell(partners, AWAY, {"away": False})


async def _effects(ledger: Pool, partners: Target) -> list[str]:
    """What partners did for orders, against what was delivered to them: nothing twice, nothing missing."""
    rows = await ledger.fetch(
        "SELECT order_id, array_agg(topic) AS topics FROM deliveries WHERE topic <> ALL ($1) GROUP BY order_id",
        list(STORE_TOPICS),
    )
    room, found = asyncio.Semaphore(ASKED_AT_ONCE), Counter[str]()

    async def compare(order: UUID, topics: list[str]) -> None:
        async with room:
            effects = (await _ask(partners, f"/effects?order_id={order}"))["effects"]
        done = Counter(e["effect"] for e in effects if e["message_id"].startswith("msg_"))
        found["twice"] += sum((done - Counter(topics)).values())
        found["missing"] += sum((Counter(topics) - done).values())
        found["unpaid"] += done[FIRST_TOPIC] != 1

    await asyncio.gather(*(compare(row["order_id"], row["topics"]) for row in rows))
    return [f"{n} effects {what}" for what, n in found.items() if n]


async def _failed(partners: Target) -> dict[str, int]:
    state = (await _ask(partners))["partners"].values()
    tallies = [tally for partner in state for tally in partner["topics"].values()]
    sums = {what: sum(tally[what] for tally in tallies) for what in ("failed", "lost")}
    return sums | {"away": sum(partner["away"] for partner in state)}


async def _ask(partners: Target, what: str = "") -> Any:
    return await _exchange(partners, "GET", what, b"")


async def _tell(partners: Target, name: str, conduct: dict[str, Any]) -> None:
    await _exchange(partners, "PUT", f"/{name}", msgspec.json.encode(conduct))


async def _exchange(partners: Target, method: str, what: str, body: bytes) -> Any:
    head = f"{method} /control{what} HTTP/1.1\r\nhost: {partners.authority}\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = await fetch(partners, head.encode() + body, 30.0)
    assert answer.status == 200, answer
    return msgspec.json.decode(answer.body)
