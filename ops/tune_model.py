"""The arithmetic of `rushgate tune`: from what one process does to how many hold a rate and clear a spike.

Every order passes the gateway, the store and a ledger worker; its messages pass a relay, and the share of orders that
nobody pays passes an expiry worker. A stage keeps up if it does more than comes; what is left of that clears a backlog:

    clear time = orders of the spike / (what the stages let through - what goes on arriving)

A further process of a kind brings less than the first: they share store, ledger and cores (`efficiency`). What no
number of processes changes bounds all of them: the store's one thread, the ledger, the cores of a machine.
docs/sizing.md tells it with an example, and says where it ends.
"""

import math
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

KINDS = ("gateway", "ledger", "relay", "expiry")
MOST = 64  # processes of a kind that are advised
STEADY = 0.8  # busy at most, of processes that hold a rate: what comes in waves would pile up beyond it
STORE_STEADY = 0.85  # likewise of the store's thread; beyond it the waits for it grow fast

Rate = Annotated[float, Meta(gt=0, le=1e9)]
Cost = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=0, le=4_096)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Stage(Struct, forbid_unknown_fields=True, kw_only=True):
    """One kind of process."""

    per_second: Annotated[Rate, Meta(description="orders a second (relay: messages) that ONE process does when it always has work")]  # fmt: skip # noqa: E501
    efficiency: Annotated[Share, Meta(description="what each further process adds, as a share of the first one's; `tune --probe` measures it")] = 0.7  # fmt: skip # noqa: E501
    cpu_us: Annotated[Cost, Meta(description="CPU of the process for one order or message, us")] = 0.0
    now: Annotated[Count, Meta(description="processes that run now")] = 1

    def of(self, n: int) -> float:
        """What n processes do, orders or messages a second."""
        return self.per_second * (1 + (n - 1) * self.efficiency) if n > 0 else 0.0


class Orders(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the orders are like."""

    requests_per_order: Annotated[float, Meta(ge=1, le=10_000, description="requests that reach a gateway for each accepted order: refusals cost CPU too")] = 1.0  # fmt: skip # noqa: E501
    messages_per_order: Annotated[float, Meta(ge=0, le=100, description="messages that a relay carries for each order while it comes and is paid: payment, settle, warehouse, notify, webhook")] = 5.0  # fmt: skip # noqa: E501
    unpaid_share: Annotated[Share, Meta(description="share of the orders that nobody pays: an expiry worker ends them")] = 0.2  # fmt: skip # noqa: E501


class Machine(Struct, forbid_unknown_fields=True, kw_only=True):
    """The machine that all processes share, if they do."""

    cores: Annotated[Count, Meta(description="cores that gateways, workers, store and ledger share; 0 = they are on machines of their own, and cores are no bound")] = 0  # fmt: skip # noqa: E501
    others: Annotated[float, Meta(ge=0, le=4_096, description="of these, cores that are busy with something else")] = 0.0  # fmt: skip # noqa: E501


class Store(Struct, forbid_unknown_fields=True, kw_only=True):
    """The store: one thread does all of it."""

    cpu_us: Annotated[Cost, Meta(description="CPU of the store's thread for one accepted order, all that it does for it, us")] = 12.0  # fmt: skip # noqa: E501


class Ledger(Struct, forbid_unknown_fields=True, kw_only=True):
    """The ledger's server."""

    cpu_us: Annotated[Cost, Meta(description="CPU of Postgres for one order, us")] = 15.0
    most_per_second: Annotated[float, Meta(ge=0, le=1e9, description="orders a second that it takes at most, from however many workers; 0 = not known")] = 0.0  # fmt: skip # noqa: E501


class Partners(Struct, forbid_unknown_fields=True, kw_only=True):
    """The partners that relays call."""

    answer_ms: Annotated[float, Meta(ge=0, le=600_000, description="how long the busiest partner takes for an answer, ms; 0 = there are none")] = 0.0  # fmt: skip # noqa: E501
    at_once: Annotated[int, Meta(ge=1, le=10_000, description="messages that one relay has with one partner at a time")] = 32  # fmt: skip # noqa: E501
    busiest_share: Annotated[float, Meta(gt=0, le=1, description="share of all messages that goes to the busiest partner")] = 0.4  # fmt: skip # noqa: E501


class Assumptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """All that the advice rests on. The defaults were measured on 2 cores that everything shared (performance.md)."""

    orders: Orders = msgspec.field(default_factory=Orders)
    gateway: Stage = msgspec.field(default_factory=lambda: Stage(per_second=20_000.0, cpu_us=25.0))
    ledger: Stage = msgspec.field(default_factory=lambda: Stage(per_second=30_000.0, cpu_us=7.0))
    relay: Stage = msgspec.field(default_factory=lambda: Stage(per_second=8_000.0, cpu_us=50.0))
    expiry: Stage = msgspec.field(default_factory=lambda: Stage(per_second=20_000.0, cpu_us=7.0, efficiency=0.1))
    machine: Machine = msgspec.field(default_factory=Machine)
    store: Store = msgspec.field(default_factory=Store)
    database: Ledger = msgspec.field(default_factory=Ledger)
    partners: Partners = msgspec.field(default_factory=Partners)

    def stage(self, kind: str) -> Stage:
        """Of one of KINDS."""
        found: Stage = getattr(self, kind)
        return found

    def per_order(self, kind: str) -> float:
        """How often an order occupies a process of this kind."""
        orders = self.orders
        return {
            "gateway": orders.requests_per_order,
            "ledger": 1.0,
            "relay": orders.messages_per_order,
            "expiry": orders.unpaid_share,
        }[kind]

    def cpu_us(self) -> float:
        """CPU of all processes, store and ledger for one accepted order."""
        own = sum(self.stage(kind).cpu_us * self.per_order(kind) for kind in KINDS)
        return own + self.store.cpu_us + self.database.cpu_us


class Target(NamedTuple):
    """What is asked for: a rate to be held, and a spike on top of it, in the ledger so many seconds after its first
    order."""

    rate: float
    spike: float = 0.0
    clear_in_s: float = 60.0

    @property
    def needed(self) -> float:
        """Orders a second through every stage while the spike is cleared."""
        return self.rate + (self.spike / self.clear_in_s if self.spike else 0.0)


class Bound(NamedTuple):
    """What lets at most so many orders a second through. `fixed`: more processes change nothing about it."""

    what: str
    orders_per_s: float
    fixed: bool
    kind: str = ""  # of the processes whose bound it is
    plural: bool = False  # the cores


class Step(NamedTuple):
    """One process of a kind more."""

    kind: str
    from_n: int
    adds: float  # orders a second
    share: float  # of what there was
    why: str  # in words, if it adds nothing or less


class Advice(NamedTuple):
    """How many processes, and what then bounds them. `bounds`: the narrowest first."""

    target: Target
    processes: dict[str, int]
    bounds: list[Bound]
    fits: bool  # what is asked for is reached
    clear_s: float | None  # from the spike's first order until all are in the ledger; None: never
    messages_s: float | None  # likewise until its messages are delivered
    steps: list[Step]

    @property
    def reached(self) -> float:
        """Orders a second that pass all stages."""
        return self.bounds[0].orders_per_s


def relay_rate(given: Assumptions, n: int) -> float:
    """Messages a second of n relays: by what they do, and by what partners answer them."""
    partners = given.partners
    answered = math.inf
    if partners.answer_ms:
        answered = n * partners.at_once * 1_000 / partners.answer_ms / partners.busiest_share
    return min(given.relay.of(n), answered)


def bounds(given: Assumptions, processes: dict[str, int]) -> list[Bound]:
    """What lets how many orders a second through, the narrowest first."""
    found = []
    for kind in KINDS:
        each, n = given.per_order(kind), processes[kind]
        if not each:
            continue
        does = relay_rate(given, n) if kind == "relay" else given.stage(kind).of(n)
        slow = kind == "relay" and n > 0 and does < given.relay.of(n)
        what = "the partners' answers" if slow else f"{n} {kind} {'process' if n == 1 else 'processes'}"
        found.append(Bound(what, does / each, False, kind))
    if given.store.cpu_us:
        found.append(Bound("the store's one thread", STORE_STEADY * 1e6 / given.store.cpu_us, True))
    if given.database.most_per_second:
        found.append(Bound("the ledger", given.database.most_per_second, True))
    if given.machine.cores and given.cpu_us():
        free = max(0.0, given.machine.cores - given.machine.others)
        found.append(
            Bound(f"the {given.machine.cores} cores of this machine", free * 1e6 / given.cpu_us(), True, "", True)
        )
    return sorted(found, key=lambda b: b.orders_per_s)


def advise(given: Assumptions, target: Target) -> Advice:
    """The fewest processes of each kind that do what is asked for, or all that is worth having if nothing does."""
    fixed = min((b.orders_per_s for b in bounds(given, dict.fromkeys(KINDS, 1)) if b.fixed), default=math.inf)
    # Beyond what is fixed no process helps, so none is advised for it.
    wanted = min(max(target.rate / STEADY, target.needed), fixed)
    processes = {kind: _fewest(given, kind, wanted) for kind in KINDS}
    found = bounds(given, processes)
    fits = found[0].orders_per_s >= target.needed * 0.999
    # Messages wait in the ledger, and what nobody pays is ended later: neither keeps an order from the ledger.
    to_ledger = min(b.orders_per_s for b in found if b.fixed or b.kind in ("gateway", "ledger"))
    to_end = min((b.orders_per_s for b in found if b.kind != "expiry"), default=to_ledger)
    steps = [one_more(given, processes, kind) for kind in KINDS]
    return Advice(target, processes, found, fits, _cleared_s(target, to_ledger), _cleared_s(target, to_end), steps)


def _cleared_s(target: Target, passes: float) -> float | None:
    """When the spike has passed stages that let so many orders a second through; None: never."""
    if not target.spike:
        return 0.0
    return target.spike / (passes - target.rate) if passes > target.rate else None


def _fewest(given: Assumptions, kind: str, wanted: float) -> int:
    each = given.per_order(kind)
    for n in range(1, MOST + 1):
        does = relay_rate(given, n) if kind == "relay" else given.stage(kind).of(n)
        if not each or does / each >= wanted * 0.999:
            return n
    return MOST


def one_more(given: Assumptions, processes: dict[str, int], kind: str) -> Step:
    """What one process of a kind more adds to what passes this stage, as far as what is fixed lets it through."""
    n = processes[kind]
    before = {b.kind: b for b in bounds(given, processes) if b.kind}
    after = {b.kind: b for b in bounds(given, processes | {kind: n + 1}) if b.kind}
    if kind not in before:
        return Step(kind, n, 0.0, 0.0, "no order needs it")
    fixed = min((b for b in bounds(given, processes) if b.fixed), key=lambda b: b.orders_per_s, default=None)
    old, new = before[kind].orders_per_s, after[kind].orders_per_s
    why = ""
    if fixed is not None and new > fixed.orders_per_s:
        why = f"{fixed.what} {'let' if fixed.plural else 'lets'} {fixed.orders_per_s:,.0f} orders/s through"
        new = max(old, fixed.orders_per_s)
    return Step(kind, n, new - old, (new - old) / old if old else 0.0, why)
