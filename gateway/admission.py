"""Who may order from a campaign: with a channel's key, with a ticket, or with a ticket of its waiting room only.

Asked for orders with a ticket, and for campaigns that want one; all others pay one look at two attributes.
"""

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from core.errors import Invalid
from core.model import OrderRequest, PlainOrder
from gateway.access import Caller
from gateway.catalogue import Catalogue, Sale
from gateway.peer import Peers
from gateway.prepare import canonical_ip

Order = TypeVar("Order", OrderRequest, PlainOrder)


class TicketNeeded(Invalid):
    """The campaign wants a ticket, and there is none, or not of the kind."""

    status = 403
    code = "ticket_needed"


class TicketWrong(Invalid):
    """The ticket is another campaign's, another buyer's or another device's."""

    status = 403
    code = "ticket_wrong"


class Admission:
    """One per way of an order. `trusted`: the proxies whose word on addresses is believed."""

    def __init__(self, catalogue: Catalogue, trusted: Sequence[str] = ()) -> None:
        self._catalogue = catalogue
        self._peers = Peers(trusted)

    def check(self, sale: Sale, caller: Caller, order: Order, peer: str, forwarded: bytes) -> Order:
        """The order as it may be taken: of a buyer with a ticket the address is that of the connection.

        `peer`, `forwarded`: of the connection, as Peers.of has them. Raises: TicketNeeded, TicketWrong;
        Invalid for a body's address that is none.
        """
        ticket = caller.ticket
        if ticket is None:
            self.check_channel(sale, caller.channel)
            return order
        if ticket.campaign != sale.campaign:
            raise TicketWrong(f"the ticket is for campaign {ticket.campaign}")
        if ticket.buyer_id != order.buyer_id:
            raise TicketWrong("the ticket is for another buyer", "buyer_id")
        if ticket.device_id and ticket.device_id != order.device_id:
            raise TicketWrong("the ticket is for another device", "device_id")
        if sale.gate == "room" and not ticket.room:
            self._catalogue.look_again(sale)
            raise TicketNeeded(f"campaign {sale.campaign} wants a ticket from its waiting room")
        if order.client_ip is not None:
            canonical_ip(order.client_ip)  # what is none is refused on the short way as on the long one
        # What the browser says of its address is worth nothing. A zone is a name of our own machine's.
        address = self._peers.of(peer, forwarded)
        return replace(order, client_ip=address or None)

    def check_channel(self, sale: Sale, channel: str) -> None:
        """Raises TicketNeeded unless orders with a channel's key are taken."""
        if sale.gate and channel not in sale.trusted:
            self._catalogue.look_again(sale)
            where = "from its waiting room" if sale.gate == "room" else "of the buyer's"
            raise TicketNeeded(f"campaign {sale.campaign} wants an admission ticket {where}")


def forwarded_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """All that the proxies said of the client, in one line."""
    return b", ".join(value for name, value in headers if name == b"x-forwarded-for")
