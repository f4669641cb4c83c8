"""The picture that all open pages share: made once a second out of what the sources had last."""

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from core.settings import Settings
from lua.registry import Sign
from lua.scripts import Reading
from ops.console.alerts import alerts
from ops.console.books import Ledger, Listed, Stock
from ops.console.rates import Rates

SKUS_MAX = 50  # of one campaign, in the shared picture; its own page has all
SHARDS_MAX = 64  # likewise
PARTS = ("left", "held", "sold", "allocation")


def text_of_time(at: datetime) -> str:
    """RFC 3339 in UTC, milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def units(readings: list[tuple[int, Reading]], sku: str) -> dict[str, int]:
    """The units of a SKU over all shards."""
    found: Counter[str] = Counter()
    for _, reading in readings:
        for part in PARTS:
            found[part] += getattr(reading, part).get(sku, 0)
    return {part: found[part] for part in PARTS}


def in_service(one: Listed, readings: list[tuple[int, Reading]]) -> bool:
    """Whether the store holds the campaign as the ledger has it."""
    return bool(readings) and all(reading.meta.get("epoch") == str(one.epoch) for _, reading in readings)


def campaign(one: Listed, readings: list[tuple[int, Reading]], skus_max: int = SKUS_MAX) -> dict[str, Any]:
    """A campaign for the page: what it is, and its units as the store has them, if they are there to be had."""
    found: dict[str, Any] = {
        "campaign": one.campaign, "state": one.state, "version": one.version, "epoch": one.epoch,
        "changed_at": text_of_time(one.changed_at) if one.changed_at else None, "why": one.why,
    }  # fmt: skip
    if one.spec is None:
        return found
    spec, held = one.spec, in_service(one, readings)
    shown = spec.skus[:skus_max]
    limits = {k: v for k in ("buyer", "buyer_sku", "ip", "device") if (v := getattr(spec.limits, k)) is not None}
    found |= {
        "order_type": spec.order_type, "opens_at": text_of_time(spec.opens_at),
        "closes_at": text_of_time(spec.closes_at), "currency": spec.currency, "pay_within_s": spec.pay_within_s,
        "spread": spec.spread, "limits": limits, "channels": spec.channels, "in_service": held,
        "skus_more": len(spec.skus) - len(shown),
        "skus": [
            {"sku": s.sku, "name": s.name, "price": s.price, "first": s.stock,
             **(units(readings, s.sku) if held else {})}
            for s in shown
        ],
    }  # fmt: skip
    if held:
        found["accepted"] = sum(reading.seq for _, reading in readings)
        found["left"] = sum(sum(reading.left.values()) for _, reading in readings)
        found["allocation"] = sum(sum(reading.allocation.values()) for _, reading in readings)
    return found


def shards(one: Listed, readings: list[tuple[int, Reading]], waiting: dict[int, int]) -> list[dict[str, Any]]:
    """A campaign shard by shard."""
    if one.spec is None or not in_service(one, readings):
        return []
    return [
        {
            "shard": shard, "accepted": reading.seq, "holds": reading.holds, "intake": waiting.get(shard, 0),
            "units": {s.sku: {p: getattr(reading, p).get(s.sku, 0) for p in PARTS} for s in one.spec.skus[:SKUS_MAX]},
        }
        for shard, reading in readings[:SHARDS_MAX]
    ]  # fmt: skip


def sold_out(ledger: Ledger, stock: Stock) -> dict[str, list[str]]:
    """The SKUs of open campaigns of which nothing is left, by campaign."""
    now, found = datetime.now(UTC), {}
    for one in ledger.campaigns:
        readings = stock.readings.get(one.campaign, [])
        if one.state != "open" or one.spec is None or not in_service(one, readings) or now > one.spec.closes_at:
            continue
        gone = [s.sku for s in one.spec.skus if units(readings, s.sku)["left"] <= 0 < units(readings, s.sku)["sold"]
                + units(readings, s.sku)["held"]]  # fmt: skip
        if gone:
            found[one.campaign] = gone[:5] + ([f"and {len(gone) - 5} more"] if len(gone) > 5 else [])
    return found


def picture(
    settings: Settings, parts: dict[str, dict[str, Any]], ledger: Ledger, stock: Stock, rates: Rates, signs: list[Sign]
) -> dict[str, Any]:
    """Everything that the live views show."""
    waiting = sum(row["messages"] for row in ledger.waiting)
    return {
        "at": time.time_ns() // 1_000_000,
        "parts": parts,
        "rates": {"by_outcome": rates.by_outcome, **rates.shown()},
        "p50_ms": rates.p50_ms,
        "p99_ms": rates.p99_ms,
        "intake": {"orders": stock.waiting_orders, "oldest_s": round(stock.oldest_s, 3)},
        "outbox": {"waiting": waiting, "topics": ledger.waiting, "dead_messages": ledger.dead_messages,
                   "dead_orders": ledger.dead_orders},
        "campaigns": [campaign(one, stock.readings.get(one.campaign, [])) for one in ledger.campaigns],
        "workers": signs,
        "alerts": alerts(settings, parts, ledger, stock, signs, sold_out(ledger, stock)),
    }  # fmt: skip


def point(found: dict[str, Any]) -> dict[str, Any]:
    """What the charts keep of a picture; a part that is away leaves a gap."""
    store, scraped = found["parts"]["store"]["ok"], found["parts"]["metrics"]["ok"]
    left = {c["campaign"]: c["left"] for c in found["campaigns"] if c["state"] in ("open", "paused") and "left" in c}
    rates = {name: found["rates"][name] if scraped else None for name in found["rates"] if name != "by_outcome"}
    return {
        "at": found["at"], **rates, "p50": found["p50_ms"], "p99": found["p99_ms"],
        "lag": found["intake"]["orders"] if store else None,
        "left": dict(sorted(left.items(), key=lambda pair: -pair[1])[:8]) if store else {},
    }  # fmt: skip
