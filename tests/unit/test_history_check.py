"""The history checker: a right run is judged clean, and a run that is wrong in one way is called wrong in just that."""

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from loadtest.history import Fail, Fault, Healed, Mending, Ok, Unknown
from loadtest.history_check import Verdict, check
from loadtest.history_final import RefundFacts, read_final, write_final
from ops.check_display import lines
from tests.unit.history_simulator import MS, Sale
from tests.unit.history_spoilers import SECOND, SPOILED, Run, Spoil
from tests.unit.history_spoilers_more import SPOILED_FLOWS, SPOILED_MORE


def named(verdict: Verdict) -> set[object]:
    return {n for v in verdict.violations for n in (*v.operations, *v.orders)}


def test_right_run_is_judged_clean() -> None:
    run = Run()
    verdict = run.verdict()
    assert verdict.violations == []
    kinds = verdict.stats.operations
    assert all(kinds.get(k) for k in ("order ok", "order fail", "order unknown", "cancel ok", "pay ok", "restock ok"))
    assert {o.state for o in run.final.orders} >= {"completed", "expired", "cancelled", "refunded"}
    answers = [op.answer for op in run.history.operations]
    assert any(isinstance(a, Ok) and a.replayed for a in answers)
    assert {a.code for a in answers if isinstance(a, Fail)} >= {"sold_out", "over_limit", "key_reused"}
    assert verdict.stats.faults == {"store_stop": 1}
    assert verdict.stats.heals[0].seconds is not None


@pytest.mark.parametrize(("invariant", "spoil"), [*SPOILED, *SPOILED_MORE], ids=lambda x: getattr(x, "__name__", x))
def test_wrong_run_is_called_wrong_in_just_that(invariant: int, spoil: Spoil) -> None:
    run = Run()
    guilty = spoil(run)
    verdict = run.verdict()
    assert set(verdict.stats.violations) == {invariant}, verdict.violations[:5]
    assert guilty <= named(verdict)
    if invariant in (1, 4, 6):
        assert all(v.operations for v in verdict.violations)  # a set of operations, not only words


@pytest.mark.parametrize(
    ("order_type", "invariant", "spoil"), SPOILED_FLOWS, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_wrong_run_of_another_order_type_is_called_wrong(order_type: str, invariant: int, spoil: Spoil) -> None:
    run = Run(order_type=order_type)
    assert run.verdict().violations == []
    guilty = spoil(run)
    verdict = run.verdict()
    assert set(verdict.stats.violations) == {invariant}, verdict.violations[:5]
    assert guilty <= named(verdict)


@pytest.mark.parametrize("order_type", ["virtual", "reserve_at_payment"])
def test_right_run_of_another_order_type_comes_to_all_its_ends(order_type: str) -> None:
    """Else its mutations would spoil nothing."""
    run = Run(order_type=order_type)
    assert run.verdict().violations == []
    assert {o.state for o in run.final.orders} >= {"completed", "expired", "cancelled", "refunded"}
    actions = {e.action for o in run.final.orders for e in o.events}
    assert (
        actions
        >= {
            "virtual": {"unprovisioned", "unbilled", "bill_failed", "provision_failed"},
            "reserve_at_payment": {"allocated", "too_late"},
        }[order_type]
    )


def test_smallest_set_of_an_exceeded_limit_is_as_small_as_can_be() -> None:
    run = Run()
    limit = 1
    run.put(campaign=replace(run.final.campaign, limits=replace(run.final.campaign.limits, buyer=limit)))
    units = {o.order_id: sum(n for _, n in o.items) for o in run.final.orders}
    for violation in run.verdict().violations:
        theirs = sorted(units[i] for i in violation.orders)
        assert sum(theirs) > limit >= sum(theirs[1:])


def test_facts_come_back_from_their_file(tmp_path: Path) -> None:
    history, final = Sale(1).play()
    write_final(tmp_path / "final.json", final)
    assert read_final(tmp_path / "final.json") == final
    assert check(history, read_final(tmp_path / "final.json")).violations == []


def test_history_of_another_campaign_is_refused() -> None:
    history, final = Sale(1, attempts=20).play()
    with pytest.raises(ValueError, match="the history is of other"):
        check(replace(history, header=replace(history.header, campaign="other")), final)


def test_broken_off_history_accuses_nobody_of_phantoms() -> None:
    run = Run()
    run.history.operations = run.history.operations[: len(run.history.operations) // 2]
    assert set(run.verdict().stats.violations) == {3}
    run.history.whole = False
    verdict = run.verdict()
    assert verdict.violations == []
    assert any(u.startswith("3:") for u in verdict.stats.unjudged)


def test_store_clock_hours_off_accuses_nobody() -> None:
    for hours in (-2, 2, 25):
        run = Run()
        for order in run.final.orders:
            run.change(order, accepted_ms=order.accepted_ms + hours * 3_600_000)
        verdict = run.verdict()
        assert verdict.violations == []
        assert any("clock" in u for u in verdict.stats.unjudged)


def test_slow_refusal_within_a_fault_is_allowed_more_time() -> None:
    for inside, wrong in ((True, set()), (False, {11})):
        run = Run()
        at_ns = run.history.faults[0].at_ns + MS if inside else run.history.end_ns + 10 * SECOND
        ask = replace(run.history.operations[0].ask, at_ns=at_ns, key="slow")
        run.add(ask, Unknown(at_ns + 450 * MS, 0, 503, "overloaded"))
        assert set(run.verdict().stats.violations) == wrong


def test_fault_right_after_a_fault_leaves_no_time_to_heal() -> None:
    run = Run()
    end_ns = run.history.end_ns
    make_ill = next(spoil for invariant, spoil in SPOILED if invariant == 12)  # stay_ill
    make_ill(run)
    assert set(run.verdict().stats.violations) == {12}
    run.history.faults.append(Fault(end_ns + SECOND // 2, "cut again"))
    assert run.verdict().violations == []


def healed_at(run: Run, *faults: Fault | Mending | Healed) -> list[tuple[str, float | None]]:
    run.history.faults = list(faults)
    return [(h.name, h.seconds) for h in run.verdict().stats.heals]


def test_time_to_heal_begins_with_the_mending_of_the_last_fault() -> None:
    """What starts again is down until it has started: a clock that waited for that would flatter."""
    run = Run()
    run.bounds = replace(run.bounds, heal_s=100.0)
    operation = next(
        op for op in reversed(run.history.operations) if op.ask.op == "order" and isinstance(op.answer, Ok)
    )
    assert operation.answer is not None
    asked, answered = operation.ask.at_ns, operation.answer.at_ns + 10 * SECOND
    run.history.operations = [operation]
    operation.answer.at_ns = answered

    def at(second: float) -> int:
        return answered - int(second * SECOND)

    first, last = Fault(at(9), "first"), Fault(at(8), "last")
    assert healed_at(run, first, Mending(at(7), "first"), Healed(at(1), "first")) == [("first", 7.0)]
    assert healed_at(run, first, Healed(at(1), "first")) == [("first", 1.0)]
    # While another one lasts nobody is to blame that nothing is healed.
    assert healed_at(run, first, last, Mending(at(7), "last"), Healed(at(5), "first"), Healed(at(2), "last")) == [
        ("last", 5.0)
    ]
    assert healed_at(run, first, last, Mending(at(7), "last"), Mending(at(6), "first"), Healed(at(5), "last"),
                     Healed(at(2), "first")) == [("first", 5.0)]  # fmt: skip
    assert healed_at(run, first, Healed(answered + 1, "first")) == [("first", None)]
    assert healed_at(run, first) == []  # it lasts
    assert asked < at(9)


def test_wrong_run_is_told_with_its_operations_and_the_story_of_its_order() -> None:
    """What a person sees of a round that went wrong, and needs to find the reason."""
    run = Run()
    order = run.order("refunded")
    operation = run.operation(order)
    run.put(refunds=[*run.final.refunds, RefundFacts(order.order_id, "ref_99", 7, "approved")])
    told = "\n".join(lines(run.verdict(), run.history, final=run.final))
    assert "1 violation: 1 of invariant 9" in told
    assert f"order {order.order_id}: {order.amount + 7} goes back, and {order.amount} was paid" in told
    assert f"#{operation.ask.n} order of " in told
    assert f"202 {order.order_id}" in told
    for event in order.events:
        assert f"v{event.version} {event.action} -> {event.to_state}" in told
    assert "refund ref_99 approved: 7" in told
    assert "no invariant is violated" in "\n".join(lines(Run().verdict(), Run().history))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.sampled_from([1, 2, 3]), stock=st.integers(6, 90), faults=st.booleans(),
       order_type=st.sampled_from(["goods", "virtual", "reserve_at_payment"]))  # fmt: skip
def test_every_right_run_is_judged_clean(seed: int, spread: int, stock: int, faults: bool, order_type: str) -> None:
    spread = 1 if order_type == "reserve_at_payment" else spread
    history, final = Sale(seed, 150, spread, faults, stock, order_type).play()
    assert check(history, final).violations == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30),
       spoiled=st.sampled_from([s for s in (*SPOILED, *SPOILED_MORE) if s[0] not in (1, 6)]),
       order_type=st.sampled_from(["goods", "goods", "virtual", "reserve_at_payment"]))  # fmt: skip
def test_every_spoiled_run_is_caught(seed: int, spoiled: tuple[int, Spoil], order_type: str) -> None:
    invariant, spoil = spoiled
    run = Run(seed, order_type)
    try:
        guilty = spoil(run)
    except StopIteration:  # this run has no such order
        assume(False)
    verdict = run.verdict()
    assert invariant in verdict.stats.violations
    assert guilty <= named(verdict)
