"""The table of codes: every error and outcome of ours has its place in it."""

import msgspec
import pytest

import gateway.body
import gateway.catalogue
import gateway.prepare
from core.errors import ConfigInvalid, Fault, Invalid, NotAllowed, SchemaMismatch, StoreUnavailable
from gateway.problems import CODES, OF_OUTCOME, fault, problem, refusal, refusal_body
from lua.reserve import ReserveCode


def faults(kind: type[Fault] = Fault) -> list[type[Fault]]:
    return [k for sub in kind.__subclasses__() for k in [sub, *faults(sub)]]


ANSWERED = [k for k in faults() if k.__module__.startswith(("gateway.", "core.errors")) and k.code != "internal"]


@pytest.mark.parametrize("kind", [k for k in ANSWERED if k not in (ConfigInvalid, SchemaMismatch)])
def test_fault_has_a_code_with_its_status(kind: type[Fault]) -> None:
    assert CODES[kind.code][0] == kind.status
    assert kind.retryable == (kind.status in (429, 503)) or kind.code == "store_not_as_promised"


def test_faults_of_the_gateway_are_among_those_tested() -> None:
    assert {gateway.body.TooLarge, gateway.prepare.SkuUnknown, gateway.catalogue.NotOpen} <= set(ANSWERED)


def test_fault_without_a_code_is_internal() -> None:
    found = fault(SchemaMismatch("x"))
    assert (found.status, found.code) == (500, "internal")


def test_fault_tells_field_of_invalid_only() -> None:
    assert fault(Invalid("why", "items[0].sku")).field == "items[0].sku"
    assert fault(StoreUnavailable("why")).field == ""


@pytest.mark.parametrize("code", [c for c in ReserveCode if c > ReserveCode.REPLAYED and c is not ReserveCode.NO_SKU])
def test_outcome_that_is_no_order_has_a_problem(code: ReserveCode) -> None:
    status, body = refusal_body(code, "red")
    found = msgspec.json.decode(body)
    assert (found["status"], found["code"]) == (status, OF_OUTCOME[code])
    assert status == CODES[OF_OUTCOME[code]][0]


def test_refusal_says_which_sku_or_limit() -> None:
    assert refusal(ReserveCode.SOLD_OUT, "red").sku == "red"
    assert refusal(ReserveCode.OVER_LIMIT, "ip").limit == "ip"


def test_problem_leaves_out_what_is_empty() -> None:
    assert set(msgspec.json.decode(msgspec.json.encode(problem("closed")))) == {"type", "title", "status", "code"}


def test_every_status_is_an_error_and_every_title_a_sentence_without_end() -> None:
    for code, (status, title) in CODES.items():
        assert 400 <= status < 600, code
        assert title[0].isupper(), code
        assert not title.endswith("."), code


@pytest.mark.parametrize("allowed", [[], ["pick"]])
def test_not_allowed_always_tells_what_is(allowed: list[str]) -> None:
    found = msgspec.json.decode(msgspec.json.encode(fault(NotAllowed("paid", "lost", allowed))))
    assert (found["code"], found["allowed"]) == ("not_allowed", allowed)
    assert found["detail"] == "`lost` is not possible for an order that is paid; allowed now: " + (
        "pick" if allowed else "nothing"
    )
