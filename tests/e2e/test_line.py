"""Waiting rooms over HTTP, on a real stack: from the line to the order, and what is promised on the way."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from core.lot import place
from tests.e2e.conftest import own_gateway
from tests.e2e.line_support import ask, join, opening_in, post, room, room_sale, set_rate, solve, until_state
from tests.e2e.support import APP_KEY, WEB_KEY, Client, Part, Up, bearer, until
from tests.e2e.test_lifecycle import paid
from tests.support import fresh


def test_buyer_goes_from_the_line_to_the_order(both_ways: Client) -> None:
    campaign, buyer = room_sale(both_ways), fresh("b")
    assert both_ways.order(campaign, buyer).code == "ticket_needed"
    joined = join(both_ways, campaign, buyer, device_id="phone")
    assert (joined["place"], joined["buyer_id"]) == (1, buyer)
    view = until_state(both_ways, campaign, joined["line"], "admitted")
    assert view["admitted"] is True
    reply = both_ways.order(campaign, buyer, "k", view["ticket"], device_id="phone")
    assert reply.status == 202
    assert both_ways.order(campaign, "another", "", view["ticket"], device_id="phone").code == "ticket_wrong"
    assert both_ways.get(reply.json["status_url"], view["ticket"]).json["channel"] == "app"


def test_joining_twice_is_the_same_place_on_every_gateway(pair: tuple[Client, Client]) -> None:
    campaign = room_sale(pair[0], room={"rate": 0})
    buyers = [fresh("b") for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: join(pair[n % 2], campaign, buyers[n % 40])["place"], range(160)))
    places = {buyer: told[n] for n, buyer in enumerate(buyers)}
    assert [places[buyers[n % 40]] for n in range(160)] == told
    assert sorted(places.values()) == list(range(1, 41))


def test_place_of_a_stranger_another_campaign_or_none_is_unauthorized(client: Client) -> None:
    campaign, other = room_sale(client), room_sale(client)
    mine = join(client, campaign, "b")["line"]
    assert client.get(f"/v1/campaigns/{campaign}/line", mine).status == 200
    for line in (mine[:-2] + ("AA" if not mine.endswith("AA") else "BB"), "rgp1.e30.x", APP_KEY, "rgp1." + "A" * 2_000):
        assert client.get(f"/v1/campaigns/{campaign}/line", line).code == "unauthorized"
    assert client.get(f"/v1/campaigns/{other}/line", mine).code == "unauthorized"
    assert client.order(campaign, "b", "", mine).code == "unauthorized"  # a place is no ticket


@pytest.mark.parametrize(
    ("body", "key", "code"),
    [
        ({"buyer_id": "b"}, "a-wrong-key-0000000", "unauthorized"),
        ({"buyer_id": "b"}, "", "unauthorized"),
        ({"buyer_id": "b"}, WEB_KEY, "channel_not_allowed"),
        ({"buyer_id": "b b"}, APP_KEY, "invalid"),
        ({"guest_key": "g" * 20}, APP_KEY, "invalid"),
        ({}, APP_KEY, "invalid"),
        ({"buyer_id": "b", "more": 1}, APP_KEY, "invalid"),
        ({"buyer_id": "b", "captcha": "x" * 9_000}, APP_KEY, "too_large"),
    ],
)
def test_joining_is_refused(client: Client, body: dict[str, Any], key: str, code: str) -> None:
    campaign = room_sale(client, channels=["app"])
    assert post(client, campaign, "/line", body, key).code == code


def test_line_of_a_campaign_without_a_room_or_closed_or_unknown(client: Client) -> None:
    plain, closed = client.sale({"red": 1}), room_sale(client)
    assert client.admin("POST", f"{closed}/close").status == 200
    for campaign, code in ((plain, "conflict"), (closed, "closed"), ("no-such", "unknown_campaign")):
        assert post(client, campaign, "/line", {"buyer_id": "b"}, APP_KEY).code == code
    assert client.call("DELETE", f"/v1/campaigns/{plain}/line").status == 405
    assert client.admin("GET", f"{plain}/room").code == "conflict"


def test_those_who_came_before_the_opening_are_drawn_by_lot_and_later_ones_come_behind(client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0}, **opening_in(4.0))
    early = [join(client, campaign, f"b{n}") for n in range(12)]
    assert {(view["state"], view["place"], view["ticket"]) for view in early} == {("before", None, None)}
    assert room(client, campaign)["seed"] == ""
    assert [join(client, campaign, f"b{n}")["line"] for n in range(12)] == [view["line"] for view in early]
    views = [until_state(client, campaign, view["line"], "waiting") for view in early]
    drawn = room(client, campaign)
    assert (drawn["drawn"], len(drawn["seed"])) == (12, 32)
    # Anybody who knows the seed can check the draw.
    assert [view["place"] for view in views] == [place(drawn["seed"], 12, n) for n in range(1, 13)]
    assert join(client, campaign, "late")["place"] == 13
    set_rate(client, campaign, mode="fixed", rate=1_000)
    until_state(client, campaign, early[0]["line"], "admitted")


def test_admission_keeps_to_the_rate_and_stops_and_goes_on(client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0})
    lines = [join(client, campaign, f"b{n}")["line"] for n in range(40)]
    assert ask(client, campaign, lines[0])["state"] == "waiting"
    assert ask(client, campaign, lines[0])["estimate_s"] is None  # nobody is admitted
    set_rate(client, campaign, mode="fixed", rate=10)
    begin_s = time.monotonic()
    view = until_state(client, campaign, lines[19], "admitted")
    assert view["place"] == 20
    assert time.monotonic() - begin_s > (20 - 1 - 10) / 10  # at most a second's worth was there at once
    waiting = ask(client, campaign, lines[39])
    assert (waiting["state"], waiting["place"]) == ("waiting", 40)
    assert 0 < waiting["ahead"] <= 22  # another gateway may have seen the twentieth come in a look earlier
    assert 0 < waiting["estimate_s"] < 30
    assert waiting["poll_after_ms"] >= 750
    stopped = set_rate(client, campaign, mode="fixed", rate=0)
    assert room(client, campaign)["admitted"] - stopped["admitted"] <= 1


def test_estimate_is_of_the_rate_that_a_line_has_and_not_of_the_quiet_before_it(
    pair: tuple[Client, Client],
) -> None:
    client = pair[0]  # one gateway, and what it has measured it tells
    campaign = room_sale(client, room={"rate": 10})
    first = join(client, campaign, "b0")["line"]
    until_state(client, campaign, first, "admitted")
    quiet_s = time.monotonic() + 3.0
    until(lambda: ask(client, campaign, first)["admitted"] and time.monotonic() > quiet_s, every_s=0.2)
    lines = [join(client, campaign, f"b{n}")["line"] for n in range(1, 61)]
    started_s = time.monotonic()
    until(lambda: ask(client, campaign, lines[0])["admitted"])
    found = []
    while time.monotonic() < started_s + 1.0:
        view = ask(client, campaign, lines[-1])
        found.append(view["estimate_s"] * 10 / (view["ahead"] + 1))
    assert min(found) > 0.5
    assert max(found) < 2.0  # times what it will take
    set_rate(client, campaign, mode="fixed", rate=0)
    until(lambda: ask(client, campaign, lines[-1])["estimate_s"] is None, timeout_s=2.0)


def test_question_that_waits_is_answered_when_the_place_is_admitted(client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0})
    line = join(client, campaign, "b")["line"]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, campaign, line, 20)
        set_rate(client, campaign, mode="fixed", rate=100)
        assert asked.result(10)["state"] == "admitted"
    began_s = time.monotonic()
    other = room_sale(client, room={"rate": 0})
    assert ask(client, other, join(client, other, "b")["line"], 0.3)["state"] == "waiting"
    assert time.monotonic() - began_s >= 0.3
    assert client.get(f"/v1/campaigns/{other}/line?wait=26", line).code == "invalid"


def test_nobody_is_told_gone_while_a_unit_may_come_back(stack: Up, pair: tuple[Client, Client]) -> None:
    client = pair[0]  # one gateway, and what it has seen it knows
    campaign = room_sale(client, {"red": 1})
    first = join(client, campaign, "first")
    ticket = until_state(client, campaign, first["line"], "admitted")["ticket"]
    order = client.order(campaign, "first", "k", ticket).json["order_id"]
    until(lambda: ask(client, campaign, first["line"])["may_return"] == 1)
    # The only unit is held, and not paid: who comes now waits, and is not sent to an empty shop.
    second = join(client, campaign, "second")
    for _ in range(8):
        view = ask(client, campaign, second["line"], 0.2)
        assert (view["state"], view["may_return"], view["estimate_s"]) == ("waiting", 1, None)
    until(lambda: client.call("POST", f"/v1/orders/{order}/cancel", b"", bearer(APP_KEY)).status == 200)
    view = until_state(client, campaign, second["line"], "admitted")
    until(lambda: client.order(campaign, "second", "k2", view["ticket"]).status == 202)
    third = join(client, campaign, "third")
    assert ask(client, campaign, third["line"])["state"] == "waiting"
    held = client.order(campaign, "second", "k2", view["ticket"]).json["order_id"]
    until(lambda: paid(stack, held).status == 200)
    gone = until_state(client, campaign, third["line"], "gone")
    assert (gone["may_return"], gone["ticket"]) == (0, None)
    assert gone["poll_after_ms"] > 20_000
    # A restock makes it untrue, and the place still counts.
    restock = {"id": "r", "sku": "red", "units": 1}
    assert client.admin("POST", f"{campaign}/restock", restock).status == 200
    until_state(client, campaign, third["line"], "admitted")


def test_places_survive_the_restart_of_a_gateway(stack: Up, tmp_path: Path, client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0})
    part = Part(tmp_path / "one", ["gateway"], own_gateway(stack))
    try:
        one = part.gateway()
        lines = [join(one, campaign, f"b{n}")["line"] for n in range(5)]
    finally:
        part.end()
    part = Part(tmp_path / "two", ["gateway"], own_gateway(stack))
    try:
        two = part.gateway()
        assert [ask(two, campaign, line)["place"] for line in lines] == [1, 2, 3, 4, 5]
        assert join(two, campaign, "b3")["place"] == 4
        assert join(two, campaign, "new")["place"] == 6
    finally:
        part.end()


def test_places_survive_the_loss_of_the_room_in_the_store(stack: Up, client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0})
    lines = [join(client, campaign, f"b{n}")["line"] for n in range(5)]
    set_rate(client, campaign, mode="fixed", rate=1_000)
    until_state(client, campaign, lines[4], "admitted")
    set_rate(client, campaign, mode="fixed", rate=0)
    waits = join(client, campaign, "waits")
    with Redis.from_url(stack.ready["store"]) as store:
        [key] = store.keys(f"*:c:{campaign}:room")
        # A turn of a gateway has written the ledger since: its counters are ahead of all that was given out.
        noted = store.hget(key, "turn_ms")
        until(lambda: ask(client, campaign, waits["line"]) and store.hget(key, "turn_ms") != noted)
        turn = store.hget(key, "turn_ms")
        until(lambda: ask(client, campaign, waits["line"]) and store.hget(key, "turn_ms") != turn)
        store.delete(key, key.replace(b":room", b":line"))
    # Nobody has two places, nobody is admitted who was not, nobody's ticket is taken away.
    assert until_state(client, campaign, lines[4], "admitted")["place"] == 5
    new = int(until(lambda: _join_if(client, campaign, "new")))
    assert new > 6
    assert ask(client, campaign, waits["line"])["place"] == 6
    set_rate(client, campaign, mode="fixed", rate=100_000)
    until_state(client, campaign, waits["line"], "admitted")


def _join_if(client: Client, campaign: str, buyer: str) -> int | None:
    reply = post(client, campaign, "/line", {"buyer_id": buyer}, APP_KEY)
    assert reply.status in (200, 503)
    return int(reply.json["place"]) if reply.status == 200 else None


def test_guest_joins_with_a_proof_of_work(client: Client) -> None:
    campaign = room_sale(client, room={"rate": 1_000, "channel": "web", "pow_bits": 10})
    key = fresh("guest-key-00000000")
    asked = post(client, campaign, "/line/challenge", {"guest_key": key}).json
    assert (asked["bits"], asked["captcha"]) == (10, False)
    proof = {"guest_key": key, "challenge": asked["challenge"], "solution": solve(asked["challenge"], 10)}
    joined = post(client, campaign, "/line", proof)
    assert (joined.status, joined.json["buyer_id"]) == (200, asked["buyer_id"])
    assert post(client, campaign, "/line", proof).json["line"] == joined.json["line"]
    view = until_state(client, campaign, joined.json["line"], "admitted")
    reply = client.order(campaign, asked["buyer_id"], "", view["ticket"])
    assert reply.status == 202
    assert client.get(reply.json["status_url"], WEB_KEY).json["channel"] == "web"
    # Not without work, not with somebody else's, and not with too little of it.
    assert post(client, campaign, "/line", {"guest_key": key}).code == "proof_needed"
    assert post(client, campaign, "/line", proof | {"guest_key": "another-key-000000"}).code == "proof_wrong"
    wrong = next(str(n) for n in range(1_000) if str(n) != proof["solution"] and not _solves(asked["challenge"], n))
    assert post(client, campaign, "/line", proof | {"solution": wrong}).code == "proof_wrong"
    other = room_sale(client, room={"rate": 1, "channel": "web", "pow_bits": 10})
    assert post(client, other, "/line", proof).code == "proof_wrong"
    assert post(client, campaign, "/line", proof | {"challenge": "rgw1.e30.e30"}).code == "proof_wrong"


def _solves(challenge: str, n: int) -> bool:
    return int.from_bytes(hashlib.sha256(f"{challenge}.{n}".encode()).digest(), "big") >> 246 == 0


def test_operator_looks_at_the_room_and_sets_its_rate(stack: Up, client: Client) -> None:
    campaign = room_sale(client, room={"rate": 0})
    join(client, campaign, "b")
    shown = stack.command("room", campaign, "--rate", "50")
    assert "50 a second (fixed); joined 1" in shown.stdout, shown.stderr
    assert room(client, campaign)["rate"] == 50
    assert set_rate(client, campaign, mode="auto")["mode"] == "auto"
    plain = stack.command("room", client.sale({"red": 1}))
    assert (plain.returncode, "has no waiting room" in plain.stderr) == (1, True)
