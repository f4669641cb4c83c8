"""Rates as operators write them, what callers are told of them, and which of several holds."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
from redis.crc import key_slot

from core.errors import ConfigInvalid
from core.rates import Rate, Rates, parse_rate, parse_rates
from core.settings import Settings
from gateway.catalogue import Sale
from gateway.intake import Intake
from gateway.rate_policy import Policy
from gateway.rates import Limiter
from lua.connection import StoreConnection
from lua.keys import rate_keys
from lua.rate import Verdict
from tests.support import SHARDS, StoreSale, spec
from tests.support import fresh as fresh_name


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("5/s", Rate(5, 1, 5)), ("5/s:10", Rate(5, 1, 10)), ("30/m:1", Rate(30, 60, 1)), ("1/h", Rate(1, 3_600, 1)),
        ("off", None),
    ],
)  # fmt: skip
def test_rate_is_read(text: str, rate: Rate | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "5", "0/s", "5/d", "5/s:0", "5/s:", "-1/s", "5/s ", "5.5/s", "1/h:2", "1000000/s"]
)
def test_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate such as|burst again"):
        parse_rate(text)


def test_rates_of_the_deployment_are_read_by_kind() -> None:
    assert parse_rates("") == Rates()
    assert parse_rates("buyer=5/s:10, channel=2000/s:4000") == Rates(buyer=Rate(5, 1, 10), channel=Rate(2000, 1, 4000))
    assert parse_rates("buyer=off") == Rates()


@pytest.mark.parametrize("text", ["5/s", "seller=5/s", "buyer=5/s,buyer=6/s", "buyer:5/s", "buyer=x"])
def test_setting_with_bad_rates_stops_the_process_and_names_itself(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="RUSHGATE_RATES"):
        Settings.from_env({"RUSHGATE_RATES": text})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("buyer=5/s:10", '"buyer";q=10;w=2'), ("buyer=20/s:10", '"buyer";q=20;w=1'), ("ip=1/m", '"ip";q=1;w=60'),
        ("device=3/s:4", '"device";q=6;w=2'), ("channel=2000/s:4000", '"channel";q=4000;w=2'),
        ("channel=9/s,buyer=1/s", '"buyer";q=1;w=1, "channel";q=9;w=1'),
    ],
)  # fmt: skip
def test_policy_is_told_as_a_quota_and_its_window(text: str, policy: str) -> None:
    """The quota is never below the burst, so that what remains is never more than it; the rate is the one in force."""
    found = Policy(parse_rates(text))
    assert found.standing(Verdict(0, 1, 0, 1)).policy.decode() == policy


def test_refusal_says_when_to_come_again_in_whole_seconds() -> None:
    policy = Policy(parse_rates("buyer=5/s:10"))
    for ms, seconds in ((1, 1), (200, 1), (1_000, 1), (1_001, 2)):
        exc = policy.refusal(Verdict(1, 1, 0, ms))
        assert (exc.retry_after_s, exc.limit, exc.status) == (seconds, "buyer", 429)
        assert exc.headers[0] == (b"ratelimit", b'"buyer";r=0;t=%d' % seconds)


class Own:
    """Channels and their own rates."""

    def __init__(self, rates: Mapping[str, Mapping[str, str]]) -> None:
        self.of = rates
        self.rated = any(rates.values())

    def rates(self, channel: str) -> Mapping[str, str]:
        return self.of.get(channel, NONE)


NONE: Mapping[str, str] = {}


def limiter(deployment: str, own: Own | None = None) -> Limiter:
    nothing: Any = None  # no request comes
    return Limiter(
        cast(StoreConnection, nothing), cast(Intake, nothing), own or Own({}), parse_rates(deployment), bound=10
    )


def sale(**rates: str) -> Sale:
    return Sale("sale", 1, 1, spec(rates=rates), SHARDS)


def test_channels_own_rate_holds_before_the_campaigns_and_that_before_the_deployments() -> None:
    own = Own({"app": {"channel": "7/s", "buyer": "3/s"}})
    found = limiter("buyer=1/s,ip=1/s,device=1/s,channel=1/s", own)
    campaign = sale(buyer="2/s", ip="2/s", device="off")
    assert found.policy(campaign, "web").kinds == ["buyer", "ip", "channel"]
    assert [rate.requests for rate in found.policy(campaign, "web").rates] == [2, 2, 1]
    assert [rate.requests for rate in found.policy(campaign, "app").rates] == [3, 2, 7]


def test_policy_is_made_once_and_again_when_the_channels_rates_change() -> None:
    own = Own({"app": {"channel": "7/s"}})
    found, campaign = limiter("", own), sale()
    policy = found.policy(campaign, "app")
    assert found.policy(campaign, "app") is policy
    own.of = {"app": {"channel": "8/s"}}
    assert [rate.requests for rate in found.policy(campaign, "app").rates] == [8]


@pytest.mark.parametrize(
    ("deployment", "campaign", "own", "concerned"),
    [("", {}, {}, False), ("ip=1/s", {}, {}, True), ("", {"ip": "1/s"}, {}, True),
     ("", {}, {"app": {"buyer": "1/s"}}, True), ("buyer=off", {}, {"app": {}}, False)],
)  # fmt: skip
def test_requests_pass_by_where_there_are_no_limits(
    deployment: str, campaign: dict[str, str], own: dict[str, dict[str, str]], concerned: bool
) -> None:
    assert limiter(deployment, Own(own)).concerns(sale(**campaign)) is concerned


def test_all_keys_of_a_call_share_one_slot() -> None:
    """Otherwise a cluster would refuse the script."""
    assert len({key_slot(key) for name in ("a", "summer-2026", "x" * 64) for key in rate_keys(name)}) == 1


def test_names_of_a_request_are_of_unlike_kinds() -> None:
    ask = StoreSale(fresh_name("c"), cast(Any, None), 1).ask("x", ip="x", device="x")
    names = Policy(parse_rates("buyer=1/s,ip=1/s,device=1/s,channel=1/s")).names("x", ask)
    assert names == ["b:x", "i:x", "d:x", "c:x"]


def test_joining_a_line_counts_under_names_of_its_own() -> None:
    policy = Policy(parse_rates("buyer=1/s,ip=1/s,device=1/s,channel=1/s"))
    assert policy.line_names("x", "2001:db8::1", "x") == ["lb:x", "li:2001:db8::", "ld:x", ""]
    assert policy.line_names("x", "", "") == ["lb:x", "", "", ""]
