"""What an answer counts as, and which answers contradict each other."""

import pytest

from loadtest.exchange import Answer
from loadtest.outcomes import Outcome, outcome_of
from loadtest.plan import Kind, Planned
from loadtest.truths import EXAMPLES_MAX, Truths


def answer(status: int, body: bytes = b"", replayed: bool = False, failure: str = "", sent: bool = True) -> Answer:
    return Answer(status, failure, body, replayed, None, 1.0 if sent else None, 2.0)


def coded(status: int, code: str) -> Answer:
    return answer(status, b'{"type":"about:blank","status":%d,"code":"%s"}' % (status, code.encode()))


def planned(key: str = "k", kind: Kind = Kind.ORDINARY) -> Planned:
    return Planned(0.0, kind, key, "buyer", b"")


@pytest.mark.parametrize("code", ["sold_out", "over_limit", "not_open", "closed", "paused"])
def test_outcome_conflicts_go_by_their_code(code: str) -> None:
    assert outcome_of(coded(409, code), Kind.ORDINARY) == (Outcome(code), "")


@pytest.mark.parametrize(
    ("found", "kind", "outcome"),
    [
        (coded(422, "invalid"), Kind.MALFORMED, Outcome.INVALID),
        (coded(400, "key_missing"), Kind.MALFORMED, Outcome.INVALID),
        (coded(400, "malformed"), Kind.MALFORMED, Outcome.INVALID),
        (coded(400, "key_invalid"), Kind.MALFORMED, Outcome.INVALID),
        (coded(422, "unknown_sku"), Kind.UNKNOWN_SKU, Outcome.UNKNOWN_SKU),
        (coded(422, "key_reused"), Kind.ORDINARY, Outcome.KEY_REUSED),
        (coded(422, "invalid"), Kind.ORDINARY, Outcome.UNEXPECTED),
        (coded(422, "unknown_sku"), Kind.REPEAT, Outcome.UNEXPECTED),
        (coded(409, "no_such_code"), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(409, b"<html>"), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(500), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(200, b'{"order_id":"1"}'), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(202, b"{}"), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(202, b'{"order_id":""}'), Kind.ORDINARY, Outcome.UNEXPECTED),
        (answer(401), Kind.ORDINARY, Outcome.UNAUTHORIZED),
        (answer(403), Kind.ORDINARY, Outcome.FORBIDDEN),
        (answer(404), Kind.ORDINARY, Outcome.NOT_FOUND),
        (answer(413), Kind.ORDINARY, Outcome.TOO_LARGE),
        (answer(429), Kind.ORDINARY, Outcome.LIMITED),
        (answer(503), Kind.ORDINARY, Outcome.UNAVAILABLE),
        (answer(0, failure="timeout"), Kind.ORDINARY, Outcome.UNKNOWN),
        (answer(0, failure="connect", sent=False), Kind.ORDINARY, Outcome.UNKNOWN),
        (answer(0, failure="stopped", sent=False), Kind.ORDINARY, Outcome.UNSENT),
    ],
)
def test_outcome_of_every_other_answer(found: Answer, kind: Kind, outcome: Outcome) -> None:
    assert outcome_of(found, kind) == (outcome, "")


def test_outcome_of_acceptances_carries_the_order_id() -> None:
    assert outcome_of(answer(202, b'{"order_id":"7"}'), Kind.ORDINARY) == (Outcome.ACCEPTED, "7")
    assert outcome_of(answer(202, b'{"order_id":"7"}', replayed=True), Kind.REPEAT) == (Outcome.REPLAYED, "7")


def test_truths_take_replays_in_any_order_for_consistent() -> None:
    truths = Truths()
    truths.accept(planned("a"), "1", True, 1.0)  # the first click's answer overtaken by the second's
    truths.accept(planned("a"), "1", False, 2.0)
    truths.accept(planned("a"), "1", True, 3.0)
    truths.accept(planned("b"), "2", False, 3.0)
    assert not truths.inconsistent
    assert [(o.key, o.order_id) for o in truths.accepted_orders()] == [("a", "1"), ("b", "2")]


def test_truths_name_two_ids_shared_ids_and_double_acceptance() -> None:
    truths = Truths()
    truths.accept(planned("a"), "1", False, 1.0)
    truths.accept(planned("a"), "2", True, 2.0)
    truths.accept(planned("b"), "1", False, 3.0)
    truths.accept(planned("c"), "3", False, 4.0)
    truths.accept(planned("c"), "3", False, 5.0)
    assert truths.inconsistent == {"two_order_ids": 1, "shared_order_id": 1, "accepted_twice": 1}


def test_truths_judge_a_refusal_only_if_it_was_asked_for_after_the_acceptance() -> None:
    truths = Truths()
    truths.accept(planned("a"), "1", False, answered_s := 10.0)
    truths.refuse(planned("a"), Outcome.SOLD_OUT, answered_s - 1)  # under way together: it may have been first
    truths.refuse(planned("a"), Outcome.UNAVAILABLE, answered_s + 1)  # a fault says nothing
    truths.refuse(planned("b"), Outcome.SOLD_OUT, answered_s + 1)
    assert not truths.inconsistent
    truths.refuse(planned("a"), Outcome.SOLD_OUT, answered_s + 1)
    assert truths.inconsistent == {"refused_after_accepted": 1}


def test_truths_name_wrong_bodies_and_reused_keys() -> None:
    truths = Truths()
    truths.accept(planned("a", Kind.MALFORMED), "1", False, 1.0)
    truths.refuse(planned("b", Kind.REPEAT), Outcome.KEY_REUSED, 1.0)
    assert truths.inconsistent == {"wrong_body_accepted": 1, "key_reused_same_body": 1}


def test_truths_keep_a_bounded_number_of_examples() -> None:
    truths = Truths()
    for n in range(EXAMPLES_MAX * 3):
        truths.refuse(planned(f"k{n}"), Outcome.KEY_REUSED, 1.0)
    assert len(truths.examples) == EXAMPLES_MAX
    assert truths.inconsistent["key_reused_same_body"] == EXAMPLES_MAX * 3
