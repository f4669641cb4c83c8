"""What the audits of a reconcile worker found, as metrics: of bounded size, whatever campaigns there are."""

from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from core.metrics import Buckets, Row
from core.metrics_table import LONG_S
from core.model import AuditReport, AuditSku
from workers.alerts import JUDGED

MAX_CAMPAIGNS = 200
MAX_SKUS = 500
SELLING = ("open", "paused")


class AuditBook:
    """One per reconcile worker."""

    def __init__(self) -> None:
        self.audits = 0
        self.audit_s = Buckets(LONG_S)
        self._drift: dict[str, dict[str, int]] = {}
        self._stock: dict[str, list[AuditSku]] = {}

    def note(self, campaign: str, state: str, report: AuditReport, wrong: Collection[str], unmended: int) -> None:
        """An audit: of its findings those are counted that are `wrong`, kinds of workers/alerts.py."""
        counts = _counts(report, unmended)
        drift = {kind: counts[kind] if kind in wrong else 0 for kind in JUDGED}
        if state in SELLING:
            self._stock[campaign] = list(report.skus)
        else:
            self._stock.pop(campaign, None)
        if state in SELLING or any(drift.values()):
            self._drift[campaign] = drift
        else:
            self._drift.pop(campaign, None)

    def took(self, seconds: float) -> None:
        """So long did the audit of a campaign take, with its repairs."""
        self.audits += 1
        self.audit_s.add(seconds)

    def rows(self) -> Iterable[Row]:
        """All of it; the campaigns with findings first, as those are told that have room."""
        yield "rushgate_audits_total", (), self.audits
        yield "rushgate_audit_seconds", (), self.audit_s
        wrong_first = sorted(self._drift.items(), key=lambda item: not any(item[1].values()))
        for campaign, drift in wrong_first[:MAX_CAMPAIGNS]:
            for kind, count in drift.items():
                yield "rushgate_audit_drift", (campaign, kind), count
        skus = ((campaign, sku) for campaign, found in self._stock.items() for sku in found)
        for campaign, sku in islice(skus, MAX_SKUS):
            for part in ("left", "held", "sold"):
                yield "rushgate_stock_units", (campaign, sku.sku, part), getattr(sku, part)
        total = sum(map(len, self._stock.values()))
        yield "rushgate_stock_skus_unshown", (), max(0, total - MAX_SKUS)


def _counts(report: AuditReport, unmended: int) -> Mapping[str, int]:
    return {
        "oversold": report.oversold,
        "lost": report.lost,
        "phantom": report.phantom,
        "duplicated": report.duplicated,
        "over_limit": report.over_limit,
        "unbalanced": len(report.findings),
        "unmended": unmended,
    }
