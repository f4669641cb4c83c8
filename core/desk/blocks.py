"""Block lists: buyers, addresses and networks that may not order. The gateways keep a copy of those in force."""

import ipaddress
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from core.desk.access_books import AccessBooks
from core.errors import Invalid, Refused
from core.ledger.queries import query
from core.model import BuyerId, Printable

MAX_BLOCKS = 10_000  # in force: every gateway holds them all, and reads them all with each change
MAX_FOR_S = 10 * 365 * 86_400.0

BlockKind = Literal["buyer", "ip"]


class BlockSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is blocked: a buyer as channels name them, or an address or network. `for_s`: seconds, null = for good."""

    kind: BlockKind
    value: Annotated[str, Meta(min_length=1, max_length=64)]
    for_s: Annotated[float, Meta(gt=0, le=MAX_FOR_S)] | None = None
    reason: Annotated[str, Meta(max_length=200, pattern=Printable)] = ""


class Block(Struct, frozen=True):
    """A block. `in_force`: the gateways have it, or will within a second."""

    kind: BlockKind
    value: str
    reason: str
    created_at: datetime
    until_at: datetime | None
    in_force: bool = True


class BlockDesk:
    """One per process."""

    def __init__(self, books: AccessBooks) -> None:
        self._books = books

    async def list(self) -> list[Block]:
        """Those in force, by kind and value. Raises LedgerUnavailable."""
        return [Block(**dict(row)) for row in await self._books.read("list_blocks")]

    async def put(self, spec: BlockSpec) -> Block:
        """The block is in force, to this end and for this reason. Raises: Invalid; Refused if there are too many;
        LedgerUnavailable."""
        value = canonical(spec.kind, spec.value)

        async def work(connection: Any) -> Any:
            await connection.execute(query("drop_blocks"), None, None)
            known = {(r["kind"], r["value"]) for r in await connection.fetch(query("list_blocks"))}
            if (spec.kind, value) not in known and len(known) >= MAX_BLOCKS:
                raise Refused(f"{MAX_BLOCKS} blocks are in force already: a network stands for many addresses")
            return await connection.fetchrow(query("put_block"), spec.kind, value, spec.reason, spec.for_s)

        row, in_force = await self._books.change(work)
        return Block(**dict(row), in_force=in_force)

    async def drop(self, kind: BlockKind, value: str) -> tuple[bool, bool]:
        """The block is not in force. Returns whether it was, and whether the gateways have heard of it.

        Raises: Invalid, LedgerUnavailable.
        """
        value = canonical(kind, value)

        async def work(connection: Any) -> bool:
            return bool(await connection.fetch(query("drop_blocks"), kind, value))

        return await self._books.change(work)


def canonical(kind: str, value: str) -> str:
    """The one spelling of what is blocked. Raises Invalid."""
    if kind == "buyer":
        try:
            return msgspec.convert(value, BuyerId)
        except msgspec.ValidationError as exc:
            raise Invalid("a buyer's id has 1 to 64 visible ASCII characters without blanks", "value") from exc
    try:
        if "%" in value:  # a zone means something on one machine only
            raise ValueError
        network = ipaddress.ip_network(value, strict=False)
    except ValueError as exc:
        wanted = "must be an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/48"
        raise Invalid(wanted, "value") from exc
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:  # an IPv4 address in IPv6 clothes
            network = ipaddress.ip_network((mapped, network.prefixlen - 96))
    if network.prefixlen == 0:
        raise Invalid("that is every address there is: pause the campaign instead", "value")
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if whole else str(network)
