"""The money of an order on a terminal: where it is, and when each refund was asked for and done."""

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from core.model import OrderLine, OrderView, Refund, RefundShare
from ops.order_display import print_story
from ops.order_story import PaymentSeen, Story

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
PAID = PaymentSeen("pay_1", "paid", 1_000, "CNY", NOON, NOON)


def order() -> OrderView:
    return OrderView(
        order_id="01a200d4-d87a-701e-a98f-5e7f8f7302b4", campaign="c", channel="app", buyer_id="anna", state="shipped",
        items=[OrderLine("red", 2, 500)], amount=1_000, currency="CNY", accepted_at=NOON, pay_by=NOON, version=9,
    )  # fmt: skip


def refund(number: int, state: str, amount: int, done_at: datetime | None = None) -> Refund:
    return Refund(
        refund_no=f"ref_{number}", state=state, amount=amount, currency="CNY", at=NOON, done_at=done_at,
        reason="scratched", lines=[RefundShare("red", 1, amount)],
    )  # fmt: skip


def printed(width: int, refunds: list[Refund], payments: list[PaymentSeen]) -> str:
    story = Story(
        order=order(), order_type="goods", name="Shipped", allowed={}, in_ledger=True, hold="none", refunds=refunds,
        payments=payments,
    )  # fmt: skip
    out = io.StringIO()
    print_story(story, Console(file=out, width=width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    return re.sub(r" +\n", "\n", out.getvalue())


@pytest.mark.parametrize("width", [80, 120])
def test_refunds_have_their_times_and_the_money_adds_up(width: int) -> None:
    done = NOON + timedelta(seconds=90)
    refunds = [refund(3, "done", 400, done), refund(4, "approved", 300), refund(5, "requested", 200)]
    failed = PaymentSeen("pay_0", "failed", 1_000, "CNY", NOON, NOON)
    text = printed(width, [*refunds, refund(6, "rejected", 100)], [failed, PAID])
    assert "  version   9\n" in text
    money = "  money     paid 1,000, refunded 400, on its way 300, left 300\n" + " " * 12 + "200 of that under review\n"
    assert money in text
    for number, amount, state in (
        (3, 400, "done 12:01:30.000"), (4, 300, "approved"), (5, 200, "requested"), (6, 100, "rejected")
    ):  # fmt: skip
        assert re.search(rf"^  12:00:00\.000  ref_{number} +{amount} CNY  {state}\n +1 × red: scratched$", text, re.M)


def test_refund_of_another_day_says_which() -> None:
    text = printed(80, [refund(3, "done", 400, NOON + timedelta(days=1))], [PAID])
    assert re.search(r"^  11-21 12:00:00\.000  ref_3 +400 CNY  done 11-22 12:00:00\.000$", text, re.M), text


def test_order_without_money_has_no_line_about_it() -> None:
    assert "money" not in printed(80, [], [])
