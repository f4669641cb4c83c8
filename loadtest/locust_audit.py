"""The end of a run: its histories are judged, the server's audit is read, and both become one verdict.

Imports nothing of locust, so that it can be called by anybody: `verdict_of(...)`.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from loadtest.history import HistoryInvalid, read_history
from loadtest.history_check_facts import Violation
from loadtest.history_gather import together
from loadtest.history_http import HttpFacts, judge
from loadtest.server_facts import ORDERS_MAX, Audit, Sale, Seen, Server, ServerSilent

HISTORY_BYTES_MAX = 1 << 30  # of all histories: more is not read into memory, `rushgate check` may do it elsewhere
EXIT_BROKEN, EXIT_UNJUDGED = 3, 4  # 1 is locust's own, for failed requests


class AuditReport(msgspec.Struct, frozen=True):
    """What is written into the report, and as `<csv prefix>_audit.json`.

    `verdict`: `kept` = no invariant broke; `broken`; `unjudged` = nobody can say, `why` tells. Of `counts` all
    violations by name, of `violations` the first few of each.
    """

    verdict: Literal["kept", "broken", "unjudged"]
    run: str
    campaign: str
    host: str
    at: datetime
    operations: dict[str, int]
    orders: int  # that got a yes
    violations: list[Violation]
    counts: dict[str, int]
    unjudged: list[str]
    why: list[str]
    histories: list[str]
    server: Audit | None = None

    @property
    def exit_code(self) -> int | None:
        """None: leave it to locust, which looks at failed requests."""
        return {"kept": None, "broken": EXIT_BROKEN, "unjudged": EXIT_UNJUDGED}[self.verdict]


def verdict_of(
    run: str,
    host: str,
    sale: Sale,
    admin_token: str,
    before: Audit | None,
    files: Sequence[Path],
    missing: Sequence[str],
    wait_s: float,
) -> AuditReport:
    """The verdict on a run; whatever goes wrong is told in it.

    Args:
        before: the server's audit before the run.
        files: the histories of all processes.
        missing: the processes whose history did not come.
        wait_s: so long the last orders may take into the ledger.
    """
    campaign, why = sale.campaign, [f"no history came from {name}" for name in missing]
    unjudged: list[str] = []
    after: Audit | None = None
    orders: list[Seen] | None = None
    listed_at: datetime | None = None
    if not admin_token:
        unjudged.append("the server's audit was not read: set RUSHGATE_ADMIN_TOKEN")
    else:
        server = Server(host, admin_token)
        try:
            after = server.settled_audit(campaign, wait_s)
            if after.persisted <= ORDERS_MAX:
                orders = list(islice(server.orders(campaign), ORDERS_MAX + 1))
                listed_at = server.now()
            else:
                unjudged.append(
                    f"{after.persisted:,} orders, at most {ORDERS_MAX:,} are listed: `rushgate check` judges"
                )
        except ServerSilent as exc:
            why.append(f"the server's audit: {exc}")
        finally:
            server.close()
    violations: list[Violation] = []
    counts: dict[str, int] = {}
    operations: Counter[str] = Counter()
    accepted = 0
    try:
        size = sum(file.stat().st_size for file in files)
        if size > HISTORY_BYTES_MAX:
            raise HistoryInvalid(f"histories of {size:,} bytes are too large to be judged here: `rushgate check` them")
        history = together([read_history(file) for file in files])
        if missing:
            history.whole = False
        verdict = judge(history, HttpFacts(run, orders, listed_at, before, after, sale.limits))
        violations, counts = verdict.violations, verdict.counts
        unjudged += verdict.unjudged
        operations = Counter(f"{op.ask.op} {op.result}" for op in history.operations)
        accepted = len({op.answer.order_id for op in history.operations if op.answer and op.answer.order_id})
    except (OSError, HistoryInvalid) as exc:
        why.append(str(exc))
    return AuditReport(
        "broken" if counts else "unjudged" if why else "kept",
        run, campaign, host, datetime.now(UTC), dict(sorted(operations.items())), accepted, violations, counts,
        unjudged, why, [str(file) for file in files], after,
    )  # fmt: skip


def write_json(path: Path, report: AuditReport) -> None:
    """The file holds the report. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
