"""What each partner does with a message, and what it will call back: pure decisions, no I/O."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from loadtest.partners_callbacks import Callback
from loadtest.partners_options import Buyers, PartnersOptions

Decision = Literal["pay", "cancel", "ignore", "pay_late"]

# What a partner reports, one after the other, when it has a message of a topic. No topics: takes any, reports nothing.
REPORTS: dict[str, dict[str, tuple[str, ...]]] = {
    "payment": {"payment": (), "refund": ()},  # its callbacks are made below
    "warehouse": {"warehouse": ("pick", "ship", "receive"), "recall": ("recalled",)},
    "provisioning": {"provision": ("provision",), "unprovision": ("unprovision",)},
    "billing": {"bill": ("bill",), "unbill": ("unbill",)},
    "notification": {},
    "channel": {},
}
# Reports that may come too late: the order may be past recalling, the buyer may have sent the parcel back unopened.
LATE_REPORTS = ("recalled", "receive")
# The order's state forbids it, or it is gone: a buyer takes no for an answer.
CANCEL_FINAL = (400, 401, 403, 404, 409, 422)


class Message(msgspec.Struct, frozen=True):
    """The body of a message to a partner; further fields are ignored."""

    message_id: Annotated[str, Meta(min_length=1, max_length=128)]
    topic: Annotated[str, Meta(min_length=1, max_length=64)]
    order_id: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]*\Z")]
    data: msgspec.Raw = msgspec.Raw(b"{}")
    shard: int | None = None


class Asked(msgspec.Struct, frozen=True):
    """`data` of the topic `payment`."""

    amount: int
    currency: str
    pay_by: Annotated[datetime, Meta(tz=True)]
    channel: str = ""


class Refund(msgspec.Struct, frozen=True):
    """`data` of the topic `refund`; `refund_no`, if there, becomes the serial number of the repayment."""

    amount: int
    currency: str
    refund_no: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]*\Z")] = ""


class Money(msgspec.Struct, frozen=True):
    """What any message says of money; nothing: 0."""

    amount: int = 0
    refund_no: str = ""


_decode_money = msgspec.json.Decoder(Money).decode
_decode_asked = msgspec.json.Decoder(Asked).decode
_decode_refund = msgspec.json.Decoder(Refund).decode


def spoken_of(message: Message) -> Money:
    """The money of a message; of one that is not to be understood: none, as it will be refused for that."""
    try:
        return _decode_money(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Money()


def decide(seed: int, order_id: str, buyers: Buyers) -> tuple[Decision, float]:
    """What the buyer of an order does, and a number of 0 to 1 for how long it takes: by a hash, always the same."""
    digest = hashlib.sha256(f"{seed}:{order_id}".encode()).digest()
    point, pace = (int.from_bytes(digest[at : at + 8]) / 2**64 for at in (0, 8))
    shares: tuple[tuple[Decision, float], ...] = (
        ("pay", buyers.pay),
        ("cancel", buyers.cancel),
        ("ignore", buyers.ignore),
    )
    for decision, share in shares:
        if point < share:
            return decision, pace
        point -= share
    # Rounding may leave a sliver of the last 1e-9: nobody pays late who was not to.
    return ("pay_late" if buyers.pay_late else "ignore"), pace


def serial(kind: str, seed: int, of: str) -> str:
    """A serial number that is the same for the same payment or refund, however often it is asked for."""
    return f"{kind}_{hashlib.sha256(f'{kind}:{seed}:{of}'.encode()).hexdigest()[:24]}"


def callbacks_of(
    partner: str, message: Message, options: PartnersOptions, buyers: Buyers, now_s: float, twice: Callable[[], bool]
) -> list[Callback]:
    """What `partner` will send because of `message`; `twice` draws whether a callback is sent two times.

    Raises:
        msgspec.ValidationError: `data` is not what the topic needs.
        KeyError: the partner knows no such topic.
    """
    if partner == "payment":
        if message.topic == "payment":
            return _payment(message, options, buyers, now_s, twice)
        if message.topic == "refund":
            return [_refund(message, options, now_s, twice)]
    reports = REPORTS[partner]
    if not reports:
        return []
    step_s = options.step_ms / 1_000
    first: Callback | None = None
    actions = reports[message.topic]
    for number, action in reversed(list(enumerate(actions))):
        first = Callback(
            partner=partner,
            topic=message.topic,
            order_id=message.order_id,
            effect=action,
            path=f"/v1/partners/{partner}/callback",
            message_id=serial(partner, options.seed, f"{message.message_id}:{action}"),
            fields={"order_id": message.order_id, "action": action},
            time_field="at",
            due_s=now_s + step_s if number == 0 else step_s,
            twice=twice(),
            then=first,
            final=(409,) if action in LATE_REPORTS else (),
        )
    return [first] if first else []


def _payment(
    message: Message, options: PartnersOptions, buyers: Buyers, now_s: float, twice: Callable[[], bool]
) -> list[Callback]:
    asked = _decode_asked(message.data)
    decision, pace = decide(options.seed, message.order_id, buyers)
    left_s = max(0.0, asked.pay_by.timestamp() - now_s)
    due_s = now_s + min(buyers.think_ms / 1_000 * (0.5 + pace), left_s / 2)
    if decision == "ignore":
        return []
    if decision == "cancel":
        key = options.channel_keys.get(asked.channel) or next(iter(options.channel_keys.values()))
        path = f"/v1/orders/{quote(message.order_id, safe='')}/cancel"
        return [
            Callback(
                partner="payment",
                topic=message.topic,
                order_id=message.order_id,
                effect="cancel",
                path=path,
                due_s=due_s,
                channel_key=key,
                final=CANCEL_FINAL,
            )
        ]
    if decision == "pay_late":
        due_s = asked.pay_by.timestamp() + buyers.late_ms / 1_000
    payment_no = serial("pay", options.seed, message.order_id)
    return [_money(message, payment_no, asked.amount, asked.currency, "paid", due_s, twice())]


def _refund(message: Message, options: PartnersOptions, now_s: float, twice: Callable[[], bool]) -> Callback:
    refund = _decode_refund(message.data)
    refund_no = refund.refund_no or serial("ref", options.seed, message.message_id)
    due_s = now_s + options.step_ms / 1_000
    return _money(message, refund_no, refund.amount, refund.currency, "refunded", due_s, twice())


def _money(
    message: Message, payment_no: str, amount: int, currency: str, status: str, due_s: float, twice: bool
) -> Callback:
    return Callback(
        partner="payment",
        topic=message.topic,
        order_id=message.order_id,
        effect=status,
        path="/v1/payments/callback",
        message_id=payment_no,
        fields={
            "payment_no": payment_no,
            "order_id": message.order_id,
            "amount": amount,
            "currency": currency,
            "status": status,
        },
        time_field="paid_at",
        due_s=due_s,
        twice=twice,
    )
