"""Where a client is: the address of its connection, or what trusted proxies say of it."""

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in IPv6
MAX_HOPS = 32  # of a forwarded line that are looked at, from its end


class Peers:
    """The proxies of one deployment that are believed."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted`: addresses and networks. Raises ValueError, naming the one that is neither."""
        self._trusted: tuple[Network, ...] = tuple(ipaddress.ip_network(one, strict=False) for one in trusted)
        self._is_trusted = lru_cache(maxsize=4_096)(self._look)

    def of(self, peer: str, forwarded: bytes) -> str:
        """The client's address: `peer`; if that is a trusted proxy, the last one in `X-Forwarded-For` that is none.

        A proxy appends whom it heard; what stands before the first stranger, from the end, is that stranger's word.
        """
        peer = peer.partition("%")[0]  # of a link-local address: on which of our interfaces
        if not forwarded or not self._trusted or not self._is_trusted(peer):
            return peer
        client = peer
        for hop in reversed(forwarded.decode("latin-1").split(",")[-MAX_HOPS:]):
            address = _bare(hop.strip())
            if address is None:
                break  # "unknown", or garbage: whoever wrote it is the last one who can be told
            client = address
            if not self._is_trusted(client):
                break
        return client

    def _look(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)  # ::ffff:10.0.0.1, as a socket for both families tells it
        return any((mapped or found) in network for network in self._trusted)


@lru_cache(maxsize=65_536)
def network_of(address: str) -> str:
    """What counts as one for limits by address, in one spelling: an IPv4 address; of IPv6 the /64, as so many addresses
    are given to one household. What is no address is itself."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed[:12] == MAPPED:  # as a socket for both families tells it
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))


def _bare(hop: str) -> str | None:
    """The address of a hop, without port and brackets; None if it is none."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None
