"""A `sold_out` on several shards: what a fault may have left on its way excuses it, and nothing else does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.history import Fail, Fault, Healed, Invoke, Unknown
from loadtest.history_check import check
from loadtest.history_check_classes import APART, HEARD, LOSSES
from ops.check_display import lines
from tests.unit.history_simulator import LEASE_MS, MS, START_NS, Sale
from tests.unit.history_spoilers import STRICT, Run

SPREAD, STOCK = 3, 60
FEW, MANY = 1, 25  # units wanted: of `MANY` there is enough for two shards, not for all three
CLOCK_MS = STRICT.clock_ms


class SpreadRun(Run):
    """A right run on three shards. Times are milliseconds since its first order may come, so before it if negative."""

    def __init__(self, seed: int = 4) -> None:
        self.history, self.final = Sale(seed, spread=SPREAD, faults=False, stock=STOCK).play()
        self.bounds = STRICT

    def fault(self, name: str, from_ms: int, to_ms: int | None) -> None:
        self.history.faults.append(Fault(START_NS + from_ms * MS, name))
        if to_ms is not None:
            self.history.faults.append(Healed(START_NS + to_ms * MS, name))

    def asked(self, key: str, units: int, from_ms: int, to_ms: int, answer: Fail | Unknown) -> int:
        ask = Invoke(START_NS + from_ms * MS, 0, "order", "app", key, "x", "new", "", "", (("a", units),))
        answer.at_ns = START_NS + to_ms * MS
        return self.add(ask, answer)

    def deny(self, units: int, at_ms: int) -> int:
        """`sold_out`, and not one unit is sold."""
        return self.asked(f"denied{at_ms}", units, at_ms, at_ms + 1, Fail(0, 0, 409, "sold_out", sku="a"))

    def guilty(self) -> list[int]:
        return [n for v in self.verdict().violations if v.invariant == 7 for n in v.operations]

    @property
    def excused(self) -> int:
        return self.verdict().stats.excused_sold_outs


@pytest.mark.parametrize("name", ["gateway_kill", "store_stop", "network_cut", "store_emptied", "made up later"])
def test_sold_out_is_excused_while_units_may_be_on_their_way_and_the_verdict_says_so(name: str) -> None:
    run = SpreadRun()
    run.fault(name, -3_000, -2_000)
    run.deny(MANY, -2_500)
    assert (run.guilty(), run.excused) == ([], 1)
    assert any("7: 1 sold_out" in line for line in lines(run.verdict(), run.history) if "not judged" in line)


def test_sold_out_with_enough_for_every_shard_is_wrong_though_units_may_be_on_their_way() -> None:
    run = SpreadRun()
    run.fault("gateway_kill", -3_000, -2_000)
    n = run.deny(FEW, -2_500)
    assert (run.guilty(), run.excused) == ([n], 0)


@pytest.mark.parametrize("name", ["ledger_disk_full", "relay_kill", "partners_away"])
def test_fault_that_touches_neither_store_nor_gateway_excuses_no_sold_out(name: str) -> None:
    run = SpreadRun()
    run.fault(name, -3_000, -2_000)
    n = run.deny(MANY, -2_500)
    assert (run.guilty(), run.excused) == ([n], 0)


def test_sold_out_before_the_fault_is_wrong() -> None:
    run = SpreadRun()
    run.fault("gateway_kill", -3_000, -2_000)
    n = run.deny(MANY, -3_002)
    assert (run.guilty(), run.excused) == ([n], 0)


def test_excuse_ends_a_lease_after_the_first_definite_answer() -> None:
    answered_ms = -1_900
    end_ms = answered_ms + LEASE_MS + CLOCK_MS
    for at_ms, wrong in ((end_ms, False), (end_ms + 1, True), (end_ms + 500, True)):
        run = SpreadRun()
        run.fault("gateway_kill", -3_000, -2_000)
        run.asked("probe", 1, answered_ms - 5, answered_ms, Fail(0, 0, 409, "paused"))
        n = run.deny(MANY, at_ms)
        assert (run.guilty(), run.excused) == (([n], 0) if wrong else ([], 1)), at_ms


@pytest.mark.parametrize(
    ("asked_ms", "answer"),
    [(-1_905, Unknown(0, 0, 503, "store_unavailable")), (-2_001, Fail(0, 0, 409, "paused"))],
    ids=["not definite", "asked before the end"],
)
def test_answer_that_proves_nothing_does_not_end_the_excuse(asked_ms: int, answer: Fail | Unknown) -> None:
    run = SpreadRun()
    run.fault("gateway_kill", -3_000, -2_000)
    run.asked("probe", 1, asked_ms, -1_900, answer)
    run.deny(MANY, -1_000)
    assert (run.guilty(), run.excused) == ([], 1)


def test_excuse_lasts_as_long_as_any_fault_that_may_strand_units() -> None:
    for other, wrong in (("store_stop", False), ("relay_kill", True)):
        run = SpreadRun()
        run.fault("gateway_kill", -3_000, -2_000)
        run.fault(other, -2_500, None)
        run.asked("probe", 1, -1_905, -1_900, Fail(0, 0, 409, "paused"))
        n = run.deny(MANY, -1_000)
        assert run.guilty() == ([n] if wrong else []), other


def test_one_shard_has_nothing_on_its_way() -> None:
    run = Run()
    at_ns = run.history.header.started_mono_ns
    run.history.faults = [Fault(at_ns - MS, "gateway_kill")]
    ask = Invoke(at_ns, 0, "order", "app", "denied", "x", "new", "", "", (("a", MANY),))
    n = run.add(ask, Fail(at_ns + 1_000, 0, 409, "sold_out", sku="a"))
    assert [v.operations for v in run.verdict().violations if v.invariant == 7] == [[n]]
    assert run.verdict().stats.excused_sold_outs == 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.sampled_from([2, 3]), stock=st.integers(6, 90))
def test_right_run_needs_no_excuse(seed: int, spread: int, stock: int) -> None:
    history, final = Sale(seed, 150, spread, True, stock).play()
    stats = check(history, final).stats
    assert (stats.violations, stats.excused_sold_outs) == ({}, 0)


def test_classes_are_those_of_the_nemesis_and_those_apart_touch_no_transfer() -> None:
    from tests.faults.nemesis.rounds import FAULTS

    assert set(FAULTS) >= APART | HEARD
    # In these streams no units go between shards; callbacks are between partners and gateway.
    harmless = {"intake_poison", "intake_entry_twice", "callbacks_lost"}
    assert not [n for n in APART - harmless if {"store", "network"} & set(FAULTS[n].touches)]
    assert not [n for n in APART | HEARD if "gateway" in n or "all_" in n.removesuffix("_all") or "network" in n]
    unlisted = {n for n, fault in FAULTS.items() if set(fault.touches) <= {"ledger", "partners", "clients"}}
    assert unlisted <= APART
    assert LOSSES <= HEARD
    assert not LOSSES & APART
