"""Ways to spoil a right run: each breaks one promise and no other, and names who has to be found guilty."""

from collections.abc import Callable
from typing import TypeAlias

from msgspec.structs import replace

from loadtest.history import Fail, Fault, Healed, Invoke, Ok, Operation, Unknown
from loadtest.history_check import Bounds, Verdict, check
from loadtest.history_final import (
    DeadLetter,
    Delivery,
    LimitsOf,
    Message,
    Move,
    OrderFacts,
    PartnerSaw,
)
from tests.unit.history_simulator import Sale

SECOND = 1_000_000_000
STRICT = Bounds(refusal_ms=400, fault_refusal_ms=500, heal_s=1.0)


class Run:
    """A right run, to be spoiled; `guilty` is the operation or order that the verdict has to name."""

    def __init__(self, seed: int = 4, order_type: str = "goods") -> None:
        self.history, self.final = Sale(seed, order_type=order_type).play()
        self.bounds = STRICT

    def verdict(self) -> Verdict:
        return check(self.history, self.final, self.bounds)

    def put(self, **fields: object) -> None:
        self.final = replace(self.final, **fields)

    def change(self, order: OrderFacts, **fields: object) -> None:
        changed = replace(order, **fields)
        self.put(orders=[changed if o.order_id == order.order_id else o for o in self.final.orders])

    def order(self, state: str = "completed") -> OrderFacts:
        """The first order of that state whose yes was seen."""
        seen = {op.answer.order_id for op in self.history.operations if isinstance(op.answer, Ok)}
        return next(o for o in self.final.orders if o.state == state and o.order_id in seen)

    def operation(self, order: OrderFacts) -> Operation:
        """The first yes of an order."""
        return next(
            op for op in self.history.operations if isinstance(op.answer, Ok) and op.answer.order_id == order.order_id
        )

    def add(self, ask: Invoke, answer: Ok | Fail | Unknown | None) -> int:
        """One more operation, at the end; returns its number."""
        n = max(op.ask.n for op in self.history.operations) + 1
        ask = replace(ask, n=n)
        self.history.operations.append(Operation(ask, None if answer is None else replace(answer, n=n)))
        return n

    def again(self, operation: Operation, answer: Ok | Fail, **fields: object) -> int:
        """The request of an operation comes once more, a second after its answer."""
        assert operation.answer is not None
        at_ns = operation.answer.at_ns + SECOND
        self.history.end_ns = max(self.history.end_ns, at_ns + SECOND)
        return self.add(replace(operation.ask, at_ns=at_ns, **fields), replace(answer, at_ns=at_ns + SECOND // 100))


Spoil: TypeAlias = Callable[[Run], set[object]]


def sell_before_the_restock(run: Run) -> set[object]:
    """The stock is said to have come when all was over."""
    order = run.order()
    sku = order.items[0][0]
    allocation = run.final.campaign.allocation
    at_ns = max(d.at_ns for d in run.final.deliveries) + SECOND
    late = Move("late", sku, "restock", allocation[sku], at_ns)
    moves = [*run.final.campaign.moves, late]
    run.put(campaign=replace(run.final.campaign, allocation={**allocation, sku: 0}, moves=moves))
    return set()


def sell_before_the_return(run: Run) -> set[object]:
    """What came back, and was sold again, is said to have come back an hour later."""
    run.put(
        campaign=replace(run.final.campaign, limits=LimitsOf(), limits_kept=False)
    )  # which such a run exceeds as well
    hour_ns = 3_600 * SECOND
    late: set[str] = set()
    for order in run.final.orders:
        if order.state == "expired":
            late.add(order.order_id)
            run.change(order, events=[order.events[0], replace(order.events[1], at_ns=order.events[1].at_ns + hour_ns)])
    run.put(deliveries=[replace(d, at_ns=d.at_ns + hour_ns) if d.order_id in late else d for d in run.final.deliveries])
    return set()


def lose_an_order(run: Run) -> set[object]:
    order = run.order()
    run.put(orders=[o for o in run.final.orders if o is not order])
    return {order.order_id}


def store_an_order_twice(run: Run) -> set[object]:
    order = run.order()
    run.put(orders=[*run.final.orders, order])
    return {order.order_id}


def keep_and_set_aside(run: Run) -> set[object]:
    order = run.order()
    letter = DeadLetter(order.shard, "poison", order.order_id, order.seq)
    run.put(dead_letters=[*run.final.dead_letters, letter])
    return {order.order_id}


def leave_a_gap(run: Run) -> set[object]:
    [reading] = run.final.readings
    run.put(readings=[replace(reading, seq=reading.seq + 1, requests=reading.requests + 1)])
    return set()


def give_one_number_twice(run: Run) -> set[object]:
    one, two = run.order("completed"), run.order("expired")
    run.change(two, seq=one.seq)
    return {one.order_id, two.order_id}


def forget_the_attempts(run: Run) -> set[object]:
    order = run.order()
    run.history.operations = [op for op in run.history.operations if op.ask.key != order.key]
    return {order.order_id}


def alter_the_buyer(run: Run) -> set[object]:
    order = run.order()
    run.change(order, buyer="somebody else")
    return {order.order_id}


def take_what_was_refused(run: Run) -> set[object]:
    order = run.order()
    run.history.operations = [
        Operation(op.ask, Fail(op.answer.at_ns, op.ask.n, 409, "over_limit"))
        if op.ask.key == order.key and op.answer is not None
        else op
        for op in run.history.operations
        if op.ask.key != order.key or op.answer is not None
    ]
    return {order.order_id}


def refuse_after_a_yes(run: Run) -> set[object]:
    return {run.again(run.operation(run.order()), Fail(0, 0, 409, "over_limit"))}


def say_reused_for_the_same_body(run: Run) -> set[object]:
    return {run.again(run.operation(run.order()), Fail(0, 0, 422, "key_reused"))}


def say_closed_for_another_body(run: Run) -> set[object]:
    return {run.again(run.operation(run.order()), Fail(0, 0, 409, "closed"), body="other")}


def accept_another_body(run: Run) -> set[object]:
    order = run.order()
    return {run.again(run.operation(order), Ok(0, 0, 202, "", order.order_id), body="other")}


def replay_unmarked(run: Run) -> set[object]:
    order = run.order()
    return {run.again(run.operation(order), Ok(0, 0, 202, "", order.order_id, False))}


def share_an_order(run: Run) -> set[object]:
    order = run.order()
    return {run.again(run.operation(order), Ok(0, 0, 202, "", order.order_id), key="another")}


def say_reused_of_a_new_key(run: Run) -> set[object]:
    return {run.again(run.operation(run.order()), Fail(0, 0, 422, "key_reused"), key="another")}


def lose_a_unit_in_the_store(run: Run) -> set[object]:
    [reading] = run.final.readings
    run.put(readings=[replace(reading, left={**reading.left, "a": reading.left["a"] - 1})])
    return set()


def sell_a_hold_of_nobody(run: Run) -> set[object]:
    [reading] = run.final.readings
    left, sold = reading.left, reading.sold
    run.put(readings=[replace(reading, left={**left, "a": left["a"] - 1}, sold={**sold, "a": sold["a"] + 1})])
    return set()


def allocate_more_than_was_said(run: Run) -> set[object]:
    [reading] = run.final.readings
    left, allocation = reading.left, reading.allocation
    more = replace(reading, left={**left, "b": left["b"] + 1}, allocation={**allocation, "b": allocation["b"] + 1})
    run.put(readings=[more])
    return set()


def keep_a_hold(run: Run) -> set[object]:
    [reading] = run.final.readings
    run.put(readings=[replace(reading, holds=reading.holds + 1)])
    return set()


def limit_less(**limits: int) -> Spoil:
    def spoil(run: Run) -> set[object]:
        run.put(campaign=replace(run.final.campaign, limits=LimitsOf(**limits)))
        return set()

    spoil.__name__ = f"limit_{'_'.join(limits)}"
    return spoil


def deny_what_is_there(run: Run) -> set[object]:
    ask = Invoke(run.history.header.started_mono_ns, 0, "order", "app", "first", "x", "new", "", "", (("a", 1),))
    answer = Fail(ask.at_ns + 1000, 0, 409, "sold_out", sku="a")
    return {run.add(ask, answer)}


def leave_units_unsold(run: Run) -> set[object]:
    run.bounds = replace(run.bounds, sells_out=True)
    return set()


def skip_a_version(run: Run) -> set[object]:
    order = run.order()
    events = [e if e.version < 3 else replace(e, version=e.version + 1) for e in order.events]
    run.change(order, events=events)
    moved = [replace(d, version=d.version + 1) if d.order_id == order.order_id and d.version >= 3 else d
             for d in run.final.deliveries]  # fmt: skip
    partners = [replace(p, version=p.version + 1) if p.order_id == order.order_id and p.version >= 3 else p
                for p in run.final.partners or []]  # fmt: skip
    run.put(deliveries=moved, partners=partners)
    return {order.order_id}


def leave_the_flow(run: Run) -> set[object]:
    order = run.order()
    last = order.events[-1]
    run.change(order, events=[*order.events[:-1], replace(last, to_state="expired")], state="expired")
    return {order.order_id}


def end_elsewhere(run: Run) -> set[object]:
    order = run.order()
    run.change(order, state="shipped")
    return {order.order_id}


def let_two_win(run: Run) -> set[object]:
    order = run.order("expired")
    expired = order.events[1]
    paid = replace(expired, version=3, action="cancel", to_state="cancelled")
    run.change(order, events=[*order.events, paid], version=3, state="cancelled")
    more = [replace(d, version=3, outcome="nothing" if d.topic == "release" else d.outcome, attempts=2)
            for d in run.final.deliveries if d.order_id == order.order_id and d.version == 2]  # fmt: skip
    partners = [replace(p, version=3) for p in run.final.partners or [] if (p.order_id, p.version) ==
                (order.order_id, 2)]  # fmt: skip
    run.put(deliveries=[*run.final.deliveries, *more], partners=[*(run.final.partners or []), *partners])
    return {order.order_id}


def effective(run: Run, topic: str) -> Delivery:
    wanted = {"release": "released", "settle": "settled", "restock": "returned"}[topic]
    orders = {o.order_id for o in run.final.orders}
    return next(d for d in run.final.deliveries if d.outcome == wanted and d.order_id in orders)


def release_twice(run: Run) -> set[object]:
    done = effective(run, "release")
    run.put(deliveries=[*run.final.deliveries, done])
    return {done.order_id}


def restock_twice(run: Run) -> set[object]:
    done = effective(run, "restock")
    run.put(deliveries=[*run.final.deliveries, done])
    return {done.order_id}


def find_no_hold(run: Run) -> set[object]:
    run.history.faults = []
    done = effective(run, "settle")
    spoiled = replace(done, outcome="nothing", attempts=1)
    run.put(deliveries=[spoiled if d is done else d for d in run.final.deliveries])
    return {done.order_id}


def forget_a_cancel(run: Run) -> set[object]:
    order = run.order()
    ask = Invoke(run.history.end_ns - 1000, 0, "cancel", order_id=order.order_id)
    return {run.add(ask, Ok(run.history.end_ns, 0, 200))}


def drop_a_message(run: Run) -> set[object]:
    order = run.order()
    message = next(d for d in run.final.deliveries if d.order_id == order.order_id and d.topic == "notify")
    run.put(deliveries=[d for d in run.final.deliveries if d is not message])
    return {order.order_id}


def give_a_message_up(run: Run) -> set[object]:
    order = run.order()
    message = next(d for d in run.final.deliveries if d.order_id == order.order_id and d.topic == "webhook")
    run.put(deliveries=[d for d in run.final.deliveries if d is not message])
    run.put(dead_messages=[Message(message.order_id, message.version, message.topic)])
    return {order.order_id}


def seen(change: Callable[[PartnerSaw], list[PartnerSaw]]) -> Spoil:
    def spoil(run: Run) -> set[object]:
        order = run.order()
        partners = run.final.partners or []
        one = next(p for p in partners if p.order_id == order.order_id and p.topic == "payment")
        run.put(partners=[*(p for p in partners if p is not one), *change(one)])
        return {order.order_id}

    return spoil


act_twice = seen(lambda p: [replace(p, effects=2)])
come_under_two_ids = seen(lambda p: [p, replace(p, message_id="other", effects=0)])
never_come = seen(lambda p: [])


def refuse_slowly(run: Run) -> set[object]:
    ask = replace(run.history.operations[0].ask, at_ns=run.history.end_ns + 10 * SECOND, key="slow")
    run.history.end_ns = ask.at_ns + 20 * SECOND
    return {run.add(ask, Unknown(ask.at_ns + SECOND, 0, 503, "overloaded"))}


def refuse_too_slowly_in_a_fault(run: Run) -> set[object]:
    at_ns = run.history.faults[0].at_ns + 1
    ask = replace(run.history.operations[0].ask, at_ns=at_ns, key="slow")
    return {run.add(ask, Unknown(at_ns + SECOND, 0, 429, "limited"))}


def stay_ill(run: Run) -> set[object]:
    end_ns = run.history.end_ns
    run.history.faults += [Fault(end_ns + 1, "cut"), Healed(end_ns + 2, "cut")]
    ask = replace(run.history.operations[0].ask, at_ns=end_ns + 3, key="late")
    run.history.end_ns = end_ns + 10 * SECOND
    return {run.add(ask, Unknown(ask.at_ns + 1000, 0, 503, "store_unavailable"))}


def leave_a_message(run: Run) -> set[object]:
    order = run.order()
    message = next(d for d in run.final.deliveries if d.order_id == order.order_id and d.topic == "webhook")
    run.put(deliveries=[d for d in run.final.deliveries if d is not message])
    run.put(outbox=[Message(message.order_id, message.version, message.topic)])
    return {order.order_id}


def leave_a_lease(run: Run) -> set[object]:
    run.put(leases=1)
    return set()


def leave_the_intake(run: Run) -> set[object]:
    run.put(intake=1)
    return set()


SPOILED: list[tuple[int, Spoil]] = [
    (1, sell_before_the_restock),
    (1, sell_before_the_return),
    (2, lose_an_order),
    (2, store_an_order_twice),
    (2, keep_and_set_aside),
    (2, leave_a_gap),
    (2, give_one_number_twice),
    (3, forget_the_attempts),
    (3, alter_the_buyer),
    (3, take_what_was_refused),
    (4, refuse_after_a_yes),
    (4, say_reused_for_the_same_body),
    (4, say_closed_for_another_body),
    (4, accept_another_body),
    (4, replay_unmarked),
    (4, share_an_order),
    (4, say_reused_of_a_new_key),
    (5, lose_a_unit_in_the_store),
    (5, sell_a_hold_of_nobody),
    (5, allocate_more_than_was_said),
    (5, keep_a_hold),
    (6, limit_less(buyer=1)),
    (6, limit_less(buyer_sku=1)),
    (6, limit_less(ip=1)),
    (6, limit_less(device=1)),
    (7, deny_what_is_there),
    (7, leave_units_unsold),
    (8, skip_a_version),
    (8, leave_the_flow),
    (8, end_elsewhere),
    (9, let_two_win),
    (9, find_no_hold),
    (9, forget_a_cancel),
    (10, drop_a_message),
    (10, give_a_message_up),
    (10, act_twice),
    (10, come_under_two_ids),
    (10, never_come),
    (11, refuse_slowly),
    (11, refuse_too_slowly_in_a_fault),
    (12, stay_ill),
    (12, leave_a_message),
    (12, leave_the_intake),
]  # fmt: skip
