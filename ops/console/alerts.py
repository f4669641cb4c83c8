"""What an operator should know now, in words: each with where to go on."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

from core.settings import Settings
from lua.registry import Sign
from ops.campaign_commands import remedy
from ops.console.books import Ledger, Stock
from ops.order_display import duration, many
from workers.alerts import LOST
from workers.letters import PARTNER_OF

Level = Literal["wrong", "warning", "note"]

LATE_S = 10.0  # of the oldest order that waits for the ledger
OLD_S = 60.0  # of the oldest message that waits
FULL = 0.8  # of the mark beyond which orders are refused
# Kind of process -> what it means that there is none.
MISSING = {
    "gateway": "no order is taken",
    "ledger": "accepted orders stay in the store and are not written into the ledger",
    "expiry": "unpaid orders keep their units, and nothing is completed by time",
    "relay": "messages wait: units do not come back, partners hear nothing",
    "reconcile": "nothing is audited or mended, and a store that is started anew stays shut",
}


class Alert(Struct, frozen=True):
    """One thing to know; `link` is a place on the page."""

    level: Level
    words: str
    link: str


def alerts(
    settings: Settings, parts: Mapping[str, Mapping[str, Any]], ledger: Ledger, stock: Stock, signs: Iterable[Sign],
    sold_out: Mapping[str, list[str]],
) -> list[Alert]:  # fmt: skip
    """All of them, the worst first. What cannot be seen now is told as such, and not as missing."""
    found: list[Alert] = []
    for name, words in (("store", "The store"), ("ledger", "The ledger")):
        if not parts[name]["ok"]:
            found.append(Alert("wrong", f"{words} cannot be reached: {parts[name]['why']}", "#/overview"))
    if parts["signs"]["ok"]:
        there = {sign.kind for sign in signs}
        for kind, words in MISSING.items():
            if kind not in there:
                level: Level = "warning" if kind == "reconcile" and not settings.reconcile_workers else "wrong"
                what = "No gateway" if kind == "gateway" else f"No {kind} worker"
                found.append(Alert(level, f"{what} is at work: {words}", "#/workers"))
    for row in ledger.alerts:
        words = f"Audit: {row['kind'].replace('_', ' ')} in {row['campaign']}: {row['detail']}"
        if row["kind"] == LOST:
            words += f"; {remedy(row['campaign'], settings)}"
        found.append(Alert("wrong", words, f"#/campaigns/{row['campaign']}"))
    found += _backlog(settings, stock)
    found += _messages(settings, ledger)
    found += [
        Alert("note", f"{campaign}: {', '.join(skus)} sold out", f"#/campaigns/{campaign}")
        for campaign, skus in sold_out.items()
    ]
    return sorted(found, key=lambda a: ("wrong", "warning", "note").index(a.level))


def _backlog(settings: Settings, stock: Stock) -> list[Alert]:
    waits = f"{many(stock.waiting_orders, 'accepted order')} for the ledger"
    share = max(stock.waiting_orders / settings.intake_high_orders, stock.oldest_s / settings.intake_max_age_s)
    if share >= FULL:
        return [Alert("wrong", f"{waits} wait; at the mark new orders are refused: add ledger workers", "#/workers")]
    if stock.oldest_s > LATE_S:
        return [Alert("warning", f"{waits} wait, the oldest for {duration(stock.oldest_s * 1000)}", "#/workers")]
    return []


def _messages(settings: Settings, ledger: Ledger) -> list[Alert]:
    found = []
    if ledger.dead_messages:
        words = f"{many(ledger.dead_messages, 'message')} that nobody could deliver"
        found.append(Alert("warning", f"Dead letters: {words}", "#/dead"))
    if ledger.dead_orders:
        words = f"{many(ledger.dead_orders, 'order')} that the ledger could not take"
        found.append(Alert("wrong", f"Dead letters: {words}", "#/dead"))
    partners = [row for row in ledger.waiting if row["topic"] in PARTNER_OF]
    if partners and not settings.partners_url:
        count = sum(row["messages"] for row in partners)
        words = f"{many(count, 'message')} for partners wait: RUSHGATE_PARTNERS_URL is empty"
        found.append(Alert("note", words, "#/outbox"))
    for row in ledger.waiting:
        if row["oldest_s"] > OLD_S and (settings.partners_url or row["topic"] not in PARTNER_OF):
            waits = f"Outbox: {many(row['messages'], 'message')} of the topic {row['topic']} wait"
            age = duration(row["oldest_s"] * 1000)
            found.append(Alert("warning", f"{waits}, the oldest for {age}", f"#/outbox?topic={row['topic']}"))
    return found
