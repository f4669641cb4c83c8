"""The rule on lost orders: a store that lost its disk may cost the orders that were not drained, and nothing more."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from loadtest.history import Fail, Fault, Healed, History, Invoke, Ok, Operation
from loadtest.history_check import check
from loadtest.history_check_loss import LOSSES
from loadtest.history_final import Delivery, Final, OrderFacts, Rebuilt
from tests.unit.history_simulator import MS, START_NS, WALL_NS, Life, Sale
from tests.unit.history_spoilers import STRICT, Run, lose_an_order


class LosingSale(Sale):
    """The store loses its disk at the beginning of the fault; it is rebuilt from what was drained, under epoch 2.

    `witness`: the gateways live on and tell which numbers they were told; else they are killed with it.
    """

    witness = True

    def play(self) -> tuple[History, Final]:
        """As Sale.play."""
        self.gone: dict[str, Life] = {}
        self.bases: list[int] = []
        self.gaps: list[int] = []
        self.at(self.attempts * 10 * MS // 3, self.lose)
        history, final = super().play()
        begin_ns, healed_ns = self.away
        history.faults = [Fault(begin_ns, "store_emptied"), Healed(healed_ns, "store_emptied")]
        if not self.witness:
            history.faults += [Fault(begin_ns, "gateway_kill"), Healed(healed_ns, "gateway_kill")]
        late = {i for i, life in self.lives.items() if life.accepted_ns >= begin_ns}
        later = {life.order_id for life in self.kept if life.accepted_ns >= begin_ns}
        at_ns = healed_ns - 100 * MS - START_NS + WALL_NS
        return history, replace(
            final,
            orders=[replace(o, epoch=2) if o.order_id in late else o for o in final.orders],
            dead_letters=[replace(d, epoch=2) if d.order_id in later else d for d in final.dead_letters],
            readings=[replace(r, epoch=2) for r in final.readings],
            rebuilds=[Rebuilt(s, 2, at_ns, at_ns + 50 * MS, self.bases[s], self.gaps[s])
                      for s in range(self.spread)],
        )  # fmt: skip

    def drain(self, life: Life) -> None:
        self.kept = [*getattr(self, "kept", []), life]
        if life.order_id not in self.gone:
            super().drain(life)

    def lose(self) -> None:
        """What was not drained was never there."""
        drained = {d.order_id for d in self.dead} | set(self.lives)
        self.flags.clear()
        for shard in self.shards:
            gone = [life for i, life in shard.holds.items() if i not in drained]
            for life in gone:
                self.gone[life.order_id] = life
                del shard.holds[life.order_id], shard.requests[life.ask.channel, life.ask.key]
                for sku, n in life.ask.items:
                    shard.held[sku] -= n
                    shard.left[sku] += n
                for counter, more, _ in self.counters(life.ask):
                    shard.used[counter] -= more
            numbers = set(range(1, shard.seq + 1)) - {life.seq for life in gone}
            if not self.witness:
                shard.seq = max(numbers, default=0)
            self.bases.append(shard.seq)
            self.gaps.append(shard.seq - len(numbers))


class LostRun(Run):
    """A right run with a loss, to be spoiled."""

    def __init__(self, seed: int = 4, spread: int = 1, witness: bool = True) -> None:
        self.sale = LosingSale(seed, spread=spread)
        self.sale.witness = witness
        self.history, self.final = self.sale.play()
        self.bounds = STRICT

    def lost(self) -> list[Operation]:
        """The yeses of orders that went with the store."""
        gone = self.sale.gone
        return [
            op for op in self.history.operations
            if op.ask.op == "order" and isinstance(op.answer, Ok) and op.answer.order_id in gone
        ]  # fmt: skip

    def rename(self, name: str) -> None:
        self.history.faults = [replace(f, name=name) for f in self.history.faults]

    def move_faults(self, by_ns: int) -> None:
        self.history.faults = [replace(f, at_ns=f.at_ns + by_ns) for f in self.history.faults]

    def shift_rebuilds(self, by_ns: int) -> None:
        self.put(rebuilds=[replace(r, at_ns=r.at_ns + by_ns, done_ns=(r.done_ns or 0) + by_ns)
                           for r in self.final.rebuilds])  # fmt: skip


Spoil: TypeAlias = Callable[[LostRun], object]


def test_orders_that_a_lost_store_may_cost_are_excused_and_counted() -> None:
    run = LostRun()
    verdict = run.verdict()
    assert verdict.violations == []
    assert verdict.stats.lost == len({op.answer.order_id for op in run.lost() if op.answer}) > 3


@pytest.mark.parametrize("name", ["store_kill", "store_failover", "store_two_primaries"])
def test_no_order_is_excused_without_a_fault_that_loses(name: str) -> None:
    run = LostRun()
    run.rename(name)
    verdict = run.verdict()
    assert verdict.stats.lost == 0
    assert {v.what for v in verdict.violations if v.invariant == 2} == {"lost"}
    assert len([v for v in verdict.violations if v.what == "lost"]) == len(run.sale.gone.keys() & answered(run))


def test_no_order_is_excused_in_a_history_without_faults() -> None:
    run = LostRun()
    run.history.faults = []
    assert (run.verdict().stats.lost, {2} <= set(run.verdict().stats.violations)) == (0, True)


def answered(run: LostRun) -> set[str]:
    return {op.answer.order_id for op in run.history.operations if op.answer}


def rebuild_nothing(run: LostRun) -> None:
    run.put(rebuilds=[])


def rebuild_before_the_fault(run: LostRun) -> None:
    run.shift_rebuilds(-1_000 * MS)


def sell_before_the_rebuild(run: LostRun) -> None:
    run.shift_rebuilds(500 * MS)


def break_the_rebuild_off(run: LostRun) -> None:
    run.put(rebuilds=[replace(r, done_ns=None, base=None) for r in run.final.rebuilds])


def answer_after_it_was_healed(run: LostRun) -> None:
    heal_ns = run.history.faults[1].at_ns
    for op in run.lost():
        assert op.answer is not None
        op.answer.at_ns = heal_ns + 100 * MS


def lose_what_was_drained_long_before(run: LostRun) -> None:
    run.bounds = replace(run.bounds, heal_s=0.1)
    for op in run.lost():
        assert op.answer is not None
        op.ask.at_ns -= 300 * MS
        op.answer.at_ns -= 300 * MS


def cancel_with_a_yes(run: LostRun) -> None:
    for op in run.lost():
        assert op.answer is not None
        ask = replace(op.ask, op="cancel", key="", order_id=op.answer.order_id, at_ns=op.answer.at_ns + MS)
        run.add(ask, Ok(ask.at_ns + MS, 0, 200))


def deliver_a_message(run: LostRun) -> None:
    more = [Delivery(op.answer.order_id, 1, "payment", WALL_NS, "delivered") for op in run.lost() if op.answer]
    run.put(deliveries=[*run.final.deliveries, *more])


@pytest.mark.parametrize("spoil", [
    rebuild_nothing, rebuild_before_the_fault, sell_before_the_rebuild, break_the_rebuild_off,
    answer_after_it_was_healed, lose_what_was_drained_long_before, cancel_with_a_yes, deliver_a_message,
], ids=lambda s: s.__name__)  # fmt: skip
def test_what_a_lost_store_may_not_cost_is_wrong(spoil: Spoil) -> None:
    run = LostRun()
    spoil(run)
    verdict = run.verdict()
    assert verdict.stats.lost == 0
    assert {v.orders[0] for v in verdict.violations if v.what == "lost"} == run.sale.gone.keys() & answered(run)


def test_drained_order_that_is_gone_is_wrong_beside_those_that_are_excused() -> None:
    run = LostRun()
    excused = run.verdict().stats.lost
    [guilty] = lose_an_order(run)
    verdict = run.verdict()
    assert [v.orders for v in verdict.violations if v.invariant == 2] == [[guilty]]
    assert verdict.stats.lost == excused


def known_ns(run: LostRun, order: OrderFacts) -> int:
    """By when the ledger surely had the order: somebody moved it, or delivered its first message."""
    moved = [e.at_ns for e in order.events if e.version > 1]
    return run.history.mono_ns(min(moved + [d.at_ns for d in run.final.deliveries if d.order_id == order.order_id]))


def deny(run: LostRun, order: OrderFacts, at_ns: int) -> set[tuple[int, str]]:
    ask = Invoke(at_ns, 0, "cancel", order_id=order.order_id)
    run.add(ask, Fail(at_ns + MS, 0, 404, "unknown_order"))
    return {(v.invariant, v.what) for v in run.verdict().violations if v.what == "denied"}


def test_order_may_be_denied_while_the_store_is_lost_only_if_the_ledger_got_it_since() -> None:
    for since, within, wrong in ((True, True, set()), (False, True, {(2, "denied")}), (True, False, {(2, "denied")})):
        run = LostRun()
        begin_ns, margin_ns = run.history.faults[0].at_ns, 100 * MS  # beyond all clocks
        seen = [(run.operation(o), o) for o in run.final.orders if o.order_id in answered(run)]
        order = next(
            order for op, order in seen
            if op.answer is not None and op.answer.at_ns < begin_ns and order.epoch == 1
            and (known_ns(run, order) > begin_ns if since else known_ns(run, order) < begin_ns - margin_ns)
        )  # fmt: skip
        assert deny(run, order, begin_ns + MS if within else run.history.end_ns) == wrong, (since, within)


def silence(run: LostRun, name: str, from_ms: int = 1, to_ms: int = 300) -> None:
    """A fault of that class, in milliseconds since the loss."""
    begin_ns = run.history.faults[0].at_ns
    run.history.faults += [Fault(begin_ns + from_ms * MS, name), Healed(begin_ns + to_ms * MS, name)]


def untold(run: LostRun) -> list[tuple[int, str, set[str]]]:
    return [(v.invariant, v.what, set(v.orders)) for v in run.verdict().violations]


def unheard_run(seed: int = 4, spread: int = 1) -> LostRun:
    """Nobody told the rebuild what the gateways knew: lost numbers are given again, and no gap tells of them."""
    run = LostRun(seed, spread, witness=False)
    run.history.faults = [f for f in run.history.faults if f.name != "gateway_kill"]
    return run


@pytest.mark.parametrize(("seed", "spread"), [(4, 1), (12, 2)])
def test_lost_orders_that_no_gap_tells_of_are_wrong_while_their_gateways_lived(seed: int, spread: int) -> None:
    run = unheard_run(seed, spread)
    lost = run.sale.gone.keys() & answered(run)
    assert sum(r.gap for r in run.final.rebuilds) < len(lost)
    assert untold(run) == [(2, "gap_untold", lost)]
    silence(run, "ledger_worker_kill_all")
    assert untold(run) == [(2, "gap_untold", lost)]


@pytest.mark.parametrize("name", ["gateway_kill", "all_kill", "gateway_restart", "gateway_cut_off", "made up later"])
def test_gap_need_not_tell_what_a_gateway_knew_that_was_killed_or_not_heard(name: str) -> None:
    run = unheard_run()
    silence(run, name)
    assert untold(run) == []


def test_gateway_that_was_killed_before_it_answered_must_tell_all_the_same() -> None:
    run = unheard_run()
    first_ns = min(op.ask.at_ns for op in run.lost()) - run.history.faults[0].at_ns
    silence(run, "gateway_kill", first_ns // MS - 200, first_ns // MS - 100)
    assert [(n, what) for n, what, _ in untold(run)] == [(2, "gap_untold")]


def test_who_only_repeated_an_answer_need_not_have_known_its_number() -> None:
    run = unheard_run()
    for op in run.lost():
        assert op.answer is not None
        op.answer.replayed = True
    assert untold(run) == []


def test_numbers_missing_beyond_the_gap_of_the_rebuild_are_wrong() -> None:
    runs = (LostRun(seed, witness=False) for seed in range(100))
    run = next(run for run in runs if run.final.rebuilds[0].gap)
    assert run.verdict().violations == []
    run.put(rebuilds=[replace(r, gap=r.gap - 1) for r in run.final.rebuilds])
    assert [(v.invariant, v.what) for v in run.verdict().violations] == [(2, "gap")]


def test_number_missing_after_the_rebuild_is_wrong() -> None:
    run = LostRun()
    run.put(rebuilds=[replace(r, base=(r.base or 0) - 1) for r in run.final.rebuilds])
    assert "gap" in {v.what for v in run.verdict().violations}


def test_hold_of_a_lost_order_in_the_rebuilt_store_is_wrong() -> None:
    run = LostRun()
    [reading] = run.final.readings
    run.put(readings=[replace(reading, holds=reading.holds + len(run.sale.dead) + 1)])
    assert {v.invariant for v in run.verdict().violations} == {5}


def test_oversold_before_the_loss_is_wrong_though_the_orders_are_gone() -> None:
    """The lost orders had their units until the store was lost: with them more was out than without."""
    run = LostRun()
    begin_ns = run.history.faults[0].at_ns
    run.put(orders=[o for o in run.final.orders if o.epoch == 1], readings=[])
    operations = [op for op in run.history.operations if op.ask.at_ns < begin_ns]
    lost = {id(op) for op in run.lost()}
    sku = run.lost()[0].ask.items[0][0]
    run.history.operations = [op for op in operations if id(op) not in lost]
    without = least_clean(run, sku)
    run.history.operations = operations
    assert least_clean(run, sku) > without


def least_clean(run: LostRun, sku: str) -> int:
    """The fewest units of a SKU that are enough for what was out."""
    for units in range(100):
        run.put(campaign=replace(run.final.campaign, allocation={**run.final.campaign.allocation, sku: units}))
        if not any(v.invariant == 1 and v.words.startswith(f"{sku}:") for v in run.verdict().violations):
            return units
    raise AssertionError("100 units are not enough")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.sampled_from([1, 2, 3]), stock=st.integers(6, 90), witness=st.booleans())
def test_every_right_run_with_a_loss_is_judged_clean(seed: int, spread: int, stock: int, witness: bool) -> None:
    sale = LosingSale(seed, 150, spread, True, stock)
    sale.witness = witness
    history, final = sale.play()
    assert check(history, final).violations == []


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.sampled_from([1, 2]))
def test_every_drained_order_that_is_gone_is_caught(seed: int, spread: int) -> None:
    run = LostRun(seed, spread)
    drained = [o for o in run.final.orders if o.epoch == 1 and o.order_id in answered(run)]
    assume(drained)
    order = drained[seed % len(drained)]
    run.put(orders=[o for o in run.final.orders if o is not order])
    assert any(v.what == "lost" and v.orders == [order.order_id] for v in run.verdict().violations)


def test_every_loss_is_a_class_of_the_nemesis_and_a_failover_is_none() -> None:
    from tests.faults.nemesis.rounds import FAULTS

    assert set(FAULTS) >= LOSSES
    assert not {"store_failover", "store_two_primaries"} & LOSSES
