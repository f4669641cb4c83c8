"""Alerts: what a reconcile worker may not mend by itself, as rows that stand until an audit finds it no more.

A row and a log line when it begins, a log line when it is over; in between only the row counts on.
"""

import logging
from collections.abc import Collection, Mapping

from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import AuditReport
from lua.keys import home_shards

logger = logging.getLogger("rushgate.reconcile")

DETAIL_CHARS = 1_000
LOST = "store_lost"  # the store does not hold the campaign, or holds another epoch
UNCHECKED = "unchecked"  # store and ledger answer, and yet the campaign cannot be audited or mended
SHUT = "store_shut"  # the campaign keeps the store from being admitted, for long: no order is taken of any campaign
JUDGED = ("oversold", "lost", "phantom", "duplicated", "over_limit", "unbalanced", "unmended")
KINDS = (*JUDGED, LOST, UNCHECKED, SHUT)


def findings(report: AuditReport) -> dict[str, str]:
    """What an audit found, by kind of alert: in words."""
    found = {}
    for kind, count in (
        ("oversold", report.oversold),
        ("lost", report.lost),
        ("phantom", report.phantom),
        ("duplicated", report.duplicated),
        ("over_limit", report.over_limit),
    ):
        if count:
            found[kind] = f"{count} {'units' if kind == 'oversold' else 'orders'}"
    limits = [text for text in report.findings if text.endswith("over the limit")]
    others = [text for text in report.findings if text not in limits]
    if limits:
        found["over_limit"] = "; ".join(limits)
    if others:
        found["unbalanced"] = "; ".join(others)
    return found


class Alerts:
    """One per process; the pool is the caller's."""

    def __init__(self, ledger: Pool, shards: int) -> None:
        self._ledger = ledger
        self._shards = shards
        self.begun = 0  # alerts, by this process

    async def tell(self, campaign: str, wrong: Mapping[str, str], judged: Collection[str] = KINDS) -> None:
        """What is `wrong` now, kind -> detail, stands; kinds that were `judged` and are not wrong are over.

        Raises: LedgerUnavailable.
        """
        first = home_shards(campaign, 1, self._shards)[0]
        if wrong:
            details = [_sayable(text)[:DETAIL_CHARS] for text in wrong.values()]
            rows = await ask(lambda: self._ledger.fetch(query("raise_alerts"), first, campaign, list(wrong), details))
            for row in rows:
                self.begun += 1
                facts = {"campaign": campaign, "kind": row["kind"], "detail": row["detail"]}
                logger.error("alert", extra=facts)
        right = [kind for kind in judged if kind not in wrong]
        for row in await ask(lambda: self._ledger.fetch(query("end_alerts"), first, campaign, right)):
            logger.info("alert over", extra={"campaign": campaign, "kind": row["kind"]})


def _sayable(text: str) -> str:
    """As Postgres takes it: without NUL and halves of characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
