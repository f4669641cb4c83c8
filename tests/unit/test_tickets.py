"""Tickets and other sealed texts: ours are known, all else is not, whatever it looks like."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.seals import TOKEN_BYTES_MAX, Seals
from core.tickets import Ticket, Tickets
from gateway.line_places import Place, Places

SECRET, OTHER = "secret-of-tickets-0", "secret-of-tickets-1"
TICKET = Ticket("app", "phone", "buyer-1", "device-1", 2_000_000, True)
VISIBLE = st.text(string.digits + string.ascii_letters + string.punctuation, min_size=1, max_size=64)


def test_ticket_is_read_as_it_was_issued_until_it_ends() -> None:
    tickets = Tickets([SECRET])
    token = tickets.issue(TICKET).encode()
    assert tickets.read(token, 1_999_999) == TICKET
    assert tickets.read(token, 2_000_000) is None


@given(VISIBLE, VISIBLE, st.booleans())
def test_every_name_survives(buyer: str, device: str, room: bool) -> None:
    tickets = Tickets([SECRET])
    ticket = Ticket("c" * 32, "p" * 64, buyer, device * 2, 2**52, room)
    assert tickets.read(tickets.issue(ticket).encode(), 0) == ticket


def test_rotation_reads_tickets_of_all_secrets_and_signs_with_the_first() -> None:
    old, both, new = Tickets([SECRET]), Tickets([OTHER, SECRET]), Tickets([OTHER])
    assert both.read(old.issue(TICKET).encode(), 0) == TICKET
    assert new.read(both.issue(TICKET).encode(), 0) == TICKET
    assert old.read(new.issue(TICKET).encode(), 0) is None


def test_without_a_secret_nothing_is_issued_or_valid() -> None:
    none = Tickets([])
    assert not none
    assert none.read(Tickets([SECRET]).issue(TICKET).encode(), 0) is None
    with pytest.raises(ValueError, match="no secret"):
        none.issue(TICKET)


def test_every_changed_byte_is_noticed() -> None:
    tickets = Tickets([SECRET])
    token = tickets.issue(TICKET).encode()
    for n in range(len(token)):
        for other in (b"A", b"B", b".", b"=", b" ", b"\xff"):
            if other != token[n : n + 1]:
                assert tickets.read(token[:n] + other + token[n + 1 :], 0) is None, n
        assert tickets.read(token[:n], 0) is None
    assert tickets.read(token + b"A", 0) is None
    assert tickets.read(token + b"=", 0) is None


def test_payload_that_nobody_sealed_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = Tickets([SECRET])
    payload = base64.urlsafe_b64encode(b'["app","phone","b","",9999999999999,true]').rstrip(b"=")

    def fail(*_: object) -> bytes:
        raise AssertionError("decoded before it was known to be ours")

    monkeypatch.setattr(base64, "b64decode", fail)
    assert tickets.read(b"rgt1." + payload + b"." + b"A" * 43, 0) is None
    with pytest.raises(AssertionError, match="decoded before"):  # control: the watch works
        tickets.read(tickets.issue(TICKET).encode(), 0)


@pytest.mark.parametrize(
    "token", [b"", b".", b"rgt1.", b"rgt1..", b"rgt1.a.b", b"rgt1." + b"A" * TOKEN_BYTES_MAX, b"\x00" * 50, b"rgt2.a.b"]
)
def test_what_is_no_ticket_is_none(token: bytes) -> None:
    assert Tickets([SECRET]).read(token, 0) is None


@given(st.binary(max_size=200))
def test_sealed_bytes_that_are_no_ticket_are_none(payload: bytes) -> None:
    sealed = Seals("rgt1", [SECRET]).seal(payload).encode()
    assert Seals("rgt1", [SECRET]).open(sealed) == payload
    Tickets([SECRET]).read(sealed, 0)  # of another version of ours: no error, whatever it holds


def test_text_of_one_kind_is_none_of_another_even_under_its_name() -> None:
    place = Places([SECRET]).issue(Place("phone", "room", "app", "buyer-1", "", 7))
    assert Tickets([SECRET]).read(place.encode(), 0) is None
    assert Tickets([SECRET]).read(place.replace("rgp1.", "rgt1.", 1).encode(), 0) is None
    assert Places([SECRET]).read(b"Bearer " + Tickets([SECRET]).issue(TICKET).encode()) is None
    assert Places([SECRET]).read(b"Bearer " + place.encode()) == Place("phone", "room", "app", "buyer-1", "", 7)
    assert Places([OTHER]).read(b"Bearer " + place.encode()) is None
    assert Places([SECRET]).read(place.encode()) is None  # without its scheme


def test_payload_too_long_to_be_opened_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="at most"):
        Seals("x", [SECRET]).seal(b"x" * TOKEN_BYTES_MAX)
