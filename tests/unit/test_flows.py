"""The flows contradict nothing, and no way through them breaks a law of flow_laws.py.

The controls show that the laws see topics added and dropped, and moves that lead astray.
"""

import pytest

from core.flows import FLOWS, REFUND
from core.flows.table import FIRST_TOPIC, MACHINES, ROLES, TOPICS, Actor, Flow, Step
from core.model import FIRST_STATE
from ops.documents import FLOW_PAGE, flow_diagram, flow_page
from tests.unit.flow_laws import trails, violations

ENDS = {"completed", "cancelled", "expired", "refunded"}
OPERATOR: tuple[Actor, ...] = ("operator",)


def changed(flow: Flow, old: Step, new: Step) -> Flow:
    return Flow(flow.order_type, flow.first, flow.ends, [new if s == old else s for s in flow.steps], flow.names)


def refused_or_violated(flow: Flow, steps: list[Step]) -> bool:
    try:
        return bool(violations(Flow(flow.order_type, flow.first, flow.ends, steps, flow.names)))
    except ValueError:
        return True


def moves(flow: Flow) -> list[Step]:
    return [s for s in flow.steps if s.to != s.state]


every_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())


@every_flow
def test_no_trail_breaks_a_law(flow: Flow) -> None:
    found = list(trails(flow))
    assert {t[-1].to for t in found} == ENDS
    assert {s for t in found for s in t} == set(moves(flow)), "each move is on a trail"
    assert violations(flow) == set()


@every_flow
def test_control_every_topic_dropped_is_seen(flow: Flow) -> None:
    for step in moves(flow):
        for topic in set(step.messages) - {"notify", "webhook"}:
            less = tuple(t for t in step.messages if t != topic)
            assert violations(changed(flow, step, step._replace(messages=less))), f"{step} without {topic}"


@every_flow
def test_control_every_topic_added_is_seen(flow: Flow) -> None:
    for step in moves(flow):
        for topic in set(TOPICS) - {*step.messages, "notify", "webhook"}:
            more = (*step.messages, topic)
            assert violations(changed(flow, step, step._replace(messages=more))), f"{step} with {topic}"


@every_flow
def test_control_every_move_that_leads_astray_is_seen(flow: Flow) -> None:
    """Each move, led to each other state, is refused by Flow or breaks a law.

    Tolerated: another order of what follows shipping, which touches neither money nor units.
    """
    for old in moves(flow):
        for to in set(flow.states) - {old.to, old.state}:
            if {old.to, to} <= {"shipped", "received", "returning", "completed"}:
                continue
            steps = [old._replace(to=to) if s == old else s for s in flow.steps]
            assert refused_or_violated(flow, steps), f"{old} led to {to}"


@every_flow
def test_moves_in_place_touch_neither_hold_nor_stock_nor_service(flow: Flow) -> None:
    in_place = [s for s in flow.steps if s.to == s.state]
    assert {t for s in in_place for t in s.messages} <= {"refund", "notify", "warehouse"}
    assert {s.action for s in in_place if "refund" in s.messages} == {"refund", "pay_again"}
    assert {(s.state, s.action) for s in in_place if "warehouse" in s.messages} <= {("paid", "change")}
    assert all(s.guard == {"refund": "refund_fits", "pay_again": "other_payment"}[s.action]
               for s in in_place if "refund" in s.messages)  # fmt: skip


@every_flow
def test_money_is_answered_in_every_state(flow: Flow) -> None:
    for state in flow.states:
        first = state in ("accepted", "cancelled", "expired")
        assert flow.allowed(state, "payment")[:1] == ["pay"] if first else "pay_again" in flow.allowed(state, "payment")


@every_flow
def test_a_refund_once_asked_for_can_be_decided_in_every_later_state(flow: Flow) -> None:
    for step in flow.steps:
        if step.action == "request_refund":
            for later in flow.reachable(step.state) - {"refund_pending", "refunded"}:
                assert {"refund", "reject_refund"} <= set(flow.allowed(later, "operator")), later


@every_flow
def test_ends_are_as_expected_and_tell_the_channel(flow: Flow) -> None:
    assert set(flow.ends) == ENDS
    assert flow.ends[0] == "completed"
    assert {s.state for s in moves(flow)} & ENDS == {"cancelled", "expired"}, "late money alone leaves an end"
    assert {a for s in moves(flow) if s.state in ENDS for a in s.actors} == {"payment"}
    assert all("webhook" in s.messages for s in moves(flow) if s.to in ENDS)
    assert {s.to for s in moves(flow) if "notify" in s.messages} >= ENDS - {"completed"}
    assert flow.first == FIRST_STATE
    assert FIRST_TOPIC not in {t for s in flow.steps for t in s.messages}


def test_only_a_suspended_order_and_a_refund_under_review_wait_for_a_person() -> None:
    waiting = {n: set(f.states) - f.leading_to(f.ends, MACHINES) for n, f in FLOWS.items()}
    assert waiting == {"goods": {"suspended"}, "virtual": set(), "reserve_at_payment": {"suspended"}}
    without_lapse = [s for s in REFUND.steps if s.action != "lapse"]
    review = Flow("refund", REFUND.first, REFUND.ends, without_lapse, REFUND.names)
    assert set(review.states) - review.leading_to(review.ends, MACHINES) == {"requested"}
    assert set(REFUND.states) == {"requested", "approved", "rejected", "done"}


@every_flow
def test_operator_leads_every_order_on_when_a_partner_or_the_store_stays_silent(flow: Flow) -> None:
    """By moves of an operator alone to an end, or to where money alone is due: that the payment centre alone knows."""
    targets = {*flow.ends, "refund_pending"}
    assert flow.leading_to(targets, OPERATOR) == set(flow.states)
    silent = [s._replace(actors=tuple(a for a in s.actors if a != "operator") or ("payment",)) for s in flow.steps]
    control = Flow(flow.order_type, flow.first, flow.ends, silent, flow.names)
    assert control.leading_to(targets, OPERATOR) == targets


@pytest.mark.parametrize("order_type", ["goods", "reserve_at_payment"])
def test_goods_that_left_the_shelf_can_be_lost_and_then_are_not_sold_again(order_type: str) -> None:
    flow = FLOWS[order_type]
    lost = [s for s in flow.steps if s.action == "lost"]
    assert {s.state for s in lost} == {"recalling", "shipped", "returning"}
    assert {s.to for s in lost} == {"refund_pending"}
    assert not any("restock" in s.messages for s in lost)
    for state in ("picking", "received"):  # one move of anybody leads to where they may be lost
        assert {s.state for s in lost} & {s.to for s in flow.steps if s.state == state and "operator" in s.actors}


@pytest.mark.parametrize("flow", [*FLOWS.values(), REFUND], ids=lambda f: f.order_type)
def test_every_state_has_a_name_for_each_role_and_operators_tell_all_states_apart(flow: Flow) -> None:
    for state in flow.states:
        assert len(flow.names[state]) == len(ROLES) == 3
        assert all(flow.name(state, role).strip() == flow.name(state, role) != "" for role in ROLES)
    assert len({flow.name(state, "operator") for state in flow.states}) == len(flow.states)


@pytest.mark.parametrize(
    ("order_type", "state", "actor", "actions"),
    [
        ("goods", "accepted", "buyer", ["cancel", "change"]),
        ("goods", "accepted", "system", ["expire"]),
        ("goods", "paid", "buyer", ["change", "urge", "cancel", "request_refund"]),
        ("goods", "paid", "operator", ["pick", "change", "suspend", "cancel", "refund", "reject_refund"]),
        ("goods", "suspended", "warehouse", []),
        ("goods", "suspended", "operator", ["resume", "cancel", "refund", "reject_refund"]),
        ("goods", "recalling", "warehouse", ["recalled", "ship", "lost"]),
        ("goods", "shipped", "buyer", ["receive", "urge", "return", "request_refund"]),
        ("goods", "received", "system", ["complete"]),
        ("goods", "completed", "buyer", []),
        ("goods", "expired", "operator", []),
        ("virtual", "paid", "buyer", ["urge"]),
        ("virtual", "paid", "billing", ["billed", "bill_failed"]),
        ("virtual", "awaiting_billing", "provisioning", []),
        ("virtual", "unprovisioning", "provisioning", ["unprovisioned"]),
        ("virtual", "completed", "channel", ["request_refund"]),
        ("reserve_at_payment", "allocating", "system", ["allocated", "too_late"]),
        ("reserve_at_payment", "allocating", "operator", ["too_late"]),
        ("reserve_at_payment", "allocating", "buyer", []),
    ],
)
def test_who_may_do_what(order_type: str, state: str, actor: Actor, actions: list[str]) -> None:
    assert FLOWS[order_type].allowed(state, actor) == actions


GO = Step("a", "go", ("system",), "b", "gone")
AB = {"a": ("A", "A", "A"), "b": ("B", "B", "B")}
C = {"c": ("C", "C", "C")}


@pytest.mark.parametrize(
    ("steps", "names", "fault"),
    [
        ([GO, GO._replace(to="a")], AB, "a has two moves for go"),
        ([GO._replace(messages=("telegram",))], AB, "unknown topic telegram"),
        ([GO._replace(messages=("notify", "notify"))], AB, "a topic named twice"),
        ([GO._replace(guard="sun_shines")], AB, "unknown guard sun_shines"),
        ([GO._replace(actors=())], AB, "no actor"),
        ([GO._replace(reason="")], AB, "no reason"),
        ([GO, GO._replace(state="c")], AB | C, "no way leads to \\['c'\\]"),
        ([GO, GO._replace(action="err", to="c")], AB | C, "no end can follow \\['c'\\]"),
        ([GO, GO._replace(action="err", to="c")], AB, "names and states differ: \\['c'\\]"),
        ([GO], AB | C, "names and states differ: \\['c'\\]"),
        ([GO], AB | {"b": ("B", "", "B")}, "b has an empty name"),
        ([GO._replace(to="a")], {"a": AB["a"]}, "ends that are no states: \\['b'\\]"),
    ],
)
def test_contradictions_are_refused(steps: list[Step], names: dict[str, tuple[str, str, str]], fault: str) -> None:
    assert Flow("sound", "a", ("b",), [GO], AB).allowed("a", "system") == ["go"]
    with pytest.raises(ValueError, match=fault):
        Flow("unsound", "a", ("b",), steps, names)


def test_flow_page_is_up_to_date() -> None:
    text = FLOW_PAGE.read_text("utf-8")
    assert text == flow_page(text), "run `make docs`"
    assert all(f"    {s.state} --> {s.to}: {s.action}" in flow_diagram(f) for f in FLOWS.values() for s in moves(f))


def test_flow_page_goes_out_of_date_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = FLOWS["goods"]
    old = flow.steps[0]
    monkeypatch.setitem(FLOWS, "goods", changed(flow, old, old._replace(reason="other")))
    text = FLOW_PAGE.read_text("utf-8")
    assert text != flow_page(text)
