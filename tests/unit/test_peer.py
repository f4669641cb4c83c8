"""Which address a client has, whatever it says itself."""

import pytest

from core.errors import ConfigInvalid
from core.settings import Settings
from gateway.peer import Peers, network_of

PROXIES = ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", b"", "203.0.113.5"),
        ("203.0.113.5", b"198.51.100.1", "203.0.113.5"),  # a stranger's own word
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"1.1.1.1, 198.51.100.1", "198.51.100.1"),  # what came before it is the client's word
        ("10.0.0.1", b"198.51.100.1, 10.9.9.9, 192.0.2.7", "198.51.100.1"),
        ("10.0.0.1", b"10.0.0.2, 10.0.0.3", "10.0.0.2"),  # all of them ours: the first one began
        ("10.0.0.1", b"198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", b"[2001:db9::1]:4711", "2001:db9::1"),
        ("10.0.0.1", b"2001:DB9::0001", "2001:db9::1"),
        ("2001:db8::5", b"198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", b"198.51.100.1", "198.51.100.1"),  # a socket for both families
        ("10.0.0.1", b"198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.1, 10.0.0.4, <script>", "10.0.0.1"),
        ("10.0.0.1", b",,,", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("unix", b"198.51.100.1", "unix"),
        ("fe80::1%eth0", b"", "fe80::1"),
    ],
)
def test_last_stranger_is_the_client(peer: str, forwarded: bytes, client: str) -> None:
    assert Peers(PROXIES).of(peer, forwarded) == client


def test_nobody_is_believed_unless_named() -> None:
    assert Peers(()).of("127.0.0.1", b"198.51.100.1") == "127.0.0.1"


def test_line_without_end_is_read_to_a_bound() -> None:
    line = b",".join([b"198.51.100.1"] + [b"10.0.0.1"] * 100_000)
    assert Peers(PROXIES).of("10.0.0.1", line) == "10.0.0.1"


def test_setting_names_what_is_no_network() -> None:
    with pytest.raises(ConfigInvalid, match=r"RUSHGATE_TRUSTED_PROXIES.*'proxy1' is no address and no network"):
        Settings.from_env({"RUSHGATE_TRUSTED_PROXIES": "10.0.0.0/8,proxy1"})


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8::1", "2001:db8::"), ("2001:db8:0:0:ffff::1", "2001:db8::"),
     ("2001:db8:0:1::1", "2001:db8:0:1::"), ("::ffff:10.0.0.1", "10.0.0.1"), ("::ffff:a00:2", "10.0.0.2"),
     ("fe80::1%eth0", "fe80::"), ("", ""), ("a:b", "a:b")],
)  # fmt: skip
def test_address_counts_by_itself_and_ipv6_by_its_network(address: str, name: str) -> None:
    assert network_of(address) == name
