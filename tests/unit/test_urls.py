"""URLs of settings: what is wrong with one is told without any of its secrets."""

import pytest

from core.errors import ConfigInvalid
from core.settings import Settings
from core.urls import check_url

SECRET = "QzSentinel9x7Kp2LmN4vB"
SETTINGS = {
    "RUSHGATE_STORE_URL": "redis", "RUSHGATE_LEDGER_DSN": "postgresql", "RUSHGATE_PARTNERS_URL": "http",
    "RUSHGATE_CAPTCHA_URL": "https", "RUSHGATE_PUBLIC_URL": "https",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "rest",
    [
        f"user:{SECRET}/x@host:1/0",
        f"user:{SECRET}#x@host:1/0",
        f"user:{SECRET}?x@host:1/0",
        f"user:12/{SECRET}@host:1/0",
        f"user:{SECRET}@host:port/0",
        f"user:{SECRET}@host:99999/0",
        f"user:{SECRET}@[::1/0",
        f"user:{SECRET}[@host/0",
        f"user:x@{SECRET}@host/0",
        f"user:{SECRET}@ho st/0",
    ],
)
def test_wrong_url_is_told_without_its_password(setting: str, rest: str) -> None:
    with pytest.raises(ConfigInvalid) as told:
        Settings.from_env({setting: f"{SETTINGS[setting]}://{rest}"})
    said = f"{told.value} {told.value.__cause__!r} {getattr(told.value.__cause__, '__cause__', '')!r}"
    assert setting in said
    assert SECRET not in said


@pytest.mark.parametrize("setting", SETTINGS)
def test_url_of_another_kind_is_told_without_its_password(setting: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"{setting}: must begin with [a-z:/, ]+\Z"):
        Settings.from_env({setting: f"ftp://user:{SECRET}@host/"})


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://:p%2Fw%23@host",
        "redis://user:a:c@[::1]:6379/0?socket_timeout=1",
        "redis://user:100%@host_1.example./0",
        "redis:///0",
    ],
)
def test_right_url_is_taken(url: str) -> None:
    check_url(url, "redis")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres@/rushgate?host=%2Frun%2Fx&port=5432",
        "postgresql:///rushgate?host=/run/postgresql",
        "postgresql://a:b@one:5432,two:5432/rushgate?sslmode=verify-full&sslrootcert=/etc/ca.pem",
    ],
)
def test_right_dsn_is_taken(url: str) -> None:
    assert Settings.from_env({"RUSHGATE_LEDGER_DSN": url}).ledger_dsn == url


@pytest.mark.parametrize(
    "url",
    [
        "rediss://user:pw@store.example:6379/0?ssl_ca_certs=/etc/rushgate/ca.pem&socket_timeout=1",
        "redis://host?db=1&client_name=x&protocol=3",
        "unix:///run/valkey.sock?db=2",
    ],
)
def test_right_store_url_with_parameters_is_taken(url: str) -> None:
    assert Settings.from_env({"RUSHGATE_STORE_URL": url}).store_url == url


@pytest.mark.parametrize("query", ["sslrootcert=/etc/ca.pem", "db=one", "socket_timeout=soon", "ssl_ca_certs=/ca.pem"])
def test_store_url_with_a_parameter_that_nobody_knows_is_told(query: str) -> None:
    """Unjudged, the first connection would end in a TypeError. Those of TLS are known to rediss alone."""
    with pytest.raises(ConfigInvalid, match=r"RUSHGATE_STORE_URL: has a parameter .* that is unknown") as told:
        Settings.from_env({"RUSHGATE_STORE_URL": f"redis://user:{SECRET}@host/0?{query}"})
    assert query not in str(told.value)
