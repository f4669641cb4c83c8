"""What callers send and what they get back: typed structs with a limit on every field.

Quantities are units for sale; money is in minor units of the campaign's currency; times are RFC 3339 with zone.
"""

import re
from datetime import datetime
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from core.rates import RATE, RATE_WORDS, parse_rate

FIRST_STATE = "accepted"  # of every order, in the store and in the ledger
MAX_LINES = 20  # of one order
MAX_QUANTITY = 1_000  # of one line
MAX_SKUS = 500  # of one campaign
MAX_UNITS = 100_000_000  # of one SKU
MAX_PRICE = 1_000_000_000_000  # minor units
MAX_AMOUNT = MAX_LINES * MAX_QUANTITY * MAX_PRICE
MAX_DISCOUNTS = 20  # of one campaign
MAX_TIMER_S = 90 * 86_400

# Visible ASCII: what a channel's own ids are made of; nothing that a log, a header or a key could stumble over.
Visible = r"^[\x21-\x7e]*\Z"
NAME = r"^[a-z0-9][a-z0-9_-]*\Z"
SKU = r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z"
# No control characters: text for people in any script.
Printable = r"^[^\x00-\x1f\x7f]*\Z"
IP = r"^[0-9A-Fa-f:.]*\Z"
PHONE = r"^[0-9+() .-]*\Z"
COUNTRY = r"^[A-Z]{2}\Z"
CURRENCY = r"^[A-Z]{3}\Z"
ACTION = r"^[a-z_]*\Z"

# What a caller reads instead of the pattern.
WORDS = {
    Visible: "visible ASCII characters without blanks",
    NAME: "a-z, 0-9, _ and -, the first one a letter or a digit",
    SKU: "A-Z, a-z, 0-9, ., _ and -, the first one a letter or a digit",
    Printable: "printable text without line breaks and control characters",
    IP: "an IPv4 or IPv6 address",
    PHONE: "digits, blanks and + ( ) . -",
    COUNTRY: "a country's two capital letters (ISO 3166), such as CN",
    CURRENCY: "a currency's three capital letters (ISO 4217), such as CNY",
    ACTION: "a-z and _",
    RATE: RATE_WORDS,
}

BuyerId = Annotated[str, Meta(min_length=1, max_length=64, pattern=Visible)]
DeviceId = Annotated[str, Meta(min_length=1, max_length=128, pattern=Visible)]
ClientIp = Annotated[str, Meta(min_length=2, max_length=45, pattern=IP)]
SkuName = Annotated[str, Meta(min_length=1, max_length=64, pattern=SKU)]
ChannelName = Annotated[str, Meta(min_length=1, max_length=32, pattern=NAME)]
CampaignName = Annotated[str, Meta(min_length=1, max_length=64, pattern=NAME)]
RequestKey = Annotated[str, Meta(min_length=1, max_length=64, pattern=Visible)]
Quantity = Annotated[int, Meta(ge=1, le=MAX_QUANTITY)]
OrderId = Annotated[str, Meta(min_length=36, max_length=36)]
Limit = Annotated[int, Meta(ge=1, le=1_000_000)]
Share = Annotated[int, Meta(ge=1, le=MAX_UNITS)]
RateText = Annotated[str, Meta(pattern=RATE)]
When = Annotated[datetime, Meta(tz=True)]


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a basket as the buyer sends it."""

    sku: SkuName
    quantity: Quantity


class ShipTo(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the goods go."""

    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=Printable)]
    phone: Annotated[str, Meta(min_length=3, max_length=32, pattern=PHONE)]
    address: Annotated[str, Meta(min_length=1, max_length=300, pattern=Printable)]
    postcode: Annotated[str, Meta(max_length=16, pattern=Printable)] | None = None
    country: Annotated[str, Meta(pattern=COUNTRY)] | None = None


class OrderRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/campaigns/{campaign}/orders`."""

    buyer_id: BuyerId
    items: Annotated[list[Item], Meta(min_length=1, max_length=MAX_LINES)]
    client_ip: ClientIp | None = None
    device_id: DeviceId | None = None
    ship_to: ShipTo | None = None


class PlainItem(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """As Item, its SKU unchecked: a campaign sells none that is not as it must be."""

    sku: str
    quantity: Quantity


class PlainOrder(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """As OrderRequest, for decoding at a third of the cost: `plain` and the campaign's SKUs say the rest.

    Four patterns are four regular expressions for each order; whatever is wrong here is decoded again, to be told.
    """

    buyer_id: Annotated[str, Meta(min_length=1, max_length=64)]
    items: Annotated[list[PlainItem], Meta(min_length=1, max_length=MAX_LINES)]
    client_ip: str | None = None
    device_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    ship_to: ShipTo | None = None

    def plain(self, request_key: str = "") -> bool:
        """Whether buyer, device and key are visible ASCII without blanks. The address is read by whoever uses it."""
        names = self.buyer_id + request_key
        if self.device_id:
            names += self.device_id
        return names.isascii() and names.isprintable() and " " not in names


class PlainLine(PlainOrder, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """As BatchLine; `plain(request_key)` says the rest."""

    request_key: Annotated[str, Meta(min_length=1, max_length=64)]


AnyOrder = OrderRequest | PlainOrder


class BatchLine(OrderRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of `POST /v1/campaigns/{campaign}/orders:batch`."""

    request_key: RequestKey


class Limits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Most units in a campaign; a limit left out is no limit."""

    buyer: Limit | None = None
    buyer_sku: Limit | None = None
    ip: Limit | None = None
    device: Limit | None = None


class Loosest(Limits, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The loosest that each limit was since the campaign was opened; null = there was a time without it.

    `channel_shares`: likewise by channel; null = channels are not counted, as there were none at the opening.
    """

    channel_shares: dict[str, int] | None = None

    @property
    def limits(self) -> Limits:
        """Those of buyers, addresses and devices."""
        return Limits(self.buyer, self.buyer_sku, self.ip, self.device)


class RateLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rates of requests in a campaign, such as `5/s:10`; one left out is the deployment's, `off` is none."""

    buyer: RateText | None = None
    ip: RateText | None = None
    device: RateText | None = None

    def __post_init__(self) -> None:
        for text in self.given().values():
            parse_rate(text)

    def given(self) -> dict[str, str]:
        """Those that are not left out, by kind."""
        return {kind: text for kind, text in msgspec.structs.asdict(self).items() if text is not None}


class SkuSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One SKU of a campaign: units to sell at first, price in minor units."""

    sku: SkuName
    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=Printable)]
    stock: Annotated[int, Meta(ge=0, le=MAX_UNITS)]
    price: Annotated[int, Meta(ge=0, le=MAX_PRICE)]


class Discount(Struct, frozen=True, forbid_unknown_fields=True):
    """So much off an order whose lines cost `min_amount` or more; both in minor units."""

    min_amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]
    off: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]

    def __post_init__(self) -> None:
        if self.off > self.min_amount:
            raise ValueError("off must not be more than min_amount")


class RoomSpec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The waiting room of a campaign with `admission = "room"`."""

    # Admitted a second at first; left out: as many as the backlog allows. Changed by `rushgate room`, not by this.
    rate: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    # That browsers without a channel's key belong to, as guests; left out: buyers join through their channel only.
    channel: ChannelName | None = None
    pow_bits: Annotated[int, Meta(ge=0, le=28)] = 0  # of the proof of work that a guest sends; each bit doubles it
    captcha: bool = False  # whether a guest sends a captcha's answer too


class CampaignSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A campaign as an operator defines it: body of `PUT /v1/admin/campaigns/{campaign}`, or a TOML file."""

    order_type: Literal["goods", "virtual", "reserve_at_payment"] = "goods"
    opens_at: When
    closes_at: When
    currency: Annotated[str, Meta(pattern=CURRENCY)]
    pay_within_s: Annotated[int, Meta(ge=1, le=30 * 86_400)]
    # Of order types that ship. So long after it was shipped an order counts as received, whoever forgot to say so; so
    # long after the receipt it is completed.
    delivery_within_s: Annotated[int, Meta(ge=1, le=MAX_TIMER_S)] = 15 * 86_400
    after_sales_s: Annotated[int, Meta(ge=0, le=MAX_TIMER_S)] = 7 * 86_400
    spread: Annotated[int, Meta(ge=1, le=1024)] = 1
    limits: Limits = Limits()
    rates: RateLimits = RateLimits()
    # They do not add up: of those that an order reaches, the one that takes most off counts.
    discounts: Annotated[list[Discount], Meta(max_length=MAX_DISCOUNTS)] = []
    channels: Annotated[list[ChannelName], Meta(min_length=1, max_length=100)] | None = None
    # Most units that a channel sells in the campaign, of all SKUs together; one left out has no such limit.
    channel_shares: Annotated[dict[ChannelName, Share], Meta(max_length=100)] = {}
    # Who may order: `open` = who has a channel's key or a ticket; `ticket` = who has a ticket; `room` = who has one of
    # the waiting room. Trusted channels always may.
    admission: Literal["open", "ticket", "room"] = "open"
    trusted_channels: Annotated[list[ChannelName], Meta(max_length=100)] = []
    room: RoomSpec = RoomSpec()
    skus: Annotated[list[SkuSpec], Meta(min_length=1, max_length=MAX_SKUS)]

    def __post_init__(self) -> None:
        # msgspec turns a ValueError raised here into its own ValidationError.
        if self.opens_at.year < 2000 or self.closes_at.year > 2100:
            raise ValueError("opens_at and closes_at must be in the years 2000 to 2100")
        if self.closes_at <= self.opens_at:
            raise ValueError("closes_at must be later than opens_at")
        if self.order_type == "reserve_at_payment" and self.spread > 1:
            raise ValueError(
                "spread must be 1 for reserve_at_payment: its units are taken order by order, on one shard"
            )
        if any(units < self.spread for units in self.channel_shares.values()):
            raise ValueError("channel_shares must give each channel as many units as `spread` or more")
        if self.channels is not None and not self.channel_shares.keys() <= set(self.channels):
            raise ValueError("channel_shares names a channel that `channels` does not")
        names = [s.sku for s in self.skus]
        if len(set(names)) != len(names):
            raise ValueError("skus name the same sku twice")


class Restock(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `…/restock`: units to add, or to withdraw if negative, at most once per id."""

    id: Annotated[str, Meta(min_length=1, max_length=64, pattern=SKU)]
    sku: SkuName
    units: Annotated[int, Meta(ge=-MAX_UNITS, le=MAX_UNITS)]


class Payment(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/payments/callback`: what the payment centre reports. Amount in minor units.

    `refunded`: `payment_no` is the `refund_no` that our message asked with, unlike any other of the same order.
    """

    payment_no: Annotated[str, Meta(min_length=1, max_length=64, pattern=Visible)]
    order_id: OrderId
    amount: Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
    currency: Annotated[str, Meta(pattern=CURRENCY)]
    status: Literal["paid", "failed", "refunded"]
    paid_at: When


class PartnerReport(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/partners/{partner}/callback`: what a partner has done with an order."""

    order_id: OrderId
    action: Annotated[str, Meta(min_length=1, max_length=32, pattern=ACTION)]
    at: When


class AddressChange(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PATCH /v1/orders/{order_id}`: the whole new address."""

    ship_to: ShipTo


class RefundRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `…/refunds`: an amount in minor units, or lines of the order, or neither: all that is left."""

    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)] | None = None
    lines: Annotated[list[Item], Meta(min_length=1, max_length=MAX_LINES)] | None = None
    reason: Annotated[str, Meta(max_length=200, pattern=Printable)] = ""

    def __post_init__(self) -> None:
        if self.amount is not None and self.lines is not None:
            raise ValueError("amount and lines exclude each other")


class RefundShare(Struct, frozen=True):
    """What a refund pays back for one line; units 0 = for none in particular. Minor units."""

    sku: str
    quantity: int
    amount: int


class Refund(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A refund as it stands.

    `request_no`: what it was called until it was approved. `repeated`: it was asked for before, nothing was changed.
    """

    refund_no: str
    state: str  # requested, approved, rejected, done
    amount: int
    currency: str
    at: datetime
    reason: str = ""
    request_no: str | None = None
    lines: list[RefundShare] | None = None
    done_at: datetime | None = None
    repeated: bool = False


class OrderLine(Struct, frozen=True):
    """One line of an order as it stands: price is of one unit, in minor units."""

    sku: str
    quantity: int
    price: int


class OrderView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order as it stands, from the store or from the ledger; both give the same for the same version, but for
    `ship_to`: holds do not keep the address, so it is known from the ledger on, and left out before and in lists.

    `amount` is what is to be paid: what the lines cost, less `discount` (left out: none). Minor units.
    """

    order_id: str
    campaign: str
    channel: str
    buyer_id: str
    state: str
    items: list[OrderLine]
    amount: int
    currency: str
    accepted_at: datetime
    pay_by: datetime
    version: int
    discount: int = 0
    ship_to: ShipTo | None = None


class OrderPage(Struct, frozen=True):
    """Some orders, by shard and id; `next` goes into `after` for more (null: there are no more)."""

    orders: list[OrderView]
    next: str | None


class AuditSku(Struct, frozen=True, kw_only=True):
    """The balance of one SKU in units: allocation = left + held + sold."""

    sku: str
    allocation: int
    left: int
    held: int
    sold: int
    in_flight: int


class AuditReport(Struct, frozen=True, kw_only=True):
    """What an audit found; orders are counted unless a field says units. `ok` = every judged invariant holds."""

    ok: bool
    accepted: int
    persisted: int
    oversold: int  # units
    lost: int
    duplicated: int
    unsold: int  # units
    phantom: int
    over_limit: int  # buyers, IPs or devices past a limit
    in_flight: int
    dead_lettered: int
    gap: int = 0  # numbers that nobody has, of orders that the store lost before it was rebuilt
    skus: list[AuditSku]
    findings: list[str]


# msgspec gives a missing or unknown field in its words, and only the struct around it as the path.
_NAMED = re.compile(r"Object (?:missing required|contains unknown) field `([^`]{1,64})`")
_BY_PATTERN = {f"Expected `str` matching regex {pattern!r}": f"must be {words}" for pattern, words in WORDS.items()}
_NO_VALUE = "Invalid enum value "
_SHOWN = 64  # characters of a wrong value that are shown
# Of the fields with a fixed choice of values; a field name means the same choice everywhere.
_CHOICES = {
    field.name: get_args(field.type)
    for kind in (CampaignSpec, Payment)
    for field in msgspec.structs.fields(kind)
    if get_origin(field.type) is Literal
}


def explain(exc: msgspec.ValidationError) -> tuple[str, str]:
    """The field a validation error is about (empty for the body itself) and why, in words for the caller."""
    # The path comes last; what is before it may quote the caller.
    why, at, path = str(exc).rpartition(" - at `$")
    why, field = (why, path.rstrip("`").lstrip(".")) if at else (path, "")
    if named := _NAMED.match(why):
        field = f"{field}.{named[1]}".lstrip(".")
    elif why.startswith(_NO_VALUE) and (choices := _CHOICES.get(field.rpartition(".")[2])):
        value = why.removeprefix(_NO_VALUE)
        shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
        why = f"{shown} is none of {', '.join(choices)}"
    return field, _BY_PATTERN.get(why, why)


def minor(amount: int, currency: str) -> str:
    """An amount of money for people, so that nobody takes it for major units."""
    return f"{amount} (minor units of {currency})"
