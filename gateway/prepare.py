"""From a decoded request to what `reserve` wants: checked against the sale, in one canonical form."""

import socket
from collections.abc import Sequence

from core.errors import Invalid
from core.ids import IdSource
from core.model import AnyOrder, Item, PlainItem
from core.wire import Placed, encode, fingerprint, request_field
from gateway.catalogue import Sale
from gateway.peer import MAPPED
from lua.keys import buyer_slot
from lua.reserve import Ask


class SkuUnknown(Invalid):
    """The campaign does not sell this SKU."""

    code = "unknown_sku"


class ChannelNotAllowed(Invalid):
    """The campaign is for other channels."""

    status = 403
    code = "channel_not_allowed"


def prepare(ids: IdSource, sale: Sale, channel: str, request_key: str, order: AnyOrder) -> tuple[int, Ask]:
    """The slot of the buyer's shard, and the request as the script wants it. Lines are sorted by SKU.

    Raises: Invalid (with the field), SkuUnknown, ChannelNotAllowed.
    """
    if sale.channels is not None and channel not in sale.channels:
        raise ChannelNotAllowed(f"campaign {sale.campaign} is not for channel {channel}")
    prices = sale.prices
    wanted: Sequence[Item | PlainItem] = order.items
    items: list[tuple[str, int, int]] = []
    amount = 0
    for n, item in enumerate(wanted):
        sku, quantity = item.sku, item.quantity
        price = prices.get(sku)
        if price is None:
            raise SkuUnknown(f"campaign {sale.campaign} does not sell {sku}", f"items[{n}].sku")
        items.append((sku, quantity, price))
        amount += price * quantity
    lines: tuple[str | int, ...]
    if len(items) == 1:
        lines = (sku, quantity)
    else:
        items.sort()
        for n in range(1, len(items)):
            if items[n][0] == items[n - 1][0]:
                raise Invalid(f"sku {items[n][0]} stands in two lines: give one line with the sum", "items")
        lines = tuple(part for line in items for part in line[:2])
    if sale.discounts:
        amount -= discount(sale.discounts, amount)
    client_ip = canonical_ip(order.client_ip) if order.client_ip is not None else ""
    device_id = order.device_id or ""
    buyer_id = order.buyer_id
    # As a Held, which is an array: a tuple is made in a third of the time.
    held = encode((channel, request_key, buyer_id, items, amount, sale.currency, client_ip, device_id))
    placed = b""
    if order.ship_to is not None:
        placed = encode(
            Placed(
                channel,
                request_key,
                buyer_id,
                items,
                amount,
                sale.currency,
                client_ip,
                device_id,
                order.ship_to,
            )
        )
    slot = buyer_slot(buyer_id, sale.spread) if sale.spread > 1 else 0
    return slot, Ask(
        request_field(channel, request_key),
        ids.new(sale.shards[slot], sale.tag),
        fingerprint(buyer_id, items, device_id, order.ship_to),
        held,
        placed,
        buyer_id,
        client_ip,
        device_id,
        lines,
    )


def discount(discounts: tuple[tuple[int, int], ...], amount: int) -> int:
    """What goes off an order whose lines cost `amount`: the most of what it reaches, and never more than it costs.

    `discounts`: (off, min_amount), the most off first. All in minor units.
    """
    for off, min_amount in discounts:
        if amount >= min_amount:
            return min(off, amount)
    return 0


def canonical_ip(text: str) -> str:
    """One spelling per address, so that another spelling is no way around a limit. Raises Invalid."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        packed = socket.inet_pton(family, text)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in it
        raise Invalid("not an IP address", "client_ip") from exc
    if family == socket.AF_INET:
        return text  # it takes four decimal numbers without leading zeros and nothing else: the one spelling
    if packed[:12] == MAPPED:
        family, packed = socket.AF_INET, packed[12:]
    return socket.inet_ntop(family, packed)
