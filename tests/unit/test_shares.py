"""Units that go back: priced so that all of them together are worth exactly what was paid, whatever came between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.desk.shares import amount_shares, unit_shares
from core.errors import Conflicting
from core.model import Item, OrderLine, RefundShare


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[OrderLine], int]:
    """Lines and what was paid for them: their price, or less."""
    count = draw(st.integers(1, 4))
    prices = st.integers(0, 1_000)
    lines = [OrderLine(f"sku-{n}", draw(st.integers(1, 7)), draw(prices)) for n in range(count)]
    return lines, draw(st.integers(0, sum(line.quantity * line.price for line in lines)))


@given(orders(), st.data())
def test_units_paid_back_in_any_groups_and_order_add_up_to_what_was_paid(
    order: tuple[list[OrderLine], int], data: st.DataObject
) -> None:
    lines, paid = order
    units = data.draw(st.permutations([line.sku for line in lines for _ in range(line.quantity)]))
    taken: list[RefundShare] = []
    while units:
        count = data.draw(st.integers(1, len(units)))
        shares = unit_shares(lines, paid, [Item(sku, 1) for sku in units[:count]], taken)
        assert sum(s.quantity for s in shares) == count
        assert all(s.amount >= 0 for s in shares)
        if not data.draw(st.booleans(), "rejected"):  # otherwise it may be asked for again
            taken += shares
            units = units[count:]
        assert sum(s.amount for s in taken) <= paid
    assert sum(s.amount for s in taken) == paid
    for line in lines:
        with pytest.raises(Conflicting, match=rf"^0 of {line.sku} can"):
            unit_shares(lines, paid, [Item(line.sku, 1)], taken)


@given(orders(), st.data())
def test_a_unit_costs_its_share_to_the_last_minor_unit(order: tuple[list[OrderLine], int], data: st.DataObject) -> None:
    lines, paid = order
    whole = sum(line.quantity * line.price for line in lines)
    line = data.draw(st.sampled_from(lines))
    [share] = unit_shares(lines, paid, [Item(line.sku, 1)], [])
    exact = paid * line.price / whole if whole else 0
    assert abs(share.amount - exact) < 2  # rounded once for the line, once for the unit


def test_units_of_a_discounted_order_by_hand() -> None:
    lines = [OrderLine("case", 1, 100), OrderLine("phone", 2, 100)]
    assert unit_shares(lines, 269, [Item("phone", 2)], []) == [RefundShare("phone", 2, 179)]
    one = unit_shares(lines, 269, [Item("phone", 1)], [])
    assert one == [RefundShare("phone", 1, 90)]
    assert unit_shares(lines, 269, [Item("phone", 1), Item("case", 1)], one) == [
        RefundShare("phone", 1, 89), RefundShare("case", 1, 90),
    ]  # fmt: skip
    with pytest.raises(Conflicting, match=r"^1 of phone can"):
        unit_shares(lines, 269, [Item("phone", 2)], one)
    with pytest.raises(Conflicting, match=r"^0 of blue can"):
        unit_shares(lines, 269, [Item("blue", 1)], [])


@given(orders(), st.data())
def test_shares_of_an_amount_add_up_and_take_no_units(order: tuple[list[OrderLine], int], data: st.DataObject) -> None:
    lines, paid = order
    amount = data.draw(st.integers(0, paid))
    shares = amount_shares(lines, paid, amount)
    assert sum(s.amount for s in shares) == amount
    assert all(s.quantity == 0 < s.amount for s in shares)
    assert unit_shares(lines, paid, [Item(lines[0].sku, 1)], shares) == unit_shares(
        lines, paid, [Item(lines[0].sku, 1)], []
    )
