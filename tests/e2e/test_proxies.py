"""Whose address an order with a ticket has: that of the connection, unless a proxy of ours says otherwise."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.conftest import own_gateway
from tests.e2e.support import ADMIN, Client, Part, Reply, Up, bearer, until
from tests.e2e.test_tickets import ticket
from tests.support import fresh


class Gateways(NamedTuple):
    """On one store and ledger: one that stands behind a proxy on this machine, and one that stands alone."""

    behind: Client
    alone: Client


@pytest.fixture(scope="module", params=["on", "off"], ids=["short way", "long way"])
def gateways(request: pytest.FixtureRequest, stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    logs = tmp_path_factory.mktemp("proxies")
    env = own_gateway(stack) | {"RUSHGATE_SHORT_WAY": request.param}
    parts = [
        Part(logs / "behind.log", ["gateway"], env | {"RUSHGATE_TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8"}),
        Part(logs / "alone.log", ["gateway"], env),
    ]
    try:
        yield Gateways(parts[0].gateway(), parts[1].gateway())
    finally:
        for part in parts:
            part.end()


def ordered(client: Client, campaign: str, **headers: str) -> Reply:
    """An order of a new buyer with a ticket; its gateway knows the campaign, so that the short way is asked first."""
    buyer = fresh("b")
    assert client.get(f"/v1/campaigns/{campaign}").status == 200
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    # What a browser says of itself counts for nothing.
    body = {"buyer_id": buyer, "items": [{"sku": "red", "quantity": 1}], "client_ip": "203.0.113.250"}
    sent = bearer(ticket(client, campaign, buyer)) | {"Idempotency-Key": fresh("k")} | named
    return client.call("POST", f"/v1/campaigns/{campaign}/orders", json.dumps(body).encode(), sent)


def test_stranger_s_word_on_its_address_counts_for_nothing(gateways: Gateways) -> None:
    campaign = gateways.alone.sale({"red": 9}, limits={"ip": 1})
    assert ordered(gateways.alone, campaign, x_forwarded_for="198.51.100.1").status == 202
    refused = ordered(gateways.alone, campaign, x_forwarded_for="198.51.100.2")
    assert (refused.code, refused.json["limit"]) == ("over_limit", "ip")


def test_proxy_of_ours_is_believed_and_what_stands_before_its_word_is_not(gateways: Gateways) -> None:
    campaign = gateways.behind.sale({"red": 9}, limits={"ip": 1})
    assert ordered(gateways.behind, campaign, x_forwarded_for="198.51.100.1").status == 202
    assert ordered(gateways.behind, campaign, x_forwarded_for="198.51.100.2").status == 202
    for forged in ("198.51.100.3, 198.51.100.1", "198.51.100.4, 198.51.100.1, 10.0.0.7", "::ffff:198.51.100.1"):
        assert ordered(gateways.behind, campaign, x_forwarded_for=forged).code == "over_limit", forged


@pytest.mark.parametrize("name", ["forwarded", "x_real_ip", "true_client_ip", "client_ip"])
def test_other_headers_are_never_believed(gateways: Gateways, name: str) -> None:
    campaign = gateways.behind.sale({"red": 9}, limits={"ip": 1})
    assert ordered(gateways.behind, campaign, **{name: "for=198.51.100.1"}).status == 202
    assert ordered(gateways.behind, campaign, **{name: "for=198.51.100.2"}).code == "over_limit"


def test_rate_and_block_of_an_address_hold_for_the_one_behind_the_proxy(gateways: Gateways) -> None:
    campaign = gateways.behind.sale({"red": 9}, rates={"ip": "2/h"})
    host = f"198.51.{100 + int(gateways.behind.url[-1])}.77"
    assert [ordered(gateways.behind, campaign, x_forwarded_for=host).status for _ in range(3)] == [202, 202, 429]
    assert ordered(gateways.behind, campaign, x_forwarded_for="198.51.99.1").status == 202
    network = host.rpartition(".")[0] + ".0/25"
    put = b'{"kind":"ip","value":"%s"}' % network.encode()
    assert gateways.behind.call("POST", "/v1/admin/blocks", put, bearer(ADMIN)).status == 200
    try:
        until(lambda: ordered(gateways.behind, campaign, x_forwarded_for=host).code == "blocked")
        assert ordered(gateways.behind, campaign, x_forwarded_for=f"::ffff:{host}").code == "blocked"
        assert ordered(gateways.behind, campaign, x_forwarded_for="198.51.99.1").status == 202
    finally:
        gateways.behind.call("DELETE", f"/v1/admin/blocks?kind=ip&value={network}", None, bearer(ADMIN))


def test_order_with_a_channel_s_key_has_the_address_that_the_channel_says(gateways: Gateways) -> None:
    campaign = gateways.behind.sale({"red": 9}, limits={"ip": 1})
    assert gateways.behind.order(campaign, client_ip="192.0.2.1").status == 202
    assert gateways.behind.order(campaign, client_ip="192.0.2.2").status == 202
    assert gateways.behind.order(campaign, client_ip="::ffff:192.0.2.1").code == "over_limit"
