"""What units of an order cost: its amount shared out over its lines and their units, to the last minor unit.

With a discount less is paid for a line than its price. However its units are paid back, one by one or together, in
whatever order, and whatever is rejected in between: all of them together are worth exactly what was paid for the line.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from core.errors import Conflicting
from core.model import Item, OrderLine, RefundShare


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts as `weights` have it, to the last minor unit: the parts add up to exactly `total`.

    Each part is its exact share rounded down or up; what is left over goes to the largest remainders, of equal ones to
    the first. A weight of 0 gets 0. Raises ValueError for anything negative, or if there is nobody to share among.
    """
    whole = sum(weights)
    if total < 0 or any(w < 0 for w in weights):
        raise ValueError("neither the total nor a weight may be negative")
    if whole == 0:
        if total:
            raise ValueError("there is something to share, and nobody to share it among")
        return [0] * len(weights)
    parts = [total * w // whole for w in weights]
    first = sorted(range(len(weights)), key=lambda n: (-(total * weights[n] % whole), n))
    for n in first[: total - sum(parts)]:
        parts[n] += 1
    return parts


def amount_shares(lines: Sequence[OrderLine], paid: int, amount: int) -> list[RefundShare]:
    """What falls on each line of an amount that goes back for no units in particular; lines without a part left out."""
    if not paid:
        return []
    by_line = _paid_by_sku(lines, paid)
    parts = share_out(amount, list(by_line.values()))
    return [RefundShare(sku, 0, part) for sku, part in zip(by_line, parts, strict=True) if part]


def unit_shares(
    lines: Sequence[OrderLine], paid: int, wanted: Iterable[Item], taken: Iterable[RefundShare]
) -> list[RefundShare]:
    """What `wanted` units cost, a share per SKU.

    Args:
        lines: of the order.
        paid: what the order costs in all, in minor units.
        wanted: units by SKU; two of one SKU are one with the sum.
        taken: of refunds that are under review, on their way or done: their units cannot go back again.

    Raises: Conflicting (`lines`) if a line has fewer units left.
    """
    units: Counter[str] = Counter()
    for line in lines:
        units[line.sku] += line.quantity
    worth = Counter(_paid_by_sku(lines, paid))
    for share in taken:
        if share.quantity:
            units[share.sku] -= share.quantity
            worth[share.sku] -= share.amount
    shares = []
    for sku, quantity in sum_by_sku(wanted).items():
        if quantity > units[sku]:
            raise Conflicting(f"{units[sku]} of {sku} can still be paid back", "lines")
        # Out of what is left for the units that are left: so it comes out even whatever was taken or rejected before.
        shares.append(RefundShare(sku, quantity, sum(share_out(worth[sku], [1] * units[sku])[:quantity])))
    return shares


def sum_by_sku(items: Iterable[Item | RefundShare]) -> dict[str, int]:
    """Units by SKU."""
    found: Counter[str] = Counter()
    for item in items:
        found[item.sku] += item.quantity
    return dict(found)


def _paid_by_sku(lines: Sequence[OrderLine], paid: int) -> dict[str, int]:
    worth: Counter[str] = Counter()
    for line in lines:
        worth[line.sku] += line.quantity * line.price
    return dict(zip(worth, share_out(paid, list(worth.values())), strict=True))
