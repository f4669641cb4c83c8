"""What a lost store may cost, and nothing more: orders that were accepted, not drained, and went with its disk.

A yes without an order is excused only if all of this holds; then it counts as an answer that nobody knows:

- the history has a fault of LOSSES, and every yes of the order came before that fault was healed;
- the campaign began a new epoch after that fault had begun, and nobody's order, asked after it was healed, was accepted
  before: a loss that the store sold over is never excused;
- nothing of the order was ever seen outside the store: no delivery, no payment, no partner, no cancel that got a yes;
- it was not accepted in calm so long before the fault that it must have been drained.

And what is excused must be told: while every gateway lives on, the gaps of the rebuilds count these orders.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from loadtest.history import Fault, Healed, History, Mending, Ok, Operation, Unknown
from loadtest.history_check_classes import HEARD, LOSSES, beyond
from loadtest.history_final import Final, Rebuilt

__all__ = ["LOSSES", "Excused", "Loss", "bases", "excused", "gaps", "losses", "without"]

FOR_EVER = 1 << 62


class Loss(Struct, frozen=True):
    """A fault of LOSSES that was answered by a rebuild. Nanoseconds of the history's clock."""

    begin_ns: int
    healed_ns: int
    epoch: int  # that began
    back_ns: int  # the rebuilt shards were filled by then


class Excused(Struct, frozen=True):
    """An order that went with the store's disk."""

    loss: Loss
    first: Operation  # its first yes
    first_ok_ns: int
    heard: bool  # the gateway that answered it lived on and could tell: the rebuild's gap must count it


def losses(history: History, final: Final, tolerance_ns: int) -> list[Loss]:
    """Each loss that was seen and answered by a rebuild, before anything was sold again."""
    found = []
    sold = [
        (op.ask.at_ns, op.answer.at_ns)
        for op in history.operations
        if op.ask.op == "order" and isinstance(op.answer, Ok)
    ]
    for begin_ns, healed_ns in _windows([e for e in history.faults if e.name in LOSSES]):
        rebuilds = [r for r in final.rebuilds if history.mono_ns(r.at_ns) >= begin_ns - tolerance_ns]
        done = [r for r in rebuilds if r.done_ns is not None]
        if not done:
            continue
        began_ns = min(history.mono_ns(r.at_ns) for r in rebuilds)
        if any(healed_ns < asked and answered < began_ns - tolerance_ns for asked, answered in sold):
            continue
        epoch = min(r.epoch for r in done)
        back_ns = max(history.mono_ns(r.done_ns or 0) for r in done if r.epoch == epoch)
        found.append(Loss(begin_ns, healed_ns, epoch, back_ns))
    return found


def excused(
    history: History, final: Final, lost: Mapping[str, list[Operation]], tolerance_ns: int, drain_ns: int
) -> dict[str, Excused]:
    """The orders of `lost` (order id -> its yeses) that a lost store may have cost. `drain_ns`: in so much calm time an
    order is drained."""
    answered = losses(history, final, tolerance_ns) if lost else []
    if not answered:
        return {}
    seen = _seen(history, final)
    marks = sorted((f.at_ns, isinstance(f, Fault)) for f in history.faults if isinstance(f, Fault | Healed))
    silent = _windows(beyond(history.faults, HEARD))
    found = {}
    for order_id, ops in lost.items():
        times = [op.answer.at_ns for op in ops if op.answer is not None]
        first_ok_ns, last_ok_ns = min(times), max(times)
        for loss in answered:
            if order_id in seen or last_ok_ns > loss.healed_ns + tolerance_ns:
                continue
            if _calm_ns(marks, first_ok_ns, loss.begin_ns) > drain_ns:
                continue
            # A replay may come from another gateway than the one that took the order.
            asked_ns = [op.ask.at_ns for op in ops if op.answer is not None and not op.answer.replayed]
            until_ns = loss.back_ns + tolerance_ns
            heard = any(not any(a <= until_ns and at_ns <= b for a, b in silent) for at_ns in asked_ns)
            found[order_id] = Excused(loss, min(ops, key=lambda op: op.ask.at_ns), first_ok_ns, heard)
            break
    return found


def without(history: History, orders: Mapping[str, Excused]) -> History:
    """The history, as if nobody knew what became of the operations that got these orders."""
    operations = []
    for op in history.operations:
        answer = op.answer
        if answer is not None and op.ask.op == "order" and answer.order_id in orders:
            op = Operation(op.ask, Unknown(answer.at_ns, answer.n, answer.status))
        operations.append(op)
    return replace(history, operations=operations)


def bases(final: Final) -> dict[tuple[int, int], int]:
    """Shard, epoch -> the number after which a rebuilt shard goes on counting."""
    return {(r.shard, r.epoch): r.base for r in final.rebuilds if r.base is not None}


def gaps(final: Final, answered: list[Loss]) -> dict[int, Rebuilt]:
    """Shard -> the last rebuild that a loss was answered by: its gap is all that may be missing up to its base."""
    epochs = {loss.epoch for loss in answered}
    found: dict[int, Rebuilt] = {}
    for r in sorted(final.rebuilds, key=lambda r: r.epoch):
        if r.epoch in epochs and r.done_ns is not None:
            found[r.shard] = r
    return found


def _windows(faults: list[Fault | Mending | Healed]) -> list[tuple[int, int]]:
    """Beginning and end of each fault; FOR_EVER: it lasts."""
    found, begun = [], dict[str, int]()
    for event in sorted(faults, key=lambda e: e.at_ns):
        if isinstance(event, Healed) and event.name in begun:
            found.append((begun.pop(event.name), event.at_ns))
        elif isinstance(event, Fault):
            begun.setdefault(event.name, event.at_ns)
    return [*found, *((start, FOR_EVER) for start in begun.values())]


def _seen(history: History, final: Final) -> set[str]:
    """Orders that something outside the store knows: they had been drained."""
    told: list[Sequence[object]] = [final.deliveries, final.payments, final.refunds, final.outbox, final.dead_messages]
    told += [final.partners or [], final.reports or []]
    seen = {str(getattr(fact, "order_id", "")) for facts in told for fact in facts}
    return seen | {op.ask.order_id for op in history.operations if op.ask.order_id and isinstance(op.answer, Ok)}


def _calm_ns(marks: list[tuple[int, bool]], from_ns: int, to_ns: int) -> int:
    """The longest time without a fault between the two."""
    longest, open_, since_ns = 0, 0, from_ns
    for at_ns, begins in marks:
        if at_ns >= to_ns:
            break
        if begins and not open_ and at_ns > since_ns:
            longest = max(longest, at_ns - since_ns)
        open_ += 1 if begins else -1
        if not open_:
            since_ns = max(from_ns, at_ns)
    return max(longest, to_ns - since_ns) if not open_ else longest
