"""What an answer is called, and which answers no server may give."""

import json
from typing import Any

import pytest

from loadtest.locust_answers import Told, line_told, move_told, order_told, read_told, view_told

ACCEPTED = {
    "order_id": "o1", "status": "accepted", "status_url": "/v1/orders/o1", "pay_by": "2026-01-01T00:00:00Z",
    "durability": "fsync",
}  # fmt: skip


def problem(status: int, code: str, **more: Any) -> bytes:
    return json.dumps({"type": f"/problems/{code}", "title": "t", "status": status, "code": code, **more}).encode()


def told(status: int, code: str, headers: dict[str, str] | None = None, **more: Any) -> Told:
    return order_told(status, headers or {}, problem(status, code, **more))


def test_accepted_order_and_its_replay_have_names_of_their_own() -> None:
    body = json.dumps(ACCEPTED).encode()
    assert order_told(202, {}, body) == Told("order: accepted", "ok", 202, order_id="o1")
    again = order_told(202, {"idempotent-replayed": "true"}, body)
    assert (again.name, again.replayed, again.failure) == ("order: replayed", True, "")


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (409, "sold_out", "order: sold out"),
        (409, "over_limit", "order: over limit"),
        (409, "not_open", "order: not open"),
        (409, "closed", "order: closed"),
        (409, "paused", "order: paused"),
        (422, "key_reused", "order: key reused"),
        (429, "rate_limited", "order: rate limited"),
        (403, "blocked", "order: blocked"),
    ],
)
def test_expected_refusal_is_an_outcome_and_no_failure(status: int, code: str, name: str) -> None:
    found = told(status, code)
    assert (found.name, found.result, found.failure) == (name, "fail", "")


def test_overload_with_retry_after_is_an_outcome_and_nobody_knows_the_order() -> None:
    found = told(503, "overloaded", {"retry-after": "2"})
    assert (found.name, found.result, found.failure) == ("order: overloaded (503)", "unknown", "")
    assert found.retry_after_s == 2


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (0, {}, b""),
        (500, {}, problem(500, "internal")),
        (502, {"retry-after": "1"}, b"<html>"),
        (503, {}, problem(503, "overloaded")),
        (503, {"retry-after": "soon"}, problem(503, "overloaded")),
        (503, {"retry-after": "1"}, b"no JSON"),
        (202, {}, b"{}"),
        (202, {}, json.dumps(ACCEPTED | {"order_id": ""}).encode()),
        (202, {}, json.dumps(ACCEPTED | {"status": "perhaps"}).encode()),
        (409, {}, b""),
        (409, {}, problem(410, "sold_out")),
        (409, {}, problem(409, "never_heard_of")),
        (422, {}, problem(422, "sold_out")),
        (422, {}, problem(422, "invalid")),
        (401, {}, problem(401, "unauthorized")),
        (404, {}, problem(404, "unknown_campaign")),
        (200, {}, b"{}"),
    ],
)
def test_what_no_client_should_see_is_a_failure(status: int, headers: dict[str, str], body: bytes) -> None:
    assert order_told(status, headers, body).failure


def test_fault_is_never_a_definite_no() -> None:
    for status in (0, 500, 502, 503):
        assert order_told(status, {}, problem(status, "internal")).result == "unknown"


def test_wrong_order_must_be_refused() -> None:
    refused = order_told(422, {}, problem(422, "unknown_sku"), wrong=True)
    assert (refused.name, refused.failure) == ("order: no order, refused", "")
    assert order_told(202, {}, json.dumps(ACCEPTED).encode(), wrong=True).failure


def test_line_belongs_to_its_key() -> None:
    line = {"request_key": "k1", "http_status": 202, "replayed": False, **ACCEPTED}
    found = line_told(json.dumps(line).encode(), "k1")
    assert (found.name, found.order_id, found.failure) == ("line: accepted", "o1", "")
    assert line_told(json.dumps(line | {"replayed": True}).encode(), "k1").replayed
    assert line_told(json.dumps(line).encode(), "k2").failure
    refused = {"request_key": "k1", "http_status": 409, **json.loads(problem(409, "sold_out", sku="red"))}
    gone = line_told(json.dumps(refused).encode(), "k1")
    assert (gone.name, gone.sku, gone.failure) == ("line: sold out", "red", "")
    assert line_told(b"{", "k1").failure
    assert line_told(json.dumps(refused | {"http_status": 500}).encode(), "k1").failure


def test_order_is_there_from_its_202_on() -> None:
    view = {"order_id": "o1", "channel": "app", "state": "accepted", "version": 1, "amount": 5, "currency": "CNY"}
    found, seen = view_told(200, {}, json.dumps(view).encode(), "o1")
    assert (found.failure, seen and seen.version) == ("", 1)
    assert view_told(200, {}, json.dumps(view).encode(), "o2")[0].failure
    assert view_told(404, {}, problem(404, "unknown_order"), "o1")[0].failure
    assert not view_told(503, {"retry-after": "1"}, problem(503, "ledger_unavailable"), "o1")[0].failure


def test_move_that_the_flow_has_not_is_an_outcome() -> None:
    assert move_told("cancel", 200, {}, b"{}").result == "ok"
    assert move_told("cancel", 409, {}, problem(409, "not_allowed")).failure == ""
    assert move_told("pay", 503, {"retry-after": "1"}, problem(503, "on_its_way")).result == "unknown"
    assert move_told("pay", 401, {}, problem(401, "signature_invalid")).failure
    assert read_told("countdown", 404, {}, problem(404, "unknown_campaign")).failure
    assert not read_told("countdown", 429, {}, problem(429, "rate_limited")).failure
