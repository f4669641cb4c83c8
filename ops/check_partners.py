"""What the played partners have on record, as the history checker wants it."""

from contextlib import suppress

import msgspec

from loadtest.history_final import PartnerReport, PartnerSaw
from loadtest.partners_records import Records

_decode = msgspec.json.Decoder(Records).decode


def partners_said(body: bytes) -> tuple[list[PartnerSaw] | None, list[PartnerReport] | None]:
    """Messages and reports of the body of `GET /control/records`; None of both if that is not all there ever was.

    Raises: msgspec.ValidationError, msgspec.DecodeError if it is no such body.
    """
    records = _decode(body)
    if records.forgotten:
        return None, None
    saw = [
        PartnerSaw(
            m.order_id, version_of(m.message_id), m.topic, m.message_id, m.received, m.effects, m.amount, m.number,
            m.others,
        )
        for m in records.messages
    ]  # fmt: skip
    return saw, [PartnerReport(r.order_id, r.partner, r.action, r.number, r.amount, r.taken) for r in records.reports]


def version_of(message_id: str) -> int:
    """The version in an id as workers/letters.py makes it, `msg_<order>_<version>_<topic>`; 0 of any other."""
    with suppress(ValueError, IndexError):
        return int(message_id.split("_")[2])
    return 0
