"""The block lists as a gateway process asks them: two look-ups an order, however many blocks there are."""

import socket
from collections.abc import Iterable

from lua.access import BlockCopy


class BlockList:
    """Immutable. False if it blocks nobody."""

    def __init__(self, blocks: Iterable[BlockCopy] = ()) -> None:
        """Those in force, each value in its one spelling."""
        self.buyers: set[str] = set()
        self._addresses: set[str] = set()
        # Bits of an address -> length of a prefix -> the prefixes: one look-up for each length there is.
        self._networks: dict[int, dict[int, set[int]]] = {32: {}, 128: {}}
        for block in blocks:
            if block.kind == "buyer":
                self.buyers.add(block.value)
            elif "/" in block.value:
                address, _, length = block.value.partition("/")
                bits, number = _number(address)
                self._networks[bits].setdefault(bits - int(length), set()).add(number >> (bits - int(length)))
            else:
                self._addresses.add(_spelling(block.value))
        self._any_network = any(self._networks.values())
        self.any_address = bool(self._addresses) or self._any_network  # otherwise nobody's need be looked up

    def __bool__(self) -> bool:
        return bool(self.buyers) or self.any_address

    def has_address(self, address: str) -> bool:
        """Whether the address, or a network that it is in, is blocked. What is no address is not: others judge it."""
        if ":" in address:
            try:
                address = _spelling(address)
            except (OSError, ValueError):
                return False
        if address in self._addresses:
            return True
        if not self._any_network:
            return False
        try:
            bits, number = _number(address)
        except (OSError, ValueError):
            return False
        return any(number >> rest in prefixes for rest, prefixes in self._networks[bits].items())


def _spelling(address: str) -> str:
    """The spelling that addresses are compared in: any other one would be a way around the block. Raises OSError,
    ValueError.

    What `canonical` of core/desk/blocks.py writes is not always it: `::1.2.3.4` and `::102:304` are one address.
    """
    if ":" not in address:
        return address
    packed = socket.inet_pton(socket.AF_INET6, address)
    if packed[:12] == b"\0" * 10 + b"\xff\xff":  # an IPv4 address in IPv6 clothes
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _number(address: str) -> tuple[int, int]:
    """How many bits the address has, and its number. Raises OSError, ValueError."""
    if ":" in address:
        return 128, int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big")
    return 32, int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
