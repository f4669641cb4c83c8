"""The stream entry and the hold, as gateway, store and ledger worker agree on them."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.model import ShipTo
from core.wire import (
    FIELD_BYTES,
    TAIL_BYTES,
    EntryInvalid,
    Header,
    Held,
    HoldInvalid,
    Placed,
    decode_held,
    decode_placed,
    encode,
    fingerprint,
    has_units,
    orders_of,
    read_entry,
    read_header,
    read_hold,
    read_stamp,
    request_field,
    write_entry,
)

items = st.lists(st.tuples(st.text(max_size=64), st.integers(1, 1_000), st.integers(0, 10**12)), max_size=20)
held = st.builds(
    Held, st.text(), st.text(), st.text(), items, st.integers(0, 2**63 - 1), st.text(), st.text(), st.text()
)
TO = ShipTo("A", "123", "B")
ship_to = st.sampled_from([TO, ShipTo("山田 太郎", "+81 (3) 0", "東京都\\ '%s' \U0001f600", "100-0001", "JP")])
ITEMS = [("red", 1, 100)]


@given(held)
def test_held_reads_back(value: Held) -> None:
    assert decode_held(encode(value)) == value


@given(held, st.none() | ship_to)
def test_placed_reads_back(value: Held, to: ShipTo | None) -> None:
    placed = Placed(**msgspec.structs.asdict(value), ship_to=to)
    assert decode_placed(encode(placed)) == placed


@given(held)
def test_placed_reads_the_bytes_of_held(value: Held) -> None:
    assert decode_placed(encode(value)) == Placed(**msgspec.structs.asdict(value))


@given(held, st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))
def test_hold_reads_back_with_its_stamp(value: Held, accepted_ms: int, pay_by_ms: int) -> None:
    stamped = encode(value) + b"\x05" + accepted_ms.to_bytes(6, "big") + pay_by_ms.to_bytes(6, "big")
    assert read_hold(stamped) == (value, accepted_ms, pay_by_ms)
    assert read_stamp(stamped) == (accepted_ms, pay_by_ms)


@given(st.integers(0, 15), st.booleans())
def test_hold_says_whether_it_has_units_whatever_it_was_counted_for(counted: int, empty: bool) -> None:
    hold = encode(Held("app", "k", "b", ITEMS, 100, "CNY", "", "")) + bytes([counted + 16 * empty]) + b"\x10" * 12
    assert has_units(hold) is not empty


@pytest.mark.parametrize("hold", [b"", b"short", b"\x10" * TAIL_BYTES])
def test_hold_that_is_too_short_is_invalid_whatever_is_asked(hold: bytes) -> None:
    for read in (read_hold, has_units):
        with pytest.raises(HoldInvalid, match=f"{len(hold)} bytes"):
            read(hold)


@pytest.mark.parametrize("hold", [b"\xc1", b"\x98", b"x" * 40, b"\xa3\xff\xff\xff"])
def test_hold_that_is_no_msgpack_of_ours_is_invalid(hold: bytes) -> None:
    with pytest.raises(HoldInvalid):
        read_hold(hold + b"\x00" * TAIL_BYTES)


def test_wire_text_is_never_msgpack_bin() -> None:
    """The store's Lua reads no `bin`: types 0xc4 to 0xc6."""
    raw = encode(Placed("app", "k", "b", ITEMS, 100, "CNY", "10.0.0.1", "d", TO))

    def texts(value: Any) -> None:
        assert not isinstance(value, bytes)
        if isinstance(value, list | dict):
            for part in value if isinstance(value, list) else [*value, *value.values()]:
                texts(part)

    texts(msgspec.msgpack.decode(raw))


def test_header_reads_back() -> None:
    assert read_header(b"1|summer-2026|3|1700000000000|1700000900000|42") == Header(
        "summer-2026", 3, 1_700_000_000_000, 1_700_000_900_000, 42
    )


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"3|a|1|2|3|4|1", "entry version b'3', this worker reads 1 and 2"),
        (b"2|a|1|2|3|4", "header cannot be read"),
        (b"2|a|1|2|3|4|0", "header cannot be read"),
        (b"2|a|1|2|3|4|5|6", "header cannot be read"),
        (b"|a|1|2|3|4", "entry version b''"),
        (b"", "header cannot be read"),
        (b"1|a|1|2|3", "header cannot be read"),
        (b"1|a|1|2|3|4|5", "header cannot be read"),
        (b"1|a|one|2|3|4", "header cannot be read"),
        (b"1|a|1|2|3|", "header cannot be read"),
        (b"1|a|1.5|2|3|4", "header cannot be read"),
        ("1|ü|1|2|3|4".encode(), "header cannot be read"),
        (b"\xff" * 5_000, "header cannot be read"),
    ],
)
def test_header_that_cannot_be_read_says_why_in_short(raw: bytes, why: str) -> None:
    with pytest.raises(EntryInvalid, match=why) as caught:
        read_header(raw)
    assert len(str(caught.value)) < 1_000


@given(st.binary(max_size=80))
def test_header_of_any_bytes_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(EntryInvalid):
        read_header(raw)


@pytest.mark.parametrize(
    "other",
    [
        ("b2", ITEMS, "d", TO),
        ("b1", [("red", 2, 100)], "d", TO),
        ("b1", [("blue", 1, 100)], "d", TO),
        ("b1", ITEMS * 2, "d", TO),
        ("b1", ITEMS, "", TO),
        ("b1", ITEMS, "d", None),
        ("b1", ITEMS, "d", ShipTo("A", "123", "B", "1")),
        ("b1", ITEMS, "d", ShipTo("A", "123", "B", None, "JP")),
    ],
)
def test_fingerprint_tells_bodies_apart(other: tuple[str, list[tuple[str, int, int]], str, ShipTo | None]) -> None:
    assert fingerprint(*other) != fingerprint("b1", ITEMS, "d", TO)


def test_fingerprint_does_not_depend_on_the_price() -> None:
    """A price list that was mended between two clicks makes no other body."""
    first = fingerprint("b1", ITEMS, "d", TO)
    assert first == fingerprint("b1", [("red", 1, 999)], "d", ShipTo("A", "123", "B"))
    assert len(first) == 8


def test_fingerprint_is_the_same_in_every_process() -> None:
    assert fingerprint("b1", ITEMS, "", None).hex() == "1a8d6811bcceeb28"


V1 = [b"h", b"1|summer|3|1700000000000|1700000900000|42", b"a" * 16, b"one", b"b" * 16, b""]
ORDERS = [(b"a" * 16, b"one"), (b"b" * 16, b"")]


def test_entry_of_an_older_version_is_still_read() -> None:
    assert read_entry(V1) == (Header("summer", 3, 1_700_000_000_000, 1_700_000_900_000, 42), ORDERS)


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(max_size=3_000)), min_size=1, max_size=5))
def test_entry_reads_back(orders: list[tuple[bytes, bytes]]) -> None:
    header = Header("summer", 3, 1_700_000_000_000, 1_700_000_900_000, 42)
    assert read_entry(write_entry(header, orders)) == (header._replace(orders=len(orders)), orders)


@pytest.mark.parametrize(
    "fields",
    [
        [], [b"h"], [b"x", V1[1]], [b"h", b"2|summer|3|1|2|42|1"], [b"h", b"2|summer|3|1|2|42|1", b"o", b""],
        [b"h", b"2|summer|3|1|2|42|1", b"x", orders_of([b"a" * 16], [b"one"])],
        [b"h", b"2|summer|3|1|2|42|2", b"o", orders_of([b"a" * 16], [b"one"])],
        [b"h", b"2|summer|3|1|2|42|1", b"o", orders_of([b"a" * 16], [b"one"])[:-1]],
        [b"h", b"2|summer|3|1|2|42|1", b"o", orders_of([b"a" * 16], [b"one"]) + b"a"],
    ],
)  # fmt: skip
def test_entry_that_is_not_whole_is_refused(fields: list[bytes]) -> None:
    with pytest.raises(EntryInvalid):
        read_entry(fields)


def test_request_field_tells_channels_and_keys_apart_and_is_the_same_in_every_process() -> None:
    fields = {request_field(*pair) for pair in (("app", "k"), ("app", "k2"), ("web", "k"), ("ap", "pk"))}
    assert {len(field) for field in fields} == {FIELD_BYTES}
    assert len(fields) == 4
    assert request_field("app", "k").hex() == "b2f392601266924a68530539"
