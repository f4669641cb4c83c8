"""orders:batch: many orders in one request, one answer a line, each for itself."""

import json
from typing import Any

import pytest

from tests.e2e.support import WEB_KEY, Client, Reply
from tests.support import fresh


def line(key: str, buyer: str = "", sku: str = "red", quantity: int = 1, **fields: Any) -> bytes:
    body = {"request_key": key, "buyer_id": buyer or f"b-{key}", "items": [{"sku": sku, "quantity": quantity}]}
    return json.dumps(body | fields).encode()


def answers(reply: Reply) -> list[dict[str, Any]]:
    """The lines of a 200."""
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.body.endswith(b"\n")
    return [json.loads(text) for text in reply.body.splitlines()]


def told(found: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(a["request_key"], a["http_status"], a.get("code", a["status"])) for a in found]


def test_batch_answers_in_the_order_of_its_lines(client: Client) -> None:
    campaign = client.sale()
    keys = [f"k{n}" for n in range(300)]
    found = answers(client.batch(campaign, b"\n".join(line(k) for k in keys)))
    assert told(found) == [(k, 202, "accepted") for k in keys]
    assert len({a["order_id"] for a in found}) == 300
    assert {a["replayed"] for a in found} == {False}
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["accepted"]) == (True, 300)
    assert [client.get(a["status_url"]).json["buyer_id"] for a in found[:5]] == [f"b-{k}" for k in keys[:5]]


def test_batch_line_is_answered_as_the_single_order_is(client: Client) -> None:
    campaign = client.sale({"red": 9}, limits={"buyer": 1})
    [made] = answers(client.batch(campaign, line("k", "b")))
    single = client.order(campaign, "b", "k")
    assert single.headers["idempotent-replayed"] == "true"
    assert single.json == {k: v for k, v in made.items() if k in single.json}
    [refused] = answers(client.batch(campaign, line("k2", "b")))
    assert client.order(campaign, "b", "k2").json == {k: v for k, v in refused.items() if k not in (
        "request_key", "http_status",
    )}  # fmt: skip


def test_batch_with_mixed_outcomes_answers_each_line_for_itself(client: Client) -> None:
    campaign = client.sale({"red": 3, "blue": 2}, limits={"buyer": 2})
    client.order(campaign, "old", "old-key")
    body = b"\n".join(
        [
            line("a", "b1"),
            line("old-key", "old"),
            line("old-key", "other"),
            line("c", "b2", quantity=3),
            line("d", "b3", "blue", 2),
            line("e", "b4", "blue"),
            line("f", "b5", "green"),
            line("g", "b6", quantity=0),
            line("h", "b7"),
            line("i", "b8"),
        ]
    )
    found = answers(client.batch(campaign, body))
    assert told(found) == [
        ("a", 202, "accepted"),
        ("old-key", 202, "accepted"),
        ("old-key", 422, "key_reused"),
        ("c", 409, "over_limit"),
        ("d", 202, "accepted"),
        ("e", 409, "sold_out"),
        ("f", 422, "unknown_sku"),
        ("g", 422, "invalid"),
        ("h", 202, "accepted"),
        ("i", 409, "sold_out"),
    ]
    assert [a.get("replayed") for a in found[:2]] == [False, True]
    assert (found[3]["limit"], found[5]["sku"]) == ("buyer", "blue")
    assert (found[6]["field"], found[7]["field"]) == ("items[0].sku", "items[0].quantity")
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["accepted"], audit["unsold"]) == (True, 4, 0)


def test_batch_with_the_same_key_twice_is_one_order(client: Client) -> None:
    campaign = client.sale({"red": 9})
    found = answers(
        client.batch(campaign, b"\n".join([line("k", "b"), line("k", "b"), line("k", "c"), line("k", "b")]))
    )
    assert [a["http_status"] for a in found] == [202, 202, 422, 202]
    assert len({a["order_id"] for a in found if "order_id" in a}) == 1
    assert [a.get("replayed") for a in found] == [False, True, None, True]
    assert client.settled_audit(campaign)["accepted"] == 1


@pytest.mark.parametrize("spread", [1, 3])
def test_batch_wanting_more_than_there_is_sells_each_unit_once(client: Client, spread: int) -> None:
    campaign = client.sale({"red": 7}, spread=spread)
    found = answers(client.batch(campaign, b"\n".join(line(f"k{n}") for n in range(50))))
    assert sorted(a.get("code", a["status"]) for a in found) == ["accepted"] * 7 + ["sold_out"] * 43
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["accepted"], audit["unsold"]) == (True, 7, 0)


def test_batch_keeps_limits_within_itself(client: Client) -> None:
    campaign = client.sale({"red": 99}, limits={"buyer": 2, "ip": 3})
    body = [line(f"k{n}", "b", client_ip="10.0.0.1") for n in range(5)]
    body += [line(f"l{n}", f"b{n}", client_ip="10.0.0.1") for n in range(5)]
    found = answers(client.batch(campaign, b"\n".join(body)))
    assert [a.get("limit", a["status"]) for a in found] == ["accepted"] * 2 + ["buyer"] * 3 + ["accepted"] + ["ip"] * 4
    assert client.settled_audit(campaign)["ok"]


def test_batch_replayed_gives_the_same_ids(client: Client) -> None:
    campaign = client.sale({"red": 150})
    body = b"\n".join(line(f"k{n}") for n in range(200))
    first, again = answers(client.batch(campaign, body)), answers(client.batch(campaign, body))
    accepted = [a for a in first if a["http_status"] == 202]
    assert len(accepted) == 150
    replayed = [a for a in again if a["http_status"] == 202]
    assert [a | {"replayed": True} for a in accepted] == replayed
    assert client.settled_audit(campaign)["accepted"] == 150


def test_batch_of_a_thousand_lines_is_taken_and_of_one_more_refused(client: Client) -> None:
    campaign = client.sale({"red": 5_000})
    lines = [line(f"k{n}") for n in range(1_001)]
    reply = client.batch(campaign, b"\n".join(lines))
    assert (reply.status, reply.code) == (422, "invalid")
    assert "1001" in reply.json["detail"]
    assert client.audit(campaign)["accepted"] == 0
    found = answers(client.batch(campaign, b"\n".join(lines[:1_000])))
    assert told(found) == [(f"k{n}", 202, "accepted") for n in range(1_000)]
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["accepted"]) == (True, 1_000)


def test_batch_ignores_blank_lines_and_line_ends_of_any_kind(client: Client) -> None:
    campaign = client.sale()
    body = b"\n\r\n" + line("a") + b"\r\n\n   \n" + line("b") + b"\n\n"
    assert [a["request_key"] for a in answers(client.batch(campaign, body))] == ["a", "b"]


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n \n"])
def test_batch_without_a_line_is_invalid(client: Client, body: bytes) -> None:
    reply = client.batch(client.sale(), body)
    assert (reply.status, reply.code) == (422, "invalid")
    assert reply.headers["content-type"] == "application/problem+json"


BAD_LINES: dict[str, tuple[bytes, int, str, str]] = {
    "no JSON": (b"nonsense", 400, "malformed", ""),
    "truncated": (line("bad")[:-2], 400, "malformed", ""),
    "a list of 8,000 lists": (b"[" * 8_000, 422, "invalid", ""),
    "too deep behind a bad field": (b'{"buyer_id":1,"x":' + b"[" * 8_000, 422, "invalid", ""),
    "not utf-8 behind a bad field": (b'{"buyer_id":1,"request_key":"\xff"}', 422, "invalid", ""),
    "not utf-8": (b'{"buyer_id":"\xff"}', 400, "malformed", ""),
    "lone surrogate as the key": (b'{"buyer_id":1,"request_key":"\\ud800"}', 422, "invalid", ""),
    "key a number": (b'{"request_key":1}', 422, "invalid", ""),
    "no key": (json.dumps({"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}).encode(), 422, "invalid", ""),
    "key empty": (line(""), 422, "invalid", ""),
    "key of 65": (line("k" * 65), 422, "invalid", "k" * 64),
    "key with a blank": (line("a b"), 422, "invalid", "a b"),
    "key not ASCII": (line("schlüssel"), 422, "invalid", "schlüssel"),
    "key with NUL": (line("a\0b"), 422, "invalid", "a\0b"),
    "quantity zero": (line("bad", quantity=0), 422, "invalid", "bad"),
    "unknown field": (line("bad", price=1), 422, "invalid", "bad"),
    "bad ip": (line("bad", client_ip="300.1.1.1"), 422, "invalid", "bad"),
    "two orders": (line("bad") + line("worse"), 400, "malformed", ""),
    "too long": (line("bad", device_id="d" * 17_000), 413, "too_large", ""),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_batch_with_one_bad_line_takes_the_good_ones(client: Client, name: str) -> None:
    bad, status, code, key = BAD_LINES[name]
    campaign = client.sale({"red": 9})
    found = answers(client.batch(campaign, b"\n".join([line("before"), bad, line("after")])))
    assert told(found) == [("before", 202, "accepted"), (key, status, code), ("after", 202, "accepted")]
    assert client.settled_audit(campaign)["accepted"] == 2


def test_order_over_two_lines_is_none_even_beside_two_on_one_line(client: Client) -> None:
    """As many objects as lines; and no line of its own for three of them."""
    campaign = client.sale({"red": 9})
    torn = json.dumps(json.loads(line("torn")), indent=1).encode().splitlines()
    halves = [b"".join(torn[:2]), b"".join(torn[2:])]
    found = answers(client.batch(campaign, b"\n".join([line("a") + line("b"), *halves, line("c")])))
    assert [a["http_status"] for a in found] == [400, 400, 422, 202]
    assert client.settled_audit(campaign)["accepted"] == 1


def test_batch_of_another_channel_or_none_is_refused(client: Client) -> None:
    campaign = client.sale(channels=["app"])
    assert client.batch(campaign, line("k"), "wrong-key-0000000000").code == "unauthorized"
    assert told(answers(client.batch(campaign, line("k"), WEB_KEY))) == [("k", 403, "channel_not_allowed")]
    assert told(answers(client.batch(campaign, line("k")))) == [("k", 202, "accepted")]


def test_batch_of_a_paused_or_draft_campaign_is_told_so(client: Client) -> None:
    reply = client.batch(client.define(), line("k"))
    assert (reply.status, reply.code) == (409, "not_open")
    campaign = client.sale()
    client.admin("POST", f"{campaign}/pause")
    assert told(answers(client.batch(campaign, line("k")))) == [("k", 409, "paused")]


def test_batch_over_the_body_limit_is_413(client: Client) -> None:
    campaign = client.sale()
    reply = client.batch(campaign, line("k") + b" " * 4_200_000)
    assert (reply.status, reply.code) == (413, "too_large")
    assert client.audit(campaign)["accepted"] == 0


def test_batch_and_single_order_with_one_key_are_one_order(client: Client) -> None:
    campaign, key = client.sale({"red": 5}), fresh("key")
    single = client.order(campaign, "b", key)
    [found] = answers(client.batch(campaign, line(key, "b")))
    assert (found["order_id"], found["replayed"]) == (single.json["order_id"], True)
