"""What an answer means. The contract is design.md section 5; what it does not name is `unexpected`."""

import enum

import msgspec

from loadtest.exchange import Answer
from loadtest.plan import Kind


class Outcome(enum.StrEnum):
    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    SOLD_OUT = "sold_out"
    OVER_LIMIT = "over_limit"
    NOT_OPEN = "not_open"
    CLOSED = "closed"
    PAUSED = "paused"
    KEY_REUSED = "key_reused"
    INVALID = "invalid"
    UNKNOWN_SKU = "unknown_sku"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    LIMITED = "limited"
    UNAVAILABLE = "unavailable"  # 503: a fault; nothing is known
    UNKNOWN = "unknown"  # no answer: a fault; nothing is known
    UNSENT = "unsent"  # never found a connection before the rush was ended
    UNEXPECTED = "unexpected"


FAULTS = frozenset({Outcome.UNAVAILABLE, Outcome.UNKNOWN, Outcome.UNSENT})
DENIED = frozenset({Outcome.UNAUTHORIZED, Outcome.FORBIDDEN, Outcome.NOT_FOUND, Outcome.TOO_LARGE})

_BY_STATUS = {
    401: Outcome.UNAUTHORIZED,
    403: Outcome.FORBIDDEN,
    404: Outcome.NOT_FOUND,
    413: Outcome.TOO_LARGE,
    429: Outcome.LIMITED,
    503: Outcome.UNAVAILABLE,
}
_BY_CODE = {
    (409, "sold_out"): Outcome.SOLD_OUT,
    (409, "over_limit"): Outcome.OVER_LIMIT,
    (409, "not_open"): Outcome.NOT_OPEN,
    (409, "closed"): Outcome.CLOSED,
    (409, "paused"): Outcome.PAUSED,
    (422, "key_reused"): Outcome.KEY_REUSED,
    (422, "invalid"): Outcome.INVALID,
    (422, "unknown_sku"): Outcome.UNKNOWN_SKU,
    (400, "key_missing"): Outcome.INVALID,
    (400, "key_invalid"): Outcome.INVALID,
    (400, "malformed"): Outcome.INVALID,
}

_NOT_MEANT = {
    Outcome.INVALID: (Kind.ORDINARY, Kind.REPEAT),
    Outcome.UNKNOWN_SKU: (Kind.ORDINARY, Kind.REPEAT, Kind.GREEDY, Kind.MALFORMED),
}


class _Accepted(msgspec.Struct, gc=False):
    order_id: str


class _Problem(msgspec.Struct, gc=False):
    code: str


_decode_accepted = msgspec.json.Decoder(_Accepted).decode
_decode_problem = msgspec.json.Decoder(_Problem).decode


def outcome_of(answer: Answer, kind: Kind) -> tuple[Outcome, str]:
    """Return the outcome and the order id, which is empty unless the order was accepted or replayed.

    A well-formed order that is answered as invalid is `unexpected`: counted as invalid, it would hide among
    those that are meant to be. A greedy one may be: its quantity is above what a campaign need take at once.
    """
    status = answer.status
    if status == 202:
        try:
            order_id = _decode_accepted(answer.body).order_id
        except msgspec.DecodeError:
            return Outcome.UNEXPECTED, ""
        if not order_id:
            return Outcome.UNEXPECTED, ""
        return (Outcome.REPLAYED if answer.replayed else Outcome.ACCEPTED), order_id
    if status == 0:
        never_left = answer.sent_s is None and answer.failure == "stopped"
        return (Outcome.UNSENT if never_left else Outcome.UNKNOWN), ""
    outcome = _BY_STATUS.get(status)
    if outcome is None:
        try:
            outcome = _BY_CODE.get((status, _decode_problem(answer.body).code), Outcome.UNEXPECTED)
        except msgspec.DecodeError:
            outcome = Outcome.UNEXPECTED
        if kind in _NOT_MEANT.get(outcome, ()):
            outcome = Outcome.UNEXPECTED
    return outcome, ""
