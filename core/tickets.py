"""Admission tickets: what lets a buyer's browser order for itself, for a while, in one campaign.

A ticket is signed and carries all that is to be known of it, so a gateway verifies it without a store or a ledger.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from core.seals import Seals

KIND = "rgt1"
SCHEME = b"rgt1."  # how a ticket begins, where a channel's key might stand


class Ticket(NamedTuple):
    """Who may order what until when. `device_id` "" = from any device; `room`: admitted by the waiting room."""

    channel: str
    campaign: str
    buyer_id: str
    device_id: str
    expires_ms: int
    room: bool = False


class Tickets:
    """Issues and reads tickets. The first secret signs, all of them verify: to rotate, put the new one first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """Without a secret none is issued, and none is valid."""
        self._seals = Seals(KIND, secrets)

    def __bool__(self) -> bool:
        """Whether there is a secret."""
        return bool(self._seals)

    def issue(self, ticket: Ticket) -> str:
        """The text that the buyer sends as `Authorization: Bearer …`. Raises ValueError without a secret."""
        return self._seals.seal(msgspec.json.encode(ticket))

    def read(self, token: bytes, now_ms: int) -> Ticket | None:
        """The ticket, if it is ours and not over at `now_ms` (wall clock); else None. `token`: without `Bearer `."""
        payload = self._seals.open(token)
        if payload is None:
            return None
        try:
            ticket = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # of another version of ours
        return ticket if now_ms < ticket.expires_ms else None


_decode = msgspec.json.Decoder(Ticket).decode
