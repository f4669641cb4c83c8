"""A signed place: what a buyer holds of the line. Who brings it needs no key, and nobody can make one up."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from core.seals import Seals

SCHEME = b"rgp1."


class Place(NamedTuple):
    """A buyer's number in a room. `device_id` "" = the ticket will be for any device."""

    campaign: str
    room_id: str
    channel: str
    buyer_id: str
    device_id: str
    number: int


_decode = msgspec.json.Decoder(Place).decode


class Places:
    """Issues and reads signed places."""

    def __init__(self, ticket_secrets: Sequence[str]) -> None:
        self._seals = Seals("rgp1", ticket_secrets)

    def issue(self, place: Place) -> str:
        """The text that the buyer keeps. Raises ValueError without a secret."""
        return self._seals.seal(msgspec.json.encode(place))

    def read(self, authorization: bytes) -> Place | None:
        """The place of an `Authorization: Bearer …` header, or None."""
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token.startswith(SCHEME):
            return None
        payload = self._seals.open(token)
        try:
            return None if payload is None else _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # of another version of ours


def digest(buyer_id: str) -> bytes:
    """What the store knows a buyer in the line by: 12 bytes."""
    return hashlib.blake2b(buyer_id.encode(), digest_size=12).digest()
