"""How orders are shown over HTTP: pages of many, one once it changes, its moves as they come."""

import http.client
import itertools
import json
import re
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.support import ADMIN, APP_KEY, KEYS, WEB_KEY, Client, Part, Up, bearer, until
from tests.e2e.test_lifecycle import accepted, paid
from tests.e2e.test_lifecycle_orders import SHIP_TO, send


def test_page_shows_a_channel_its_own_orders_and_the_admin_all(stack: Up, client: Client) -> None:
    campaign, other = client.sale({"red": 20}, spread=3), client.sale({"red": 2})
    mine = {client.order(campaign, f"b{n}").json["order_id"] for n in range(7)}
    web = client.order(campaign, "b0", channel_key=WEB_KEY).json["order_id"]
    away = client.order(other, "b0").json["order_id"]
    for found in (*mine, web, away):
        assert send(client, "GET", found, "/trace", key=ADMIN).status == 200

    def pages(query: str, key: str = APP_KEY) -> set[str]:
        seen: list[str] = []
        after = ""
        while True:
            reply = client.get(f"/v1/orders?{query}{after}", key)
            assert reply.status == 200, reply
            seen += [o["order_id"] for o in reply.json["orders"]]
            if reply.json["next"] is None:
                assert len(seen) == len(set(seen))
                return set(seen)
            after = f"&after={reply.json['next']}"

    assert pages(f"campaign={campaign}&limit=3") == mine
    assert pages(f"campaign={campaign}", WEB_KEY) == {web}
    assert pages(f"campaign={campaign}", ADMIN) == mine | {web}
    assert pages(f"campaign={campaign}&channel=web&limit=1", ADMIN) == {web}
    assert pages(f"campaign={campaign}&buyer_id=b0", ADMIN) == {web, *(pages(f"campaign={campaign}&buyer_id=b0"))}
    assert {away} < pages("buyer_id=b0", ADMIN)
    assert pages(f"campaign={campaign}&state=paid") == set()
    assert pages("campaign=no-such") == set()
    one = next(iter(mine))
    paid(stack, one)
    assert pages(f"campaign={campaign}&state=paid") == {one}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=2.5", "limit=x", "after=x", "state=no", "channel=web",
                                   "what=1", "buyer_id=", "campaign=a&campaign=b"])  # fmt: skip
def test_page_with_a_bad_parameter_is_refused_by_its_name(client: Client, query: str) -> None:
    reply = client.get(f"/v1/orders?{query}")
    assert (reply.status, reply.json["field"]) == (422, query.partition("=")[0])
    assert client.get("/v1/orders", "wrong").status == 401


def test_long_poll_answers_at_the_change_or_in_time(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}))
    until(lambda: client.get(f"/v1/orders/{order}/trace").status == 200)
    began_s = time.monotonic()
    assert client.get(f"/v1/orders/{order}?wait=0.3").json["version"] == 1
    assert 0.3 <= time.monotonic() - began_s < 3
    answers: list[tuple[int, float]] = []

    def wait() -> None:
        version = client.get(f"/v1/orders/{order}?wait=20").json["version"]
        answers.append((version, time.monotonic()))

    waiters = [threading.Thread(target=wait) for _ in range(20)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.3)
    moved_s = time.monotonic()
    paid(stack, order)
    for waiter in waiters:
        waiter.join()
    assert [version for version, _ in answers] == [2] * 20
    assert max(at for _, at in answers) - moved_s < 3
    began_s = time.monotonic()
    assert client.get(f"/v1/orders/{order}?wait=20&version=1").json["version"] == 2
    assert time.monotonic() - began_s < 3
    for bad in ("wait=31", "wait=-1", "wait=nan", "wait=x", "version=x", "version=-1", "what=1"):
        reply = client.get(f"/v1/orders/{order}?{bad}")
        assert (reply.status, reply.json["field"]) == (422, bad.partition("=")[0])


def events(client: Client, order: str, last: str = "") -> Generator[dict[str, str], None, None]:
    """The events of a stream, until it ends."""
    connection = http.client.HTTPConnection(client.host, client.port, timeout=30)
    try:
        headers = bearer(APP_KEY) | ({"Last-Event-ID": last} if last else {})
        connection.request("GET", f"/v1/orders/{order}/events", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream; charset=utf-8")
        event: dict[str, str] = {}
        for line in answer:
            name, _, value = line.decode().strip().partition(": ")
            if name:
                event[name] = value
            elif event:
                yield event
                event = {}
    finally:
        connection.close()


def test_stream_tells_each_move_once_and_ends_with_the_order(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}))
    stream = events(client, order)
    assert next(stream) == {"retry": "1000"}
    first = next(stream)
    assert (first["id"], first["event"]) == ("1", "accept")
    paid(stack, order)
    second = next(stream)
    data = json.loads(second["data"])
    assert (second["id"], data["from_state"], data["to_state"], data["reason"]) == ("2", "accepted", "paid", "paid")
    assert send(client, "POST", order, "/cancel").status == 200
    paid(stack, order, payment_no="ref_3", status="refunded")
    assert [e["event"] for e in stream] == ["cancel", "refunded"]
    assert [e.get("id") for e in events(client, order, "2")] == [None, "3", "4"]
    for method, last, status in (("GET", "4", 204), ("HEAD", "4", 204), ("GET", "9", 204), ("GET", "0", 200)):
        over = client.call(method, f"/v1/orders/{order}/events", headers=bearer(APP_KEY) | {"Last-Event-ID": last})
        assert (over.status, over.body == b"") == (status, status == 204), (method, last)
    reply = client.call("GET", f"/v1/orders/{order}/events", headers=bearer(APP_KEY) | {"Last-Event-ID": "x"})
    assert (reply.status, reply.json["field"]) == (422, "Last-Event-ID")


def test_end_that_still_moves_is_told_to_who_asks_again(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}))
    assert send(client, "POST", order, "/cancel").json["version"] == 2
    again = bearer(APP_KEY) | {"Last-Event-ID": "2"}
    assert client.call("GET", f"/v1/orders/{order}/events", headers=again).status == 204
    paid(stack, order)
    stream = events(client, order, "2")
    assert (next(stream), next(stream)["event"]) == ({"retry": "1000"}, "pay")
    paid(stack, order, payment_no="ref_3", status="refunded")
    assert [e["event"] for e in stream] == ["refunded"]


def test_long_poll_of_an_order_at_an_end_is_answered_at_once(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}))
    assert send(client, "POST", order, "/cancel").status == 200
    for query in ("wait=20", "wait=20&version=2", "wait=20&version=1"):
        began_s = time.monotonic()
        assert client.get(f"/v1/orders/{order}?{query}").json["version"] == 2
        assert time.monotonic() - began_s < 3, query


MILLISECONDS = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_times_have_one_form_everywhere(client: Client) -> None:
    campaign = client.sale({"red": 1}, opens_at="2026-01-01T09:00:00+09:00")
    made = client.order(campaign).json
    order = made["order_id"]
    assert send(client, "GET", order, "/trace").status == 200
    [event] = itertools.islice((e for e in events(client, order) if "data" in e), 1)
    shown = client.get(f"/v1/orders/{order}").json
    assert shown["pay_by"] == made["pay_by"]
    defined = client.admin("GET", campaign).json
    assert defined["spec"]["opens_at"] == "2026-01-01T00:00:00.000Z"
    times = [made["pay_by"], shown["accepted_at"], json.loads(event["data"])["at"], client.get("/livez").json["now"]]
    times += [s["at"] for s in send(client, "GET", order, "/trace").json["steps"]]
    times += [client.get(f"/v1/campaigns/{campaign}").json[name] for name in ("now", "opens_at", "closes_at")]
    assert [t for t in times if not MILLISECONDS.fullmatch(t)] == []


def test_address_is_shown_with_the_order_and_left_out_of_lists(client: Client) -> None:
    campaign = client.sale({"red": 2})
    order = str(client.order(campaign, ship_to=SHIP_TO).json["order_id"])
    plain = accepted(client, campaign)
    for found in (order, plain):
        assert send(client, "GET", found, "/trace").status == 200  # the ledger has it
    assert client.get(f"/v1/orders/{order}").json["ship_to"] == SHIP_TO
    assert client.get(f"/v1/orders/{order}", WEB_KEY).status == 404
    assert "ship_to" not in client.get(f"/v1/orders/{plain}").json
    listed = client.get(f"/v1/orders?campaign={campaign}").json["orders"]
    assert {o["order_id"] for o in listed} == {order, plain}
    assert not any("ship_to" in o for o in listed)


def test_stream_that_its_client_left_costs_nothing_more(client: Client) -> None:
    order = accepted(client, client.sale({"red": 1}))
    for _ in range(30):
        stream = events(client, order)
        next(stream)
        stream.close()
    assert client.get("/readyz").status == 200


def test_gateway_that_stops_lets_nobody_wait(stack: Up, tmp_path: Path) -> None:
    env = {
        **KEYS, "RUSHGATE_PORT": "0",
        "RUSHGATE_STORE_URL": stack.ready["store"], "RUSHGATE_LEDGER_DSN": stack.ready["ledger"],
    }  # fmt: skip
    part = Part(tmp_path / "log", ["gateway"], env)
    try:
        client = part.gateway()
        order = accepted(client, stack.client.sale({"red": 1}))
        assert send(client, "GET", order, "/trace").status == 200
        stream = events(client, order)
        next(stream), next(stream)
        polled: list[int] = []
        poll = threading.Thread(target=lambda: polled.append(client.get(f"/v1/orders/{order}?wait=30").status))
        poll.start()
        time.sleep(0.3)
        began_s = time.monotonic()
    finally:
        assert part.end() == 0
    poll.join()
    assert (polled, list(stream)) == ([200], [])
    assert time.monotonic() - began_s < 5
