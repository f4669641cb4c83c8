"""What must hold on every way an order can take: its money, units and services come out even.

A trail is a way from the first state to an end on which each move between states happens at most once.
"""

from collections.abc import Callable, Iterator

from core.flows.table import Flow, Step

Trail = tuple[Step, ...]
Law = Callable[[Trail], Iterator[str]]

PARTNERS = {"provision": ("provisioned", "provision_failed"), "bill": ("billed", "bill_failed")}


def trails(flow: Flow) -> Iterator[Trail]:
    """Every trail of the flow; one that passes an end is given there, and again where it goes on."""
    todo: list[tuple[str, Trail]] = [(flow.first, ())]
    while todo:
        state, trail = todo.pop()
        if state in flow.ends:
            yield trail
        todo += [(s.to, (*trail, s)) for s in flow.steps if s.state == state != s.to and s not in trail]


def told(trail: Trail) -> list[str]:
    return [topic for step in trail for topic in step.messages]


def done(trail: Trail) -> list[str]:
    return [step.action for step in trail]


def money(trail: Trail) -> Iterator[str]:
    """Paid once: completed, or refunded once and confirmed. Not paid: neither."""
    end, pays, refunds = trail[-1].to, done(trail).count("pay"), told(trail).count("refund")
    if pays != (end in ("completed", "refunded")) or refunds != (end == "refunded"):
        yield f"{end} with {pays} payments and {refunds} refunds"
    for at, step in enumerate(trail):
        if "refund" in step.messages and ("pay" not in done(trail[: at + 1]) or trail[at + 1 :][:1] != trail[-1:]):
            yield "refunded before it was paid, or not confirmed next"


def units(trail: Trail) -> Iterator[str]:
    """A hold ends once; sold units come back once, unless they are the buyer's or lost."""
    end, topics, actions = trail[-1].to, told(trail), done(trail)
    settled, released = topics.count("settle"), topics.count("release")
    if settled + released != 1:
        yield f"{end}: hold settled {settled} and released {released} times"
    if end == "completed" and not settled:
        yield "completed, not settled"
    if topics.count("restock") != (settled and end == "refunded" and "lost" not in actions):
        yield f"{end}: restocked {topics.count('restock')} times"
    for at, step in enumerate(trail):
        so_far = trail[: at + 1]
        if "settle" in step.messages and "pay" not in done(so_far):
            yield "settled before it was paid"
        if "release" in step.messages and "pay" in done(so_far) and step.action != "too_late":
            yield "released after it was paid"
        if "restock" in step.messages and ("settle" not in told(so_far) or step.to != "refund_pending"):
            yield "restocked before it was sold, or while it may yet be completed"


def delivery(trail: Trail) -> Iterator[str]:
    """The warehouse has what is sold, is called back before units go on sale again, and ships what it has."""
    working = shipped = False
    for step in trail:
        shipped = shipped or step.action == "ship"
        if shipped and step.to in ("paid", "suspended", "picking", "recalling"):
            yield f"{step.to} after it was shipped"
        if "warehouse" in step.messages and (working or shipped or step.to != "paid"):
            yield f"the warehouse is told at {step.action} what it knows"
        if "recall" in step.messages and (not working or shipped):
            yield f"recalled at {step.action} what the warehouse does not have"
        working = (working or "warehouse" in step.messages) and "recall" not in step.messages
        if working != (step.to in ("paid", "picking")) and not shipped:
            yield f"{step.to}: the warehouse works {working}"
        if "restock" in step.messages and shipped != (step.action == "goods_back"):
            yield f"restocked at {step.action}"
    if trail[-1].to == "completed" and not shipped:
        yield "completed, not shipped"


def allocation(trail: Trail) -> Iterator[str]:
    """Units are asked for by the payment in time, and sold if they were there."""
    asked = [step.to for step in trail if "allocate" in step.messages]
    answers = [a for a in done(trail) if a in ("allocated", "too_late")]
    if asked != ["allocating"] * len(answers) or ("settle" in told(trail)) != ("allocated" in answers):
        yield f"allocation asked at {asked}, answered {answers}"


def no_allocation(trail: Trail) -> Iterator[str]:
    if "allocate" in told(trail):
        yield "allocated what was held from the start"


def services(trail: Trail) -> Iterator[str]:
    """Each is asked for once and answers once; completed = both done; otherwise what was done is undone first."""
    end, topics, actions = trail[-1].to, told(trail), done(trail)
    sold = "settle" in topics
    for service, answers in PARTNERS.items():
        success, undo = answers[0], f"un{service}"
        if topics.count(service) != sold or sum(a in answers for a in actions) != sold:
            yield f"{end}: {service} asked {topics.count(service)} times, or not answered once"
        if end == "completed" and success not in actions:
            yield f"completed, not {success}"
        undone = success in actions and end != "completed"
        if topics.count(undo) != undone or actions.count(f"un{success}") != undone:
            yield f"{end}: {undo} asked {topics.count(undo)} times after {actions}"
        for at, step in enumerate(trail):
            if service in step.messages and step.action != "pay":
                yield f"{service} asked at {step.action}"
            if undo in step.messages and (
                success not in done(trail[: at + 1]) or done(trail[at + 1 :])[:1] != [f"un{success}"]
            ):
                yield f"{undo} at {step.action}, with nothing to undo or not waited for"
            if "refund" in step.messages and undone and f"un{success}" not in done(trail[: at + 1]):
                yield f"refunded while {success}"


def nothing_else(allowed: set[str]) -> Law:
    def law(trail: Trail) -> Iterator[str]:
        yield from (f"foreign topic {t}" for t in told(trail) if t not in allowed)

    return law


COMMON = {"release", "settle", "restock", "refund", "notify", "webhook"}
GOODS = {*COMMON, "warehouse", "recall"}
SERVICE = {"provision", "unprovision", "bill", "unbill"}
LAWS: dict[str, tuple[Law, ...]] = {
    "goods": (money, units, delivery, no_allocation, nothing_else(GOODS)),
    "virtual": (money, units, services, no_allocation, nothing_else(COMMON | SERVICE)),
    "reserve_at_payment": (money, units, delivery, allocation, nothing_else(GOODS | {"allocate"})),
}


def violations(flow: Flow) -> set[str]:
    """What is wrong with any trail of the flow; empty = nothing."""
    return {fault for trail in trails(flow) for law in LAWS[flow.order_type] for fault in law(trail)}
