"""Who is let in: keys, tickets, signatures; what a copy changes, and that no secret is compared in the open."""

import hmac
import ipaddress
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import request_signing as signing
from core.desk.blocks import canonical
from core.desk.channels import digest, signing_key
from core.errors import Invalid, StoreUnavailable
from core.signing import SignatureInvalid
from core.tickets import Ticket, Tickets
from gateway.access import Access, Blocked, Caller, CampaignNotAllowed, Claim, Unauthorized
from gateway.blocklist import BlockList
from lua.access import AccessCopy, BlockCopy, ChannelCopy, KeyCopy

OWN = "static-key-of-app-0000"
TICKETS, MASTER = "ticket-secret-000000", "signing-secret-00000"
KEY = "rgk_aa_drawn-key-of-the-shop"
SIGNING = signing_key(MASTER, "server", "5a738fad8bfc")
TARGET, BODY = "/v1/campaigns/c/orders", b'{"buyer_id":"b"}'


def bearer(key: str) -> bytes:
    return b"Bearer " + key.encode()


def copy(
    channels: dict[str, Any] | None = None, keys: list[KeyCopy] | None = None, blocks: list[BlockCopy] | None = None
) -> AccessCopy:
    """`channels`: name -> campaigns, or "revoked"."""
    found = [
        ChannelCopy(name, what != "revoked", None if what == "revoked" else what, {})
        for name, what in (channels or {"shop": None, "server": None}).items()
    ]
    if keys is None:
        keys = [
            KeyCopy("aa", "shop", False, digest(KEY), 0),
            KeyCopy("5a738fad8bfc", "server", True, digest(SIGNING), 0),
        ]
    return AccessCopy(7, found, keys, blocks or [])


@pytest.fixture
def access() -> Access:
    found = Access({"app": OWN, "app.2": OWN + "2"}, "admin-token-000000", (TICKETS,), (MASTER,))
    found.install(copy())
    return found


def heads(at: float | None = None, **changed: Any) -> dict[bytes, bytes]:
    """The headers of a request as they come, well signed but for what is changed."""
    values: dict[str, Any] = {
        "secret": SIGNING, "key_id": "5a738fad8bfc", "at_s": int(time.time() if at is None else at), "method": "POST",
        "target": TARGET, "body": BODY, "request_key": "k",
    }  # fmt: skip
    signed = signing.sign(**values | changed)
    return {n.lower().encode(): v.encode() for n, v in signed.items()} | {b"idempotency-key": b"k"}


def let_in(access: Access, sent: dict[bytes, bytes], method: str = "POST", target: str = TARGET) -> str:
    claim = access.claim(method.encode(), target.encode(), sent)
    assert claim is not None
    return claim.proved(BODY).channel


def test_keys_of_settings_and_of_the_copy_are_let_in_and_others_are_not(access: Access) -> None:
    assert access.caller(bearer(OWN)) == Caller("app")
    assert access.caller(bearer(OWN + "2")) == Caller("app")
    found = access.caller(b"bearer " + KEY.encode())
    assert found is not None
    assert (found.channel, found.key_id) == ("shop", "aa")
    for wrong in (b"", b"Bearer", b"Bearer ", bearer(KEY + "x"), bearer(KEY[:-1]), b"Basic " + KEY.encode()):
        assert access.caller(wrong) is None


@pytest.mark.parametrize("hostile", [b"Bearer " + b"x" * 60_000, b"Bearer \xff\xfe", b"Bearer a\tb", b" " * 100, b"\0"])
def test_hostile_header_is_nobody(access: Access, hostile: bytes) -> None:
    assert access.caller(hostile) is None


def test_signing_key_is_no_bearer_key(access: Access) -> None:
    assert access.caller(bearer(SIGNING)) is None


def test_new_copy_without_a_key_shuts_it_out_though_it_was_seen(access: Access) -> None:
    before = access.caller(bearer(KEY))
    assert before is access.caller(bearer(KEY))  # remembered
    assert before is not None
    assert access.stands(before)
    access.install(copy(keys=[]))
    assert access.caller(bearer(KEY)) is None
    assert not access.stands(before)
    assert access.caller(bearer(OWN)) == Caller("app")


def test_revoked_channel_loses_its_keys_of_the_settings_and_its_tickets(access: Access) -> None:
    ends_ms = int(time.time() * 1000) + 60_000
    sent = bearer(Tickets([TICKETS]).issue(Ticket("app", "c", "b", "", ends_ms)))
    by_ticket, by_key = access.caller(sent), access.caller(bearer(OWN))
    assert by_ticket is not None
    assert by_key is not None
    assert by_ticket.ticket is not None
    access.install(copy({"app": "revoked"}))
    assert access.caller(sent) is None
    assert access.caller(bearer(OWN)) is None
    assert not access.stands(by_ticket)
    assert not access.stands(by_key)


def test_ticket_that_is_over_or_of_another_secret_is_nobody(access: Access) -> None:
    now_ms = int(time.time() * 1000)
    over = Tickets([TICKETS]).issue(Ticket("app", "c", "b", "", now_ms - 1))
    other = Tickets(["another-secret-0000"]).issue(Ticket("app", "c", "b", "", now_ms + 60_000))
    assert access.caller(bearer(over)) is None
    assert access.caller(bearer(other)) is None
    assert not access.stands(Caller("app", Ticket("app", "c", "b", "", now_ms - 1)))


def test_key_that_ends_is_shut_out_when_its_time_comes_without_a_new_copy(access: Access) -> None:
    ends_ms = int(time.time() * 1000) + 60_000
    access.install(copy(keys=[KeyCopy("aa", "shop", False, digest(KEY), ends_ms)]))
    access.expire(ends_ms - 1)
    assert access.caller(bearer(KEY)) is not None
    access.expire(ends_ms)
    assert access.caller(bearer(KEY)) is None


def test_before_the_first_copy_an_unknown_key_is_a_fault_and_no_refusal() -> None:
    access = Access({"app": OWN}, "", (), (MASTER,))
    assert isinstance(access.stranger(), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        access.claim(b"POST", TARGET.encode(), heads())
    access.install(AccessCopy(0, [], [], []))
    assert isinstance(access.stranger(), Unauthorized)


def test_signed_request_is_let_in_and_again_within_the_window(access: Access) -> None:
    sent = heads()
    assert let_in(access, sent) == let_in(access, sent) == "server"
    assert let_in(access, heads(time.time() - 290)) == let_in(access, heads(time.time() + 290)) == "server"


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "GET"}, {"target": TARGET + "?x=1"}, {"target": "/v1/campaigns/d/orders"}, {"body": BODY + b" "},
        {"request_key": "other"}, {"secret": SIGNING + "x"}, {"secret": signing_key(MASTER, "shop", "5a738fad8bfc")},
    ],
)  # fmt: skip
def test_signature_over_anything_else_is_refused(access: Access, changed: dict[str, Any]) -> None:
    with pytest.raises(SignatureInvalid, match="does not match"):
        let_in(access, heads(**changed))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("rushgate-time", b"1", "behind our clock"),
        ("rushgate-time", b"99999999999", "ahead of our clock"),
        ("rushgate-time", b"-1", "whole seconds"),
        ("rushgate-time", b"nan", "whole seconds"),
        ("rushgate-time", b"1" * 4_000, "whole seconds"),
        ("rushgate-key", b"ffffffffffff", "no signing key"),
        ("rushgate-key", b"aa", "no signing key"),  # the id of a key that is to be sent
        ("rushgate-key", b"x" * 33, "id of a signing key"),
        ("rushgate-key", b"", "id of a signing key"),
        ("rushgate-signature", b"", "must be v1="),
        ("rushgate-signature", b"v1=" + b"0" * 64, "does not match"),
        ("rushgate-signature", b"v1=" + b"\xff" * 64, "does not match"),
        ("rushgate-signature", b"v2=" + b"0" * 64, "must be v1="),
        ("rushgate-signature", b"v1=" + b"0" * 65, "must be v1="),
    ],
)
def test_header_that_is_not_as_it_must_be_is_told(access: Access, name: str, value: bytes, why: str) -> None:
    with pytest.raises(SignatureInvalid, match=why) as told:
        let_in(access, heads() | {name.encode(): value})
    assert SIGNING not in told.value.detail


@pytest.mark.parametrize("twice", [b"rushgate-key", b"rushgate-time", b"rushgate-signature", b"idempotency-key"])
def test_header_of_a_signature_that_stands_there_twice_is_refused(access: Access, twice: bytes) -> None:
    pairs = list(heads().items())
    scope = {"headers": pairs, "method": "POST", "raw_path": TARGET.encode(), "query_string": b""}
    assert isinstance(access.identify(b"", scope), Claim)
    with pytest.raises(SignatureInvalid, match="more than once"):
        access.identify(b"", scope | {"headers": [*pairs, (twice, b"x")]})


def test_query_is_signed_too(access: Access) -> None:
    pairs = list(heads(target="/v1/orders?limit=2", method="GET").items())
    scope = {"headers": pairs, "method": "GET", "raw_path": b"/v1/orders", "query_string": b"limit=2"}
    assert access.identify(b"", scope).proved(BODY).channel == "server"  # type: ignore[union-attr]
    other = access.identify(b"", scope | {"query_string": b"limit=3"})
    with pytest.raises(SignatureInvalid):
        other.proved(BODY)  # type: ignore[union-attr]


def test_secrets_are_compared_in_constant_time(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def spy(a: Any, b: Any) -> bool:
        seen.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    sent = heads()
    let_in(access, sent)
    assert (sent[b"rushgate-signature"],) == tuple(b for _, b in seen)
    seen.clear()
    assert access.is_admin(bearer("admin-token-000000"))
    assert not access.is_admin(bearer("x"))
    assert len(seen) == 2
    assert all(len(a) == len(b) == 32 for a, b in seen)  # digests: not even a length shows


def test_signing_key_of_another_secret_is_unusable_and_named() -> None:
    access = Access({}, "", (), ("another-secret-00000",))
    access.install(copy())
    assert access.unusable == ["5a738fad8bfc"]
    with pytest.raises(SignatureInvalid, match="no signing key"):
        let_in(access, heads())
    both = Access({}, "", (), ("another-secret-00000", MASTER))  # rotated: the old one still knows its keys
    both.install(copy())
    assert let_in(both, heads()) == "server"


def test_guards_stand_only_where_there_is_something_to_guard(access: Access) -> None:
    assert not access.guards
    access.install(copy({"shop": ["c"]}))
    assert access.guards
    caller = access.caller(bearer(KEY))
    assert caller is not None
    access.check(caller, "c", "b", None)
    with pytest.raises(CampaignNotAllowed):
        access.check(caller, "d", "b", None)
    access.install(copy(blocks=[BlockCopy("buyer", "eve", 0), BlockCopy("ip", "10.0.0.0/8", 0)]))
    assert access.guards
    caller = access.caller(bearer(KEY))
    assert caller is not None
    access.check(caller, "d", "b", "11.0.0.1")
    access.check(caller, "d", "b", "no address")
    for buyer, ip in (("eve", None), ("b", "10.9.9.9"), ("b", "::ffff:10.9.9.9")):
        with pytest.raises(Blocked):
            access.check(caller, "d", buyer, ip)


addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
    st.integers(0x0A000000, 0x0A0000FF).map(ipaddress.IPv4Address),
    st.integers(0x2001 << 112, (0x2001 << 112) + 300).map(ipaddress.IPv6Address),
    st.integers(0, 1 << 32).map(ipaddress.IPv6Address),
)


@pytest.mark.parametrize(
    "address", ["::1.2.3.4", "::102:304", "0::0102:0304", "::1", "::ffff:0:1.2.3.4", "::ffff:1.2.3.4"]
)
def test_blocked_address_is_blocked_in_every_spelling(address: str) -> None:
    """`ipaddress` and the C library do not spell all of IPv6 alike."""
    blocks = BlockList([BlockCopy("ip", canonical("ip", address), 0)])
    assert blocks.has_address(address)
    assert blocks.has_address(canonical("ip", address))


@given(st.lists(st.tuples(addresses, st.integers(1, 128)), max_size=8), addresses)
def test_block_list_agrees_with_the_networks_one_by_one(blocked: list[tuple[Any, int]], asked: Any) -> None:
    """Model: what `ipaddress` says of each block."""
    texts = [canonical("ip", f"{a}/{min(length, a.max_prefixlen)}") for a, length in blocked]
    networks = [ipaddress.ip_network(text) for text in texts]
    wanted = any(asked.version == n.version and asked in n for n in networks)
    found = BlockList(BlockCopy("ip", text, 0) for text in texts)
    assert found.has_address(str(asked)) == wanted
    if asked.version == 6:
        assert found.has_address(asked.exploded.upper()) == wanted  # another spelling is no way around


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("ip", "192.0.2.7/32", "192.0.2.7"), ("ip", "192.0.2.7/24", "192.0.2.0/24"),
        ("ip", "2001:DB8:0:0::1", "2001:db8::1"), ("ip", "::ffff:192.0.2.7", "192.0.2.7"),
        ("ip", "::ffff:192.0.2.0/120", "192.0.2.0/24"), ("buyer", "b/1", "b/1"),
    ],
)  # fmt: skip
def test_blocked_value_has_one_spelling(kind: str, value: str, wanted: str) -> None:
    assert canonical(kind, value) == wanted


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("ip", "0.0.0.0/0"), ("ip", "::/0"), ("ip", "fe80::1%eth0"), ("ip", "1.2.3"), ("ip", "a"), ("ip", ""),
        ("buyer", "a b"), ("buyer", "a\n"), ("buyer", "é"), ("buyer", ""), ("buyer", "x" * 65),
    ],
)  # fmt: skip
def test_blocked_value_that_is_none_is_refused(kind: str, value: str) -> None:
    with pytest.raises(Invalid):
        canonical(kind, value)
