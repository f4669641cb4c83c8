"""Every decoder of bytes from outside: a value, or the one error that it says it raises. Nothing else, and no hang."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ConfigInvalid, Fault
from core.ids import IdSource, parse
from core.model import (
    AddressChange,
    BatchLine,
    CampaignSpec,
    OrderRequest,
    PartnerReport,
    Payment,
    PlainLine,
    PlainOrder,
    RefundRequest,
    Restock,
)
from core.rates import parse_rates
from core.request_signing import wrong
from core.settings import Settings
from core.signing import SignatureInvalid, Signer
from core.tickets import Ticket, Tickets
from core.trace_context import parse_traceparent
from core.wire import (
    TAIL_BYTES,
    EntryInvalid,
    Header,
    Held,
    HoldInvalid,
    encode,
    read_entry,
    read_hold,
    read_stamp,
    write_entry,
)
from gateway.access import Access
from gateway.body import decode
from gateway.peer import Peers
from lua.access import AccessCopy
from tests.support import spec

SECRET = "0123456789abcdef0123456789abcdef"
WEBHOOK = "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
ORDER_ID = IdSource().new(3, 1)
PLACED = encode(Held("app", "k", "b", [("red", 1, 100)], 100, "CNY", "", ""))
NEVER_RAISES: tuple[type[Exception], ...] = ()


class Target(NamedTuple):
    """A decoder, good inputs to spoil, and what it may raise."""

    decode: Callable[[bytes], Any]
    good: list[bytes]
    raises: tuple[type[Exception], ...]


def text(data: bytes) -> str:
    """As a header or a path part gets to us."""
    return data.decode("latin-1")


ORDER = {
    "buyer_id": "b", "items": [{"sku": "red", "quantity": 1}], "client_ip": "203.0.113.7", "device_id": "d",
    "ship_to": {"name": "N", "phone": "+49 30", "address": "A 1", "country": "DE"},
}  # fmt: skip
LINE = ORDER | {"request_key": "k"}
WHEN = "2026-11-22T10:00:00Z"
PAYMENT = {"payment_no": "p", "order_id": "x" * 36, "amount": 1, "currency": "CNY", "status": "paid", "paid_at": WHEN}
REPORT = {"order_id": "x" * 36, "action": "ship", "at": WHEN}
BODIES: dict[str, tuple[Any, Any]] = {
    "order": (OrderRequest, ORDER),
    "batch line": (BatchLine, LINE),
    "campaign": (CampaignSpec, json.loads(msgspec.json.encode(spec()))),
    "payment": (Payment, PAYMENT),
    "partner report": (PartnerReport, REPORT),
    "restock": (Restock, {"id": "r", "sku": "red", "units": 5}),
    "address": (AddressChange, {"ship_to": ORDER["ship_to"]}),
    "refund": (RefundRequest, {"lines": ORDER["items"], "reason": "r"}),
}
HEADER = Header("c", 1, 1_700_000_000_000, 1_700_000_900_000, 1, 1)
ENTRY = write_entry(HEADER, [(ORDER_ID, PLACED)])
TICKETS = Tickets([SECRET])
TICKET = TICKETS.issue(Ticket("app", "c", "b", "", 2**45)).encode()
SIGNED = Signer((WEBHOOK,), "x").sign("id", 1_700_000_000, b"{}")


def entry_of(data: bytes) -> Any:
    header, _, orders = data.partition(b"\xff\xff\xff")
    return read_entry([b"h", header, b"o", orders])


def verify(data: bytes) -> Any:
    signature, _, body = data.partition(b"\n")
    heads = [(b"webhook-id", b"id"), (b"webhook-timestamp", b"1700000000"), (b"webhook-signature", signature)]
    return Signer((WEBHOOK,), "x").verify(heads, body, 1_700_000_000)


def setting(name: str) -> Callable[[bytes], Any]:
    return lambda data: Settings.from_env({name: text(data)})


TARGETS: dict[str, Target] = {
    **{
        name: Target(
            lambda data, kind=kind: decode(msgspec.json.Decoder(kind).decode, data),  # type: ignore[misc]
            [json.dumps(good).encode()],
            (Fault,),
        )
        for name, (kind, good) in BODIES.items()
    },
    "plain order": Target(
        msgspec.json.Decoder(PlainOrder).decode, [json.dumps(ORDER).encode()], (msgspec.DecodeError, UnicodeDecodeError)
    ),
    "plain lines": Target(
        msgspec.json.Decoder(PlainLine).decode_lines, [json.dumps(LINE).encode() + b"\n" + json.dumps(LINE).encode()],
        (msgspec.DecodeError, UnicodeDecodeError),
    ),
    "entry": Target(entry_of, [ENTRY[1] + b"\xff\xff\xff" + ENTRY[3]], (EntryInvalid,)),
    "hold": Target(read_hold, [PLACED + bytes(TAIL_BYTES)], (HoldInvalid,)),
    "stamp": Target(read_stamp, [bytes(TAIL_BYTES)], NEVER_RAISES),
    "order id": Target(lambda data: parse(text(data)), [b"01a20282-8f50-703c-a8f7-3cb8e2271976"], NEVER_RAISES),
    "ticket": Target(lambda data: TICKETS.read(data, 0), [TICKET], NEVER_RAISES),
    "authorization": Target(
        lambda data: Access({"app": SECRET}, SECRET).caller(data), [b"Bearer " + SECRET.encode(), b"Bearer " + TICKET],
        NEVER_RAISES,
    ),
    "signed head": Target(
        lambda data: wrong({b"rushgate-key": data, b"rushgate-time": data, b"rushgate-signature": data}, 0.0),
        [b"1700000000", b"v1=" + b"0" * 64], NEVER_RAISES,
    ),
    "webhook": Target(verify, [SIGNED["webhook-signature"].encode() + b"\n{}"], (SignatureInvalid,)),
    "traceparent": Target(
        parse_traceparent, [b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], NEVER_RAISES
    ),
    "forwarded": Target(
        lambda data: Peers(["10.0.0.0/8"]).of("10.0.0.1", data), [b"198.51.100.1, [2001:db8::1]:80"], NEVER_RAISES
    ),
    "access copy": Target(
        msgspec.msgpack.Decoder(AccessCopy).decode, [msgspec.msgpack.encode([1, [], [], []])],
        (msgspec.DecodeError, UnicodeDecodeError),
    ),
    "rates": Target(lambda data: parse_rates(text(data)), [b"buyer=5/s:10,ip=20/s:40"], (ValueError,)),
    **{
        name: Target(setting(name), [good], (ConfigInvalid,))
        for name, good in {
            "RUSHGATE_STORE_URL": b"redis://:p@h:1/0", "RUSHGATE_CHANNEL_KEYS": b"app=" + SECRET.encode(),
            "RUSHGATE_QUEUE_MS": b"1000", "RUSHGATE_TRUSTED_PROXIES": b"10.0.0.0/8,::1",
        }.items()
    },
}  # fmt: skip

NESTED = [b"[" * 100_000, b'{"a":' * 100_000, b"\x91" * 100_000, b"\x81\xa1a" * 50_000]


def spoilt(good: list[bytes]) -> st.SearchStrategy[bytes]:
    """Anything, or a good input with some bytes replaced, cut out or put in."""

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(good))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            end = min(len(data), at + draw(st.integers(0, 12)))
            data = data[:at] + draw(st.binary(max_size=12)) + data[end:]
        return data

    return st.one_of(edited(), st.binary(max_size=300))


def hunt(target: Target) -> None:
    """Spoils its good inputs until it does what it does not say, or has withstood them all."""
    for good in target.good:
        target.decode(good)  # else nothing is spoilt here

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(spoilt(target.good))
    def holds(data: bytes) -> None:
        found: Fault | None = None
        try:
            target.decode(data)
        except Fault as exc:
            found = exc
            if not isinstance(exc, target.raises):
                raise
        except target.raises:
            pass
        if found is not None:
            assert len(found.detail) < 2_000  # no answer grows with what was sent
            assert SECRET not in found.detail

    holds()


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_input_is_a_value_or_the_error_it_says(name: str) -> None:
    hunt(TARGETS[name])


def test_control_decoder_that_says_too_little_is_found() -> None:
    with pytest.raises(IndexError):
        hunt(Target(lambda data: data[4], [b"12345"], (ValueError,)))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("data", NESTED, ids=["lists", "objects", "msgpack lists", "msgpack maps"])
def test_nesting_without_end(name: str, data: bytes) -> None:
    target = TARGETS[name]
    try:
        target.decode(data)
    except RecursionError:  # the gateway's callers take it for `malformed`
        pass
    except target.raises:
        pass


def test_history_of_a_run_that_is_not_one(tmp_path: Path) -> None:
    """`rushgate check` reads files of others."""
    from loadtest.history import HistoryInvalid, read_history

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(spoilt([b'{"t":"header"}\n{"t":"invoke"}\n']))
    def holds(data: bytes) -> None:
        path = tmp_path / "h"
        path.write_bytes(data)
        with pytest.raises(HistoryInvalid):
            read_history(path)

    holds()
