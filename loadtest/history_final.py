"""What store, ledger and partners have when a run is over: the other half of what the history checker judges.

Collected by whoever may see them, handed over as JSON. Times are wall clock: `_ns` nanoseconds, `_ms` milliseconds.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from loadtest.history import Items

STORE_TOPICS = frozenset({"release", "settle", "restock", "allocate"})


class Move(Struct, frozen=True, gc=False):
    """A journalled change of stock from outside. `at_ns` is before it was made; `kind` as in the ledger."""

    move_id: str
    sku: str
    kind: str
    units: int  # negative = withdrawn
    at_ns: int
    state: str = "applied"


class LimitsOf(Struct, frozen=True):
    """Units, the loosest that ever held; None = no limit, or there was a time without."""

    buyer: int | None = None
    buyer_sku: int | None = None
    ip: int | None = None
    device: int | None = None


class CampaignFacts(Struct, frozen=True):
    """The campaign: `allocation` are the units at its opening, `moves` what came later (`open` is left aside)."""

    name: str
    allocation: dict[str, int]
    moves: list[Move] = []
    limits: LimitsOf = LimitsOf()
    order_type: str = "goods"
    spread: int = 1
    lease_ms: int = 400
    limits_kept: bool = False  # since the opening nobody changed them: `limits` are also the tightest


class FlowMove(Struct, frozen=True):
    """One row of the order type's table."""

    state: str
    action: str
    to: str
    messages: tuple[str, ...] = ()


class FlowFacts(Struct, frozen=True):
    """The flow of the campaign's orders; `opening` are the messages that are written with the order itself."""

    first: str
    ends: tuple[str, ...]
    moves: list[FlowMove]
    opening: tuple[str, ...] = ("payment",)


class OrderEvent(Struct, frozen=True, gc=False):
    """One event; `from_state` is None of the first."""

    version: int
    at_ns: int
    action: str
    from_state: str | None
    to_state: str
    actor: str = ""
    reason: str = ""


class OrderFacts(Struct, frozen=True, gc=False):
    """An order as the ledger has it, with its events in the order of their versions."""

    order_id: str
    shard: int
    seq: int
    channel: str
    key: str
    buyer: str
    items: Items
    amount: int
    state: str
    version: int
    accepted_ms: int  # the store's clock
    pay_by_ms: int
    events: list[OrderEvent]
    ip: str = ""
    device: str = ""
    epoch: int = 1


class DeadLetter(Struct, frozen=True, gc=False):
    """An order that was set aside. None: not even that could be read."""

    shard: int
    reason: str
    order_id: str | None = None
    seq: int | None = None
    epoch: int = 1


class PaymentFacts(Struct, frozen=True, gc=False):
    """A payment on record; `status` is paid or failed."""

    order_id: str
    payment_no: str
    status: str
    amount: int


class RefundFacts(Struct, frozen=True, gc=False):
    """A refund on record; `ref_<version>` belongs to the message `refund` of that version."""

    order_id: str
    refund_no: str
    amount: int
    state: str


class Message(Struct, frozen=True, gc=False):
    """A message by its stable identity: of the outbox, or one that was given up."""

    order_id: str
    version: int
    topic: str


class Delivery(Struct, frozen=True, gc=False):
    """A message that was delivered; `at_ns` is after the deed."""

    order_id: str
    version: int
    topic: str
    at_ns: int
    outcome: str
    attempts: int = 1


class PartnerSaw(Struct, frozen=True, gc=False):
    """What a partner saw of a message under one id: how often it came, how often it acted."""

    order_id: str
    version: int
    topic: str
    message_id: str
    received: int
    effects: int
    amount: int = 0  # of `payment` and `refund`
    number: str = ""  # of `refund`
    others: int = 0  # receipts that spoke of other money than the first one


class PartnerReport(Struct, frozen=True, gc=False):
    """What a partner reported under one number, and how often the gateway took it with a yes."""

    order_id: str
    partner: str
    action: str
    number: str
    amount: int
    taken: int


class ShardReading(Struct, frozen=True):
    """A campaign on a shard of the store, in one instant. By SKU, in units; `moving` left it for another shard."""

    shard: int
    left: dict[str, int]
    allocation: dict[str, int]
    held: dict[str, int]
    sold: dict[str, int]
    seq: int
    requests: int
    holds: int
    moving: dict[str, int] = {}
    epoch: int = 1
    hold_ids: list[str] | None = None  # orders that have a hold; None = not known


class Repair(Struct, frozen=True):
    """What the reconcile worker mended."""

    order_id: str
    what: str


class Rebuilt(Struct, frozen=True):
    """A rebuild of the campaign on a shard: the store had lost data, and `epoch` began. From `at_ns` on nothing of an
    older epoch was accepted. `gap`: numbers up to `base` that nobody has; the next order has `base` + 1."""

    shard: int
    epoch: int
    at_ns: int
    done_ns: int | None = None  # None, and `base` with it: broken off or overtaken
    base: int | None = None
    gap: int = 0
    why: str = ""


class Final(Struct, frozen=True):
    """Everything at the end."""

    campaign: CampaignFacts
    flow: FlowFacts
    orders: list[OrderFacts]
    readings: list[ShardReading]
    dead_letters: list[DeadLetter] = []
    payments: list[PaymentFacts] = []
    refunds: list[RefundFacts] = []
    outbox: list[Message] = []
    dead_messages: list[Message] = []
    deliveries: list[Delivery] = []
    partners: list[PartnerSaw] | None = None  # None = not known
    reports: list[PartnerReport] | None = None
    repairs: list[Repair] = []
    rebuilds: list[Rebuilt] = []
    intake: int = 0  # entries in the streams
    leases: int = 0  # of messages that somebody still works on


def read_final(path: Path) -> Final:
    """The facts of a file. Raises OSError; msgspec.ValidationError naming the field that is not as it must be."""
    return msgspec.json.decode(path.read_bytes(), type=Final)


def write_final(path: Path, final: Final) -> None:
    """The file holds the facts."""
    path.write_bytes(msgspec.json.encode(final))
