"""The judge that sees no more than HTTP tells: right runs are not accused, wrong ones are."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from loadtest.history import History, Recorder, read_history
from loadtest.history_http import HttpFacts, judge
from loadtest.server_facts import Audit, AuditSku, Line, Seen

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def seen(order_id: str, buyer: str, units: int = 1, version: int = 1, **more: Any) -> Seen:
    fields: dict[str, Any] = {"state": "accepted" if version == 1 else "paid", "pay_by": NOW + timedelta(minutes=10)}
    fields |= more
    return Seen(
        order_id, "app", buyer, fields["state"], version, (Line("red", units),), NOW - timedelta(minutes=1),
        fields["pay_by"],
    )  # fmt: skip


def audit(allocation: int = 3, left: int = 0, **more: Any) -> Audit:
    held = allocation - left
    values: dict[str, Any] = {
        "ok": True, "accepted": held, "persisted": held, "oversold": 0, "lost": 0, "duplicated": 0, "unsold": left,
        "phantom": 0, "over_limit": 0, "in_flight": 0, "dead_lettered": 0,
        "skus": (AuditSku("red", allocation, left, held, 0),),
    }  # fmt: skip
    return Audit(**values | more)


@pytest.fixture
def right(tmp_path: Path) -> tuple[History, HttpFacts]:
    """Three units of red; run r1 buys two orders, cancels nothing, and is told that it is sold out."""
    with Recorder(tmp_path / "h.jsonl", "sale") as recorder:
        for name in ("1", "2"):
            n = recorder.order("app", f"r1-k{name}", f"h{name}", f"r1-b{name}", [("red", 1)])
            recorder.ok(n, 202, f"o{name}")
        again = recorder.order("app", "r1-k1", "h1", "r1-b1", [("red", 1)])
        recorder.ok(again, 202, "o1", replayed=True)
        lost = recorder.order("app", "r1-k3", "h3", "r1-b3", [("red", 1)])
        recorder.unknown(lost)
        gone = recorder.order("app", "r1-k4", "h4", "r1-b4", [("red", 1)])
        recorder.fail(gone, 409, "sold_out", "red")
        pay = recorder.act("pay", "o2")
        recorder.ok(pay, 200)
    orders = [seen("o1", "r1-b1"), seen("o2", "r1-b2", version=2), seen("o3", "r1-b3")]
    return read_history(tmp_path / "h.jsonl"), HttpFacts(
        "r1", orders, NOW, audit(), audit(), {"buyer": 2, "buyer_sku": None}
    )


def test_right_run_is_not_accused(right: tuple[History, HttpFacts]) -> None:
    verdict = judge(*right)
    assert verdict.violations == []
    assert verdict.unjudged == []


def orders_of(facts: HttpFacts, **by_id: Seen | None) -> HttpFacts:
    orders = {order.order_id: order for order in facts.orders or ()}
    return replace(facts, orders=[o for i, o in (orders | by_id).items() if by_id.get(i, o) is not None and o])


Spoil = Callable[[HttpFacts], HttpFacts]
SPOILERS: dict[str, tuple[int, Spoil]] = {
    "lost": (2, lambda f: orders_of(f, o1=None)),
    "phantom": (3, lambda f: orders_of(f, o9=seen("o9", "r1-b9"))),
    "altered": (3, lambda f: orders_of(f, o1=seen("o1", "r1-b1", units=2))),
    "yes_forgotten": (9, lambda f: orders_of(f, o2=seen("o2", "r1-b2"))),
    "over_limit_buyer": (6, lambda f: orders_of(f, o8=seen("o8", "r0-b1", 2), o9=seen("o9", "r0-b1"))),
    "oversold": (1, lambda f: orders_of(f, o9=seen("o9", "r0-b1", 2))),
    "sold_out_too_early": (7, lambda f: replace(f, before=audit(9), after=audit(9))),
    "store_balance": (5, lambda f: replace(f, after=audit(skus=(AuditSku("red", 3, 1, 3, 0),)))),
    "audit": (5, lambda f: replace(f, after=audit(ok=False, findings=("odd",)))),
    "not_once": (2, lambda f: replace(f, after=audit(duplicated=1))),
}


@pytest.mark.parametrize("what", sorted(SPOILERS))
def test_wrong_run_is_accused(what: str, right: tuple[History, HttpFacts]) -> None:
    invariant, spoil = SPOILERS[what]
    history, facts = right
    verdict = judge(history, spoil(facts))
    assert (invariant, what) in {(v.invariant, v.what) for v in verdict.violations}


def test_two_orders_for_one_key_are_seen_in_the_history_alone(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl", "sale") as recorder:
        for order_id in ("o1", "o2"):
            n = recorder.order("app", "k", "h", "b", [("red", 1)])
            recorder.ok(n, 202, order_id)
    verdict = judge(read_history(tmp_path / "h.jsonl"), HttpFacts("r1"))
    assert verdict.counts == {"two_orders": 1}
    assert verdict.unjudged


def test_what_moved_or_ran_out_of_time_may_have_given_its_units_back(right: tuple[History, HttpFacts]) -> None:
    history, facts = right
    late = NOW - timedelta(seconds=1)
    facts = orders_of(facts, o8=seen("o8", "r0-b1", 5, version=2), o9=seen("o9", "r0-b1", 5, pay_by=late))
    assert judge(history, facts).violations == []


def test_others_who_bought_before_are_a_reason_for_sold_out(right: tuple[History, HttpFacts]) -> None:
    history, facts = right
    facts = replace(orders_of(facts, o9=seen("o9", "r0-b1", 6, version=2)), before=audit(9), after=audit(9))
    assert judge(history, facts).violations == []


def test_restock_during_the_run_leaves_sold_out_unjudged(right: tuple[History, HttpFacts]) -> None:
    history, facts = right
    assert judge(history, replace(facts, after=audit(9))).violations == []


def test_order_that_is_set_aside_or_on_its_way_is_not_lost(right: tuple[History, HttpFacts]) -> None:
    history, facts = right
    for found in (audit(in_flight=1), audit(dead_lettered=1)):
        assert judge(history, replace(orders_of(facts, o1=None), after=found)).violations == []
