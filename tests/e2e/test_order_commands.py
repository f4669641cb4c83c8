"""`rushgate order …` as an operator types it, on a running stack."""

import asyncio
import contextlib
import io
import json
import os
import re
import signal
from typing import Any

import msgspec
import pytest

from core.errors import Fault, Invalid
from core.model import OrderView
from ops.commands import parser
from ops.desk import command_place
from ops.order_commands import run
from tests.e2e.support import ADMIN, Client, Up, until
from tests.e2e.test_lifecycle import accepted, paid
from tests.e2e.test_lifecycle_orders import NOBODY, SHIP_TO, report, send


@pytest.fixture
def order(stack: Up, client: Client) -> str:
    """A paid order of two reds and a blue, with a discount."""
    campaign = client.sale({"red": 9, "blue": 9}, discounts=[{"min_amount": 300, "off": 31}])
    items = [{"sku": "red", "quantity": 2}, {"sku": "blue", "quantity": 1}]
    found = str(client.order(campaign, items=items, ship_to=SHIP_TO, client_ip="10.0.0.1").json["order_id"])
    assert paid(stack, found, amount=269).status == 200
    return found


def typed(stack: Up, *words: str) -> str:
    """What the command prints; in this process, as a new one takes a second to start. Raises its Fault."""
    settings = command_place({"RUSHGATE_DATA_DIR": str(stack.data)}).settings
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert asyncio.run(run(settings, parser().parse_args(["order", *words]))) == 0
    return out.getvalue()


def refused(stack: Up, *words: str) -> str:
    with pytest.raises(Fault) as caught:
        typed(stack, *words)
    field = caught.value.field if isinstance(caught.value, Invalid) else ""
    return f"{field}: {caught.value}".removeprefix(": ")


def shown(stack: Up, order: str) -> dict[str, Any]:
    return dict(json.loads(typed(stack, "show", order, "--json")))


def test_operator_moves_an_order_and_is_told_where_it_is(stack: Up, client: Client, order: str) -> None:
    assert typed(stack, "suspend", order) == f"order {order}: suspended, version 3 (Suspended by an operator)\n"
    assert refused(stack, "do", order, "pick") == (
        "`pick` is not possible for an order that is suspended; allowed now: resume, cancel, refund, reject_refund"
    )
    assert refused(stack, "suspend", order).startswith("`suspend` is not possible for an order that is suspended; ")
    assert typed(stack, "resume", order).startswith(f"order {order}: paid, version 4 ")
    for step, state in (("pick", "picking"), ("ship", "shipped"), ("receive", "received"), ("return", "returning")):
        assert typed(stack, "do", order, step).startswith(f"order {order}: {state}, version ")
    assert refused(stack, "do", order, "refund").startswith("refund needs an amount or lines: ")
    assert typed(stack, "do", order, "goods_back").startswith(f"order {order}: refund_pending, ")
    story = shown(stack, order)
    assert {s["actor"] for s in story["steps"] if s["kind"] == "move"} >= {"operator"}
    assert [(r["refund_no"], r["amount"]) for r in story["refunds"]] == [("ref_9", 269)]


def test_operator_cancels_an_unpaid_order(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 3}))
    until(lambda: shown(stack, order)["in_ledger"])
    typed(stack, "cancel", order)
    assert refused(stack, "cancel", order) == (
        "`cancel` is not possible for an order that is cancelled; allowed now: nothing"
    )
    until(lambda: shown(stack, order)["hold"] == "none")


def test_operator_refunds_units_and_amounts(stack: Up, order: str) -> None:
    assert typed(stack, "refund", order, "--line", "red=1", "--reason", "scratched").splitlines() == [
        "refund ref_3 of 90 CNY in minor units: approved (scratched)",
        f"order {order}: paid, version 3 (Paid, waits for the warehouse)",
        "the order goes on all the same: `rushgate order cancel` would stop it",
    ]
    assert "asked for before" in typed(stack, "refund", order, "--line", "red=1", "--reason", "scratched")
    assert refused(stack, "refund", order, "--line", "red=2") == "lines: 1 of red can still be paid back"
    assert typed(stack, "refund", order, "--amount", "9").startswith("refund ref_4 of 9 CNY")
    too_much = "amount: 170 (minor units of CNY) can still be paid back"
    assert refused(stack, "refund", order, "--amount", "171") == too_much
    assert typed(stack, "refund", order).startswith("refund ref_5 of 170 CNY")
    assert refused(stack, "refund", order, "--amount", "0").startswith("--amount: ")
    for wrong in ("red", "red=", "red=x", "red=-1", "red=" + "9" * 11):
        assert refused(stack, "refund", order, "--line", wrong).startswith("--line: ")
    assert refused(stack, "refund", order, "--line", "red=0").startswith("--line: ")


def test_story_tells_everything_at_any_width(
    stack: Up, client: Client, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(client, "POST", order, "/refunds", {"amount": 5, "reason": "[red]late"}).status == 200
    typed(stack, "refund", order, "--line", "blue=1")
    until(lambda: any(s["what"] == "settle" for s in shown(stack, order)["steps"]))
    for width in ("80", "120", "140"):
        monkeypatch.setenv("COLUMNS", width)
        text = typed(stack, "show", order)
        assert all(len(line) <= int(width) for line in text.splitlines())
        for said in (
            f"Order {order}", "paid: Paid, waits for the warehouse", "type      goods", "version   4", "10.0.0.1",
            "269 CNY", "31 off", "Anna, +86 1, Nanjing Road 1", "hold      none", "warehouse: pick", "buyer, channel: ",
            "accepted → paid", "stays paid", "channel:app", "refund_requested", "· settle", "[red]late", "req_3",
            "ref_4", "1 × blue", "Waiting in the outbox",
        ):  # fmt: skip
            assert said in text, (width, said, text)
        assert not re.search(r"\n\n", text)
        assert re.search(r"money +paid 269, refunded 0, on its way 90, left 179 *\n +5 of that under review", text), (
            text
        )
        refunds = r"^  \d\d:\d\d:\d\d\.\d{3}  re[qf]_\d +\d+ CNY  (?:requested|approved)"
        assert len(re.findall(refunds, text, re.M)) == 2, text
        assert f"payment:{shown(stack, order)['payments'][0]['payment_no']}" in text  # not wrapped
    story = shown(stack, order)
    told = (story["order"], client.get(f"/v1/orders/{order}").json)
    here, over_http = (msgspec.convert(view, OrderView, strict=False) for view in told)
    assert here == over_http
    assert [s["what"] for s in story["steps"] if s["kind"] == "move"] == ["accept", "pay", "request_refund", "refund"]
    assert (story["order_type"], story["seq"], story["payments"][0]["amount"]) == ("goods", 1, 269)
    assert {"topic": "refund", "version": 4, "attempts": 0}.items() <= next(
        m for m in story["waiting"] if m["topic"] == "refund"
    ).items()


def test_order_on_its_way_to_the_ledger_is_shown_from_the_store(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 3}, discounts=[{"min_amount": 100, "off": 1}])
    workers = stack.children("ledger")
    assert workers
    signal_all(workers, signal.SIGSTOP)
    try:
        order = accepted(client, campaign)
        text, story = typed(stack, "show", order), shown(stack, order)
        assert "in the store, on its way to the ledger" in text
        assert "hold      1 × red" in text
        assert (story["in_ledger"], story["allowed"], story["order"]["discount"]) == (False, {}, 1)
        assert refused(stack, "cancel", order) == f"order {order} is in the store, on its way to the ledger"
    finally:
        signal_all(workers, signal.SIGCONT)
    until(lambda: shown(stack, order)["in_ledger"])


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.parametrize("words", [["show"], ["cancel"], ["refund"], ["do", "pick"]])
def test_unknown_order_is_said_so(stack: Up, words: list[str]) -> None:
    wanted = f"no order {NOBODY}: neither ledger nor store has it"
    assert refused(stack, words[0], NOBODY, *words[1:]) == wanted
    assert refused(stack, words[0], "nonsense", *words[1:]).startswith("ID: 'nonsense' is no order id")


def test_command_line_ends_with_its_status(stack: Up, order: str) -> None:
    done = stack.command("order", "do", order, "pick")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"order {order}: picking, version 3 (Picking)\n", "")
    done = stack.command("order", "refund", order, "--amount", "270")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "rushgate: amount: 269 (minor units of CNY) can still be paid back\n"


def test_command_and_http_tell_the_same(stack: Up, client: Client) -> None:
    order = accepted(client, client.sale({"red": 3}))
    paid(stack, order)
    assert report(client, "warehouse", order, "pick").status == 200
    over_http = send(client, "POST", order, "/actions/pick", key=ADMIN).json
    assert refused(stack, "do", order, "pick") == over_http["detail"]
    assert shown(stack, order)["allowed"]["operator"] == over_http["allowed"]
