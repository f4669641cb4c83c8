"""What `rushgate doctor` says of one thing."""

from typing import Literal

import msgspec

from ops.desk import Place

Verdict = Literal["ok", "warning", "wrong"]


class Check(msgspec.Struct, frozen=True):
    """One thing looked at: what, how it is, and in words."""

    name: str
    verdict: Verdict
    words: str


def workers_check(place: Place, kind: str, count: int) -> Check:
    """Whether workers of a kind are at work."""
    name = f"{kind} worker"
    if count:
        return Check(name, "ok", f"{count} at work")
    if kind == "reconcile" and place.settings.reconcile_workers == 0:
        return Check(name, "warning", "RUSHGATE_RECONCILE_WORKERS is 0: nothing is audited or mended by itself")
    # A stack has workers of every kind; elsewhere they may not have been started yet.
    return Check(name, "warning" if place.folder is None else "wrong", f"none is at work: `rushgate worker {kind}`")
